# SPDX-License-Identifier: Apache-2.0
"""What joining is worth: the fleet's accuracies against the baselines', device by device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import mean

from splitee.cli.words import percent
from splitee_lab.report.demo_report import Report
from splitee_lab.report.figures import Figures, figures


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
    """The percentage points between two fractions as they are shown, to a tenth; never -0."""
    return round(round(100 * reached, 1) - round(100 * baseline, 1), 1) + 0.0


def signed(found: float) -> str:
    """Points as a column of gains has them: "+2.3", "-0.4", "0.0"."""
    return f"{found:+.1f}" if found else "0.0"


def adaptive_over_alone(report: Report) -> Comparison | None:
    """Adaptive predictions against the whole network, trained on the device's own images."""
    return _compare(report, lambda found: found.adaptive, _alone(report))


def adaptive_over_alone_exit(report: Report) -> Comparison | None:
    """Adaptive predictions against the stages up to the device's cut and their exit, trained by it alone."""
    return _compare(report, lambda found: found.adaptive, _alone_exit(report))


def exit_over_alone_exit(report: Report) -> Comparison | None:
    """The exit against the same stages and exit, trained by the device alone: what joining gives offline."""
    return _compare(report, lambda found: found.exit, _alone_exit(report))


def trunk_over_alone(report: Report) -> Comparison | None:
    """The trunk, through each device's features, against the whole network, trained on its own images."""
    return _compare(report, lambda found: found.trunk, _alone(report))


def trunk_against_centralized(report: Report) -> Comparison | None:
    """The trunk, through each device's features, against the network trained on all images in one place."""
    if report.baselines is None:
        return None
    centralized = dict.fromkeys((one.id for one in report.devices), report.baselines.centralized_accuracy)
    return _compare(report, lambda found: found.trunk, centralized)


def _alone(report: Report) -> Mapping[str, float]:
    return report.baselines.alone_accuracy if report.baselines else {}


def _alone_exit(report: Report) -> Mapping[str, float]:
    return report.baselines.alone_exit_accuracy if report.baselines else {}


def _compare(
    report: Report, figure: Callable[[Figures], float | None], baseline: Mapping[str, float]
) -> Comparison | None:
    """Over the devices that have both; None: there is none."""
    reached = {
        device: value
        for device, found in figures(report).items()
        if device in baseline and (value := figure(found)) is not None
    }
    return Comparison(reached, {device: baseline[device] for device in reached}) if reached else None
