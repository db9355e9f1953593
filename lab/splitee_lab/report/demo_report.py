"""What a demo's report.json holds: the server's report, where it ran, and what it is compared with."""

from __future__ import annotations

import msgspec

from splitee.cli.accuracy_words import accuracies_in_words, threshold_in_words, weakest_in_words
from splitee.cli.words import images
from splitee.protocol.accuracies import Accuracies, ClassRecall, ReleasedThreshold
from splitee.protocol.fleet import FleetMetrics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_lab.report.inference_table import DeviceInference


class DeviceResult(Accuracies, frozen=True, kw_only=True):
    """One device at the end of the run, and the threshold that is in force there.

    `bytes`: of payloads that it has sent; `traffic`: what it has sent and was sent, by purpose.
    """

    id: str
    cut: int
    stage: str
    train_samples: int
    batches: int
    bytes: int
    traffic: Traffic = Traffic()
    held_out_samples: int = 0  # that the accuracies rest on
    weakest_class: ClassRecall | None = None
    threshold: float | None = None
    threshold_images: int = 0
    expected_offload: float | None = None
    expected_accuracy: float | None = None

    @property
    def threshold_in_words(self) -> str:
        """Empty where the report does not say."""
        if self.threshold is None:
            return ""
        return threshold_in_words(
            ReleasedThreshold(
                threshold=self.threshold,
                images=self.threshold_images,
                expected_offload=self.expected_offload,
                expected_accuracy=self.expected_accuracy,
            )
        )


class FleetTraffic(Traffic, frozen=True, kw_only=True):
    """Of all devices. `to_all`: what the server has sent for all of them to read, each message once."""

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

    `compute_share`: by device, what its training computes (multiply-accumulates) as a share of what training
    the whole network on the same images does. `bytes_published`: of payloads that the devices have sent;
    `traffic`: what they have sent and were sent, by purpose.
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
    fleet: FleetMetrics = FleetMetrics()
    traffic: FleetTraffic = FleetTraffic()


def fleet_in_words(report: Report) -> list[str]:
    """Lines below the table: all held-out images, weak classes, thresholds."""
    fleet = report.fleet
    lines = [
        ("fleet", accuracies_in_words(fleet, fleet.images), weakest_in_words(fleet.weakest_class)),
        *(
            (
                device.id,
                f"{images(device.held_out_samples)} held out" if device.held_out_samples else "",
                weakest_in_words(device.weakest_class),
                device.threshold_in_words,
            )
            for device in report.devices
        ),
    ]
    return [f"{of}: {'; '.join(filter(None, words))}" for of, *words in lines if any(words)]
