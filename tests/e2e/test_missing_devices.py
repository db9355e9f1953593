# SPDX-License-Identifier: Apache-2.0
"""Devices that die, freeze, come late or come back: what a round waits for, and which devices count in it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleets import Fleet, in_one_process

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import ServerClaim, ServerStatus
from splitee.protocol.rounds import Assignment, Commit, RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

LONGEST = 120.0  # seconds to wait for anything

pytestmark = pytest.mark.mosquitto


class Watcher:
    """Reads the messages of a fleet, and remembers its commits."""

    def __init__(self, link: Link, topics: Topics) -> None:
        self.commits: dict[int, set[str]] = {}  # by round: the devices that count in it
        self.training = 0  # the round that was opened last for training
        self._link = link
        self._topics = topics
        self._assigned: dict[str, Assignment] = {}

    def until(self, condition: Callable[[Message], bool]) -> Message:
        """The next message that `condition` accepts."""
        deadline = time.monotonic() + LONGEST
        while (left := deadline - time.monotonic()) > 0:
            event = self._link.receive(left)
            if not isinstance(event, Message):
                continue
            self._note_assignment(event)
            if event.topic == self._topics.commit:
                number = Commit.decode(event.payload).round
                counts = {name for name, told in self._assigned.items() if told.committed == number}
                self.commits[number] = counts
            if event.topic == self._topics.round:
                opened = RoundOpen.decode(event.payload)
                self.training = opened.round if opened.phase == "train" else self.training
            if condition(event):
                return event
        raise AssertionError(f"did not happen in {LONGEST:.0f} s; commits so far: {self.commits}")

    def _note_assignment(self, message: Message) -> None:
        of_device = self._topics.parse_device(message.topic)
        if of_device is not None and of_device[1] == "inbox/plan":
            self._assigned[of_device[0]] = Assignment.decode(message.payload)

    def until_features(self, device: str, number: int) -> None:
        """Wait until `device` is in the middle of round `number`."""
        self.until_open(number)
        features = self._topics.device(device, "features")
        self.until(lambda message: message.topic == features)

    def until_open(self, number: int) -> RoundOpen:
        def is_open(message: Message) -> bool:
            if message.topic != self._topics.round:
                return False
            opened = RoundOpen.decode(message.payload)
            return (opened.phase, opened.round) == ("train", number)

        return RoundOpen.decode(self.until(is_open).payload)

    def until_committed(self, condition: Callable[[set[str]], bool]) -> int:
        """The next round whose devices `condition` accepts is committed; its number."""
        known = set(self.commits)
        self.until(lambda _: any(condition(self.commits[number]) for number in self.commits.keys() - known))
        return max(self.commits)

    def until_waited_for(self, device: str) -> None:
        """Wait until the server reports that it waits for `device` alone."""
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            self._link.publish(self._topics.server_claim, ServerClaim(instance=time.time_ns()).encode())
            reply = self.until(lambda message: message.topic == self._topics.server_status)
            if ServerStatus.decode(reply.payload).waiting_for == (device,):
                return
        raise AssertionError(f"the server does not say that it waits for {device}")

    def until_joined(self, device: str) -> None:
        plan = self._topics.device(device, "inbox/plan")
        self.until(lambda message: message.topic == plan and Assignment.decode(message.payload).instance > 0)

    def until_the_end(self) -> None:
        def is_finished(message: Message) -> bool:
            return (
                message.topic == self._topics.round and RoundOpen.decode(message.payload).phase == "finished"
            )

        self.until(is_finished)


@pytest.fixture
def watched(
    mosquitto_broker: RunningBroker, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Fleet, Watcher]]:
    """A fleet of the test's own that is not started yet, and its watcher."""
    topics = Topics(request.node.name[:64].replace("[", "-").rstrip("]"))
    link = Link(mosquitto_broker.address, f"watcher-{topics.fleet}")
    link.subscribe(topics.round, topics.commit, topics.server_status)
    link.subscribe(topics.all_devices("features"), topics.all_devices("inbox/plan"))
    link.open(10)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        yield fleet, Watcher(link, topics)
    link.close()


@pytest.mark.slow(6)
def test_missing_skip_goes_on_without_a_dead_device(watched: tuple[Fleet, Watcher]) -> None:
    """The device delays its round by the deadline, once; the run ends with the other devices."""
    fleet, watcher = watched
    fleet.server("--missing", "skip", "--deadline-floor", "5", "--steps", "100", rounds=3)
    fleet.three_devices()
    watcher.until_open(1)
    opened = time.monotonic()
    watcher.until_features("pi-3", 2)
    fleet.processes["pi-3"].kill()
    died = time.monotonic()
    assert watcher.until_committed(lambda devices: "pi-3" not in devices) == 2
    waited = time.monotonic() - died
    watcher.until_the_end()
    assert fleet.wait("server", "pi-1", "pi-2") == [0, 0, 0]
    everybody, others = {"pi-1", "pi-2", "pi-3"}, {"pi-1", "pi-2"}
    assert watcher.commits == {1: everybody, 2: others, 3: others}
    assert fleet.log("server").count("going on without") == 1
    said = re.search(r"round 2 of 3: training: going on without pi-3 after (\d+) s", fleet.log("server"))
    assert said is not None
    assert 5 <= int(said[1]) <= max(5, math.ceil(died - opened))  # the floor, or what round 1 took
    assert waited < int(said[1]) + 10
    report = fleet.report()
    assert [device["batches"] for device in report["devices"]] == [300, 300, 100]
    assert report["rounds"] == 3


