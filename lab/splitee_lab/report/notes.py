# SPDX-License-Identifier: Apache-2.0
"""Each device's threshold in force and weakest class, for a terminal and a page."""

from __future__ import annotations

from splitee.cli.accuracy_words import describe_weakest
from splitee.cli.words import images
from splitee.protocol.accuracies import ClassRecall
from splitee_lab.report.demo_report import Report
from splitee_lab.report.figures import Figures, figures
from splitee_server.rounds.class_report import Evaluated
from splitee_server.rounds.confusion import weakest_class


def weakest_classes(report: Report) -> dict[str, ClassRecall]:
    """By device, the weakest class of its adaptive predictions in service, if it is known."""
    devices = report.classes.devices if report.classes else {}
    found = {device: _weakest(evaluated) for device, evaluated in devices.items()}
    return {device: weakest for device, weakest in found.items() if weakest is not None}


def notes(report: Report) -> list[str]:
    """Lines below the terminal's table, one per device."""
    weakest = weakest_classes(report)
    return [
        "; ".join(
            filter(
                None, (f"{device}: {describe_threshold_source(found)}", describe_weakest(weakest.get(device)))
            )
        )
        for device, found in figures(report).items()
    ]


def describe_threshold_source(found: Figures) -> str:
    """ "threshold 0.412, chosen on 1,000 images"."""
    source = f"chosen on {images(found.threshold_images)}" if found.threshold_images else "the run's"
    return f"threshold {found.threshold:.3f}, {source}"


def _weakest(evaluated: Evaluated) -> ClassRecall | None:
    return weakest_class(
        [
            ClassRecall(found.name, found.recall.images, found.recall.share)
            for found in evaluated.adaptive.classes
            if found.recall.share is not None
        ]
    )
