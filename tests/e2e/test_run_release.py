# SPDX-License-Identifier: Apache-2.0
"""The end of a run: devices get their trained models from the server, and go on to classify images."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleets import Fleet, await_message
from PIL import Image

from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.inference.trunks import TrunkModels
from splitee.mqtt.link import Link
from splitee.protocol.fleet import DeviceFigures, DeviceStatus
from splitee.protocol.inference import PredictedState, PredictionReport
from splitee.protocol.topics import Topics
from splitee.samples.fitting import Region
from splitee.samples.storage import load_region
from splitee_broker.signing_keys import RELEASE_KEY, SIGNING_KEY, new_key
from splitee_lab.local.brokers import RunningBroker


@pytest.mark.slow(6)
def test_run_ends_with_its_models_in_service(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    """pi-1 takes its model and ends; pi-2 watches a folder and classifies its new images, until SIGTERM.

    Both have pinned the key with which the server signs.
    """
    topics = Topics("released")
    watcher = Link(mosquitto_broker.address, "released-watcher")
    status, predictions = (topics.device("pi-2", leaf) for leaf in ("status", "predictions"))
    watcher.subscribe(status, predictions)
    watcher.open(5)
    folder = tmp_path / "images"
    folder.mkdir()
    for name, data in new_key(SIGNING_KEY, RELEASE_KEY).items():
        (tmp_path / name).write_bytes(data)
    signed, pinned = (
        ("--signing-key", str(tmp_path / SIGNING_KEY)),
        ("--release-key", str(tmp_path / RELEASE_KEY)),
    )
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*signed, "--fit", "pad", devices=2, release=True)
        fleet.device("pi-1", 1, *pinned, "--region", "2,2,24,24", shard="1/2")
        fleet.device("pi-2", 3, *pinned, "--watch", str(folder), "--agree", "1", shard="2/2")
        assert fleet.wait("server", "pi-1") == [0, 0]
        while DeviceStatus.decode(await_message(watcher, status)).doing != "serving":
            pass
        Image.new("RGB", (32, 32), "white").save(folder / "white.png")
        prediction = PredictionReport.decode(await_message(watcher, predictions))
        assert (prediction.image, prediction.source in ("exit", "local-fallback")) == ("white.png", True)
        while not (seen := DeviceStatus.decode(await_message(watcher, status))).predicted:
            pass
        assert (seen.doing, seen.predicted) == ("serving", 1)
        assert f"INFO white.png: {prediction.label}" in fleet.log("pi-2")
        fleet.processes["pi-2"].terminate()
        assert fleet.wait("pi-2") == [0]
        assert f"INFO state: {prediction.label}" in fleet.log("pi-2")
        state = PredictedState.decode((tmp_path / "pi-2" / "models" / "state.json").read_bytes())
        assert state.label == prediction.label
        report = fleet.report()
    of_device = {device: topics.device(device, "metrics") for device in ("pi-1", "pi-2")}
    watcher.subscribe(*of_device.values())  # retained: the last figures
    figures = {
        device: DeviceFigures.decode(await_message(watcher, topic)).figures
        for device, topic in of_device.items()
    }
    watcher.close()
    trunks = TrunkModels(tmp_path / "server" / "models" / "trunks")
    regions = [load_region(tmp_path / device / "models" / "current") for device in ("pi-1", "pi-2")]
    assert regions == [Region(2, 2, 24, 24), None]
    for device, cut in (("pi-1", 1), ("pi-2", 3)):
        manifest = read_manifest(tmp_path / device / "models" / "current", ClientManifest)
        assert (manifest.run, manifest.round) == (report["run"], 2)
        assert (manifest.device, manifest.cut) == (device, cut)
        (reported,) = (found for found in report["devices"] if found["id"] == device)
        assert manifest.threshold_images == 0  # its 192 held-out images are too few to choose on
        assert (reported["threshold"], reported["threshold_images"]) == (manifest.threshold, 0)
        assert reported["expected_offload"] == manifest.expected_offload is not None
        assert figures[device].released == manifest.released
        assert manifest.fit == "pad"
        assert manifest.calibration[0].offload_share > 0.9  # of the server's evaluation
        entry = trunks.entry(device)
        assert entry is not None
        assert entry.cut == cut
