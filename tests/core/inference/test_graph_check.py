# SPDX-License-Identifier: Apache-2.0
"""The elements that a released graph may have, each that no exporter makes, and a graph's structure."""

from __future__ import annotations

from collections.abc import Callable

import graphs
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from splitee.errors import ModelError
from splitee.inference.graph_check import parse_checked
from splitee.inference.graph_structure import structure_of


def external_tensor(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def external_tensor_within_a_node(model: ModelProto) -> None:
    tensor = TensorProto(name="secret", data_type=TensorProto.UINT8, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["secret"], value=tensor))


def branch(model: ModelProto) -> None:
    one = helper.make_graph(
        [helper.make_node("Identity", ["logits"], ["x"])],
        "then",
        [],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
    )
    model.graph.node.append(helper.make_node("If", ["sure"], ["y"], then_branch=one, else_branch=one))


def graph_in_a_harmless_operator(model: ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))


def function(model: ModelProto) -> None:
    opsets = [helper.make_opsetid("", 20)]
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("own", "Mine", ["a"], ["b"], [node], opsets))


def operator(op_type: str, domain: str = "") -> Callable[[ModelProto], None]:
    def add(model: ModelProto) -> None:
        model.graph.node.append(helper.make_node(op_type, ["logits"], ["more"], domain=domain))

    return add


def shape_larger_than_the_file(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]


def negative_shape(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-1, -4]


def string_tensor(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], ["x"]))


def sparse_tensor(model: ModelProto) -> None:
    model.graph.sparse_initializer.add()


def old_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 7


def newer_format(model: ModelProto) -> None:
    model.ir_version = 99


def too_many_nodes(model: ModelProto) -> None:
    node = helper.make_node("Relu", ["logits"], ["more"])
    model.graph.node.extend([node] * 20_001)


def sequence_input(model: ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("pictures", TensorProto.FLOAT, None))


FORBIDDEN = {
    external_tensor: "tensor 'w' is in another file",
    external_tensor_within_a_node: "tensor 'secret' is in another file",
    branch: "operator 'If'",
    graph_in_a_harmless_operator: "attribute 'body' of type GRAPH",
    function: "functions of its own",
    operator("Loop"): "operator 'Loop'",
    operator("Scan"): "operator 'Scan'",
    operator("RandomNormalLike"): "operator 'RandomNormalLike'",
    operator("Relu", "com.microsoft"): "operator 'Relu' of 'com.microsoft'",
    shape_larger_than_the_file: r"of the shape \[1048576, 1048576\]",
    negative_shape: r"of the shape \[-1, -4\]",
    string_tensor: "of data type 8",
    sparse_tensor: "sparse",
    old_opset: "of opset 7",
    newer_format: "IR version 99",
    too_many_nodes: "20005 nodes",
    sequence_input: "'pictures' is no tensor",
}


def test_exported_graph_is_accepted() -> None:
    assert parse_checked(graphs.graph().SerializeToString(), "client.onnx") == graphs.graph()


@pytest.mark.parametrize("change", FORBIDDEN)
def test_forbidden_element_of_a_graph_is_refused_by_name(change: Callable[[ModelProto], None]) -> None:
    model = graphs.graph()
    change(model)
    with pytest.raises(ModelError, match=FORBIDDEN[change]):
        parse_checked(model.SerializeToString(), "client.onnx")


@pytest.mark.parametrize("data", [b"\x00", b"no graph", b"\x08\xff"])
def test_bytes_that_are_no_graph_are_refused_with_the_file_name(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"client\.onnx: "):
        parse_checked(data, "client.onnx")


def renamed_nodes(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = "another"
        node.input[:] = ["hidden" if name == "positive" else name for name in node.input]
        node.output[:] = ["hidden" if name == "positive" else name for name in node.output]


def zero_bias(model: ModelProto) -> None:
    """The form in which an exporter writes a bias of zero."""
    del model.graph.node[3].input[2]
    del model.graph.initializer[2]


def test_structure_ignores_weights_names_and_a_zero_bias() -> None:
    known = structure_of(graphs.graph())
    assert structure_of(graphs.graph(tensors=graphs.sound_tensors(seed=9))) == known
    for change in (renamed_nodes, zero_bias):
        model = graphs.graph()
        change(model)
        assert structure_of(model) == known


def another_attribute(model: ModelProto) -> None:
    model.graph.node[3].attribute[0].i = 1


def another_operator(model: ModelProto) -> None:
    model.graph.node[2].op_type = "Sigmoid"


def another_edge(model: ModelProto) -> None:
    """The exit skips an activation."""
    model.graph.node[3].input[0] = "features"


def another_shape(model: ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(graphs.weights("w", graphs.PIXELS, 5))


def another_output(model: ModelProto) -> None:
    model.graph.output[0].name = "flat"


@pytest.mark.parametrize(
    "change", [another_attribute, another_operator, another_edge, another_shape, another_output]
)
def test_structure_differs_by_attribute_operator_edge_shape_or_output(
    change: Callable[[ModelProto], None],
) -> None:
    model = graphs.graph()
    change(model)
    assert structure_of(model).exact != structure_of(graphs.graph()).exact


def test_structure_includes_values_of_integer_tensors() -> None:
    found = []
    for axis in (1, 2):
        nodes = [*graphs.sound_nodes(), helper.make_node("Unsqueeze", ["logits", "axis"], ["more"])]
        model = graphs.graph(nodes, [*graphs.sound_tensors(), graphs.tensor("axis", np.array([axis]))])
        model.graph.output[1].name = "more"
        found.append(structure_of(model).exact)
    assert found[0] != found[1]
