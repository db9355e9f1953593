# SPDX-License-Identifier: Apache-2.0
"""The results of a run: one line in the log per round, and report.json."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import asdict, replace

from splitee.cli.accuracy_words import describe_accuracies, describe_weakest
from splitee.cli.words import images, percent
from splitee.protocol.accuracies import MOST_CLASSES, Accuracies, ClassRecall, ReleasedThreshold
from splitee.protocol.fleet import DeviceMetrics, FleetMetrics, Metrics, RoundSeconds
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.traffic import Traffic
from splitee.statistics import share_interval
from splitee_server.members.members import Member
from splitee_server.members.traffic import FleetTraffic
from splitee_server.rounds.confusion import Confusion, class_recalls, weakest_class
from splitee_server.rounds.evaluation import Score

log = logging.getLogger(__name__)


def round_metrics(
    spec: RunSpec,
    number: int,
    seconds: float,
    members: Sequence[tuple[Member, str]],
    losses: Mapping[str, tuple[float, float | None]],
    scores: Mapping[str, Score],
    duplicates: int,
    traffic: FleetTraffic,
    spent: RoundSeconds,
    before: Metrics | None = None,
) -> Metrics:
    """The metrics of a round that has been committed and evaluated.

    Args:
        spec: with the class names.
        seconds: that the run has taken so far.
        members: each with the name of the stage that it is cut after.
        losses: of exit and trunk by device, means over the round's batches.
        scores: by device, on its held-out images.
        traffic: what the devices have sent so far.
        spent: how the time of the round was spent.
        before: metrics of the previous round, which devices keep that were not evaluated now; None: there are
            none.
    """
    devices = {}
    for member, stage in members:
        exit_loss, trunk_loss = losses.get(member.device, (None, None))
        score = scores.get(member.device, Score())
        values = DeviceMetrics(
            cut=member.cut,
            stage=stage,
            train_samples=member.train_samples,
            held_out_samples=score.images,
            batches=member.totals.batches,
            bytes=traffic.of(member.device).up.payload,
            exit_loss=exit_loss,
            trunk_loss=trunk_loss,
            weakest_class=weakest_class(_recalls(spec, score)),
            alone_accuracy=member.alone_accuracy,
            **asdict(score.accuracies()),
        )
        known = before.devices.get(member.device) if before is not None and not score.images else None
        if before is not None and known is not None and known.held_out_samples:
            values = _with_accuracies_of(known, values, known.evaluated or before.round)
        devices[member.device] = values
    return Metrics(
        run=spec.run,
        round=number,
        rounds=spec.rounds,
        seconds=seconds,
        devices=devices,
        batches_trained=sum(member.totals.batches for member, _ in members),
        duplicates_dropped=duplicates,
        fleet=_fleet_metrics(spec, Score.over(scores.values())),
        time=round(time.time(), 1),
        spent=spent,
    )


def _with_accuracies_of(known: DeviceMetrics, values: DeviceMetrics, number: int) -> DeviceMetrics:
    """The figures of this round, with a device's accuracies of an earlier round."""
    shares = {name: getattr(known, name) for name in Accuracies.__struct_fields__}
    weakest, count = known.weakest_class, known.held_out_samples
    return replace(values, weakest_class=weakest, held_out_samples=count, evaluated=number, **shares)


def _fleet_metrics(spec: RunSpec, score: Score) -> FleetMetrics:
    recalls = _recalls(spec, score)
    return FleetMetrics(
        images=score.images,
        weakest_class=weakest_class(recalls),
        class_recalls=recalls[:MOST_CLASSES],
        **asdict(score.accuracies()),
    )


def _recalls(spec: RunSpec, score: Score) -> tuple[ClassRecall, ...]:
    """Each class's recall by the adaptive predictions."""
    found = score.predictions
    return class_recalls(Confusion.count(found.labels, found.adaptive, spec.num_classes), spec.class_names)


def with_thresholds(metrics: Metrics, released: Mapping[str, ReleasedThreshold]) -> Metrics:
    """The metrics with the thresholds of the released models, by device."""
    devices = {
        device: replace(values, released=released.get(device, values.released))
        for device, values in metrics.devices.items()
    }
    return replace(metrics, devices=devices)


