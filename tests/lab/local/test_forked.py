# SPDX-License-Identifier: Apache-2.0
"""Processes that are forked from one that has loaded their modules."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from warm import WarmProcess

FOUND = "import sys; print('first_uses' in sys.modules)"


def test_forked_process_has_preloaded_modules_of_its_parents_path(tmp_path: Path) -> None:
    """`first_uses` is not installed: pytest's settings put it on the path."""
    log = tmp_path / "log"
    process = WarmProcess(["found"], log, program=partial(exec, FOUND))
    assert process.wait(60) == 0
    assert log.read_text() == "True\n"
