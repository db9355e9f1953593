# SPDX-License-Identifier: Apache-2.0
"""Small ONNX graphs of a device's model and their bundles, including invalid ones that no exporter makes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from splitee.inference.bundle import Bundle
from splitee.inference.manifest import ClientManifest, Parity

SHAPE, CLASSES, FEATURES = (3, 8, 8), 2, 4
PIXELS = 3 * 8 * 8


def tensor(name: str, values: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def weights(name: str, *shape: int, seed: int = 0) -> TensorProto:
    return tensor(name, np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def sound_nodes() -> list[NodeProto]:
    return [
        helper.make_node("Flatten", ["pictures"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["features"]),
        helper.make_node("Relu", ["features"], ["positive"]),
        helper.make_node("Gemm", ["positive", "v", "bias"], ["logits"], transB=0),
    ]


def sound_tensors(seed: int = 0, classes: int = CLASSES) -> list[TensorProto]:
    return [
        weights("w", PIXELS, FEATURES, seed=seed),
        weights("v", FEATURES, classes, seed=seed + 1),
        weights("bias", classes, seed=seed + 2),
    ]


def graph(
    nodes: Sequence[NodeProto] | None = None,
    tensors: Sequence[TensorProto] | None = None,
    *,
    features: int = FEATURES,
    classes: int = CLASSES,
    opset: int = 20,
) -> ModelProto:
    """A network of two layers, unless other nodes and tensors are given."""
    kind = TensorProto.FLOAT
    made = helper.make_graph(
        sound_nodes() if nodes is None else nodes,
        "network",
        [helper.make_tensor_value_info("pictures", kind, ["batch", *SHAPE])],
        [
            helper.make_tensor_value_info("features", kind, ["batch", features]),
            helper.make_tensor_value_info("logits", kind, ["batch", classes]),
        ],
        sound_tensors(classes=classes) if tensors is None else tensors,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 10
    return model


def manifest(data: bytes, *, features: int = FEATURES, **changed: Any) -> ClientManifest:
    described = ClientManifest(
        kind="client",
        run="run-a",
        round=1,
        device="pi-1",
        network="resnet18",
        cut=3,
        stage="third",
        class_names=("a", "b"),
        input_shape=SHAPE,
        feature_shape=(features,),
        mean=(0.0,),
        std=(1.0,),
        codec="fp32",
        measure="entropy",
        threshold=0.5,
        calibration=(),
        opset=20,
        file="client.onnx",
        sha256={"client.onnx": hashlib.sha256(data).hexdigest()},
        parity=Parity(inputs="pictures", samples=1, max_error=0, same_label=1, same_decision=1),
        quantization=None,
        versions={},
    )
    return msgspec.structs.replace(described, **changed)


def bundle(model: ModelProto | None = None, **described: Any) -> bytes:
    """A bundle as it is released; `described`: fields of its manifest, and `features`, their number."""
    data = (graph() if model is None else model).SerializeToString()
    return msgspec.msgpack.encode(Bundle(msgspec.json.encode(manifest(data, **described)), data))


def encoded(described: ClientManifest) -> bytes:
    return msgspec.json.encode(described)
