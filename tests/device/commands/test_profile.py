# SPDX-License-Identifier: Apache-2.0
"""`splitee profile` from the command line: measured in real processes, on a tiny network."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import profiles
import pytest
from commands import refusal
from msgspec.structs import replace

from splitee.cli.main import main
from splitee.errors import ExitCode
from splitee_device.profiler import probe
from splitee_device.profiler.costs import CutCosts, Failed, MeasureCut
from splitee_lab.local.brokers import RunningBroker

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "choose-a-cut.md"
SETTINGS = ("--batch", "8", "--threads", "1", "--samples", "64", "--budget", "60")
LOOK = 200.0  # seconds: more than the few that a measurement takes on a busy machine
TINY = ("--network", "tiny_networks:tiny", "--input", "3x32x32", *SETTINGS)

pytestmark = pytest.mark.slow(5)


@pytest.fixture
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.2 s of steps a measurement are enough if the figures do not matter."""
    monkeypatch.setattr(probe, "SECONDS", 0.2)


@pytest.fixture
def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only measurements advance the time, by LOOK seconds each, however busy this machine is."""
    measure, passed = probe.Probe.measure, itertools.count(0, LOOK)
    now = [next(passed)]

    def measured(self: probe.Probe, request: MeasureCut) -> CutCosts | Failed:
        found = measure(self, request)
        now.append(next(passed))
        return found

    monkeypatch.setattr(probe.Probe, "measure", measured)
    monkeypatch.setattr(probe, "time", SimpleNamespace(monotonic=lambda: now[-1]))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as leave:
        main(["profile", *arguments])
    out, err = capsys.readouterr()
    return int(leave.value.code or 0), out, err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code, out, err = run(capsys, *arguments, "--json")
    assert code == ExitCode.OK, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.usefixtures("short_looks")
def test_every_cut_is_measured_although_the_network_module_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path(tmp_path, "talkative.py").write_text("from tiny_networks import tiny\nprint('hello', flush=True)")
    monkeypatch.syspath_prepend(tmp_path)
    found = run_json(capsys, *TINY, "--network", "talkative:tiny", "--steps", "20")
    assert [(row["cut"], row["stage"]) for row in found["cuts"]] == [
        (1, "first"),
        (2, "hidden.0"),
        (3, "hidden.3"),
    ]
    assert all(row["measured"] and row["fits"] for row in found["cuts"])
    for row in found["cuts"]:
        parts = row["forward"] + row["backward"] + row["optimizer"]
        assert 0 < parts <= 2 * row["step"]
        assert row["memory"] > 0
        assert 0 < row["inference_memory"] <= row["memory"]
        assert row["upload"] is None
        assert row["round"] == pytest.approx(20 * (row["step"] + row["encoding"]))
    # fp16 features of a batch of 8 images: 4 x 8 x 8, 8 x 3 x 3 and 16 values; labels and names besides.
    sizes = [
        row["payload"] - 8 * values * 2 for row, values in zip(found["cuts"], (256, 72, 16), strict=True)
    ]
    assert all(8 < size < 250 for size in sizes)
    assert found["recommended"] in (1, 2, 3)
    assert found["link"] is None
    assert found["device"]["cores_allowed"]["value"] == len(os.sched_getaffinity(0))


@pytest.mark.usefixtures("short_looks")
@pytest.mark.mosquitto
def test_table_marks_the_recommended_cut_and_gives_its_reason(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mosquitto_broker: RunningBroker,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    plot = tmp_path / "profile.png"
    where = ("--broker", str(mosquitto_broker.address), "--fleet", "profiles")
    code, out, _ = run(capsys, *TINY, *where, "--prefer", "deepest", "--plot", str(plot))
    assert code == ExitCode.OK
    (marked,) = [line for line in out.splitlines() if line.startswith(">")]
    assert marked.split()[1:3] == ["3", "hidden.3"]
    assert "recommended: cut 3 (hidden.3): the deepest that fits, and the last there is" in out
    assert "Mbit/s up" in out
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow(9)
@pytest.mark.usefixtures("short_looks", "slow_clock")
def test_documented_command_interpolates_cuts_beyond_its_budget(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    embedded_broker: RunningBroker,
) -> None:
    block = re.search(r"```sh\nsplitee profile (.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    monkeypatch.chdir(tmp_path)
    words = shlex.split(block[1].replace("mqtt://BROKER:1883", str(embedded_broker.address)))
    found = run_json(capsys, *words, "--threads", "1", "--budget", str(3 * LOOK))
    assert Path("cuts.png").stat().st_size > 0
    assert found["link"]["message_cpu"] > 0
    assert found["reference"] > 0
    flags = [row["measured"] for row in found["cuts"]]
    assert flags[0] and flags.count(True) == 3
    assert len(flags) > 3
    assert found["seconds"] == 3 * LOOK
    steps = [row["step"] for row in found["cuts"]]
    assert all(step > 0 for step in steps)


def test_budget_too_short_for_one_measurement_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, *TINY, "--budget", "1")
    assert code == ExitCode.NO_CUT
    assert "--budget 1 seconds are too short for one measurement" in refusal(err)


def test_profile_without_torch_describes_the_device_and_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = run(capsys, *TINY, "--json")
    found = json.loads(out)
    assert code == ExitCode.EXTRA
    assert "pip install 'hetero-splitee[train]'" in refusal(err)
    assert (found["cuts"], found["recommended"]) == ([], None)
    assert found["device"]["memory_available"]["value"] > 0


def test_reserve_of_all_memory_leaves_no_cut_that_fits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = profiles.measured(range(1, 5), available=1 << 30)
    monkeypatch.setattr("splitee_device.commands.profile.measure_cuts", lambda *_, **__: costs)
    code, out, err = run(capsys, *TINY, "--reserve", str(1 << 20), "--json")
    assert code == ExitCode.NO_CUT
    assert "no cut fits this device" in refusal(err)
    assert [row["obstacle"] for row in json.loads(out)["cuts"]] == ["memory"] * 4


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--cpu-share", "0"), ExitCode.CONFIG, "--cpu-share 0: more than 0, at most 1"),
        (("--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "1"), ExitCode.UNREACHABLE, "no broker at"),
    ],
)
def test_invalid_share_or_unreachable_broker_is_reported_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: ExitCode, line: str
) -> None:
    given, _, err = run(capsys, *arguments)
    assert given == code
    assert line in refusal(err)


@pytest.mark.parametrize(
    ("name", "line"),
    [("gone/cuts.png", "there is no folder"), ("cuts.nothing", "expected a file that ends in .png")],
)
def test_chart_that_cannot_be_drawn_is_refused_before_the_measurement(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, line: str
) -> None:
    code, out, err = run(capsys, *TINY, "--plot", str(tmp_path / name))
    assert (code, out) == (ExitCode.CONFIG, "")
    assert line in refusal(err)
    assert "measuring" not in err


def test_device_without_a_cut_that_can_be_trained_is_told_so_also_with_a_chart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nothing = replace(profiles.measured((), available=1 << 30), failed={1: "ran out of memory"})
    monkeypatch.setattr("splitee_device.commands.profile.measure_cuts", lambda *_, **__: nothing)
    code, _, err = run(capsys, *TINY, "--plot", str(tmp_path / "cuts.png"))
    assert code == ExitCode.NO_CUT
    assert "no cut fits this device (cut 1 ran out of memory)" in refusal(err)


def test_chart_on_a_full_disk_does_not_lose_the_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    costs = profiles.measured(range(1, 5))
    monkeypatch.setattr("splitee_device.commands.profile.measure_cuts", lambda *_, **__: costs)
    full = tmp_path / "cuts.png"
    full.symlink_to("/dev/full")
    code, out, err = run(capsys, *TINY, "--plot", str(full), "--json")
    assert code == ExitCode.CONFIG
    assert "No space left on device" in refusal(err)
    assert len(json.loads(out)["cuts"]) == 4


@pytest.mark.slow(3)
def test_unknown_network_is_refused_before_any_output(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, "--network", "nosuch:thing")
    assert (code, out) == (ExitCode.NETWORK, "")
    assert "nosuch" in refusal(err)
