# SPDX-License-Identifier: Apache-2.0
"""What a released graph may be made of, and what of it is structure: each kind of what no exporter makes."""

from __future__ import annotations

from collections.abc import Callable

import graphs
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from splitee.errors import ModelError
from splitee.inference.graph_check import parse_checked
from splitee.inference.graph_structure import structure_of


def in_another_file(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../etc/passwd"


def in_another_file_within_a_node(model: ModelProto) -> None:
    tensor = TensorProto(name="secret", data_type=TensorProto.UINT8, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    model.graph.node.append(helper.make_node("Constant", [], ["secret"], value=tensor))


def a_branch(model: ModelProto) -> None:
    one = helper.make_graph(
        [helper.make_node("Identity", ["logits"], ["x"])],
        "then",
        [],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
    )
    model.graph.node.append(helper.make_node("If", ["sure"], ["y"], then_branch=one, else_branch=one))


def a_graph_in_a_harmless_operator(model: ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))


def a_function(model: ModelProto) -> None:
    opsets = [helper.make_opsetid("", 20)]
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("own", "Mine", ["a"], ["b"], [node], opsets))


def operator(op_type: str, domain: str = "") -> Callable[[ModelProto], None]:
    def add(model: ModelProto) -> None:
        model.graph.node.append(helper.make_node(op_type, ["logits"], ["more"], domain=domain))

    return add


def a_shape_larger_than_the_file(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]


def a_negative_shape(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-1, -4]


def texts(model: ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("words", TensorProto.STRING, [1], ["x"]))


def sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add()


def an_old_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 7


def a_new_format(model: ModelProto) -> None:
    model.ir_version = 99


def too_many_nodes(model: ModelProto) -> None:
    node = helper.make_node("Relu", ["logits"], ["more"])
    model.graph.node.extend([node] * 20_001)


def a_sequence(model: ModelProto) -> None:
    model.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("pictures", TensorProto.FLOAT, None))


FORBIDDEN = {
    in_another_file: "tensor 'w' is in another file",
    in_another_file_within_a_node: "tensor 'secret' is in another file",
    a_branch: "operator 'If'",
    a_graph_in_a_harmless_operator: "attribute 'body' of type GRAPH",
    a_function: "functions of its own",
    operator("Loop"): "operator 'Loop'",
    operator("Scan"): "operator 'Scan'",
    operator("RandomNormalLike"): "operator 'RandomNormalLike'",
    operator("Relu", "com.microsoft"): "operator 'Relu' of 'com.microsoft'",
    a_shape_larger_than_the_file: r"of the shape \[1048576, 1048576\]",
    a_negative_shape: r"of the shape \[-1, -4\]",
    texts: "of data type 8",
    sparse: "sparse",
    an_old_opset: "of opset 7",
    a_new_format: "IR version 99",
    too_many_nodes: "20005 nodes",
    a_sequence: "'pictures' is no tensor",
}


def test_what_an_exporter_makes_is_let_through() -> None:
    assert parse_checked(graphs.graph().SerializeToString(), "client.onnx") == graphs.graph()


@pytest.mark.parametrize("change", FORBIDDEN)
def test_what_no_exporter_makes_is_named(change: Callable[[ModelProto], None]) -> None:
    model = graphs.graph()
    change(model)
    with pytest.raises(ModelError, match=FORBIDDEN[change]):
        parse_checked(model.SerializeToString(), "client.onnx")


@pytest.mark.parametrize("data", [b"\x00", b"no graph", b"\x08\xff"])
def test_bytes_that_are_no_graph(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"client\.onnx: "):
        parse_checked(data, "client.onnx")


def renamed(model: ModelProto) -> None:
    for node in model.graph.node:
        node.name = "another"
        node.input[:] = ["hidden" if name == "positive" else name for name in node.input]
        node.output[:] = ["hidden" if name == "positive" else name for name in node.output]


def zero_bias(model: ModelProto) -> None:
    """As an exporter writes one that is zero."""
    del model.graph.node[3].input[2]
    del model.graph.initializer[2]


def test_other_weights_are_no_other_structure() -> None:
    known = structure_of(graphs.graph())
    assert structure_of(graphs.graph(tensors=graphs.sound_tensors(seed=9))) == known
    for change in (renamed, zero_bias):
        model = graphs.graph()
        change(model)
        assert structure_of(model) == known


def attribute(model: ModelProto) -> None:
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


@pytest.mark.parametrize("change", [attribute, another_operator, another_edge, another_shape, another_output])
def test_one_difference_is_another_structure(change: Callable[[ModelProto], None]) -> None:
    model = graphs.graph()
    change(model)
    assert structure_of(model).exact != structure_of(graphs.graph()).exact


def test_values_of_integers_are_structure() -> None:
    found = []
    for axis in (1, 2):
        nodes = [*graphs.sound_nodes(), helper.make_node("Unsqueeze", ["logits", "axis"], ["more"])]
        model = graphs.graph(nodes, [*graphs.sound_tensors(), graphs.tensor("axis", np.array([axis]))])
        model.graph.output[1].name = "more"
        found.append(structure_of(model).exact)
    assert found[0] != found[1]