def log_metrics(metrics: Metrics) -> None:
    """Log one line for the fleet and one per device."""
    at = f"round {metrics.round} of {metrics.rounds}"
    fleet = metrics.fleet
    if fleet.images:
        words = describe_accuracies(fleet, fleet.images), describe_weakest(fleet.weakest_class)
        log.info("%s: fleet: %s", at, "; ".join(filter(None, words)))
    for device, values in metrics.devices.items():
        if values.trunk_accuracy is not None and values.exit_accuracy is not None:
            alone = "" if values.alone_accuracy is None else f"alone {percent(values.alone_accuracy)}, "
            log.info(
                "%s: %s (cut %d): %sexit %.1f %%, trunk %.1f %% of %s, trunk loss %s",
                at,
                device,
                values.cut,
                alone,
                100 * values.exit_accuracy,
                100 * values.trunk_accuracy,
                images(values.held_out_samples),
                "-" if values.trunk_loss is None else f"{values.trunk_loss:.4f}",
            )


def run_report(
    spec: RunSpec,
    metrics: Metrics,
    best: Metrics | None,
    members: list[Member],
    dismissed: Sequence[str],
    weights_sha256: str,
    rejected: int,
    traffic: FleetTraffic,
) -> dict[str, Any]:
    """The content of report.json; accuracies are fractions, times seconds, `bytes` those of payloads.

    Args:
        metrics: of the last round. `best`: of the best one; None: no image was held out.
    """
    by_device = {member.device: traffic.of(member.device) for member in members}
    total = sum(by_device.values(), Traffic())
    return {
        "run": spec.run,
        "network": spec.network,
        "stem": spec.stem,
        "strategy": spec.strategy,
        "order": spec.order,
        "seed": spec.seed,
        "rounds": metrics.round,
        "seconds": round(metrics.seconds, 3),
        "codec": spec.codec,
        "threshold": spec.threshold,
        "weights_sha256": weights_sha256,
        "batches_published": sum(member.totals.published for member in members),
        "batches_trained": sum(member.totals.batches for member in members),
        "duplicates_dropped": metrics.duplicates_dropped,
        "bytes_published": total.up.payload,
        "traffic": total.as_dict() | {"to_all": asdict(traffic.to_all())},
        "rejected": rejected,
        "dismissed": list(dismissed),
        "fleet": _fleet(metrics),
        "best": None if best is None else {"round": best.round, **_fleet(best)},
        "devices": [
            _device(spec, metrics.round, device, values, moved)
            for device, moved in by_device.items()
            if (values := metrics.devices.get(device)) is not None  # else it joined after the last round
        ],
    }


def _fleet(metrics: Metrics) -> dict[str, Any]:
    return {"images": metrics.fleet.images} | _accuracies(metrics.fleet, metrics.fleet.images)


def _device(
    spec: RunSpec, number: int, device: str, values: DeviceMetrics, traffic: Traffic
) -> dict[str, Any]:
    names = ("cut", "stage", "train_samples", "held_out_samples", "batches", "alone_accuracy")
    threshold = values.released or ReleasedThreshold(
        threshold=spec.threshold, expected_offload=values.offload_share
    )
    return (
        {"id": device}
        | {name: getattr(values, name) for name in names}
        | {"evaluated_round": values.evaluated or number}
        | {"bytes": traffic.up.payload, "traffic": traffic.as_dict()}
        | _accuracies(values, values.held_out_samples)
        | {
            "threshold": threshold.threshold,
            "threshold_images": threshold.images,
            "expected_offload": threshold.expected_offload,
            "expected_accuracy": threshold.expected_accuracy,
        }
    )


def _accuracies(found: DeviceMetrics | FleetMetrics, count: int) -> dict[str, Any]:
    """Each accuracy, its 95 % interval on `count` images, and the weakest class."""
    shares = {name: getattr(found, name) for name in Accuracies.__struct_fields__}
    intervals = {
        name.removesuffix("_accuracy") + "_interval": share_interval(share, count)
        for name, share in shares.items()
        if name.endswith("_accuracy") and share is not None
    }
    weakest = found.weakest_class
    return shares | intervals | {"weakest_class": None if weakest is None else asdict(weakest)}
