# SPDX-License-Identifier: Apache-2.0
"""int8 graphs: static, per channel, calibrated on a device's own images; their accuracy and speed."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from splitee.inference.graphs import IMAGES
from splitee.inference.uncertainty import Array
from splitee_export.graphs import GraphRunner

BATCH = 16
TIMED_RUNS = 50  # runs of one image, after a warm-up of a tenth as many


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """The images from which the ranges of the activations are taken."""

    def __init__(self, images: Array) -> None:
        self._batches = iter([images[i : i + BATCH] for i in range(0, len(images), BATCH)])

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: batch}


def to_int8(graph: bytes, images: Array) -> bytes:
    """The graph with int8 weights and uint8 activations, around QuantizeLinear and DequantizeLinear (QDQ).

    Args:
        images: normalised, float32 (N, C, H, W), for the ranges of the activations.
    """
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        root.setLevel(logging.ERROR)  # the quantizer suggests a preprocessing that torch's exporter has done
        try:
            quantize_static(
                onnx.load_from_string(graph),
                path,
                _Images(images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            root.setLevel(level)
        return path.read_bytes()


def accuracy(run: GraphRunner, images: Array, labels: npt.NDArray[np.int64]) -> float:
    """The exit's accuracy on normalised images (N, C, H, W)."""
    correct = 0
    for start in range(0, len(labels), BATCH):
        logits = run(images[start : start + BATCH])[-1]
        correct += int((logits.argmax(axis=1) == labels[start : start + BATCH]).sum())
    return correct / len(labels)


def time_both(first: GraphRunner, second: GraphRunner, images: Array) -> tuple[float, float]:
    """Median milliseconds of each for one image. They alternate, so that both run under the same load."""
    taken: tuple[list[float], list[float]] = ([], [])
    for index in range(TIMED_RUNS + TIMED_RUNS // 10):
        image = images[index % len(images)][None]
        for run, times in zip((first, second), taken, strict=True):
            started = time.perf_counter()
            run(image)
            times.append(1000 * (time.perf_counter() - started))
    return median(taken[0][TIMED_RUNS // 10 :]), median(taken[1][TIMED_RUNS // 10 :])
