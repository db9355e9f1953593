# SPDX-License-Identifier: Apache-2.0
"""`splitee pack`."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call
from wheels import make_keys, small_wheel

from splitee.errors import ExitCode
from splitee.inference.signatures import ReleaseKey
from splitee.software.wheelhouse import Wheelhouse


@pytest.fixture
def own(tmp_path: Path) -> str:
    return str(small_wheel(tmp_path, "hetero_splitee", "0.2.0"))


def test_pack_writes_a_file_that_devices_can_read(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    signing, public = make_keys(tmp_path / "keys")
    other = small_wheel(tmp_path, "other", "1", "cp311-cp311-manylinux_2_28_aarch64")
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "pack", own, str(other), "--signing-key", str(signing))[0] == ExitCode.OK
    with (tmp_path / "splitee-0.2.0-cp311-aarch64.wheels").open("rb") as file:
        assert len(Wheelhouse.read(file, ReleaseKey.read(public)).manifest.wheels) == 2


def test_pack_with_an_index_omits_the_content_of_wheels(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    signing, public = make_keys(tmp_path / "keys")
    out, index = tmp_path / "out.wheels", "https://packages.test/simple"
    call(capsys, "pack", own, "--signing-key", str(signing), "--index", index, "--out", str(out))
    with out.open("rb") as file:
        assert Wheelhouse.read(file, ReleaseKey.read(public)).manifest.index == index
    assert out.stat().st_size < 1000


def test_wrong_arguments_of_pack_are_refused_in_one_line(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    signing = str(make_keys(tmp_path / "keys")[0])
    for arguments, words in (
        ((), "nothing to pack"),
        ((own,), "expected --signing-key"),
        ((own, "--signing-key", str(tmp_path / "none")), "No such file"),
        (
            (own, "--signing-key", signing, "--index", "packages.test"),
            "expected an address, https://HOST/PATH",
        ),
    ):
        code, line = call(capsys, "pack", *arguments)
        assert code == ExitCode.CONFIG
        assert words in line


def test_unwritable_file_of_pack_is_refused_in_one_line(
    tmp_path: Path, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    signing, out = str(make_keys(tmp_path / "keys")[0]), tmp_path / "no" / "out"
    code, line = call(capsys, "pack", own, "--signing-key", signing, "--out", str(out))
    assert code == ExitCode.STATE
    assert line.startswith(f"splitee: cannot write {out}: No such file or directory; ")
