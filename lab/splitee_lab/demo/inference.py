# SPDX-License-Identifier: Apache-2.0
"""The demo's last part: the devices' released models predict held-out images, alone and with the server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from splitee.inference.graphs import ClientModel
from splitee.inference.offload import Offload
from splitee.inference.predictor import Prediction, Predictor
from splitee.mqtt.options import LinkOptions
from splitee.protocol.fleet import DeviceMetrics
from splitee.samples.fitting import Pixels
from splitee.samples.storage import Samples
from splitee_device.after_training import MODELS
from splitee_device.inference.model_store import ModelStore
from splitee_lab.report.inference_table import DeviceInference, Predictions
from splitee_server.rounds.evaluation import Predictions as ImagePredictions
from splitee_server.rounds.evaluation import Score

WARM_UP = 3  # images that are not counted
NEVER, ALWAYS = 1.0, -1.0  # thresholds above and below every uncertainty
TIMEOUT = 5.0  # seconds
WAYS = 3  # of predicting each image
REPORT_EVERY = 20  # images

ReportShare = Callable[[float], None]  # called with the share of all predictions that is done


@dataclass(frozen=True)
class InService:
    """What a device's released model predicts: its figures, and each prediction.

    `score`: the labels that exit and offload predict; offload is the trunk, combined with the exit as the
    model says. `class_names`: of the model.
    """

    figures: DeviceInference
    score: Score
    class_names: tuple[str, ...]


def infer_on(
    device: str,
    state: Path,
    link: LinkOptions,
    evaluated: Mapping[int, Mapping[str, DeviceMetrics]],
    report: ReportShare,
) -> InService:
    """Predict all held-out images that `device` has kept; its state directory holds its released model.

    They are those of the evaluation, up to the 1,000 that a device keeps. A server must reply.

    Args:
        evaluated: the server's figures of each device, by round.

    Raises:
        ModelError: it has no model, or no images.
    """
    model, samples = ClientModel(ModelStore(state / MODELS).current, threads=1), Samples.read(state)
    manifest, images = model.manifest, samples.held_out
    offload = Offload(link, manifest, device=device, timeout=TIMEOUT)
    offload.open()
    found: list[list[Prediction]] = []
    sent: list[int] = []
    try:
        for threshold in (NEVER, manifest.threshold, ALWAYS):
            predictor = Predictor(model, threshold=threshold, trunk=offload)
            for pixels in images[:WARM_UP]:
                predictor(pixels)
            before = offload.sent
            found.append(_predict(predictor, images, partial(_report_way, report, len(found))))
            sent.append(offload.sent - before)
    finally:
        offload.close()
    names, at_server = manifest.class_names, evaluated.get(manifest.round, {}).get(device)
    local, adaptive, always = (
        _figures(predictions, [names[label] for label in samples.labels], count)
        for predictions, count in zip(found, sent, strict=True)
    )
    return InService(
        DeviceInference(
            id=device,
            cut=manifest.cut,
            round=manifest.round,
            threshold=manifest.threshold,
            threshold_images=manifest.threshold_images,
            images=len(images),
            trunk_accuracy=at_server.trunk_accuracy if at_server else None,
            local=local,
            adaptive=adaptive,
            offload=always,
        ),
        _score(samples, names, *found),
        names,
    )


def _report_way(report: ReportShare, way: int, share: float) -> None:
    report((way + share) / WAYS)


def _predict(predictor: Predictor, images: Pixels, report: ReportShare) -> list[Prediction]:
    found = []
    for pixels in images:
        found.append(predictor(pixels))
        if len(found) % REPORT_EVERY == 0:
            report(len(found) / len(images))
    return found


def _figures(found: Sequence[Prediction], labels: Sequence[str], sent: int) -> Predictions:
    times = [prediction.milliseconds for prediction in found]
    return Predictions(
        accuracy=_share(prediction.label == label for prediction, label in zip(found, labels, strict=True)),
        offload_share=_share(prediction.source == "trunk" for prediction in found),
        median_ms=median(times),
        p95_ms=float(np.percentile(times, 95)),
        bytes=sent / len(found),
    )


def _share(flags: Iterable[bool]) -> float:
    return float(np.mean(list(flags)))


def _score(
    samples: Samples,
    names: Sequence[str],
    local: Sequence[Prediction],
    adaptive: Sequence[Prediction],
    always: Sequence[Prediction],
) -> Score:
    number = {name: index for index, name in enumerate(names)}

    def labels(found: Sequence[Prediction]) -> npt.NDArray[np.int16]:
        return np.array([number[prediction.label] for prediction in found], np.int16)

    return Score(
        [
            ImagePredictions(
                samples.labels.astype(np.int16),
                labels(local),
                labels(always),
                np.array([prediction.source != "exit" for prediction in adaptive]),
                np.array([prediction.entropy for prediction in local], np.float32),
            )
        ]
    )
