# SPDX-License-Identifier: Apache-2.0
"""A strategy in a file of its own, registered by one line: trained, resumed, exported and served.

Only the server imports that file: devices, exports and `splitee serve` need to know no strategy.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import warm
from fleets import Fleet, await_message, in_one_process
from PIL import Image

from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import TrunkManifest, read_manifest
from splitee.inference.trunks import TrunkModels
from splitee.mqtt.link import Link
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker
from splitee_server.learning.strategies import registry

CUTS = {"pi-1": 1, "pi-2": 2, "pi-3": 2}
TRUNKS = {"pi-1": "trunk-cut-1.onnx", "pi-2": "trunk-cut-2.onnx", "pi-3": "trunk-cut-2.onnx"}
WITH_STRATEGY = (sys.executable, "-c", "import third_strategy; from splitee.cli.main import main; main()")


def splitee(*arguments: object) -> str:
    """The output of the command."""
    done = warm.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow(14)
def test_strategy_in_its_own_file_is_trained_resumed_exported_and_served(
    mosquitto_broker: RunningBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = Topics("third")
    watcher = Link(mosquitto_broker.address, "third-watcher")
    watcher.subscribe(topics.commit, topics.server_status)
    watcher.open(5)
    model = tmp_path / "pi-2-model"
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        _train(fleet, watcher, topics)
        assert fleet.report()["strategy"] == "trunk-per-cut"
        here_alone = dict(registry.STRATEGIES)
        monkeypatch.setattr(registry, "STRATEGIES", here_alone)
        importlib.import_module("third_strategy")
        expected = in_one_process("trunk-per-cut", "step", 3, averaging="layerwise", cuts=CUTS)
        assert fleet.report()["weights_sha256"] == expected
        trusted = ("--network", "tiny_networks:tiny")
        splitee("export", "--state", tmp_path / "pi-2", "--out", model, *trusted)
        splitee("export", "--state", tmp_path / "server", "--out", tmp_path / "exported", *trusted)
        assert read_manifest(tmp_path / "exported", TrunkManifest).devices == TRUNKS

        fleet.start("serve", "serve", *fleet.link, "--model", str(tmp_path / "exported"))
        while not ServerStatus.decode(await_message(watcher, topics.server_status)).doing.startswith(
            "serving"
        ):
            pass
        pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32), np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "image.png")
        flags = ("--json", "--threshold", "0", "--timeout", "30", *fleet.link, "--model", model)
        prediction = json.loads(splitee("predict", *flags, tmp_path / "image.png"))
        fleet.processes["serve"].terminate()
        assert fleet.wait("serve") == [0]
    watcher.close()
    trunks = TrunkModels(tmp_path / "exported", threads=1)
    entry = trunks.entry("pi-2")
    assert entry is not None
    client = ClientModel(model, threads=1)
    logits = trunks.logits(entry.trunk, client(pixels[None])[0])
    assert (prediction["source"], prediction["label"]) == (
        "trunk",
        client.manifest.class_names[logits.argmax()],
    )


def _train(fleet: Fleet, watcher: Link, topics: Topics) -> None:
    """Three rounds; the server is killed after its first commit, and resumes."""
    flags = ("--strategy", "trunk-per-cut", "--client-averaging", "layerwise")
    fleet.server(*flags, rounds=3, program=WITH_STRATEGY)
    fleet.three_devices(CUTS)
    await_message(watcher, topics.commit)
    fleet.processes["server"].kill()
    fleet.processes["server"].wait()
    fleet.server(*flags, rounds=3, program=WITH_STRATEGY)
    assert fleet.wait() == [0, 0, 0, 0]
    assert "resuming run" in fleet.log("server")
