# SPDX-License-Identifier: Apache-2.0
"""Class names that the operator gives in a file, and those that devices vote for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from splitee.errors import ConfigError
from splitee_server.members.class_names import MOST_CHANGES, ClassVote, read_class_names


def test_class_names_are_read_one_per_line_in_order(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("glass\n  paper \n\nmétal\n", encoding="utf-8")
    assert read_class_names(file, 10) == ("glass", "paper", "métal")


def test_byte_order_mark_of_an_editor_is_no_part_of_a_class_name(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("glass\npaper\n", encoding="utf-8-sig")
    assert read_class_names(file, 10) == ("glass", "paper")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"glass\n", r"expected 2 to 3 different names \(--num-classes 3\), found 1"),
        (b"a\nb\nc\nd\n", "found 4"),
        (b"a\nb\na\n", r"found 3 \(2 different\)"),
        (b"a\n\xff\n", "expected a class name a line"),
        (b"a\n" + b"x" * 201, "expected a class name a line"),
    ],
)
def test_file_that_is_no_list_of_classes_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_class_names(file, 3)


def test_missing_file_of_class_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_class_names(tmp_path / "none.txt", 3)


OLD, NEW, OTHER = ("a", "b"), ("a", "c"), ("a", "d")


def vote(devices: int, *votes: tuple[str, tuple[str, ...]]) -> ClassVote:
    found = ClassVote(devices)
    for device, names in votes:
        found.cast(device, names)
    return found


def test_more_than_half_of_the_latest_votes_change_the_class_names() -> None:
    votes = vote(3, ("pi-1", OLD), ("pi-2", OLD), ("pi-3", NEW))
    assert votes.cast("pi-2", OTHER) == OLD  # no other device has these names
    assert votes.cast("pi-2", NEW) == NEW
    assert votes.voters(NEW) == ["pi-2", "pi-3"]
    assert votes.cast("pi-2", NEW) == NEW


def test_tied_vote_does_not_change_the_class_names() -> None:
    """More devices may vote than the run waits for."""
    votes = vote(3, ("pi-1", OLD), ("pi-2", OLD), ("pi-3", NEW))
    assert votes.cast("pi-4", NEW) == OLD
    assert votes.cast("pi-5", NEW) == NEW


def test_device_that_flips_its_vote_changes_the_names_a_few_times_only() -> None:
    votes = vote(3, ("pi-1", OLD), ("pi-2", NEW), ("evil", OLD))
    decided = [votes.cast("evil", (NEW, OLD)[flip % 2]) for flip in range(100)]
    assert sum(before != after for before, after in pairwise([OLD, *decided])) == MOST_CHANGES
    assert decided[-1] == OLD
    assert votes.cast("pi-1", NEW) == NEW  # votes of other devices still count


def test_vote_can_be_withdrawn() -> None:
    votes = vote(3, ("pi-1", OLD), ("pi-2", OLD), ("evil", NEW))
    votes.withdraw("evil")
    votes.withdraw("nobody")
    assert votes.cast("pi-1", NEW) == OLD
    assert votes.voters(NEW) == ["pi-1"]


MORE, LESS = ("a", "b", "c"), ("a", "c")


def test_empty_folder_counts_for_names_with_its_class_without_a_majority() -> None:
    votes = ClassVote(2)
    votes.cast("pi-1", MORE)
    assert votes.cast("pi-2", LESS) == ()
    assert votes.cast("pi-2", LESS, ("x",)) == ()
    assert votes.cast("pi-2", LESS, ("b", "x")) == MORE
    assert votes.could_have("pi-2", MORE)
    assert not any(votes.could_have(device, names) for device, names in (("pi-1", MORE), ("pi-9", MORE)))


def test_decided_names_grow_by_a_class_that_all_devices_have_added() -> None:
    votes = ClassVote(2)
    votes.cast("pi-1", LESS)
    votes.cast("pi-2", LESS)
    assert votes.cast("pi-1", MORE) == LESS
    assert votes.cast("pi-2", LESS, ("b",)) == MORE


def test_empty_folder_does_not_count_against_names_of_a_majority() -> None:
    votes = ClassVote(3)
    votes.cast("pi-1", LESS, ("b",))
    assert votes.cast("pi-2", LESS, ("b",)) == LESS
    assert votes.cast("evil", MORE) == LESS
