# SPDX-License-Identifier: Apache-2.0
"""Made-up reports of demos, for all cases of the demo's page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import exp
from typing import Any

import msgspec
import numpy as np

from splitee.protocol.accuracies import Accuracies
from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_lab.report.demo_report import BaselineResult, DeviceChoice, DeviceResult, Report
from splitee_lab.report.inference_table import DeviceInference, Predictions
from splitee_server.rounds.class_report import ClassReport, class_report
from splitee_server.rounds.evaluation import Predictions as ImagePredictions
from splitee_server.rounds.evaluation import Score

STAGES = {3: "layer1.1", 5: "layer2.1", 7: "layer3.1"}
CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SETTLED = 2.5  # rounds: time constant of the accuracies, divided by 2.2 after round 1


def reports() -> Mapping[str, Report]:
    """The reports, by the name of their case."""
    return {
        "sequential": report(),
        "averaging": report(strategy="averaging", seed=2, drop=0.06),
        "quick": report(rounds=3, images=400, seed=3, drop=-0.03),
        "profile": report(profile=True, seed=4),
        "one-device": report(devices=1, seed=5),
        "twelve-devices": report(devices=12, seed=6, strategy="averaging"),
        "without-baselines": report(baselines=False, seed=7),
        "long-names": report(seed=8, names=("greenhouse-north-door-camera-0001", "a" * 60, "pi-3")),
    }


def report(
    *,
    devices: int = 3,
    strategy: str = "sequential",
    rounds: int = 5,
    images: int = 1000,
    baselines: bool = True,
    profile: bool = False,
    seed: int = 1,
    drop: float = 0.0,
    names: Sequence[str] = (),
) -> Report:
    """The report of a run with these settings. `drop`: loss of accuracy; `names`: ids of the devices."""
    random = np.random.default_rng(seed)
    ids = list(names) or [f"pi-{number}" for number in range(1, devices + 1)]
    cuts = {device: tuple(STAGES)[place % 3] for place, device in enumerate(ids)}
    scores = {device: _score(random, images, 0.82 - drop, 0.85 - drop) for device in ids}
    history = [
        _round(random, number, rounds, strategy, cuts, images, drop) for number in range(1, rounds + 1)
    ]
    last = history[-1].devices
    results = [
        DeviceResult(
            id=device,
            cut=cut,
            stage=STAGES[cut],
            train_samples=2000,
            batches=last[device].batches,
            bytes=last[device].bytes,
            traffic=_traffic(last[device].bytes),
            held_out_samples=images,
            **_accuracies(last[device]),
        )
        for device, cut in cuts.items()
    ]
    return Report(
        strategy=strategy,
        order="step",
        seed=seed,
        rounds=rounds,
        seconds=23.4 * rounds,
        codec="fp16",
        threshold=0.4,
        weights_sha256="ab" * 32,
        batches_published=62 * rounds * len(ids),
        batches_trained=62 * rounds * len(ids),
        duplicates_dropped=0,
        bytes_published=sum(one.bytes for one in results),
        rejected=0,
        devices=results,
        network="resnet18",
        data="builtin:fashion-mnist",
        broker="mosquitto",
        baselines=_baselines(random, cuts) if baselines else None,
        inference=[
            _inference(device, cut, scores[device], last[device], rounds) for device, cut in cuts.items()
        ],
        choices=_choices(cuts) if profile else [],
        compute_share={device: 0.09 + 0.08 * cut + 0.0012 * cut**2 for device, cut in cuts.items()},
        peak_memory={device: (380 + 31 * cut) << 20 for device, cut in cuts.items()},
        history=history,
        classes=_classes(scores, rounds),
        client_averaging="layerwise",
        ended="2026-11-29T13:37:00+0100",
        machine="Raspberry Pi 5 Model B Rev 1.0, 4 cores",
        version="0.1.0",
    )


def _score(random: np.random.Generator, images: int, exit_accuracy: float, trunk_accuracy: float) -> Score:
    """Predictions of exit and trunk with these accuracies; wrong ones of the exit have higher uncertainty."""
    labels = np.arange(images) % len(CLASSES)
    predicted = partial(_predicted, random, labels)
    exits, trunks = predicted(exit_accuracy), predicted(trunk_accuracy)
    uncertainty = np.clip(random.normal(0.25, 0.15, images) + 0.3 * (exits != labels), 0, 1)
    return Score(
        [
            ImagePredictions(
                labels.astype(np.int16), exits, trunks, uncertainty > 0.45, uncertainty.astype(np.float32)
            )
        ]
    )


def _predicted(random: np.random.Generator, labels: Any, accuracy: float) -> Any:
    mistaken = (labels + random.choice((1, 2, 4), len(labels))) % len(CLASSES)
    return np.where(random.random(len(labels)) < accuracy, labels, mistaken).astype(np.int16)


def _round(
    random: np.random.Generator,
    number: int,
    rounds: int,
    strategy: str,
    cuts: Mapping[str, int],
    images: int,
    drop: float,
) -> Metrics:
    """Metrics of a round; those of round 1 are low. With `sequential`, all trunk accuracies are equal."""
    learnt = 1 - exp(-number / SETTLED * (2.2 if number > 1 else 0.3))
    trunk = 0.1 + (0.76 - drop) * learnt
    devices = {
        device: DeviceMetrics(
            cut=cut,
            stage=STAGES[cut],
            train_samples=2000,
            held_out_samples=images,
            batches=62 * number,
            bytes=(1 + cut) * 1_234_567 * number,
            exit_loss=2.3 - 1.8 * learnt + 0.05 * cut,
            trunk_loss=2.2 - 1.8 * learnt + 0.03 * cut,
            exit_accuracy=round(trunk - 0.03 + 0.004 * cut, 3),
            trunk_accuracy=round(
                trunk + (float(random.normal(0, 0.01)) if strategy == "averaging" else 0), 3
            ),
            adaptive_accuracy=round(trunk - 0.005, 3),
            offload_share=0.3,
        )
        for device, cut in cuts.items()
    }
    return Metrics(
        run="20261129T133458-a18a",
        round=number,
        rounds=rounds,
        seconds=23.4 * number,
        devices=devices,
        batches_trained=62 * number * len(cuts),
        duplicates_dropped=0,
    )


def _accuracies(found: DeviceMetrics) -> dict[str, Any]:
    return {name: getattr(found, name) for name in Accuracies.__struct_fields__}


def _inference(device: str, cut: int, score: Score, last: DeviceMetrics, rounds: int) -> DeviceInference:
    found = score.accuracies()
    assert found.exit_accuracy is not None and found.adaptive_accuracy is not None
    assert found.trunk_accuracy is not None and found.offload_share is not None
    size = 16_000 / cut
    return DeviceInference(
        id=device,
        cut=cut,
        round=rounds,
        threshold=0.45,
        threshold_images=score.images,
        images=score.images,
        trunk_accuracy=last.trunk_accuracy,
        local=Predictions(found.exit_accuracy, 0.0, 0.31, 0.52, 0.0),
        adaptive=Predictions(
            found.adaptive_accuracy, found.offload_share, 0.42, 11.8, size * found.offload_share
        ),
        offload=Predictions(found.trunk_accuracy, 1.0, 6.2, 14.9, size),
    )


def _classes(scores: Mapping[str, Score], rounds: int) -> ClassReport:
    return class_report("20261129T133458-a18a", rounds, scores, len(CLASSES), CLASSES)


def _baselines(random: np.random.Generator, cuts: Mapping[str, int]) -> BaselineResult:
    return BaselineResult(
        centralized_accuracy=0.871,
        alone_accuracy={device: round(0.815 + float(random.normal(0, 0.01)), 3) for device in cuts},
        alone_exit_accuracy={device: round(0.83 + float(random.normal(0, 0.01)), 3) for device in cuts},
    )


def _choices(cuts: Mapping[str, int]) -> list[DeviceChoice]:
    return [
        DeviceChoice(
            device,
            0.3,
            430 + 20 * cut,
            cut,
            f"cut {cut} ({STAGES[cut]}): the deepest that fits {430 + 20 * cut} MiB; cut {cut + 1} needs "
            f"{450 + 20 * cut} MiB; a round takes 12.3 s",
        )
        for device, cut in cuts.items()
    ]


def _traffic(sent: int) -> Traffic:
    """The traffic of a device that has sent `sent` bytes."""
    up = ByPurpose(
        training=sent * 6 // 10,
        evaluation=sent // 10,
        statistics=sent // 20,
        client_networks=sent // 5,
        protocol=sent // 50,
    )
    return Traffic(up=up, down=ByPurpose(client_networks=sent // 5, protocol=sent // 40))


def as_json(made_up: Report) -> bytes:
    """A report in the format of report.json."""
    return msgspec.json.format(msgspec.json.encode(made_up), indent=2)
