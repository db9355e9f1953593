# SPDX-License-Identifier: Apache-2.0
"""Networks as ONNX: one static graph with a free batch dimension, through torch.export."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from splitee.errors import ModelError
from splitee.inference.graph_check import parse_checked
from splitee.inference.graphs import FEATURES, IMAGES, LOGITS, open_session
from splitee.inference.uncertainty import Array
from splitee.networks.exits import ExitHead
from splitee_export.operators import cache_operators

OPSET = 20
EXAMPLES = 2  # a batch of one would be treated as a constant


class ClientGraph(nn.Module):
    """Client network and exit: images (B, C, H, W) -> features (B, *feature_shape), logits (B, classes).

    Both are always computed. Whether the exit's prediction is used is decided outside, because a graph that
    branches on its data cannot be exported.
    """

    def __init__(self, client: nn.Module, head: ExitHead) -> None:
        super().__init__()
        self.client = client
        self.exit = head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.client(images)
        return features, self.exit(features)


def client_graph(client: nn.Module, head: ExitHead, input_shape: Sequence[int]) -> bytes:
    """ONNX of a device's model: images -> `features`, `logits`.

    Raises ModelError: torch cannot export it, or devices would refuse its operators.
    """
    graph = to_onnx(ClientGraph(client, head), input_shape, IMAGES, [FEATURES, LOGITS])
    parse_checked(graph, "this network")
    return graph


def trunk_graph(trunk: nn.Module, feature_shape: Sequence[int]) -> bytes:
    """ONNX of a server's trunk: `features` -> `logits`."""
    return to_onnx(trunk, feature_shape, FEATURES, [LOGITS])


def to_onnx(module: nn.Module, shape: Sequence[int], source: str, outputs: list[str]) -> bytes:
    """`module`, in evaluation mode, as one ONNX file: `source` (B, *shape) -> `outputs`.

    Raises ModelError: torch cannot export it.
    """
    module.eval()
    cache_operators()
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (torch.zeros(EXAMPLES, *shape),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[source],
                output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # torch.export raises whatever its passes meet
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"torch cannot export this network to ONNX ({reason[:300]})") from None
    assert program is not None
    graph: bytes = program.model_proto.SerializeToString()
    return graph


def run_torch(module: nn.Module, inputs: Array) -> list[Array]:
    """Torch's results, in the form of the graph's outputs."""
    with torch.inference_mode():
        outputs = module(torch.from_numpy(inputs))
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


class GraphRunner:
    """Runs a graph in memory with ONNX Runtime, on one input."""

    def __init__(self, graph: bytes, name: str, threads: int | None = None) -> None:
        self._session: Any = open_session(graph, name, threads)
        self._source = self._session.get_inputs()[0].name

    def __call__(self, inputs: Array) -> list[Array]:
        return [np.asarray(output) for output in self._session.run(None, {self._source: inputs})]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch.onnx, which reports its passes on stdout and through warnings and loggers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
