# SPDX-License-Identifier: Apache-2.0
"""Processes that are forked from one which has loaded what they need."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from warm import WarmProcess

FOUND = "import sys; print('first_uses' in sys.modules)"


def test_what_is_to_be_loaded_once_is_found_where_this_process_finds_it(tmp_path: Path) -> None:
    """`first_uses` is no installed module: pytest's own settings lead to it."""
    log = tmp_path / "log"
    process = WarmProcess(["found"], log, program=partial(exec, FOUND))
    assert process.wait(60) == 0
    assert log.read_text() == "True\n"
