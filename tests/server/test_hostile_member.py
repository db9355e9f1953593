# SPDX-License-Identifier: Apache-2.0
"""A device that sends invalid messages harms no other device: on a fake port and clock."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from virtual_fleet import TOPICS, VirtualDevice, VirtualFleet, client_weights

from splitee.cli.signals import Stopped
from splitee.errors import Diverged
from splitee.inference.uncertainty import Array
from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.codecs import EncodedTensor
from splitee.protocol.fleet import Profile, ServerStatus
from splitee.protocol.inference import InferReply, InferRequest
from splitee.protocol.rounds import Features, RoundDone, RoundOpen, Sync, Weights
from splitee.protocol.sender_limits import BURST
from splitee.training.state import first_not_finite
from splitee_server.learning.lanes import in_order
from splitee_server.members.device_subscriptions import MEMBERS_ONLY
from splitee_server.monitoring.observer import Observer
from splitee_server.offload.trunks import CommittedTrunks
from splitee_server.rounds.policy import Policy

HONEST = ("pi-1", "pi-2")
EVIL = "zoe"  # the last by name


@pytest.fixture
def fleet(tmp_path: Path) -> VirtualFleet:
    """Two honest devices and one that a test makes evil; two rounds."""
    return VirtualFleet(tmp_path / "server", *HONEST, EVIL)


def weights_of_the_honest(path: Path, **settings: Any) -> str:
    """The weights of a run in which only the honest devices take part."""
    return str(VirtualFleet(path / "honest", *HONEST, **settings).run()["weights_sha256"])


def at(fleet: VirtualFleet, phase: str, action: Callable[[RoundOpen], None], number: int = 1) -> None:
    """Call `action` when a phase of a round is opened."""
    fleet.on_phase = lambda opened: (
        action(opened) if (opened.phase, opened.round) == (phase, number) else None
    )


def batch(device: VirtualDevice, opened: RoundOpen, step: int, **changed: Any) -> bytes:
    """A batch of the device, with some fields changed."""
    return replace(Features.decode(device.features(opened, step)), **changed).encode()


def filled(value: float, opened: RoundOpen, device: VirtualDevice) -> EncodedTensor:
    """Features that all have this value."""
    shape = Features.decode(device.features(opened, 0)).features.shape
    return EncodedTensor("fp32", list(shape), np.full(shape, value, "<f4").tobytes())


def check_rejected_until_quarantine(
    fleet: VirtualFleet,
    tmp_path: Path,
    reason: str,
    payload: Callable[[RoundOpen], tuple[routes.Route, bytes]],
) -> None:
    """The evil device sends only this message, again and again, in the first round."""
    evil = fleet.devices[EVIL]
    evil.before_batch = lambda _number, _phase, _step: evil.pause()

    def harm(opened: RoundOpen) -> None:
        route, body = payload(opened)
        for _ in range(30):
            evil.publish(route, body)

    at(fleet, "train", harm)
    report = fleet.run()
    assert report["weights_sha256"] == weights_of_the_honest(tmp_path)
    assert fleet.rejected[EVIL, reason] == 20
    assert fleet.rejected[EVIL, "quarantined"] == 10
    assert "the server ignores it in this run" in evil.errors[-1].message
    statuses = [ServerStatus.decode(payload) for payload in fleet.port.payloads(TOPICS.server_status)]
    assert statuses[-1].quarantined == (EVIL,)


@pytest.mark.parametrize("value", [3e38, float("nan"), 1e6])
def test_features_out_of_bounds_are_rejected_until_quarantine(
    fleet: VirtualFleet, tmp_path: Path, value: float
) -> None:
    evil = fleet.devices[EVIL]
    check_rejected_until_quarantine(
        fleet,
        tmp_path,
        "malformed",
        lambda opened: (routes.FEATURES, batch(evil, opened, 0, features=filled(value, opened, evil))),
    )


def test_weights_with_a_negative_variance_are_rejected_until_quarantine(
    fleet: VirtualFleet, tmp_path: Path
) -> None:
    def payload(opened: RoundOpen) -> tuple[routes.Route, bytes]:
        name = next(n for n in fleet.network.client(1).state_dict() if n.endswith("running_var"))
        width = fleet.network.client(1).state_dict()[name].shape[0]
        tensor = EncodedTensor("fp32", [width], np.full(width, -1e6, "<f4").tobytes())
        tensors = {f"client.{name}": tensor}
        return routes.WEIGHTS, Weights(run="run", round=1, attempt=100, tensors=tensors).encode()

    check_rejected_until_quarantine(fleet, tmp_path, "malformed", payload)


def test_message_that_raises_an_unforeseen_error_is_rejected_as_unhandled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fail(*_: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("splitee_server.rounds.phase.Phase.add_weights", fail)
    fleet = VirtualFleet(tmp_path / "server", *HONEST, EVIL, client_averaging="none")
    evil = fleet.devices[EVIL]
    body = Weights(run="run", round=1, attempt=100, tensors={}).encode()

    def harm(_opened: RoundOpen) -> None:
        for _ in range(3):
            evil.publish(routes.WEIGHTS, body)

    at(fleet, "train", harm)
    fleet.run()
    assert fleet.rejected == {(EVIL, "unhandled"): 3}
    assert "weights: it raises RuntimeError (a defect)" in evil.errors[0].message


def test_failing_observer_does_not_end_the_server(tmp_path: Path) -> None:
    class Failing(Observer):
        def on_admitted(self, device: str, profile: Profile) -> None:
            if device == EVIL:
                raise ZeroDivisionError

    fleet = VirtualFleet(tmp_path / "server", *HONEST, EVIL, observers=[Failing()], policy=Policy(2, 1))
    fleet.run()
    assert fleet.rejected[EVIL, "unhandled"] == 1


@pytest.mark.parametrize(
    ("response_topic", "correlation"),
    [
        ("inbox/answer", b"1" * 2000),
        ("inbox/answer", b"1" * 65),
        ("inbox/answer", b""),
        ("inbox/answer", None),
        ("inbox/+", b"1"),
        ("inbox/#", b"1"),
        ("inbox/plan", b"1"),
        (None, b"1"),
    ],
)
def test_request_without_a_valid_response_address_is_rejected(
    fleet: VirtualFleet, response_topic: str | None, correlation: bytes | None
) -> None:
    topic = None if response_topic is None else TOPICS.device(EVIL, response_topic)
    request = Message(routes.INFER.topic(TOPICS, EVIL), b"x", response_topic=topic, correlation=correlation)
    at(fleet, "train", lambda _opened: fleet.port.happen(request))
    fleet.run()
    assert fleet.rejected == {(EVIL, "malformed"): 1}
    assert [sent for sent in fleet.port.sent if sent.correlation is not None] == []


def test_request_with_features_out_of_bounds_fails_alone(
    fleet: VirtualFleet,
) -> None:
    def send_requests(opened: RoundOpen) -> None:
        for name in (*HONEST, EVIL):
            device = fleet.devices[name]
            features = filled(3e38 if name == EVIL else 0.5, opened, device)
            cut = device.profile.cut
            request = InferRequest(run="run", cut=cut, features=features).encode()
            reply_topic = routes.INFER_REPLY.topic(TOPICS, name)
            topic = routes.INFER.topic(TOPICS, name)
            fleet.port.happen(Message(topic, request, response_topic=reply_topic, correlation=b"1"))

    at(fleet, "train", send_requests, number=2)
    fleet.run()
    errors = {
        name: InferReply.decode(fleet.port.payloads(routes.INFER_REPLY.topic(TOPICS, name))[-1]).error
        for name in (*HONEST, EVIL)
    }
    assert (errors["pi-1"], errors["pi-2"]) == ("", "")
    assert "beyond +-65504" in errors[EVIL]


def test_request_that_the_trunk_has_no_finite_prediction_for_gets_the_reason(
    fleet: VirtualFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def logits(_self: CommittedTrunks, _trunk: str, features: Array) -> Array:
        return np.full((len(features), 3), features.max() * 1e3, np.float32)

    monkeypatch.setattr(CommittedTrunks, "logits", logits)

    def send_requests(opened: RoundOpen) -> None:
        for name, value in (("pi-1", 0.5), (EVIL, 6e4)):
            device = fleet.devices[name]
            features = filled(value, opened, device)
            request = InferRequest(run="run", cut=device.profile.cut, features=features).encode()
            reply_topic = routes.INFER_REPLY.topic(TOPICS, name)
            topic = routes.INFER.topic(TOPICS, name)
            fleet.port.happen(Message(topic, request, response_topic=reply_topic, correlation=b"1"))

    at(fleet, "train", send_requests, number=2)
    fleet.run()
    sound, failed = (
        InferReply.decode(fleet.port.payloads(routes.INFER_REPLY.topic(TOPICS, name))[-1])
        for name in ("pi-1", EVIL)
    )
    assert (sound.error, sound.together) == ("", 4)
    assert "not finite, or out of bounds" in failed.error
    assert fleet.rejected == {(EVIL, "malformed"): 1}


def test_requests_with_a_model_of_an_earlier_run_fail_without_quarantine(fleet: VirtualFleet) -> None:
    """It classifies as fast as it can, until it gets the model of this run."""
    reply_topic = routes.INFER_REPLY.topic(TOPICS, "pi-1")

    def send_requests(opened: RoundOpen) -> None:
        device = fleet.devices["pi-1"]
        features = filled(0.5, opened, device)
        request = InferRequest(run="spring", cut=device.profile.cut, features=features).encode()
        for _ in range(30):
            topic = routes.INFER.topic(TOPICS, "pi-1")
            fleet.port.happen(Message(topic, request, response_topic=reply_topic, correlation=b"1"))

    at(fleet, "train", send_requests)
    report = fleet.run()
    errors = [InferReply.decode(payload).error for payload in fleet.port.payloads(reply_topic)]
    assert len(errors) == 30
    assert set(errors) == {"features of run spring; this server predicts for run run"}
    assert (fleet.rejected, report["rounds"]) == ({}, 2)


@pytest.mark.parametrize(
    "route", [routes.FEATURES, routes.INFER, routes.WEIGHTS, routes.SYNC, routes.ROUND_DONE]
)
def test_retained_message_of_a_device_is_rejected_and_cleared(
    fleet: VirtualFleet, route: routes.Route
) -> None:
    topic = route.topic(TOPICS, EVIL)

    def retain(_opened: RoundOpen) -> None:
        fleet.port.deliver(topic, b"x", retained=True)
        fleet.port.deliver(topic, b"")  # the broker's confirmation of the clearing

    at(fleet, "train", retain)
    fleet.run()
    assert fleet.rejected == {(EVIL, "retained"): 1}
    assert [(sent.payload, sent.retain) for sent in fleet.port.sent if sent.topic == topic] == [(b"", True)]


def test_round_done_with_too_many_batches_is_rejected(fleet: VirtualFleet) -> None:
    evil = fleet.devices[EVIL]

    def boast(opened: RoundOpen) -> None:
        done = RoundDone(
            run="run", round=1, attempt=100, digest="0" * 64, batches=1 << 62, bytes=1 << 62, loss=1.0,
            accuracy=1.0, seconds=1.0,
        )  # fmt: skip
        evil.publish(routes.ROUND_DONE, done.encode())

    at(fleet, "train", boast)
    report = fleet.run()
    assert fleet.rejected == {(EVIL, "malformed"): 1}
    assert report["batches_published"] == 18


def test_device_that_requests_its_network_again_and_again_gets_it_once_between_two_batches(
    tmp_path: Path,
) -> None:
    """A request takes some bytes, and the reply up to 4 MiB, while the other devices wait."""
    settings = {"client_averaging": "layerwise", "rounds": 2}
    fleet = VirtualFleet(tmp_path / "server", *HONEST, EVIL, **settings)
    names = tuple(client_weights(1))
    request = Sync(run="run", instance=1, weights=names).encode()

    def beg(_opened: RoundOpen) -> None:
        for _ in range(200):
            fleet.devices[EVIL].publish(routes.SYNC, request)

    at(fleet, "train", beg, number=2)
    report = fleet.run()
    replies = fleet.port.payloads(routes.HELD_WEIGHTS.topic(TOPICS, EVIL))
    assert Weights.decode(replies[-1]).tensors.keys() == set(names)
    assert len(replies) <= 2
    undisturbed = VirtualFleet(tmp_path / "undisturbed", *HONEST, EVIL, **settings)
    assert report["weights_sha256"] == undisturbed.run()["weights_sha256"]


def test_server_unsubscribes_from_a_flooding_device(fleet: VirtualFleet, tmp_path: Path) -> None:
    evil = fleet.devices[EVIL]
    evil.before_batch = lambda _number, _phase, _step: evil.pause()
    topic, everybody = routes.SYNC.topic(TOPICS, EVIL), routes.SYNC.topic(TOPICS)
    heard: list[bool] = []

    def flood(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("train", 1):
            for _ in range(BURST + 500):
                fleet.limits.admits(topic)
        elif opened.phase == "evaluate":
            heard.append(everybody in fleet.port.subscribed)
            fleet.clock.advance(MEMBERS_ONLY + 1 if opened.round == 1 else 0)

    fleet.on_phase = flood
    report = fleet.run()
    assert report["weights_sha256"] == weights_of_the_honest(tmp_path)
    assert fleet.rejected == {(EVIL, "flood"): 500}
    assert heard == [False, True]
    assert topic not in fleet.port.subscribed


def test_server_unsubscribes_from_two_flooding_devices(fleet: VirtualFleet) -> None:
    def flood(opened: RoundOpen) -> None:
        for device in (EVIL, HONEST[1]):
            fleet.devices[device].pause()
            for _ in range(BURST + 100):
                fleet.limits.admits(routes.SYNC.topic(TOPICS, device))

    at(fleet, "train", flood)
    fleet.run()
    heard = {device: routes.SYNC.topic(TOPICS, device) in fleet.port.subscribed for device in (*HONEST, EVIL)}
    assert heard == {"pi-1": True, "pi-2": False, EVIL: False}


def of_one_sample(batch: bytes) -> bytes:
    """A batch's first sample alone, where BatchNorm needs two: it raises in the trunk's forward pass."""
    whole = Features.decode(batch)
    shape = [1, *whole.features.shape[1:]]
    features = EncodedTensor("fp32", shape, np.ones(shape, "<f4").tobytes())
    return replace(whole, features=features, labels=whole.labels[:1]).encode()


def test_batch_that_raises_in_the_trunk_is_skipped(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *HONEST, EVIL, network="tiny_networks:normed")
    evil = fleet.devices[EVIL]
    of_four = evil.features

    def features(opened: RoundOpen, step: int) -> bytes:
        whole = of_four(opened, step)
        return of_one_sample(whole) if opened.phase == "train" and step == 0 else whole

    evil.features = features  # type: ignore[method-assign]
    report = fleet.run()
    assert fleet.rejected == {(EVIL, "unhandled"): 2}  # one a round
    assert report["batches_trained"] == 16


def test_device_alone_in_a_round_whose_batches_all_raise_ends_only_in_quarantine(tmp_path: Path) -> None:
    """Of these batches the run does not end as diverged."""
    fleet = VirtualFleet(tmp_path / "server", *HONEST, EVIL, network="tiny_networks:normed", sample="1")
    evil = fleet.devices[EVIL]
    of_four = evil.features
    evil.profile = replace(evil.profile, train_samples=160)
    evil.features = lambda opened, step: of_one_sample(of_four(opened, step))  # type: ignore[method-assign]
    fleet.run()
    assert fleet.rejected[EVIL, "unhandled"] == 20
    assert [len(names) for names in fleet.counted.values()] == [1, 1]
    assert EVIL not in fleet.counted[1] + fleet.counted[2]


def test_diverging_run_raises_and_keeps_a_finite_last_commit(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *HONEST, EVIL)

    def spoil(_opened: RoundOpen) -> None:
        with torch.no_grad():
            for parameter in fleet.network.module.parameters():
                parameter.fill_(float("nan"))

    for device in fleet.devices.values():
        device.profile = replace(device.profile, train_samples=80)
    at(fleet, "train", spoil, number=2)
    with pytest.raises(Diverged, match="give no finite loss; round 1 is kept: training diverged"):
        fleet.run()
    stored = fleet.checkpoints.load()
    assert stored is not None
    assert stored.round == 1
    assert first_not_finite(vars(stored)) is None


def test_round_with_weights_that_are_not_finite_is_not_committed(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *HONEST, EVIL)

    def spoil(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (2, "train", 2):
            with torch.no_grad():
                next(iter(fleet.network.trunk(2).parameters()))[0] = float("inf")

    fleet.devices[EVIL].before_batch = spoil
    with pytest.raises(Diverged):
        fleet.run()
    stored = fleet.checkpoints.load()
    assert stored is not None
    assert stored.round == 1


def test_quarantine_survives_restarts_until_the_operator_readmits_the_device(tmp_path: Path) -> None:
    first = VirtualFleet(tmp_path / "server", *HONEST, EVIL, rounds=4)

    def harm_then_stop(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("evaluate", 1):
            for _ in range(20):
                first.devices[EVIL].publish(routes.SYNC, b"x")
        first.stopped = (opened.phase, opened.round) == ("train", 3)

    first.on_phase = harm_then_stop
    with pytest.raises(Stopped):
        first.run()
    assert ("train", 2) not in [part[:2] for part in first.devices[EVIL].parts]

    def rounds_of_evil(instance: int, last: int, **policy: Any) -> list[int]:
        fleet = VirtualFleet(
            tmp_path / "server", *HONEST, EVIL, rounds=4, instance=instance, policy=Policy(3, 1, **policy)
        )
        fleet.on_phase = lambda opened: setattr(fleet, "stopped", opened.round > last)
        with suppress(Stopped):
            fleet.run()
        return [number for phase, number, _ in fleet.devices[EVIL].parts if phase == "train"]

    assert rounds_of_evil(200, last=3) == []
    assert rounds_of_evil(300, last=4, readmit=(EVIL,)) == [4]


def test_round_that_quarantine_has_emptied_begins_anew_with_a_device_that_joins(tmp_path: Path) -> None:
    """A step has a batch of the evil device, whose place in the step is behind that of the other one."""
    honest, policy = HONEST[0], Policy(devices=1, quorum=1, missing="skip")
    assert in_order((honest, EVIL)) == [honest, EVIL]
    fleet = VirtualFleet(tmp_path / "server", honest, EVIL, policy=policy, strategy="data-parallel")
    late, evil = (fleet.devices[name] for name in (honest, EVIL))
    join, late.join = late.join, lambda: None  # type: ignore[method-assign]

    def harm(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (1, "train", 1):
            evil.pause()
            for _ in range(20):
                evil.publish(routes.WEIGHTS, b"x")
            join()

    evil.before_batch = harm
    fleet.run()
    assert fleet.rejected == {(EVIL, "malformed"): 20}
    assert fleet.counted == {1: [honest], 2: [honest]}
