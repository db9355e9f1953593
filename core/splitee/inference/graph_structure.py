# SPDX-License-Identifier: Apache-2.0
"""The digest of those parts of a graph that do not change when its network is trained further.

These are all but the values of weights: operators with their attributes, their connections, shapes and types
of tensors, and the values of integer tensors (shapes, axes, indices). The digest of a value depends on its
operator and on the digests of the operator's inputs. It does not depend on names, on the order of operators,
or on whether equal tensors are stored once: an exporter merges weights that happen to be equal.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import msgspec
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.helper import get_attribute_value
from onnx.numpy_helper import to_array

from splitee.inference.structure import Structure

QUANTIZERS = frozenset(("QuantizeLinear", "DequantizeLinear"))
REMOVABLE = frozenset(
    ("Relu", "Clip")
)  # a quantizer drops them if the range of the next operator has the same effect
BIASED = frozenset(("Conv", "ConvTranspose", "Gemm"))  # an exporter drops their third input if it is zero
_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE))


def structure_of(model: ModelProto) -> Structure:
    """The structure of a graph that `parse_checked` has passed. Raises ValueError: the graph is not sound."""
    return Structure(
        exact=_digest_of_graph(model, without=frozenset()),
        layers=_digest_of_graph(model, without=QUANTIZERS | REMOVABLE),
        is_int8=any(node.op_type in QUANTIZERS for node in model.graph.node),
    )


def _digest_of_graph(model: ModelProto, without: frozenset[str]) -> str:
    """`without`: operators that are treated as if they passed on their first input."""
    graph = model.graph
    weights = _weights(graph)
    digests = {name: _digest(["weight", shape]) for name, shape in weights.items()}
    kinds_of_weights = frozenset(digests.values())
    digests |= {
        tensor.name: _digest(_constant(tensor)) for tensor in graph.initializer if tensor.name not in weights
    }
    for index, value in enumerate(graph.input):
        digests.setdefault(value.name, _digest(["input", index, *_value(value)]))
    digests[""] = "none"  # an optional input that is left out
    for node in graph.node:
        inputs = _look_up(digests, node.input)
        if node.op_type in without or (node.op_type == "DequantizeLinear" and node.input[0] in weights):
            digests[node.output[0]] = inputs[0]
        else:
            if node.op_type in BIASED and inputs[2:] and inputs[2] in kinds_of_weights:
                del inputs[2:]
            described = [node.op_type, _attributes(node), inputs, len(node.output)]
            digests |= {name: _digest([*described, place]) for place, name in enumerate(node.output)}
    outputs = [[*_value(value), *_look_up(digests, [value.name])] for value in graph.output]
    return _digest([[opset.version for opset in model.opset_import if not opset.domain], outputs])


def _weights(graph: GraphProto) -> dict[str, list[int]]:
    """The shapes of the tensors whose values training changes: floats, and what quantizers made of floats."""
    users = defaultdict(set)
    for node in graph.node:
        for name in node.input:
            users[name].add(node.op_type)
    return {
        tensor.name: list(tensor.dims)
        for tensor in graph.initializer
        if tensor.data_type in _FLOATS or users[tensor.name] <= QUANTIZERS
    }


def _constant(tensor: TensorProto) -> list[Any]:
    values = hashlib.sha256(to_array(tensor).tobytes()).hexdigest()
    return ["constant", tensor.data_type, list(tensor.dims), values]


def _attributes(node: NodeProto) -> list[Any]:
    """The attributes of an operator, in the order of their names."""
    found = []
    for attribute in sorted(node.attribute, key=lambda attribute: attribute.name):
        value = get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            is_weight = value.data_type in _FLOATS
            value = ["weight", list(value.dims)] if is_weight else _constant(value)
        elif not isinstance(value, int | float | bytes):
            value = list(value)
        found.append([attribute.name, attribute.type, value])
    return found


def _value(value: ValueInfoProto) -> list[Any]:
    """Name, type and shape of an input or output; None: a free dimension."""
    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    return [value.name, kind.elem_type, dims]


def _look_up(digests: dict[str, str], names: Any) -> list[str]:
    try:
        return [digests[name] for name in names]
    except KeyError as error:
        raise ValueError(f"nothing gives the value {error} before it is needed") from None


def _digest(described: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(described)).hexdigest()
