# SPDX-License-Identifier: Apache-2.0
"""Run after run of one fleet, each from the weights of the one before: real processes, a real broker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest
from fleets import Fleet
from image_folders import write_clothes

from splitee.commands.status import gather
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.mqtt.link import Link
from splitee.protocol.fleet_view import FleetSnapshot, FleetView
from splitee_device.data.division import FILE
from splitee_lab.local.brokers import RunningBroker

FLEET = "seasons"
DEVICES = {"pi-1": 1, "pi-2": 2}


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
    with closing(Link(broker.address, f"{fleet}-watcher")) as link:
        link.subscribe(*view.filters)
        link.open(5)
        gather(link, view)
    return view.snapshot()


@pytest.mark.slow(60)
def test_devices_that_stay_train_season_after_season(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    """Their folders grow meanwhile, labels are corrected, images go, and at last a class is added."""

    def from_run(name: str) -> tuple[str, str]:
        return "--weights", f"run:{tmp_path / name}"

    def season(name: str, *flags: str) -> list[int]:
        fleet.server(*flags, name=name, devices=2, release=True)
        assert fleet.wait(name, timeout=90) == [0], fleet.log(name)
        report = json.loads((tmp_path / name / "report.json").read_text())
        for device in DEVICES:
            manifest = read_manifest(tmp_path / device / "models" / "current", ClientManifest)
            assert manifest.run == report["run"], fleet.log(device)
        assert report["rejected"] == 0
        return [device["train_samples"] for device in report["devices"]]

    with Fleet(str(mosquitto_broker.address), FLEET, tmp_path) as fleet:
        for place, (device, cut) in enumerate(DEVICES.items()):
            write_clothes(folder_of(device, tmp_path), {"bag": 20, "sandal": 20}, first=200 * place)
            fleet.device(device, cut, "--data", str(folder_of(device, tmp_path)), "--stay")
        assert season("spring", "--num-classes", "2") == [36, 36]

        before = {device: held_out_of(device, tmp_path) for device in DEVICES}
        for place, device in enumerate(DEVICES):
            folder = folder_of(device, tmp_path)
            write_clothes(folder, {"bag": 40, "sandal": 40}, first=200 * place + 100)
            relabel(sorted((folder / "bag").glob("*.png"))[:10], "sandal")
            for image in sorted((folder / "sandal").glob("0*.png"))[:5]:
                image.unlink()
        assert season("summer", "--num-classes", "2", *from_run("spring"), "--seed", "7") == [104, 104]
        for device, (held_out, training) in before.items():
            now = held_out_of(device, tmp_path)
            assert held_out < now[0] and training < now[1]
            log = fleet.log(device)
            assert "fetching the weights that the run begins from" in log
            assert "began when this device had" not in log

        for place, device in enumerate(DEVICES):
            write_clothes(folder_of(device, tmp_path), {"dress": 20}, first=200 * place)
        assert season("autumn", "--num-classes", "3", *from_run("summer")) == [122, 122]
        assert all(fleet.processes[device].poll() is None for device in DEVICES)
    seasons = snapshot(mosquitto_broker, FLEET).seasons
    images = [(one.devices, one.train_images, one.held_out_images) for one in seasons]
    assert images == [(2, 72, 8), (2, 208, 22)]
    for one, name in zip(seasons, ("spring", "summer"), strict=True):
        report = json.loads((tmp_path / name / "report.json").read_text())
        assert (one.run, one.rounds) == (report["run"], 2)
        assert one.adaptive_accuracy == report["fleet"]["adaptive_accuracy"]
        assert {found.name for found in one.class_recalls} == {"bag", "sandal"}
        assert abs(time.time() - one.ended) < 600
