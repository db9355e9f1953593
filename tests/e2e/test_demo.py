# SPDX-License-Identifier: Apache-2.0
"""`splitee demo` as a person runs it: real brokers, real processes, real images."""

from __future__ import annotations

import json
import os
import signal
from html import unescape
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from page_streams import PageStream
from waiting import until
from warm import WarmProcess

from splitee.errors import ExitCode
from splitee_lab.local.brokers import RunningBroker
from splitee_lab.local.forked import without_settings
from splitee_lab.report.conclusion import conclusion
from splitee_lab.report.demo_report import Report

LIMIT = 240.0  # seconds; such a demo takes about 20 on two idle cores
TINY = ("--network", "tiny_networks:tiny")
UNDER_WAY = ("--broker", "embedded", "--no-baselines", "--devices", "2", *TINY)
IDS = ("pi-1", "pi-2", "pi-3")
ROUNDS, SAMPLES = 8, 400
MARK = "DEMO_UNDER_TEST"  # a variable that all of a demo's processes inherit
SUPPORT = Path(__file__).parents[1] / "support"


class Demo:
    """`splitee demo` with its results in `out`: two rounds on 40 images a device, unless `flags` differ."""

    def __init__(self, out: Path, *flags: str) -> None:
        self.out = out
        self._shown, self._errors = out.with_name("shown"), out.with_name("errors")
        small = ("--rounds", "2", "--samples", "40", "--out", str(out))
        self.process = WarmProcess(
            ["demo", *small, *flags],
            self._shown,
            {**without_settings(), "PYTHONPATH": str(SUPPORT), MARK: str(out)},
            errors=self._errors,
        )

    @property
    def shown(self) -> str:
        """The output so far."""
        return self._shown.read_text() if self._shown.exists() else ""

    def finish(self, code: int) -> tuple[str, str]:
        """Output and errors, once it has ended with `code`; none of its processes is left then."""
        try:
            ended = self.process.wait(LIMIT)
        finally:
            self.process.kill()
        shown, errors = self._shown.read_text(), self._errors.read_text()
        assert ended == code, errors
        until(lambda: not self._running(), lambda: f"{self._running()} outlive the demo")
        return shown, errors

    def report(self) -> tuple[dict[str, Any], str]:
        """report.json and the output of a demo that ends well."""
        shown, errors = self.finish(ExitCode.OK)
        assert errors == ""
        report: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return report, shown

    def child(self, name: str) -> psutil.Process:
        """Its process of the device `name`, as soon as there is one."""
        found: list[psutil.Process] = []

        def started() -> bool:
            assert self.process.poll() is None
            children = psutil.Process(self.process.pid).children(recursive=True)
            found.extend(running for running in children if running.name() == f"splitee {name}")
            return bool(found)

        until(started, lambda: f"{name} has not been started")
        return found[0]

    def _running(self) -> list[str]:
        """The processes of the demo: broker, server, devices, and those that they are forked from."""
        processes = psutil.process_iter(["environ", "name"])
        return [
            other.name() for other in processes if (other.info["environ"] or {}).get(MARK) == str(self.out)
        ]


