# SPDX-License-Identifier: Apache-2.0
"""Releases that a server keeps, with real processes: devices asleep, kills at both ends, a bad model."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import graphs
import numpy as np
import pytest
import warm
from trained import Trained
from warm import WarmProcess
from wheels import make_keys, small_wheel, software_file

from splitee.errors import ExitCode
from splitee.inference.manifest import CLIENT, write_manifest
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.inference import ReleaseWant, SoftwareReport
from splitee.protocol.rollouts import DeviceUpdate, Rollout, Rollouts
from splitee.protocol.topics import Topics
from splitee_device.inference.model_store import ModelStore
from splitee_lab.local.brokers import RunningBroker, free_port

LONG = 60.0  # seconds
FEATURES = 20_000  # a model of 15 MB, which comes in some sixty parts
DEVICES = ("d1", "d2", "d3")
TOPICS = Topics("rollouts")
MARK = "rollouts-watcher/mark"  # a topic of the watcher alone


class Fleet:
    """A server and devices as processes, and what the broker shows of them."""

    def __init__(self, broker: RunningBroker, link: Link, trunks: Path, path: Path) -> None:
        self.path = path
        self.trunks = trunks
        self.link = link
        self.environment = {
            **os.environ,
            "SPLITEE_BROKER": str(broker.address),
            "SPLITEE_FLEET": TOPICS.fleet,
        }
        self.running: dict[str, WarmProcess] = {}
        self.updates: dict[str, DeviceUpdate] = {}
        self.rollouts: dict[str, Rollout] = {}
        self.wants: list[tuple[str, int]] = []
        self.metrics_port = free_port()

    def start(self, name: str, *words: object) -> WarmProcess:
        log = self.path / f"{name}.log"
        self.running[name] = WarmProcess([str(word) for word in words], log, self.environment)
        return self.running[name]

    def serve(self) -> WarmProcess:
        kept = ("--releases", self.path / "kept", "--metrics-port", self.metrics_port)
        return self.start("serve", "serve", "--model", self.trunks, *kept)

    def wake(self, device: str) -> WarmProcess:
        watched = self.path / f"watched-{device}"
        watched.mkdir(exist_ok=True)
        return self.start(
            device,
            "infer",
            "--id",
            device,
            "--models",
            self.path / device,
            "--watch",
            watched,
            "--threads",
            1,
        )

    def models(self, name: str, seed: float) -> list[Path]:
        """A model for each device: the same graph for all."""
        tensors = [
            graphs.weights("w", graphs.PIXELS, FEATURES, seed=1),
            graphs.weights("v", FEATURES, graphs.CLASSES, seed=2),
            graphs.tensor("bias", np.full(graphs.CLASSES, seed, np.float32)),
        ]
        data = graphs.graph(tensors=tensors, features=FEATURES).SerializeToString()
        for device in DEVICES:
            folder = self.path / name / device
            folder.mkdir(parents=True)
            (folder / CLIENT).write_bytes(data)
            write_manifest(folder, graphs.manifest(data, features=FEATURES, device=device, run=name))
        return [self.path / name / device for device in DEVICES]

    def release(self, *words: object) -> tuple[int, str]:
        done = warm.run("release", *words, environment=self.environment, timeout=LONG)
        return done.returncode, done.stdout + done.stderr

    def see(self, condition: Callable[[], bool]) -> None:
        """Waits until the messages of the broker meet the condition."""
        while not condition():
            event = self.link.receive(LONG)
            assert event is not None, {name: self.log(name) for name in self.running}
            if isinstance(event, Message) and event.payload:
                self.take(event)

    def catch_up(self) -> None:
        """Takes all messages that reached the broker before."""
        self.link.publish(MARK, b"mark")
        marked = False
        while not marked:
            event = self.link.receive(LONG)
            assert event is not None
            if isinstance(event, Message) and event.payload:
                self.take(event)
                marked = event.topic == MARK

    def take(self, message: Message) -> None:
        found = routes.find_route(TOPICS, message.topic)
        if found is None:
            return
        route, device = found
        if route is routes.DEVICE_UPDATE:
            self.updates[device] = DeviceUpdate.decode(message.payload)
        elif route is routes.ROLLOUTS:
            self.rollouts = {one.rollout: one for one in Rollouts.decode(message.payload).rollouts}
        elif route is routes.MODEL_WANT:
            self.wants.append((device, ReleaseWant.decode(message.payload).offset))

    def state(self, device: str) -> tuple[str, str | None]:
        """The rollout that the device takes part in, and its state there."""
        update = self.updates.get(device, DeviceUpdate()).model
        return update.rollout, update.state

    def figures(self) -> str:
        """The page for Prometheus."""
        with urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=LONG) as page:
            return str(page.read(), "utf-8")

    def log(self, name: str) -> str:
        return (self.path / f"{name}.log").read_text()


@pytest.fixture
def fleet(
    trained: Trained, mosquitto_broker: RunningBroker, make_link: Callable[..., Link], tmp_path: Path
) -> Iterator[Fleet]:
    watched = (routes.DEVICE_UPDATE, routes.ROLLOUTS, routes.MODEL_WANT)
    topics = (*(one.topic(TOPICS) for one in watched), MARK)
    link = make_link(mosquitto_broker.address, "rollouts-watcher", *topics)
    fleet = Fleet(mosquitto_broker, link, trained.model("server"), tmp_path)
    yield fleet
    for process in fleet.running.values():
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.wait()


def test_rollouts_reach_late_devices_survive_kills_stop_and_roll_back(fleet: Fleet) -> None:
    fleet.serve()
    for device in ("d1", "d2"):
        fleet.wake(device)
    waves = ("--waves", "1,100%", "--soak", 0)
    first = fleet.models("first", 0.0)
    assert fleet.release(*first, *waves, "--name", "first", "--detach") == (
        0,
        "rollout first: 3 devices, in 2 waves\n",
    )
    awake = [device for device in DEVICES if device in fleet.running]
    fleet.see(lambda: all(fleet.state(device) == ("first", "in service") for device in awake))
    assert len(list((fleet.path / "kept" / "files").iterdir())) == 1, "one graph for all"

    server, sleeper = fleet.running["serve"], fleet.wake("d3")
    fleet.see(lambda: any(device == "d3" and offset > 2 << 20 for device, offset in fleet.wants))
    server.kill()  # in the middle of a download
    server.wait(LONG)
    sleeper.kill()
    sleeper.wait(LONG)
    [incoming] = (fleet.path / "d3").glob("*.incoming")
    have = incoming.stat().st_size
    fleet.catch_up()  # to the requests of the process that was killed
    fleet.wants.clear()
    fleet.wake("d3")
    fleet.serve()
    fleet.see(lambda: fleet.state("d3") == ("first", "in service"))
    assert have > 2 << 20
    assert min(offset for device, offset in fleet.wants if device == "d3") == have, "no byte comes twice"
    fleet.see(lambda: fleet.rollouts["first"].state == "finished")
    assert 'splitee_rollout_state{kind="model",rollout="first",state="finished"} 1.0' in fleet.figures()

    bad = fleet.models("bad", np.nan)
    code, said = fleet.release(*bad, *waves, "--name", "bad")
    assert code == ExitCode.MODEL, said
    stopped = fleet.release("--list")[1]
    assert "bad (model, bad round 1): stopped, wave 1 of 2: 1 failed, 0 may: " in stopped
    assert {ModelStore(fleet.path / device).served().run for device in DEVICES} == {"first"}  # type: ignore[union-attr]

    second = fleet.models("second", 1.0)
    assert fleet.release(*second, *waves, "--name", "second")[0] == 0
    assert {ModelStore(fleet.path / device).served().run for device in DEVICES} == {"second"}  # type: ignore[union-attr]
    assert fleet.release("--pause", "second")[0] == ExitCode.CONFIG
    assert fleet.release("--roll-back", "third") == (
        ExitCode.CONFIG,
        "splitee: there is no rollout third; there are: second, bad, first\n",
    )
    assert fleet.release("--roll-back", "second") == (0, "rollout second: rolled back\n")
    fleet.see(lambda: all(fleet.state(device) == ("second", "rolled back") for device in DEVICES))
    assert {ModelStore(fleet.path / device).served().run for device in DEVICES} == {"first"}  # type: ignore[union-attr]
    assert not any("Traceback" in fleet.log(name) for name in fleet.running)


def test_software_is_released_only_to_suitable_machines(fleet: Fleet) -> None:
    fleet.serve()
    for device, machine in (("pi-1", "aarch64"), ("pi-2", "aarch64"), ("hub", "x86_64")):
        report = SoftwareReport(
            release="", state="in service", runs="0.1.0", machine=machine, python="cp311"
        ).encode()
        fleet.link.publish(routes.SOFTWARE_REPORT.topic(TOPICS, device), report, retain=True)
    key, _ = make_keys(fleet.path / "keys")
    own = small_wheel(fleet.path, "hetero_splitee", "90.0.0")
    other = small_wheel(fleet.path, "other", "1", "cp311-cp311-manylinux_2_28_aarch64")
    file = software_file(fleet.path / "new", key, own, other)
    words = ("--signing-key", key, "--name", "new", "--detach")
    code, said = fleet.release(file, *words)
    assert (code, "rollout new: 2 devices, at once" in said) == (0, True), said
    assert "splitee 90.0.0 is for aarch64 and Python cp311; left out are " in said
    assert "hub (x86_64 and cp311)" in said
    latest = {"pi-1": "90.0.0", "pi-2": "90.0.0", "hub": "0.1.0"}
    fleet.see(
        lambda: latest.items() <= {name: one.software.latest for name, one in fleet.updates.items()}.items()
    )
    code, said = fleet.release(file, *words, "--devices", "hub")
    assert (code, "there is no device that it is for" in said) == (ExitCode.CONFIG, True), said
    file.write_bytes(b"notes")
    assert fleet.release(file, *words)[0] == ExitCode.SOFTWARE


def test_release_without_a_server_or_with_wrong_flags_is_refused(fleet: Fleet) -> None:
    code, said = fleet.release("--pause", "first")
    assert (code, "no server runs for fleet" in said) == (ExitCode.STALLED, True)
    code, said = fleet.release(*fleet.models("first", 0.0), "--detach")
    assert (code, "no server runs that could keep the release" in said) == (ExitCode.STALLED, True)
    code, said = fleet.release("--pause", "first", "--stop", "first")
    assert (code, "one of them" in said) == (ExitCode.CONFIG, True)
    code, said = fleet.release(*fleet.models("second", 0.0), "--waves", "0,100%")
    assert (code, "'0' names no device" in said) == (ExitCode.CONFIG, True)
