"""The demo's last act: the devices' released models answer held-out pictures, alone and with the server."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import numpy as np

from splitee.inference.graphs import ClientModel
from splitee.inference.offload import Offload
from splitee.inference.predictor import Prediction, Predictor
from splitee.mqtt.options import LinkOptions
from splitee.samples.kept import Samples
from splitee_device.after_training import MODELS
from splitee_device.inference.model_store import ModelStore
from splitee_lab.report.inference_table import Answers, DeviceInference

PICTURES = 150  # held-out ones a device
WARM_UP = 3  # pictures that are not counted
ASK_ALWAYS = -1.0  # a threshold below every doubt
TIMEOUT = 5.0  # seconds


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