@pytest.mark.slow(40)
@pytest.mark.mosquitto
def test_demo_trains_a_fleet_and_compares_it_with_baselines(
    tmp_path: Path, mosquitto_broker: RunningBroker
) -> None:
    size = ("--rounds", str(ROUNDS), "--samples", str(SAMPLES), *TINY)
    report, shown = Demo(tmp_path / "out", "--broker", "mosquitto", *size).report()
    assert (report["strategy"], report["seed"], report["rounds"]) == ("sequential", 1, ROUNDS)
    assert (report["broker"], report["codec"]) == ("mosquitto", "fp16")
    assert report["batches_trained"] == report["batches_published"] == 3 * ROUNDS * (SAMPLES // 32)
    assert report["duplicates_dropped"] == report["rejected"] == 0
    devices = report["devices"]
    assert [device["id"] for device in devices] == list(IDS)
    assert [(device["cut"], device["stage"]) for device in devices] == [
        (1, "first"), (2, "hidden.0"), (3, "hidden.3"),
    ]  # fmt: skip
    assert report["bytes_published"] == sum(device["bytes"] for device in devices) > 0
    for device in devices:
        assert (device["train_samples"], device["batches"]) == (SAMPLES, ROUNDS * (SAMPLES // 32))
        assert device["exit_accuracy"] > 0.3, "0.1 is chance"
        assert device["trunk_accuracy"] > 0.45
        assert 0 < device["offload_share"] <= 1
    assert 0.3 < report["baselines"]["centralized_accuracy"] <= 1
    assert set(report["baselines"]["alone_accuracy"]) == set(IDS)
    alone_exit = report["baselines"]["alone_exit_accuracy"]
    assert set(alone_exit) == set(IDS)
    assert all(0.3 < accuracy < 1 for accuracy in alone_exit.values())
    shares = [report["compute_share"][device] for device in IDS]
    assert 0 < shares[0] < shares[1] < shares[2] < 1.5, "the deeper, the more; statistics come on top"
    for device, served in zip(devices, report["inference"], strict=True):
        check_service(device, served, report)
    assert all(0 < report["peak_memory"][device] < 2**33 for device in IDS)
    assert report["classes"]["fleet"]["images"] == report["fleet"]["images"] == 3 * SAMPLES
    assert [one["round"] for one in report["history"]] == list(range(1, ROUNDS + 1))
    assert report["client_averaging"] == "layerwise" and report["machine"].partition(", ")[2]
    assert "threshold " in shown and f"chosen on {SAMPLES} images" in shown
    page = (tmp_path / "out" / "report.html").read_text()
    said = conclusion(msgspec.convert(report, Report))
    assert (
        said.startswith("By joining, ") and " % of that compute, " in said and " MiB of memory and " in said
    )
    assert " ".join(shown.split()).endswith(said), "it comes last"
    assert said in unescape(page).replace("\xa0", " ")
    assert 'aria-label="confusion"' in page and "ankle boot" in page
    baselines = "baseline centralized: ", "baseline pi-1 alone: ", "baseline pi-3 alone-exit: "
    for words in ("round 1 of 8", "round 8 of 8", *baselines, "hidden.3", "always offloaded"):
        assert words in shown


def check_service(device: dict[str, Any], served: dict[str, Any], report: dict[str, Any]) -> None:
    """The last act is on the images of the evaluation, with the threshold that is in force."""
    assert (served["id"], served["cut"]) == (device["id"], device["cut"])
    assert served["images"] == served["threshold_images"] == device["held_out_samples"] == SAMPLES
    assert served["threshold"] == device["threshold"]
    evaluated = report["history"][served["round"] - 1]["devices"][served["id"]]
    assert served["trunk_accuracy"] == evaluated["trunk_accuracy"]
    assert abs(served["local"]["accuracy"] - evaluated["exit_accuracy"]) < 0.01, "the same images, in ONNX"
    assert served["adaptive"]["accuracy"] == pytest.approx(device["expected_accuracy"], abs=0.01)
    assert served["adaptive"]["offload_share"] == pytest.approx(device["expected_offload"], abs=0.01)
    assert served["local"]["offload_share"] == served["local"]["bytes"] == 0
    assert served["offload"]["offload_share"] == 1
    assert served["offload"]["bytes"] >= served["adaptive"]["bytes"]
    assert served["offload"]["accuracy"] > 0.45
    better = max(served["local"]["accuracy"], served["offload"]["accuracy"])
    assert served["adaptive"]["accuracy"] >= better - 0.02, "by the threshold that was chosen"


@pytest.mark.slow(30)
@pytest.mark.mosquitto
def test_demo_runs_averaging_with_a_profiled_cut_on_an_existing_broker(
    tmp_path: Path, mosquitto_broker: RunningBroker
) -> None:
    flags = ("--strategy", "averaging", "--codec", "int8+zstd", "--no-baselines", *TINY)
    limits = ("--profile", "--devices", "1")
    there = ("--broker", str(mosquitto_broker.address))
    report, shown = Demo(tmp_path / "out", *there, *flags, *limits).report()
    assert (report["strategy"], report["broker"], report["codec"]) == ("averaging", "external", "int8+zstd")
    assert report["batches_trained"] == report["batches_published"] == 1 * 2 * 1
    assert "baselines" not in report
    assert f" MiB of memory of {report['choices'][0]['memory']:,} MiB allowed and " in " ".join(shown.split())
    assert "profiler: 1 device measures what cuts cost, 0 s of at most 120 s" in shown
    (choice,) = report["choices"]
    assert choice["cut"] == report["devices"][0]["cut"] == 3
    assert choice["memory"] > 100
    assert choice["reason"].startswith("cut 3 (hidden.3): the deepest that fits")
    assert f"pi-1 {choice['cpu']:.0%} of a core and {choice['memory']} MiB" in shown


@pytest.mark.slow(12)
@pytest.mark.mosquitto
def test_demo_page_shows_the_fleet_and_stays_until_interrupted(tmp_path: Path) -> None:
    flags = ("--broker", "mosquitto", "--no-baselines", "--devices", "1", *TINY)
    demo = Demo(tmp_path / "out", *flags, "--keep-page")
    until(lambda: "page: http" in demo.shown, lambda: demo.shown)
    first = demo.shown.splitlines()[0]
    with PageStream(first.removeprefix("page: ")) as seen:
        until(lambda: "Ctrl-C ends it" in demo.shown, lambda: demo.shown, long=LIMIT)
        assert (demo.out / "report.html").exists()
        assert seen.broker["connected"]
        until(lambda: "run-finished" in seen.kinds(), seen.kinds)
        assert seen.fleet["committed"] == 2
        assert seen.devices["pi-1"]["trunk_accuracy"] is not None
        assert "offline" in seen.kinds("pi-1"), "it has done its part"
    os.killpg(demo.process.pid, signal.SIGINT)
    demo.finish(ExitCode.OK)


@pytest.mark.slow(8)
def test_dead_device_ends_the_demo_and_is_named(tmp_path: Path) -> None:
    demo = Demo(tmp_path / "out", *UNDER_WAY)
    demo.child("pi-2").kill()
    _, errors = demo.finish(ExitCode.CHILD)
    assert errors.startswith("splitee: pi-2 was ended by SIGKILL; the others are stopped")


@pytest.mark.slow(7)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_stops_all_processes_of_the_demo(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The signal goes to the demo's process group, as from a terminal or `timeout`."""
    demo = Demo(tmp_path / "out", *UNDER_WAY)
    demo.child("pi-2")
    os.killpg(demo.process.pid, number)
    demo.finish(code)
