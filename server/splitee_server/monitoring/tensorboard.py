# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files: loss, accuracy and bytes of each device and of each cut over the rounds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from time import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from splitee.errors import StateError
from splitee.protocol.fleet import DeviceMetrics, FleetMetrics, Metrics
from splitee_server.monitoring.observer import Observer

log = logging.getLogger(__name__)

DEVICES = 100  # that have curves of their own: each keeps a file open, and flushes it after each round
ACCURACIES = {
    "accuracy/exit": "exit_accuracy",
    "accuracy/trunk": "trunk_accuracy",
    "accuracy/adaptive": "adaptive_accuracy",
    "offload/share": "offload_share",
}
TAGS = {
    "loss/exit": "exit_loss",
    "loss/trunk": "trunk_loss",
    "bytes/sent": "bytes",
    "images/held_out": "held_out_samples",
    **ACCURACIES,
}


class TensorBoard(Observer):
    """Writes DIR/RUN/cut-3/pi-1 for a device, DIR/RUN/cut-3 for the mean over all devices of that cut.

    DIR/RUN/fleet has the accuracies over all held-out images, and each class's recall.

    At the first evaluated round the files are written anew from the run's history, so that a resumed server
    has each round once, whenever the last process was killed. Later rounds are appended.
    """

    def __init__(self, directory: Path, history: Callable[[], Iterable[Metrics]]) -> None:
        """`history`: all evaluated rounds of the run.

        Raises:
            StateError: `directory` cannot be written.
        """
        self._directory = directory
        self._history = history
        self._files: dict[str, EventsWriter] = {}  # by their folder; empty: they must be written anew
        self._began = 0.0  # seconds since the epoch at which the run began, without its pauses
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / ".probe").touch()
            (directory / ".probe").unlink()
        except OSError as error:
            raise StateError(
                f"--tensorboard {directory}: {error.strerror}; choose another directory"
            ) from None

    def on_evaluated(self, metrics: Metrics) -> None:
        """A full disk costs the curves, not the run; everything is written anew when there is room."""
        try:
            if self._files:
                self._add(metrics)
            else:
                self._write_anew(metrics)
            for file in self._files.values():
                file.flush()
        except OSError as error:
            self._files = {}
            log.warning("--tensorboard %s: round %d: %s", self._directory, metrics.round, error.strerror)

    def _write_anew(self, last: Metrics) -> None:
        for path in (self._directory / last.run).rglob("events.out.tfevents.*"):
            path.unlink()
        self._began = time() - last.seconds
        rounds = {metrics.round: metrics for metrics in self._history() if metrics.round <= last.round}
        for number in sorted(rounds):  # of a round that is there twice, the later entry counts
            self._add(rounds[number])

    def _add(self, metrics: Metrics) -> None:
        by_cut: dict[int, list[DeviceMetrics]] = {}
        for device, values in metrics.devices.items():
            by_cut.setdefault(values.cut, []).append(values)
            self._write(f"cut-{values.cut}/{device}", metrics, _scalars([values]))
        for cut, group in by_cut.items():
            self._write(f"cut-{cut}", metrics, _scalars(group))
        if metrics.fleet.images:
            self._write("fleet", metrics, _of_fleet(metrics.fleet))

    def _write(self, name: str, metrics: Metrics, scalars: Mapping[str, float]) -> None:
        file = self._open(name, metrics)
        if file is None:
            return
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        when = self._began + metrics.seconds
        file.write_event(Event(wall_time=when, step=metrics.round, summary=Summary(value=values)))

    def _open(self, name: str, metrics: Metrics) -> EventsWriter | None:
        """The file of a device or a cut; None for a device beyond those that have one."""
        file = self._files.get(name)
        if file is None and ("/" not in name or sum("/" in known for known in self._files) < DEVICES):
            folder = self._directory / metrics.run / name
            folder.mkdir(parents=True, exist_ok=True)
            file = self._files[name] = EventsWriter(str(folder / "events"))
            # Makes a running TensorBoard discard what it has read of the earlier file.
            start = SessionLog(status=SessionLog.START)
            file.write_event(Event(wall_time=time(), step=metrics.round, session_log=start))
        return file


def _scalars(devices: list[DeviceMetrics]) -> dict[str, float]:
    """The mean of each value that is known."""
    known = {
        tag: [value for values in devices if (value := getattr(values, field)) is not None]
        for tag, field in TAGS.items()
    }
    return {tag: fmean(values) for tag, values in known.items() if values}


def _of_fleet(found: FleetMetrics) -> dict[str, float]:
    """Accuracies, and of each class its recall, with the images behind them."""
    known = {tag: getattr(found, field) for tag, field in ACCURACIES.items()}
    return {
        "images/held_out": found.images,
        **{tag: value for tag, value in known.items() if value is not None},
        **{f"recall/{of_class.name}": of_class.recall for of_class in found.class_recalls},
        **{f"images/{of_class.name}": of_class.images for of_class in found.class_recalls},
    }
