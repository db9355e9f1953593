# SPDX-License-Identifier: Apache-2.0
"""The server's figures for Prometheus at /metrics. Names and meanings: docs/reference/metrics.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import get_args

from msgspec.structs import asdict
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from splitee import __version__
from splitee.clock import Clock
from splitee.disk_writes import bytes_written
from splitee.errors import ConfigError, Reason
from splitee.protocol.accuracies import Accuracies, ClassRecall
from splitee.protocol.fields import Doing, RunPhase
from splitee.protocol.fleet import DeviceMetrics, DeviceStatus
from splitee.protocol.rollouts import Rollouts
from splitee.protocol.traffic import DIRECTIONS
from splitee_server.monitoring.observer import Observer
from splitee_server.monitoring.rollout_metrics import rollout_families
from splitee_server.rounds.progress import DeviceSnapshot, Progress

EVERY = 1.0  # seconds between two updates from the run
DEVICES = 2000  # that have series of their own, the first by name; the sums count all
CERTIFICATE = "splitee_certificate_expiry_timestamp_seconds"
STATES = (*get_args(Doing), "offline")

Sample = tuple[tuple[str, ...], float]  # values of the labels, value


@dataclass(frozen=True)
class Figure:
    """One metric: what it is called, and how it is read from the run's progress."""

    name: str
    help: str
    read: Callable[[Progress], Iterable[Sample]]
    labels: tuple[str, ...] = ()
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily] = GaugeMetricFamily

    def family(self, progress: Progress) -> CounterMetricFamily | GaugeMetricFamily:
        family = self.kind(self.name, self.help, labels=self.labels)
        for labels, value in self.read(progress):
            family.add_metric(labels, value)
        return family


def _one(name: str, help: str, read: Callable[[Progress], float]) -> Figure:
    return Figure(name, help, lambda progress: [((), read(progress))])


def _count(name: str, help: str, read: Callable[[Progress], float]) -> Figure:
    return Figure(name, help, lambda progress: [((), read(progress))], kind=CounterMetricFamily)


def _of_device(
    name: str,
    help: str,
    read: Callable[[Progress, DeviceSnapshot], float | None],
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily] = GaugeMetricFamily,
) -> Figure:
    def samples(progress: Progress) -> Iterator[Sample]:
        for snapshot in progress.run.devices[:DEVICES]:
            value = read(progress, snapshot)
            if value is not None:
                yield (snapshot.device,), value

    return Figure(name, help, samples, ("device",), kind)


def _evaluated(name: str, help: str, read: Callable[[DeviceMetrics], float | None]) -> Figure:
    def value(progress: Progress, snapshot: DeviceSnapshot) -> float | None:
        metrics = progress.run.metrics
        of_device = metrics.devices.get(snapshot.device) if metrics else None
        return read(of_device) if of_device else None

    return _of_device(name, f"{help}, in the last evaluated round", value)


def _info(progress: Progress) -> list[Sample]:
    spec = progress.run.spec
    return [((__version__, progress.fleet, spec.run, spec.network, spec.strategy, spec.codec), 1)]


def _phases(progress: Progress) -> list[Sample]:
    return [((phase,), float(phase == progress.run.phase)) for phase in get_args(RunPhase)]


def _states(progress: Progress) -> list[Sample]:
    counts = dict.fromkeys(STATES, 0)
    for snapshot in progress.run.devices:
        status = progress.statuses.get(snapshot.device)
        counts[status.doing if snapshot.online and status else "offline"] += 1
    return [((state,), count) for state, count in counts.items()]


def _waiting_for(progress: Progress) -> list[Sample]:
    return [((device,), 1) for device in progress.run.waiting_for[:DEVICES]]


def _rejected(progress: Progress) -> list[Sample]:
    counts = dict.fromkeys(get_args(Reason), 0)
    for (_, reason), count in progress.rejected.items():
        counts[reason] += count
    return [((reason,), count) for reason, count in counts.items()]


def _quarantined(progress: Progress) -> list[Sample]:
    return [((device,), 1) for device in progress.quarantined[:DEVICES]]


def _fleet_accuracies(progress: Progress) -> Iterator[Sample]:
    metrics = progress.run.metrics
    if metrics is not None:
        for name in Accuracies.__struct_fields__:
            share = getattr(metrics.fleet, name)
            if share is not None and name != "offload_share":
                yield (name.removesuffix("_accuracy"),), share


