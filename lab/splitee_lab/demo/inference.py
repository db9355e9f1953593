"""The demo's last act: the devices' released models answer held-out pictures, alone and with the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from rich.table import Table
from rich.text import Text

from splitee.cli.words import percent
from splitee.inference.graphs import ClientModel
from splitee.inference.offload import Offload
from splitee.inference.predictor import Prediction, Predictor
from splitee.mqtt.options import LinkOptions
from splitee.samples.kept import Samples
from splitee_device.after_training import MODELS
from splitee_device.inference.model_store import ModelStore

PICTURES = 150  # held-out ones a device
WARM_UP = 3  # pictures that are not counted
ASK_ALWAYS = -1.0  # a threshold below every doubt
TIMEOUT = 5.0  # seconds


class Answers(msgspec.Struct, frozen=True):
    """What one way of answering came to. Shares are fractions, times milliseconds a picture."""

    accuracy: float
    offload_share: float  # answered by the trunk
    median_ms: float
    p95_ms: float
    bytes: float  # sent, a picture


class DeviceInference(msgspec.Struct, frozen=True):
    """One device's released model on its held-out pictures."""

    id: str
    cut: int
    threshold: float
    pictures: int
    local: Answers
    adaptive: Answers
    offload: Answers


def infer_on(device: str, state: Path, link: LinkOptions) -> DeviceInference:
    """Answer pictures of `device`, whose state directory holds its released model; a server must answer.

    Raises:
        ModelError: it has no model, or no pictures.
    """
    model, samples = ClientModel(ModelStore(state / MODELS).current, threads=1), Samples.read(state)
    manifest, count = model.manifest, min(PICTURES, len(samples.labels))
    offload = Offload(link, manifest, device=device, timeout=TIMEOUT)
    offload.open()
    try:
        local, adaptive, always = (
            _answers(Predictor(model, threshold=threshold, trunk=offload), offload, samples, count)
            for threshold in (1.0, manifest.threshold, ASK_ALWAYS)
        )
    finally:
        offload.close()
    return DeviceInference(device, manifest.cut, manifest.threshold, count, local, adaptive, always)


def _answers(predictor: Predictor, offload: Offload, samples: Samples, count: int) -> Answers:
    for pixels in samples.held_out[: min(WARM_UP, count)]:
        predictor(pixels)
    before = offload.sent
    answers = [predictor(pixels) for pixels in samples.held_out[:count]]
    names = predictor.class_names
    right = [answer.label == names[label] for answer, label in zip(answers, samples.labels, strict=False)]
    times = [answer.milliseconds for answer in answers]
    return Answers(
        accuracy=float(np.mean(right)),
        offload_share=_share(answers),
        median_ms=median(times),
        p95_ms=float(np.percentile(times, 95)),
        bytes=(offload.sent - before) / count,
    )


def _share(answers: list[Prediction]) -> float:
    return sum(answer.source == "trunk" for answer in answers) / len(answers)


def inference_table(results: list[DeviceInference]) -> Table:
    """Each device's three ways of answering, for a terminal."""
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("device", "answers", "accuracy", "offload", "median ms", "p95 ms", "KB a picture"):
        shown.add_column(name, justify="left" if name in ("device", "answers") else "right", no_wrap=True)
    for cells in rows(results):
        shown.add_row(*map(Text, cells))
    return shown


def rows(results: list[DeviceInference]) -> Iterator[tuple[str, ...]]:
    """The table's cells: a row for each device and way of answering."""
    for result in results:
        ways = {
            "exit alone": result.local,
            f"adaptive, {result.threshold:.3f}": result.adaptive,
            "trunk always": result.offload,
        }
        for index, (way, found) in enumerate(ways.items()):
            yield (
                f"{result.id} (cut {result.cut})" if index == 0 else "",
                way,
                percent(found.accuracy),
                percent(found.offload_share),
                f"{found.median_ms:.1f}",
                f"{found.p95_ms:.1f}",
                f"{found.bytes / 1e3:.1f}",
            )
