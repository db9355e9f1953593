# SPDX-License-Identifier: Apache-2.0
"""A demo that does not begin leaves no folder behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call

from splitee.errors import ExitCode
from splitee_lab.demo import fleet


@pytest.mark.parametrize(
    ("broker", "code", "words"),
    [
        ("mqtt://127.0.0.1:1", ExitCode.UNREACHABLE, "no broker at mqtt://127.0.0.1:1 within 1 s"),
        ("mosqito", ExitCode.CONFIG, "--broker mosqito: expected auto, mosquitto, embedded or an address"),
    ],
)
def test_demo_with_an_unreachable_or_unknown_broker_leaves_no_folder(
    broker: str,
    code: ExitCode,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fleet, "CONNECT", 1.0)
    ended, line = call(capsys, "demo", "--broker", broker, "--out", str(tmp_path / "runs" / "one"))
    assert (ended, words in line) == (code, True), line
    assert list(tmp_path.iterdir()) == []


def test_demo_that_does_not_begin_keeps_an_existing_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ended, line = call(capsys, "demo", "--broker", "mosqito", "--out", str(out))
    assert (ended, "--broker mosqito: expected auto" in line) == (ExitCode.CONFIG, True), line
    assert list(tmp_path.rglob("*")) == [out]
