# SPDX-License-Identifier: Apache-2.0
"""Checks that a received graph may be given to ONNX Runtime: it only computes layers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from splitee.errors import ModelError

# What torch's exporter produces for torchvision's classifiers, the quantizer's two operators, and activations
# and normalisations of other networks. All of them are arithmetic on their inputs. None reads a file, keeps a
# state, draws random numbers, branches or loops: no network needs that to predict.
OPERATORS = frozenset(
    """
    Abs Add And ArgMax AveragePool BatchNormalization Cast Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos DepthToSpace DequantizeLinear Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
    GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization LayerNormalization LeakyRelu Less
    LessOrEqual Log LogSoftmax LpNormalization MatMul Max MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pad
    Pow QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Size Slice
    Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Where
    """.split()  # noqa: SIM905 - as a list it would have a line for each
)
DOMAINS = ("", "ai.onnx")  # two names of the standard's own operators
OPSETS = range(17, 26)
IR_VERSIONS = range(8, 14)
MAX_NODES = 20_000
MAX_TENSORS = 20_000
MAX_EDGES = 4096  # inputs, outputs or attributes of one node
MAX_RANK = 8
_TENSORS = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
    TensorProto.BOOL,
}
_ATTRIBUTES = {
    AttributeProto.FLOAT,
    AttributeProto.INT,
    AttributeProto.STRING,
    AttributeProto.TENSOR,
    AttributeProto.FLOATS,
    AttributeProto.INTS,
    AttributeProto.STRINGS,
}


def parse_checked(data: bytes, name: str) -> ModelProto:
    """Parses a graph that has only standard operators from OPERATORS, on tensors that it contains itself.

    It needs as much memory again as `data`.

    Raises ModelError, with the first thing that is not allowed.
    """
    try:
        model = onnx.load_from_string(data)
    except DecodeError:
        raise ModelError(f"{name}: expected an ONNX graph") from None
    violation = next(_violations(model, len(data)), None)
    if violation is not None:
        raise ModelError(f"{name}: {violation}, which no exported network has")
    return model


def _violations(model: ModelProto, size: int) -> Iterator[str]:
    """What is not allowed, in words."""
    graph = model.graph
    if model.ir_version not in IR_VERSIONS:
        yield f"it is of ONNX IR version {model.ir_version}"
    for opset in model.opset_import:
        if opset.domain in DOMAINS and opset.version not in OPSETS:
            yield f"it is of opset {opset.version}"
    if model.functions:
        yield "it defines functions of its own"
    if model.training_info or graph.sparse_initializer:
        yield "it has training information or sparse tensors"
    if len(graph.node) > MAX_NODES or len(graph.initializer) > MAX_TENSORS:
        yield f"it has {len(graph.node)} nodes and {len(graph.initializer)} tensors"
    for tensor in graph.initializer:
        yield from _tensor_violations(tensor, size)
    yield from _interface_violations(graph)
    for node in graph.node:
        yield from _node_violations(node, size)


def _interface_violations(graph: GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.output):
        if not value.type.HasField("tensor_type"):
            yield f"its {value.name!r} is no tensor"


def _node_violations(node: NodeProto, size: int) -> Iterator[str]:
    if node.domain not in DOMAINS:
        yield f"it needs the operator {node.op_type!r} of {node.domain!r}"
    elif node.op_type not in OPERATORS:
        yield f"it needs the operator {node.op_type!r}"
    if max(len(node.input), len(node.output), len(node.attribute)) > MAX_EDGES:
        yield f"an operator {node.op_type!r} has more than {MAX_EDGES} inputs, outputs or attributes"
    for attribute in node.attribute:
        if attribute.type not in _ATTRIBUTES or attribute.ref_attr_name:
            kind = AttributeProto.AttributeType.Name(attribute.type)
            yield f"its operator {node.op_type!r} has an attribute {attribute.name!r} of type {kind}"
        if attribute.HasField("g") or attribute.graphs:
            yield f"its operator {node.op_type!r} has a graph within"
        if attribute.HasField("t"):
            yield from _tensor_violations(attribute.t, size)
        if attribute.tensors or attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
            yield f"its operator {node.op_type!r} has several or sparse tensors"


def _tensor_violations(tensor: TensorProto, size: int) -> Iterator[str]:
    if tensor.data_location != TensorProto.DEFAULT or tensor.external_data:
        yield f"its tensor {tensor.name!r} is in another file"
    if tensor.data_type not in _TENSORS:
        yield f"its tensor {tensor.name!r} is of data type {tensor.data_type}"
    if tensor.HasField("segment"):
        yield f"its tensor {tensor.name!r} comes in segments"
    dims = tensor.dims
    # Each element takes a byte or more of the file.
    if len(dims) > MAX_RANK or any(dim < 0 for dim in dims) or math.prod(dims) > size:
        yield f"its tensor {tensor.name!r} is of the shape {list(dims[: MAX_RANK + 1])}"
