"""`splitee demo` as a person runs it: real brokers, real processes, real pictures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from splitee.errors import ExitCode
from splitee_lab.local.brokers import RunningBroker

LIMIT = 240.0  # seconds; such a demo takes about 20 on two idle cores
TINY = ("--network", "tiny_networks:tiny")
IDS = ("pi-1", "pi-2", "pi-3")
SUPPORT = Path(__file__).parents[1] / "support"


def start(out: Path, *flags: str) -> subprocess.Popen[str]:
    """A demo of two rounds on 40 pictures a device."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else what a background job starts ignores it
    small = ("--rounds", "2", "--samples", "40", "--out", str(out))
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SPLITEE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "splitee", "demo", *small, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**inherited, "PYTHONPATH": str(SUPPORT)},
    )


def finish(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    """What it printed, once it has ended with `code`; none of its processes is left then."""
    try:
        shown, errors = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert not started_for(process)
    return shown, errors


def started_for(process: subprocess.Popen[str]) -> list[str]:
    """The commands that run with a path in the demo's folder: its broker, server and devices."""
    assert isinstance(process.args, list)
    out = process.args[process.args.index("--out") + 1]
    running = [" ".join(other.info["cmdline"] or ()) for other in psutil.process_iter(["cmdline"])]
    return [command for command in running if f"{out}/" in command]


def demo(out: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """report.json and the output of a demo that ends well."""
    shown, errors = finish(start(out, *flags), ExitCode.OK)
    assert errors == ""
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report, shown


@pytest.mark.mosquitto
def test_demo(tmp_path: Path, mosquitto_broker: RunningBroker) -> None:
    first, shown = demo(tmp_path / "first", "--broker", "mosquitto")
    assert first["strategy"] == "sequential"
    assert (first["seed"], first["rounds"], first["broker"], first["codec"]) == (1, 2, "mosquitto", "fp16")
    assert first["seconds"] > 0
    assert first["batches_trained"] == first["batches_published"] == 3 * 2 * 1
    assert first["duplicates_dropped"] == first["rejected"] == 0
    devices = first["devices"]
    assert [device["id"] for device in devices] == list(IDS)
    assert [device["cut"] for device in devices] == [3, 5, 7]
    assert [device["stage"] for device in devices] == ["layer1.1", "layer2.1", "layer3.1"]
    assert first["bytes_published"] == sum(device["bytes"] for device in devices) > 0
    for device in devices:
        assert (device["train_samples"], device["batches"]) == (40, 2)
        for name in ("exit_accuracy", "trunk_accuracy", "adaptive_accuracy", "offload_share"):
            assert 0 <= device[name] <= 1
    assert 0 <= first["baselines"]["centralized_accuracy"] <= 1
    assert set(first["baselines"]["alone_accuracy"]) == set(IDS)
    for answers in first["inference"]:
        assert answers["local"]["offload_share"] == answers["local"]["bytes"] == 0
        assert answers["offload"]["offload_share"] == 1
        assert answers["offload"]["bytes"] >= answers["adaptive"]["bytes"]
    assert [answers["cut"] for answers in first["inference"]] == [3, 5, 7]
    assert "<svg" in (tmp_path / "first" / "report.html").read_text()
    for said in (
        "round 1 of 2",
        "round 2 of 2",
        "baseline centralized",
        "layer3.1",
        "trunk always",
        "report.html",
    ):
        assert said in shown


@pytest.mark.mosquitto
def test_averaging_on_a_broker_that_runs_already_and_again_on_the_embedded_one(
    tmp_path: Path, mosquitto_broker: RunningBroker
) -> None:
    flags = ("--strategy", "averaging", "--no-baselines", "--devices", "2", "--codec", "int8+zstd", *TINY)
    first, _ = demo(tmp_path / "first", "--broker", str(mosquitto_broker.address), *flags)
    assert (first["strategy"], first["broker"], first["codec"]) == ("averaging", "external", "int8+zstd")
    assert first["batches_trained"] == first["batches_published"] == 2 * 2 * 1
    again, _ = demo(tmp_path / "again", "--broker", "embedded", *flags)
    assert again["weights_sha256"] == first["weights_sha256"]
    assert (again["broker"], "baselines" in again) == ("embedded", False)


def child(process: subprocess.Popen[str], name: str) -> psutil.Process:
    """The demo's process of the device `name`, as soon as there is one."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        assert process.poll() is None
        for running in psutil.Process(process.pid).children():
            if name in running.cmdline():
                return running
        time.sleep(0.05)
    raise AssertionError(f"{name} has not been started")


def test_a_device_that_dies_ends_the_demo_with_its_name(tmp_path: Path) -> None:
    process = start(tmp_path / "out", "--broker", "embedded", "--no-baselines")
    child(process, "pi-3").kill()
    _, errors = finish(process, ExitCode.CHILD)
    assert errors.startswith("splitee: pi-3 was ended by SIGKILL; the others are stopped")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start(tmp_path / "out", "--broker", "embedded", "--no-baselines")
    child(process, "pi-3")
    process.send_signal(number)
    finish(process, code)


def test_a_device_with_limits_lets_the_profiler_choose_its_cut(tmp_path: Path) -> None:
    flags = ("--profile", "--devices", "1", "--network", "tiny_networks:tiny", "--rounds", "1")
    report, shown = demo(tmp_path / "out", "--broker", "embedded", "--no-baselines", *flags)
    (choice,) = report["choices"]
    assert choice["cut"] == report["devices"][0]["cut"] == 3
    assert choice["memory"] > 100
    assert choice["reason"].startswith("cut 3 (hidden.3): the deepest that fits")
    assert f"pi-1 {choice['cpu']:.0%} of a core and {choice['memory']} MiB" in shown
    assert "the deepest that fits" in shown
