# SPDX-License-Identifier: Apache-2.0
"""What a demo's report.json holds: the server's report, where it ran, and what it is compared with."""

from __future__ import annotations

import msgspec

from splitee.protocol.accuracies import Accuracies
from splitee.protocol.fleet import Metrics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_lab.report.inference_table import DeviceInference
from splitee_server.rounds.class_report import ClassReport


class DeviceResult(Accuracies, frozen=True, kw_only=True):
    """One device at the end of the run, as the server has evaluated it at the run's threshold.

    Attributes:
        bytes: of payloads that it has sent.
        traffic: what it has sent and was sent, by purpose.
    """

    id: str
    cut: int
    stage: str
    train_samples: int
    batches: int
    bytes: int
    traffic: Traffic = Traffic()
    held_out_samples: int = 0  # number of images behind the accuracies


class FleetTraffic(Traffic, frozen=True, kw_only=True):
    """Traffic of all devices. `to_all`: the server's messages to all of them, each counted once."""

    to_all: ByPurpose = ByPurpose()


class BaselineResult(msgspec.Struct, frozen=True):
    """Held-out accuracies: of the whole network trained on all images, and by device on its own images.

    `alone_accuracy`: of the whole network; `alone_exit_accuracy`: of the stages up to the device's cut with
    their exit, which it can train by itself.
    """

    centralized_accuracy: float
    alone_accuracy: dict[str, float]
    alone_exit_accuracy: dict[str, float] = {}


class DeviceChoice(msgspec.Struct, frozen=True):
    """A device with limits (cores; MiB to train) and the cut that its profiler chose."""

    id: str
    cpu: float
    memory: int
    cut: int
    reason: str


class Report(msgspec.Struct, frozen=True):
    """What report.json holds: the server's report, where it ran, and what it is compared with.

    Attributes:
        bytes_published: of payloads that the devices have sent.
        traffic: what they have sent and were sent, by purpose.
        compute_share: by device, the multiply-accumulates of its training as a share of those of training the
            whole network on the same images.
        peak_memory: bytes that the device's process has allocated at its peak, by device.
        history: the evaluated rounds in order, at the run's threshold.
        classes: the predictions of the released models in service, class by class.
        ended: when the run ended, in ISO 8601 with the zone.
        machine: on which it ran.
    """

    strategy: str
    order: str
    seed: int
    rounds: int
    seconds: float
    codec: str
    threshold: float
    weights_sha256: str
    batches_published: int
    batches_trained: int
    duplicates_dropped: int
    bytes_published: int
    rejected: int
    devices: list[DeviceResult]
    network: str
    data: str
    broker: str
    baselines: BaselineResult | None = None
    inference: list[DeviceInference] = []
    choices: list[DeviceChoice] = []
    compute_share: dict[str, float] = {}
    peak_memory: dict[str, int] = {}
    history: list[Metrics] = []
    classes: ClassReport | None = None
    client_averaging: str = ""
    ended: str = ""
    machine: str = ""
    version: str = ""
    traffic: FleetTraffic = FleetTraffic()
