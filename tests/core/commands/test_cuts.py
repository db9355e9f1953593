# SPDX-License-Identifier: Apache-2.0
"""`splitee cuts`: the table a person reads, the JSON a program reads, and one line for a mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from splitee.cli.main import main
from splitee.errors import ExitCode


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leave:
        main(["cuts", *arguments])
    out, err = capsys.readouterr()
    return int(leave.value.code or 0), out, err


def test_table_has_one_row_per_cut(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "resnet18", "--stem", "small", "--input", "3x32x32")
    assert code == ExitCode.OK
    assert "resnet18, 3x32x32, 10 classes: cuts 1..9 of 10 stages" in out
    rows = [re.split(r"\s*│\s*", line.strip("│ ")) for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == [str(cut) for cut in range(1, 10)]
    # layer1 holds the stem (1,856 parameters) and four 3x3 convolutions with their BatchNorms.
    assert rows[2] == ["3", "layer1.1", "64x32x32", "262.1", f"{1856 + 4 * (64 * 64 * 9 + 128):,}", "152.76"]
    assert "11,173,962 parameters" in out


def test_json_holds_network_input_and_costs_of_each_cut(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "resnet18", "--input", "3x224x224", "--num-classes", "1000", "--json")
    found = json.loads(out)
    assert code == ExitCode.OK
    assert (found["network"], found["num_layers"], found["num_classes"]) == ("resnet18", 10, 1000)
    assert (found["parameters"], found["input_shape"], found["stem"]) == (11689512, [3, 224, 224], "imagenet")
    assert found["mmacs"] == pytest.approx(1814, abs=1)
    assert [row["cut"] for row in found["cuts"]] == list(range(1, 10))
    assert found["cuts"][2] == {
        "cut": 3,
        "stage": "layer1.1",
        "feature_shape": [64, 56, 56],
        "kb_per_sample": 802.816,
        "device_parameters": 9536 + 4 * (64 * 64 * 9 + 128),
        "device_mmacs": pytest.approx((64 * 3 * 49 * 112**2 + 4 * 64 * 64 * 9 * 56**2) / 1e6),
        "trained_parameters": 9536 + 4 * (64 * 64 * 9 + 128),
        "training_mmacs": pytest.approx(3 * (64 * 3 * 49 * 112**2 + 4 * 64 * 64 * 9 * 56**2) / 1e6),
    }


def test_frozen_stages_are_not_trained_and_have_no_backward_pass(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "resnet18", "--freeze", "3", "--json")
    assert code == ExitCode.OK
    rows = json.loads(out)["cuts"]
    assert [row["trained_parameters"] for row in rows[:4]] == [0, 0, 0, 230_144]
    assert [row["training_mmacs"] for row in rows[:3]] == [row["device_mmacs"] for row in rows[:3]]
    fourth = rows[3]["device_mmacs"] - rows[2]["device_mmacs"]
    assert rows[3]["training_mmacs"] == pytest.approx(rows[2]["device_mmacs"] + 3 * fourth)
    code, out, _ = run(capsys, "resnet18", "--freeze", "3")
    assert "trained" in out
    code, _, err = run(capsys, "resnet18", "--freeze", "10")
    assert code == ExitCode.NETWORK and "--freeze 10 is beyond the deepest cut" in err


def test_settings_come_from_the_environment_and_from_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tmp_path / "fleet.toml"
    settings.write_text('input = "3x64x64"\nnum-classes = 7\n')
    monkeypatch.setenv("SPLITEE_STEM", "small")
    _, out, _ = run(capsys, "resnet18", "--json", "--config", str(settings))
    found = json.loads(out)
    assert (found["input_shape"], found["num_classes"], found["stem"]) == ([3, 64, 64], 7, "small")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["resnet81"], ExitCode.NETWORK, "splitee: unknown network 'resnet81'; nearest: resnet18"),
        (["alexnet", "--input", "3x32x32"], ExitCode.NETWORK, "splitee: alexnet does not run on 3x32x32"),
        (["vgg11", "--stem", "small"], ExitCode.NETWORK, "splitee: stem 'small' is for the resnets"),
        (
            ["resnet18", "--input", "3x0x32"],
            ExitCode.CONFIG,
            "--input 3x0x32: channels (1 or 3), height and width",
        ),
        (["resnet18", "--num-classes", "1"], ExitCode.CONFIG, "--num-classes 1: from 2 to 10000"),
        ([], ExitCode.CONFIG, "give the name of a NETWORK, or --all"),
        (["resnet18", "--all"], ExitCode.CONFIG, "give the name of a NETWORK, or --all"),
    ],
)
def test_wrong_arguments_give_an_error_line_and_exit_code(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: ExitCode, line: str
) -> None:
    given, out, err = run(capsys, *arguments)
    assert (given, out) == (code, "")
    assert line in err
    assert "Traceback" not in err


def test_frozen_stages_of_all_networks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "--all", "--freeze", "3")
    assert (code, out) == (ExitCode.CONFIG, "")
    assert err == "splitee: --freeze does nothing without NETWORK: give both, or neither\n"
