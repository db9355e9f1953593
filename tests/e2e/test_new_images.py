# SPDX-License-Identifier: Apache-2.0
"""Images that come into a device's folder while the fleet trains: real processes, a real broker."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from fleets import Fleet, await_message
from image_folders import write_photographs

from splitee.mqtt.link import Link
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker


def test_new_images_are_taken_up_between_rounds(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    """A device that is killed afterwards holds out the same images as before."""
    topics, images = Topics("growing"), tmp_path / "images"
    write_photographs(images, {"ants": 40, "bees": 40})
    write_photographs(tmp_path / "more", {"ants": 20, "bees": 60}, seed=1)
    watcher = Link(mosquitto_broker.address, "growing-watcher")
    watcher.subscribe(topics.commit)
    watcher.open(5)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(devices=1, rounds=6)
        fleet.device("pi-1", 2, "--data", str(images))
        await_message(watcher, topics.commit)
        fleet.processes["pi-1"].send_signal(signal.SIGSTOP)  # the device sees all new images at once
        for path in (tmp_path / "more").rglob("*.jpg"):
            path.rename(images / path.parent.name / f"new-{path.name}")
        division = json.loads((tmp_path / "pi-1" / "division.json").read_text())
        fleet.processes["pi-1"].send_signal(signal.SIGCONT)
        for _ in range(3):
            await_message(watcher, topics.commit)
        fleet.processes["pi-1"].kill()
        fleet.processes.pop("pi-1").wait()
        fleet.device("pi-1", 2, "--data", str(images))
        assert fleet.wait() == [0, 0], fleet.log("pi-1")
        log = fleet.log("pi-1")
        (device,) = fleet.report()["devices"]
    watcher.close()
    assert "images: 80 have come, 0 have gone; from the next round on 144 to train on, 16 held out" in log
    assert (device["train_samples"], device["held_out_samples"]) == (144, 16)
    after = json.loads((tmp_path / "pi-1" / "division.json").read_text())
    assert set(division["held_out"]) < set(after["held_out"])
    assert set(division["training"]) < set(after["training"])