def _of_classes(read: Callable[[ClassRecall], float]) -> Callable[[Progress], Iterable[Sample]]:
    def samples(progress: Progress) -> Iterable[Sample]:
        metrics = progress.run.metrics
        found = {of_class.name: of_class for of_class in metrics.fleet.class_recalls} if metrics else {}
        return [((name,), read(of_class)) for name, of_class in found.items()]  # a name has one series

    return samples


def _of_status(
    read: Callable[[DeviceStatus], float | None],
) -> Callable[[Progress, DeviceSnapshot], float | None]:
    """A figure of the last status of a device that is online."""

    def value(progress: Progress, snapshot: DeviceSnapshot) -> float | None:
        status = progress.statuses.get(snapshot.device)
        return read(status) if status and snapshot.online else None

    return value


def _spent(progress: Progress) -> list[Sample]:
    spent = progress.run.metrics.spent if progress.run.metrics else None
    return [] if spent is None else [((kind,), seconds) for kind, seconds in asdict(spent).items()]


def _estimate(progress: Progress) -> list[Sample]:
    return [] if progress.run.estimate is None else [((), progress.run.estimate)]


def _traffic(progress: Progress) -> Iterator[Sample]:
    """Purposes without traffic have no series."""
    for snapshot in progress.run.devices[:DEVICES]:
        for direction in DIRECTIONS:
            for purpose, count in asdict(getattr(snapshot.traffic, direction)).items():
                if count:
                    yield (snapshot.device, direction, purpose), count


def _own_writes(_progress: Progress) -> list[Sample]:
    written = bytes_written()
    return [] if written is None else [((), written)]


