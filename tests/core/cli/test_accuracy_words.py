# SPDX-License-Identifier: Apache-2.0
"""The results of an evaluation in words."""

from __future__ import annotations

from splitee.cli.accuracy_words import describe_accuracies, describe_threshold, describe_weakest
from splitee.protocol.accuracies import Accuracies, ClassRecall, ReleasedThreshold


def test_accuracies_are_listed_with_interval_or_as_not_evaluated() -> None:
    found = Accuracies(exit_accuracy=0.7, trunk_accuracy=0.84, adaptive_accuracy=0.83)
    assert describe_accuracies(found, 400) == (
        "adaptive 83.0 % (79.0 to 86.4, 400 images), exit 70.0 %, trunk 84.0 %"
    )
    assert describe_accuracies(Accuracies(), 0) == "not evaluated"


def test_weakest_class_is_named_with_its_recall_if_known() -> None:
    assert (
        describe_weakest(ClassRecall("glass", 20, 0.4))
        == "weakest class glass 40.0 % (21.9 to 61.3, 20 images)"
    )
    assert describe_weakest(None) == ""


def test_threshold_is_shown_with_its_origin_and_expected_offload() -> None:
    chosen = ReleasedThreshold(threshold=0.4123, images=1000, expected_offload=0.23)
    assert describe_threshold(chosen) == "threshold 0.412 (chosen on 1,000 images): expected 23.0 % offloaded"
    assert describe_threshold(ReleasedThreshold(threshold=0.5)) == "threshold 0.500 (the run's)"
