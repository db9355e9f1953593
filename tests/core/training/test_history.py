# SPDX-License-Identifier: Apache-2.0
"""The evaluated rounds in a server's state, as they are read from its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from retained_fleet import METRICS

from splitee.errors import StateError
from splitee.training.history import HISTORY, read_history


@pytest.mark.parametrize("damage", [b"\x00", b"\xff"])
def test_damaged_line_ends_the_history_with_one_warning(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = [replace(METRICS, round=number) for number in (1, 2, 3)]
    first, second, third = (metrics.encode() + b"\n" for metrics in rounds)
    name = METRICS.run.encode()
    (tmp_path / HISTORY).write_bytes(first + second.replace(name, damage + name[1:]) + third)
    assert list(read_history(tmp_path)) == rounds[:1]
    (line,) = (record.getMessage() for record in caplog.records)
    assert "history.jsonl has a line that is torn" in line


def test_history_that_is_no_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / HISTORY).mkdir()
    with pytest.raises(StateError, match=r"history\.jsonl cannot be read: Is a directory"):
        list(read_history(tmp_path))