INFO = ("version", "fleet", "run", "network", "strategy", "codec")
FIGURES = (
    Figure("splitee_info", "The release, and the run that it serves; always 1", _info, INFO),
    _one("splitee_broker_connected", "Whether the broker is connected", lambda p: float(p.connected)),
    _one("splitee_rounds", "Rounds that the run has", lambda p: p.run.spec.rounds),
    _one("splitee_rounds_committed", "Rounds that are committed", lambda p: p.run.committed),
    Figure("splitee_phase", "1 for the phase that is under way, 0 for the others", _phases, ("phase",)),
    Figure("splitee_devices", "Devices of the run by what they do", _states, ("state",)),
    _one("splitee_devices_waited_for", "Devices that the run waits for", lambda p: p.run.missing),
    Figure("splitee_device_waited_for", "1 for a device that is waited for", _waiting_for, ("device",)),
    _one(
        "splitee_waiting_seconds", "Time without a batch while devices are waited for", lambda p: p.run.waited
    ),
    Figure("splitee_round_seconds", "Where the time of the last evaluated round went", _spent, ("kind",)),
    Figure(
        "splitee_run_end_timestamp_seconds",
        "Estimated end of the last round's evaluation, in seconds since the epoch",
        _estimate,
    ),
    _one("splitee_queue_batches", "Batches that have arrived and are not trained", lambda p: p.run.queued),
    _count("splitee_trained_batches", "Batches that the trunk has trained", lambda p: p.run.trained.batches),
    _count("splitee_trained_samples", "Samples that the trunk has trained", lambda p: p.run.trained.samples),
    _count("splitee_training_seconds", "Time in training steps", lambda p: p.run.trained.seconds),
    _count("splitee_duplicate_batches", "Batches that arrived twice", lambda p: p.run.duplicates),
    Figure(
        "splitee_rejected_messages",
        "Messages that were rejected, by reason",
        _rejected,
        ("reason",),
        CounterMetricFamily,
    ),
    Figure("splitee_device_quarantined", "1 for a device in quarantine", _quarantined, ("device",)),
    _count("splitee_received_bytes", "Bytes of payloads received from the broker", lambda p: p.received),
    _count("splitee_sent_bytes", "Bytes of payloads sent to the broker", lambda p: p.sent),
    _of_device("splitee_device_cut", "The last stage that the device trains", lambda _, d: d.cut),
    _of_device(
        "splitee_device_batches", "Batches in committed rounds", lambda _, d: d.batches, CounterMetricFamily
    ),
    Figure(
        "splitee_device_bytes",
        "Bytes that the device has sent (up) and received (down), by purpose",
        _traffic,
        ("device", "direction", "purpose"),
        CounterMetricFamily,
    ),
    Figure(
        "splitee_server_written_bytes",
        "Bytes that the server process has written to its disk",
        _own_writes,
        kind=CounterMetricFamily,
    ),
    _of_device(
        "splitee_device_written_bytes",
        "Bytes that the device's process has written to its disk",
        _of_status(lambda s: s.written),
        CounterMetricFamily,
    ),
    _of_device(
        "splitee_device_temperature_celsius",
        "The device's hottest sensor",
        _of_status(lambda s: s.temperature),
    ),
    _of_device(
        "splitee_device_memory_bytes",
        "Memory that the device's process takes",
        _of_status(lambda s: s.memory),
    ),
    _of_device(
        "splitee_device_memory_limit_bytes",
        "Memory that it may take, by its control groups or its machine",
        _of_status(lambda s: s.memory_limit),
    ),
    _evaluated("splitee_device_exit_loss", "Mean training loss of the exit", lambda m: m.exit_loss),
    _evaluated("splitee_device_trunk_loss", "Mean training loss of the trunk", lambda m: m.trunk_loss),
    _evaluated(
        "splitee_device_exit_accuracy_ratio", "Held-out accuracy of the exit", lambda m: m.exit_accuracy
    ),
    _evaluated(
        "splitee_device_trunk_accuracy_ratio", "Held-out accuracy of the trunk", lambda m: m.trunk_accuracy
    ),
    _evaluated(
        "splitee_device_adaptive_accuracy_ratio",
        "Held-out accuracy of adaptive predictions",
        lambda m: m.adaptive_accuracy,
    ),
    _evaluated(
        "splitee_device_offload_ratio", "Share of held-out images offloaded", lambda m: m.offload_share
    ),
    _evaluated(
        "splitee_device_held_out_images", "Images behind its accuracies", lambda m: m.held_out_samples or None
    ),
    _one(
        "splitee_held_out_images",
        "Held-out images of all devices in the last evaluated round",
        lambda p: p.run.metrics.fleet.images if p.run.metrics else 0,
    ),
    Figure("splitee_accuracy_ratio", "Accuracy over all of them", _fleet_accuracies, ("predictor",)),
    Figure(
        "splitee_class_recall",
        "Share of a class's held-out images that adaptive predictions assign to it",
        _of_classes(lambda found: found.recall),
        ("class",),
    ),
    Figure(
        "splitee_class_images",
        "Held-out images of a class",
        _of_classes(lambda found: found.images),
        ("class",),
    ),
)


class Figures(Observer, Collector):
    """Keeps the run's last progress, which a scrape reads on a thread of its own."""

    def __init__(self, certificate_end: datetime | None = None, *, clock: Clock = time.monotonic) -> None:
        """`certificate_end`: when the server's own certificate ends."""
        self._certificate_end = certificate_end
        self._clock = clock
        self._latest: Progress | None = None
        self._rollouts: Rollouts | None = None
        self._due = 0.0

    def tick(self, progress: Callable[[], Progress]) -> None:
        now = self._clock()
        if now >= self._due:
            self._latest = progress()
            self._due = now + EVERY

    def on_rollouts(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        if self._certificate_end is not None:
            help = "When the server's own certificate ends, since the epoch"
            yield GaugeMetricFamily(CERTIFICATE, help, value=self._certificate_end.timestamp())
        progress = self._latest
        if progress is not None:
            for figure in FIGURES:
                yield figure.family(progress)
        rollouts = self._rollouts
        if rollouts is not None:
            yield from rollout_families(rollouts)


@contextmanager
def serving(figures: Figures, bind: str, port: int) -> Iterator[None]:
    """Serves http://BIND:PORT/metrics while the context lasts.

    Raises:
        ConfigError: it cannot listen there.
    """
    registry = CollectorRegistry()
    registry.register(figures)
    ProcessCollector(registry=registry)
    try:
        server, thread = start_http_server(port, bind, registry)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no name of a machine"
        raise ConfigError(
            f"--metrics-port {port}: cannot listen on {bind} ({reason}): "
            "stop what listens there, or choose another port or --metrics-bind"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
