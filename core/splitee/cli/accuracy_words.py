# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation as phrases for logs and tables, each figure with its number of images."""

from __future__ import annotations

from collections.abc import Iterator

from splitee.cli.words import images, percent, share_of
from splitee.inference.combination import TRUNK_ALONE, Combination
from splitee.protocol.accuracies import Accuracies, ClassRecall, ReleasedThreshold


def describe_accuracies(found: Accuracies, count: int) -> str:
    """Of `count` images: "adaptive 83.0 % (79.0 to 86.4, 400 images), exit 71.0 %, trunk 84.0 %"."""
    return ", ".join(_accuracies(found, count)) or "not evaluated"


def _accuracies(found: Accuracies, count: int) -> Iterator[str]:
    if found.adaptive_accuracy is not None:
        yield f"adaptive {share_of(found.adaptive_accuracy, count, percent(found.adaptive_accuracy))}"
    if found.exit_accuracy is not None:
        yield f"exit {percent(found.exit_accuracy)}"
    if found.trunk_accuracy is not None:
        yield f"trunk {percent(found.trunk_accuracy)}"


def describe_weakest(found: ClassRecall | None) -> str:
    """ "weakest class glass 40.0 % (21.9 to 61.3, 20 images)", or nothing."""
    return "" if found is None else f"weakest class {found.name} {share_of(found.recall, found.images)}"


def describe_combination(combination: Combination) -> str:
    """ "0.31 x exit + 0.72 x trunk", of their logits."""
    if combination == TRUNK_ALONE:
        return "the trunk alone"
    return f"{combination.exit:.2f} x exit + {combination.trunk:.2f} x trunk"


def describe_threshold(released: ReleasedThreshold) -> str:
    """ "threshold 0.412 (chosen on 1,000 images): expected 23.0 % offloaded and 84.1 % right"."""
    source = f"chosen on {images(released.images)}" if released.images else "the run's"
    expected = []
    if released.expected_offload is not None:
        expected.append(f"{percent(released.expected_offload)} offloaded")
    if released.expected_accuracy is not None:
        expected.append(f"{percent(released.expected_accuracy)} right")
    threshold = f"threshold {released.threshold:.3f} ({source})"
    return f"{threshold}: expected {' and '.join(expected)}" if expected else threshold
