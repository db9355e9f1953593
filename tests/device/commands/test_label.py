# SPDX-License-Identifier: Apache-2.0
"""`splitee label`: what it prints without the page, and what it refuses."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from commands import call
from labels import write_images, write_model

from splitee.cli.main import main
from splitee.errors import ExitCode
from splitee_device.labelling.class_names import WORKSPACE


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in "ab":
        write_images(tmp_path / "data" / name, 8, start=ord(name) * 100)
    write_images(tmp_path / "new", 2)
    write_model(tmp_path / "model")
    return tmp_path


def test_enough_flag_prints_a_table_and_a_forecast(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["label", "--data", str(place / "data"), "--model", str(place / "model"), "--enough"])
    printed = capsys.readouterr().out
    assert leave.value.code == ExitCode.OK
    assert "16 labelled images" in printed
    assert "labels: accuracy" in printed
    assert "the next 50 labels would add" in " ".join(printed.split())
    assert not (place / "data" / WORKSPACE).exists()  # without labelling, no file is written


def test_enough_flag_prints_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["label", "--data", str(place / "data"), "--enough", "--json", "-q"])
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 16
    assert [one["name"] for one in found["classes"]] == ["a", "b"]
    assert found["features"] == "pixels"
    assert found["curve"][-1]["accuracy"].keys() == {"mean", "low", "high"}


def test_invalid_arguments_are_refused_in_one_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, new = ["--data", str(place / "data")], ["--unlabelled", str(place / "new")]
    for arguments, code, words in (
        (data, ExitCode.CONFIG, "give --unlabelled DIR, --unsure DIR, or both"),
        ([*data, "--json", *new], ExitCode.CONFIG, "--json does nothing without --enough"),
        ([*data, *new, "--listen", "0.0.0.0:1"], ExitCode.CONFIG, "needs --token-file"),
        ([*data, "--unlabelled", str(place / "absent")], ExitCode.DATA, "there is no such folder"),
        (["--data", str(place / "absent"), *new], ExitCode.DATA, "make it first: mkdir"),
        ([*data, *data[:1], str(place), *new], ExitCode.DATA, "within each other"),
        ([*data, *new, "--model", str(place / "absent")], ExitCode.MODEL, "no model at"),
        (["--data", str(place / "absent"), "--enough"], ExitCode.DATA, "cannot be read"),
    ):
        found, printed = call(capsys, "label", *arguments)
        assert (found, words in printed) == (code, True), printed


def test_port_in_use_is_reported(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        code, printed = call(
            capsys,
            "label",
            "--data",
            str(place / "data"),
            "--unlabelled",
            str(place / "new"),
            "--listen",
            listen,
        )
    assert (code, "the port is in use" in printed) == (ExitCode.CONFIG, True)
