"""What a run came to: a line in the log for each round, and report.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from splitee.protocol.fleet import DeviceMetrics, FleetMetrics, Metrics
from splitee.protocol.run_spec import RunSpec
from splitee_server.members.members import Member
from splitee_server.rounds.evaluation import Score

log = logging.getLogger(__name__)

ACCURACIES = ("exit_accuracy", "trunk_accuracy", "adaptive_accuracy", "offload_share")


def round_metrics(
    spec: RunSpec,
    number: int,
    seconds: float,
    members: Sequence[tuple[Member, str]],
    losses: Mapping[str, tuple[float, float | None]],
    scores: Mapping[str, Score],
    duplicates: int,
) -> Metrics:
    """The figures of a round that has been committed and evaluated.

    Args:
        seconds: that the run has taken so far.
        members: each with the name of the stage that it is cut after.
        losses: of exit and trunk by device, means over the round's batches.
        scores: by device, on its held-out images.
    """
    devices = {}
    for member, stage in members:
        exit_loss, trunk_loss = losses.get(member.device, (None, None))
        score = scores.get(member.device)
        devices[member.device] = DeviceMetrics(
            cut=member.cut,
            stage=stage,
            train_samples=member.train_samples,
            held_out_samples=score.samples if score else 0,
            batches=member.totals.batches,
            bytes=member.totals.bytes,
            exit_loss=exit_loss,
            trunk_loss=trunk_loss,
            alone_accuracy=member.alone_accuracy,
            **(score.accuracies() if score else {}),
        )
    fleet = Score.over(scores.values())
    return Metrics(
        run=spec.run,
        round=number,
        rounds=spec.rounds,
        seconds=seconds,
        devices=devices,
        batches_trained=sum(member.totals.batches for member, _ in members),
        duplicates_dropped=duplicates,
        fleet=FleetMetrics(images=fleet.samples, **fleet.accuracies()),
    )


def log_metrics(metrics: Metrics) -> None:
    """One line a device."""
    for device, values in metrics.devices.items():
        if values.trunk_accuracy is not None and values.exit_accuracy is not None:
            alone = "" if values.alone_accuracy is None else f"alone {100 * values.alone_accuracy:.1f} %, "
            log.info(
                "round %d of %d: %s (cut %d): %sexit %.1f %%, trunk %.1f %%, trunk loss %s",
                metrics.round,
                metrics.rounds,
                device,
                values.cut,
                alone,
                100 * values.exit_accuracy,
                100 * values.trunk_accuracy,
                "-" if values.trunk_loss is None else f"{values.trunk_loss:.4f}",
            )


def run_report(
    spec: RunSpec,
    metrics: Metrics,
    best: Metrics | None,
    members: list[Member],
    weights_sha256: str,
    rejected: int,
) -> dict[str, Any]:
    """The run as report.json holds it; accuracies are fractions, times seconds.

    Args:
        metrics: of the last round. `best`: of the best one; None: no image was held out.
    """
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
        "bytes_published": sum(member.totals.bytes for member in members),
        "rejected": rejected,
        "fleet": _fleet(metrics),
        "best": None if best is None else {"round": best.round, **_fleet(best)},
        "devices": [_device(member.device, metrics.devices[member.device]) for member in members],
    }


def _fleet(metrics: Metrics) -> dict[str, Any]:
    return {name: getattr(metrics.fleet, name) for name in ("images", *ACCURACIES)}


def _device(device: str, values: DeviceMetrics) -> dict[str, Any]:
    names = ("cut", "stage", "train_samples", "held_out_samples", "batches", "bytes", "alone_accuracy")
    return {"id": device} | {name: getattr(values, name) for name in (*names, *ACCURACIES)}