@pytest.mark.slow(7)
def test_round_below_the_quorum_is_not_committed(watched: tuple[Fleet, Watcher]) -> None:
    fleet, watcher = watched
    fleet.server("--missing", "skip", "--deadline-floor", "1", "--quorum", "3", "--steps", "60", rounds=4)
    fleet.three_devices()
    watcher.until_features("pi-3", 2)
    fleet.processes["pi-3"].kill()
    died = time.monotonic()
    watcher.until(lambda _: time.monotonic() > died + 3)  # three times the deadline of so short a round
    watcher.until_waited_for("pi-3")
    assert watcher.commits.keys() <= {1, 2}, "round 2 may have been done already"
    fleet.device("pi-3", 3, shard="3/3")
    watcher.until_the_end()
    assert fleet.wait() == [0, 0, 0, 0]
    assert all(devices == {"pi-1", "pi-2", "pi-3"} for devices in watcher.commits.values())


def test_missing_wait_names_the_device_and_goes_on_at_its_return(watched: tuple[Fleet, Watcher]) -> None:
    fleet, watcher = watched
    fleet.server("--missing", "wait", rounds=6)
    fleet.three_devices()
    watcher.until_open(2)
    fleet.processes["pi-3"].kill()
    fleet.wait("pi-3")
    watcher.until_waited_for("pi-3")
    assert "pi-3 is offline" in fleet.log("server")
    fleet.device("pi-3", 3, shard="3/3")
    watcher.until_the_end()
    assert fleet.wait() == [0, 0, 0, 0]
    assert all(devices == {"pi-1", "pi-2", "pi-3"} for devices in watcher.commits.values())
    assert fleet.report()["weights_sha256"] == in_one_process("sequential", "step", rounds=6)


@pytest.mark.parametrize("images", [96, 384], ids=["fewer", "more"])
def test_device_may_return_with_fewer_or_more_images(watched: tuple[Fleet, Watcher], images: int) -> None:
    """The device ends the round under way with as many batches as the server expects of it."""
    fleet, watcher = watched
    fleet.server("--missing", "wait", "--soft-labels", "1", rounds=5)
    fleet.three_devices()
    watcher.until_open(2)
    fleet.processes["pi-3"].kill()
    fleet.wait("pi-3")
    watcher.until_waited_for("pi-3")
    fleet.device("pi-3", 3, "--limit", str(images), shard="3/3")
    watcher.until_the_end()
    assert fleet.wait() == [0, 0, 0, 0]
    assert all(devices == {"pi-1", "pi-2", "pi-3"} for devices in watcher.commits.values())
    assert "it goes on for the same 6 batches" in fleet.log("pi-3")
    trained = {facts["id"]: facts["train_samples"] for facts in fleet.report()["devices"]}
    assert trained["pi-3"] * 2 == trained["pi-1"] * (1 if images == 96 else 4)


def test_late_device_takes_part_from_the_next_round_on(watched: tuple[Fleet, Watcher]) -> None:
    fleet, watcher = watched
    fleet.server(devices=2, rounds=5)
    fleet.device("pi-1", 1, shard="1/3")
    fleet.device("pi-2", 2, shard="2/3")
    watcher.until_open(2)
    with fleet.frozen("pi-1"):  # so that the run does not end before the late device has started
        watcher.until_waited_for("pi-1")  # in a round's training, or in what follows its commit
        under_way = watcher.training
        fleet.device("pi-3", 3, shard="3/3")
        watcher.until_joined("pi-3")
    opened = watcher.until_open(under_way + 1)
    assert opened.participants == 3
    watcher.until_the_end()
    assert fleet.wait() == [0, 0, 0, 0]
    late = {number for number, devices in watcher.commits.items() if "pi-3" in devices}
    assert late == set(range(under_way + 1, 6))


@pytest.mark.slow(6)
def test_frozen_device_counts_until_its_deadline_and_after_its_return(
    watched: tuple[Fleet, Watcher],
) -> None:
    fleet, watcher = watched
    flags = ("--missing", "skip", "--deadline-floor", "5", "--strategy", "averaging", "--steps", "20")
    fleet.server(*flags, devices=2, rounds=12)
    fleet.device("pi-1", 1, shard="1/3")
    fleet.device("pi-2", 2, shard="2/3")
    watcher.until_features("pi-2", 2)
    with fleet.frozen("pi-2"):
        watcher.until_waited_for("pi-2")
    last = watcher.until_committed(lambda _: True)
    assert all(devices == {"pi-1", "pi-2"} for devices in watcher.commits.values())
    watcher.until_features("pi-2", last + 2)
    with fleet.frozen("pi-2"):
        missed = watcher.until_committed(lambda devices: "pi-2" not in devices)
        watcher.until_open(missed + 2)
    watcher.until_committed(lambda devices: "pi-2" in devices)
    watcher.until_the_end()
    assert fleet.wait() == [0, 0, 0]
    assert fleet.log("server").count("going on without pi-2 after 5 s") == 1
    assert watcher.commits[12] == {"pi-1", "pi-2"}
    report = fleet.report()
    assert report["devices"][0]["batches"] > report["devices"][1]["batches"] > 2 * 20
