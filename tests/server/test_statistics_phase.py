# SPDX-License-Identifier: Apache-2.0
"""BatchNorm statistics of a committed model: the service with a fake port and clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from virtual_fleet import TOPICS, VirtualDevice, VirtualFleet, stages

from splitee.cli.signals import Stopped
from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.codecs import encode_tensor
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.inference import InferReply, InferRequest
from splitee.protocol.rounds import Commit, RoundOpen
from splitee.training.weights import pack_weights
from splitee_server.rounds.policy import Policy

THREE = ("pi-1", "pi-2", "pi-3")
SKIP = Policy(devices=3, quorum=1, missing="skip", floor=60.0)


@pytest.fixture
def make_fleet(tmp_path: Path) -> Callable[..., VirtualFleet]:
    def fleet(folder: str = "server", **settings: object) -> VirtualFleet:
        return VirtualFleet(tmp_path / folder, *THREE, statistics_batches=2, **settings)  # type: ignore[arg-type]

    return fleet


def at_statistics(fleet: VirtualFleet, happens: Callable[[RoundOpen], None]) -> None:
    """Call `happens` when the statistics phase of round 1 is opened."""
    fleet.on_phase = lambda opened: (
        happens(opened) if (opened.phase, opened.round) == ("statistics", 1) else None
    )


def test_statistics_are_taken_between_a_commit_and_its_evaluation(
    make_fleet: Callable[..., VirtualFleet],
) -> None:
    fleet = make_fleet()
    report = fleet.run()
    assert fleet.phases == [
        ("gather", 0), ("train", 1), ("statistics", 1), ("evaluate", 1),
        ("train", 2), ("statistics", 2), ("evaluate", 2), ("finished", 2),
    ]  # fmt: skip
    assert report["rejected"] == 0
    assert 0 < report["traffic"]["up"]["statistics"] < report["traffic"]["up"]["training"]
    parts = [part for phase, _, part in fleet.devices["pi-1"].parts if phase == "statistics"]
    assert [(part.steps, part.base, part.weights, part.fresh) for part in parts] == [
        (2, 1, True, False),
        (2, 2, True, False),
    ]
    judged = [part.fresh for phase, _, part in fleet.devices["pi-1"].parts if phase == "evaluate"]
    assert judged == [True, True]
    told = [(each.committed, each.fresh) for each in fleet.devices["pi-1"].assignments]
    assert [one for one in dict.fromkeys(told) if one[0] == 1] == [(1, False), (1, True)]
    stored = fleet.checkpoints.load()
    assert stored is not None
    assert stored.fresh


def test_server_stopped_in_the_statistics_phase_repeats_it(make_fleet: Callable[..., VirtualFleet]) -> None:
    undisturbed = make_fleet("undisturbed").run()["weights_sha256"]
    first = make_fleet()

    def stop(_opened: RoundOpen) -> None:
        first.stopped = True

    at_statistics(first, stop)
    with pytest.raises(Stopped):
        first.run()
    again = make_fleet(instance=200)
    assert again.run()["weights_sha256"] == undisturbed
    assert again.phases[:3] == [("gather", 1), ("statistics", 1), ("evaluate", 1)]


def test_statistics_are_written_beside_the_commit_and_resumed(
    make_fleet: Callable[..., VirtualFleet],
) -> None:
    """A restarted server goes on from both."""
    undisturbed = make_fleet("undisturbed").run()["weights_sha256"]
    first = make_fleet()
    path = first.checkpoints.path
    files: list[tuple[int, bool]] = []

    def look(opened: RoundOpen) -> None:
        if opened.round == 2 and opened.phase in ("statistics", "evaluate"):
            whole, changes = path / "round-000002.state", path / "round-000002.changes"
            files.append((whole.stat().st_mtime_ns, changes.exists()))
        first.stopped = (opened.round, opened.phase) == (2, "evaluate")

    first.on_phase = look
    with pytest.raises(Stopped):
        first.run()
    assert files == [(files[0][0], False), (files[0][0], True)]
    again = make_fleet(instance=200)
    assert again.run()["weights_sha256"] == undisturbed
    assert ("statistics", 2) not in again.phases


def test_run_continues_without_a_device_silent_in_the_statistics_phase(
    make_fleet: Callable[..., VirtualFleet],
) -> None:
    fleet = make_fleet(policy=SKIP)
    at_statistics(fleet, lambda _opened: fleet.devices["pi-3"].pause())
    fleet.run()
    assert fleet.phases[-1] == ("finished", 2)
    judged = [
        sorted(device for device, found in each.devices.items() if found.trunk_accuracy is not None)
        for each in fleet.metrics
    ]
    assert judged == [["pi-1", "pi-2"], ["pi-1", "pi-2"]]


def test_statistics_stay_as_trained_when_all_devices_pause_within_their_phase(
    make_fleet: Callable[..., VirtualFleet],
) -> None:
    undisturbed, fleet = make_fleet("undisturbed"), make_fleet(policy=SKIP)

    def pause(device: VirtualDevice, at: tuple[int, str, int]) -> None:
        if at == (1, "statistics", 1):  # a trunk has observed its first batch
            device.pause(200)
            device.publish(routes.STATUS, DeviceStatus(state="online", instance=1).encode(), 200)

    for device in fleet.devices.values():
        device.before_batch = lambda *at, device=device: pause(device, at)  # type: ignore[misc]
    for one in (undisturbed, fleet):
        one.run()
    assert fleet.phases[-1] == ("finished", 2)
    trained, with_statistics = weights_of_round_1(undisturbed)
    assert trained != with_statistics
    assert set(weights_of_round_1(fleet)) == {trained}


def weights_of_round_1(fleet: VirtualFleet) -> list[str]:
    """Digests of the round as they were announced: after its training, and after its statistics."""
    commits = map(Commit.decode, fleet.port.payloads(TOPICS.commit))
    return [commit.weights_sha256 for commit in commits if commit.round == 1]


def test_tensors_that_are_no_statistics_are_rejected(make_fleet: Callable[..., VirtualFleet]) -> None:
    """Late weights of the round's training are ignored."""
    undisturbed, fleet = make_fleet("undisturbed").run()["weights_sha256"], make_fleet()
    weights = {"client.first.0.weight": torch.zeros(4, 3, 3, 3)}

    def publish(opened: RoundOpen) -> None:
        named = opened.run, opened.round, opened.attempt
        for phase in ("statistics", "train"):
            for payload in pack_weights(*named, weights, phase):  # type: ignore[arg-type]
                fleet.devices["pi-1"].publish(routes.WEIGHTS, payload)

    at_statistics(fleet, publish)
    assert fleet.run()["weights_sha256"] == undisturbed
    assert fleet.rejected == {("pi-1", "malformed"): 1}


def test_offloaded_images_are_predicted_with_the_statistics_once_these_are_committed(
    make_fleet: Callable[..., VirtualFleet],
) -> None:
    """Whether or not a device has offloaded an image before, when they were still being taken."""

    def last_reply(folder: str, *phases: str) -> InferReply:
        fleet = make_fleet(folder, rounds=1)
        reply_topic = routes.INFER_REPLY.topic(TOPICS, "pi-1")

        def offload(opened: RoundOpen) -> None:
            if opened.phase in phases:
                features = np.ones((2, *stages()[0].feature_shape), np.float32)
                request = InferRequest(run="run", cut=1, features=encode_tensor("fp32", features)).encode()
                topic = routes.INFER.topic(TOPICS, "pi-1")
                fleet.port.happen(Message(topic, request, response_topic=reply_topic, correlation=b"1"))

        fleet.on_phase = offload
        fleet.run()
        replies = [InferReply.decode(payload) for payload in fleet.port.payloads(reply_topic)]
        assert [reply.round for reply in replies] == [1] * len(phases)
        return replies[-1]

    assert last_reply("before", "statistics", "evaluate") == last_reply("after", "evaluate")
