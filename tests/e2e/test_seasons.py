# SPDX-License-Identifier: Apache-2.0
"""Run after run of one fleet, each from the weights of the one before: real processes, a real broker."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from fleets import Fleet, await_message
from image_folders import write_clothes

from splitee.commands.status import receive_retained
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.mqtt.link import Link
from splitee.protocol.fleet_view import FleetSnapshot, FleetView
from splitee.protocol.inference import PredictionReport
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_device.data.division import FILE
from splitee_lab.local.brokers import RunningBroker

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "seasons.md"
FLEET = "seasons"
TOPICS = Topics(FLEET)
DEVICES = {"pi-1": 1, "pi-2": 2}


def flags_of_the_page(states: Path) -> dict[str, list[str]]:
    """By the state of each `splitee server` in the how-to page: its other flags, with states in `states`."""
    found = {}
    for line in re.findall("^splitee server (.+)", PAGE.read_text(), re.MULTILINE):
        words = line.replace("run:", f"run:{states}/").split()
        flags = dict(zip(words[::2], words[1::2], strict=True))
        state = flags.pop("--state")
        del flags["--broker"]
        found[state] = [word for flag in flags.items() for word in flag]
    return found


def folder_of(device: str, tmp_path: Path) -> Path:
    return tmp_path / f"{device}-images"


def held_out_of(device: str, tmp_path: Path) -> tuple[set[str], set[str]]:
    division = json.loads((tmp_path / device / FILE).read_text())
    return set(division["held_out"]), set(division["training"])


def relabel(images: Iterable[Path], label: str) -> None:
    for image in images:
        image.rename(image.parents[1] / label / f"was-{image.parent.name}-{image.name}")


def snapshot(broker: RunningBroker, fleet: str) -> FleetSnapshot:
    view = FleetView(fleet)
    with closing(Link(broker.address, f"{fleet}-viewer")) as link:
        link.subscribe(*view.filters)
        link.open(5)
        receive_retained(link, view)
    return view.snapshot()


@pytest.mark.slow(60)
def test_staying_devices_train_each_season_from_the_weights_before(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """Their folders grow meanwhile, labels are corrected, images go, and at last a class is added.

    The server is started as the page says, three times.
    """
    watched, opened, predictions = tmp_path / "watched", TOPICS.round, TOPICS.device("pi-2", "predictions")
    watched.mkdir()
    watcher = Link(mosquitto_broker.address, f"{FLEET}-watcher")
    watcher.subscribe(opened, predictions)
    watcher.open(5)
    flags = flags_of_the_page(tmp_path)
    assert list(flags) == ["spring", "summer", "autumn"]

    runs: set[str] = set()

    def trains_another_run(payload: bytes) -> bool:
        found = RoundOpen.decode(payload)
        return found.phase == "train" and found.run not in runs

    def season(name: str, *more: str) -> list[int]:
        fleet.server(*flags[name], *more, name=name, devices=len(DEVICES), release=True)
        if name != "spring":  # this image is not classified now, as pi-2 trains
            await_message(watcher, opened, trains_another_run)
            write_clothes(watched, {"bag": 1}, first=500)
            (watched / "bag" / "0500.png").rename(watched / f"{name}.png")
        assert fleet.wait(name, timeout=90) == [0], fleet.log(name)
        report = json.loads((tmp_path / name / "report.json").read_text())
        for device in DEVICES:
            manifest = read_manifest(tmp_path / device / "models" / "current", ClientManifest)
            assert manifest.run == report["run"], fleet.log(device)
        assert report["rejected"] == 0
        runs.add(report["run"])
        if name != "spring":
            predicted = PredictionReport.decode(await_message(watcher, predictions))
            assert predicted.image == f"{name}.png"
        return [device["train_samples"] for device in report["devices"]]

    with Fleet(str(mosquitto_broker.address), FLEET, tmp_path) as fleet:
        for place, (device, cut) in enumerate(DEVICES.items()):
            write_clothes(folder_of(device, tmp_path), {"bag": 20, "sandal": 20}, first=200 * place)
            watch = ("--watch", str(watched)) if device == "pi-2" else ()
            fleet.device(device, cut, "--data", str(folder_of(device, tmp_path)), "--stay", *watch)
        assert season("spring") == [36, 36]

        before = {device: held_out_of(device, tmp_path) for device in DEVICES}
        for place, device in enumerate(DEVICES):
            folder = folder_of(device, tmp_path)
            write_clothes(folder, {"bag": 40, "sandal": 40}, first=200 * place + 100)
            relabel(sorted((folder / "bag").glob("*.png"))[:10], "sandal")
            for image in sorted((folder / "sandal").glob("0*.png"))[:5]:
                image.unlink()
        assert season("summer", "--seed", "7") == [104, 104]
        for device, (held_out, training) in before.items():
            now = held_out_of(device, tmp_path)
            assert held_out < now[0] and training < now[1]
            log = fleet.log(device)
            assert "fetching the weights that the run begins from" in log
            assert "began when this device had" not in log

        for place, device in enumerate(DEVICES):
            write_clothes(folder_of(device, tmp_path), {"dress": 20}, first=200 * place)
        assert season("autumn") == [122, 122]
        assert all(fleet.processes[device].poll() is None for device in DEVICES)
    watcher.close()
    seasons = snapshot(mosquitto_broker, FLEET).seasons
    images = [(one.devices, one.train_images, one.held_out_images) for one in seasons]
    assert images == [(2, 72, 8), (2, 208, 22)]
    for one, name in zip(seasons, ("spring", "summer"), strict=True):
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert (one.run, one.rounds) == (report["run"], 2)
        assert one.adaptive_accuracy == report["fleet"]["adaptive_accuracy"]
        assert {found.name for found in one.class_recalls} == {"bag", "sandal"}
        assert abs(time.time() - one.ended) < 600
