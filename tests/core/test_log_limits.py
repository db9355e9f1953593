# SPDX-License-Identifier: Apache-2.0
"""Repeated log lines: soon at first, then less and less often; another wait begins again."""

from __future__ import annotations

from itertools import pairwise

from splitee.log_limits import FirstFew, Reminder


def due_at(reminder: Reminder, wait: str, seconds: int, start: int = 0) -> list[int]:
    """The seconds at which a line is due, checked once a second."""
    return [now for now in range(start, start + seconds) if reminder.due(now, start, wait)]


def test_pauses_between_lines_double_up_to_ten_minutes() -> None:
    lines = due_at(Reminder(), "round 1", 2 * 3600)
    assert lines[:6] == [30, 90, 210, 450, 930, 1530]
    assert {later - one for one, later in pairwise(lines[4:])} == {600}


def test_another_wait_is_logged_as_soon_as_the_first() -> None:
    reminder = Reminder()
    due_at(reminder, "round 1", 3600)
    assert due_at(reminder, "round 2", 100, start=3600) == [3630, 3690]


def test_progress_delays_lines_and_adds_none() -> None:
    """A batch every 130 seconds, in one phase that lasts a day."""
    reminder = Reminder()
    lines = [now for now in range(24 * 3600) if reminder.due(now, now - now % 130, "round 1")]
    assert lines == [30, 90, 250]


def test_first_six_of_many_lines_are_logged() -> None:
    limit = FirstFew()
    assert [limit.due() for _ in range(100)] == [*(6 * [True]), *(94 * [False])]
    assert limit.count == 100
