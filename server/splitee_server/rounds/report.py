"""What a run came to: a line in the log for each round, and report.json."""

from __future__ import annotations

import logging
from typing import Any

from splitee.protocol.fleet import DeviceMetrics, Metrics
from splitee.protocol.run_spec import RunSpec
from splitee_server.members.members import Member
from splitee_server.rounds.evaluation import Score

log = logging.getLogger(__name__)


def device_metrics(
    member: Member, stage: str, losses: tuple[float, float | None] | None, score: Score | None
) -> DeviceMetrics:
    """One device in the round that was committed last.

    Args:
        losses: means over the round's batches, of exit and trunk.
        score: on its held-out pictures.
    """
    exit_loss, trunk_loss = losses or (None, None)
    return DeviceMetrics(
        cut=member.cut,
        stage=stage,
        train_samples=member.train_samples,
        batches=member.totals.batches,
        bytes=member.totals.bytes,
        exit_loss=exit_loss,
        trunk_loss=trunk_loss,
        **(score.accuracies() if score else {}),
    )


def log_metrics(metrics: Metrics) -> None:
    """One line a device."""
    for device, values in metrics.devices.items():
        if values.trunk_accuracy is not None and values.exit_accuracy is not None:
            log.info(
                "round %d of %d: %s (cut %d): exit %.1f %%, trunk %.1f %%, trunk loss %s",
                metrics.round,
                metrics.rounds,
                device,
                values.cut,
                100 * values.exit_accuracy,
                100 * values.trunk_accuracy,
                "-" if values.trunk_loss is None else f"{values.trunk_loss:.4f}",
            )


def run_report(
    spec: RunSpec, metrics: Metrics, members: list[Member], weights_sha256: str, rejected: int
) -> dict[str, Any]:
    """The run as report.json holds it; accuracies are fractions, times seconds."""
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
        "devices": [_device(member.device, metrics.devices[member.device]) for member in members],
    }


def _device(device: str, values: DeviceMetrics) -> dict[str, Any]:
    names = ("cut", "stage", "train_samples", "batches", "bytes")
    accuracies = ("exit_accuracy", "trunk_accuracy", "adaptive_accuracy", "offload_share")
    return {"id": device} | {name: getattr(values, name) for name in (*names, *accuracies)}
