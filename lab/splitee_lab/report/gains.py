"""What joining is worth: the fleet's accuracies against the baselines', device by device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean

from splitee.cli.words import percent
from splitee_lab.report.demo_report import DeviceResult, Report


@dataclass(frozen=True)
class Comparison:
    """An accuracy in the fleet and one without it, of the same held-out images, by device; fractions."""

    reached: Mapping[str, float]
    baseline: Mapping[str, float]

    @property
    def points(self) -> dict[str, float]:
        """By device, the percentage points gained by joining, to a tenth, as they are shown."""
        return {device: points(value, self.baseline[device]) for device, value in self.reached.items()}

    @property
    def mean_reached(self) -> float:
        return mean(self.reached.values())

    @property
    def mean_baseline(self) -> float:
        return mean(self.baseline.values())

    @property
    def levels(self) -> str:
        """The means: "84.4 against 81.9 %"."""
        return f"{100 * self.mean_reached:.1f} against {percent(self.mean_baseline)}"


def points(reached: float, baseline: float) -> float:
    """The percentage points between two fractions, to a tenth; never -0."""
    return round(100 * (reached - baseline), 1) + 0.0


def signed(found: float) -> str:
    """Points as a column of gains has them: "+2.3", "-0.4", "0.0"."""
    return f"{found:+.1f}" if found else "0.0"


def adaptive_over_alone(report: Report) -> Comparison | None:
    """Adaptive predictions against the whole network, trained on the device's own images."""
    alone = report.baselines.alone_accuracy if report.baselines else {}
    return _compare(report, lambda device: device.adaptive_accuracy, alone)


def adaptive_over_alone_exit(report: Report) -> Comparison | None:
    """Adaptive predictions against the stages up to the device's cut and their exit, trained by it alone."""
    alone_exit = report.baselines.alone_exit_accuracy if report.baselines else {}
    return _compare(report, lambda device: device.adaptive_accuracy, alone_exit)


def exit_over_alone_exit(report: Report) -> Comparison | None:
    """The exit against the same stages and exit, trained by the device alone: what joining gives offline."""
    alone_exit = report.baselines.alone_exit_accuracy if report.baselines else {}
    return _compare(report, lambda device: device.exit_accuracy, alone_exit)


def trunk_against_centralized(report: Report) -> Comparison | None:
    """The trunk, through each device's features, against the network trained on all images in one place."""
    if report.baselines is None:
        return None
    centralized = dict.fromkeys((one.id for one in report.devices), report.baselines.centralized_accuracy)
    return _compare(report, lambda device: device.trunk_accuracy, centralized)


def _compare(
    report: Report, figure: Callable[[DeviceResult], float | None], baseline: Mapping[str, float]
) -> Comparison | None:
    """Over the devices that have both; None: there is none."""
    reached = {
        device.id: value
        for device in report.devices
        if device.id in baseline and (value := figure(device)) is not None
    }
    return Comparison(reached, {device: baseline[device] for device in reached}) if reached else None
