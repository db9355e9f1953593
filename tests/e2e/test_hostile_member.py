# SPDX-License-Identifier: Apache-2.0
"""A member with an identity of its own attacks a fleet of real processes on a real Mosquitto."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from fleets import Fleet, await_message, in_one_process
from msgspec.structs import replace

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.codecs import EncodedTensor
from splitee.protocol.fleet import DeviceStatus, Profile, ServerStatus
from splitee.protocol.inference import InferRequest
from splitee.protocol.rounds import Features, Participation, RoundDone, RoundOpen, Weights
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

EVIL = "evil"
SHAPE = (4, 8, 8)  # of the features at cut 1 of tiny_networks:tiny


def attacks(told: Participation) -> Iterator[tuple[Route, bytes]]:
    """Messages that once ended a server or spoiled its weights: each valid but for one thing."""
    run, number, attempt = told.run, told.round, told.attempt
    moment = {"run": run, "round": number, "attempt": attempt}
    huge = EncodedTensor("fp32", [4, *SHAPE], np.full((4, *SHAPE), 3e38, "<f4").tobytes())
    batch = Features(**moment, phase="train", step=0, features=huge, labels=bytes(4))  # type: ignore[arg-type]
    yield routes.FEATURES, batch.encode()
    labels = replace(batch, features=replace_data(huge, 1.0), labels=b"\xff" * 4)
    yield routes.FEATURES, labels.encode()
    yield routes.INFER, InferRequest(run=run, cut=1, features=huge).encode()
    variance = EncodedTensor("fp32", [4], np.full(4, -1e6, "<f4").tobytes())
    spoiled = Weights(**moment, tensors={"client.first.1.running_var": variance})  # type: ignore[arg-type]
    yield routes.WEIGHTS, spoiled.encode()
    done = RoundDone(
        **moment,  # type: ignore[arg-type]
        digest="0" * 64,
        batches=1 << 62,
        bytes=1 << 62,
        loss=1.0,
        accuracy=1.0,
        seconds=1.0,
    )
    yield routes.ROUND_DONE, done.encode()
    yield routes.PROFILE, b"{}"
    yield routes.SYNC, b"[" * 5000


def replace_data(tensor: EncodedTensor, value: float) -> EncodedTensor:
    return replace(tensor, data=np.full(tensor.shape, value, "<f4").tobytes())


def test_hostile_member_is_quarantined_and_weights_are_unchanged(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    topics = Topics("attacked")
    with (
        Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet,
        closing(Link(mosquitto_broker.address, EVIL)) as link,
    ):
        link.subscribe(topics.run, topics.round, topics.server_status)
        link.subscribe(routes.FEATURES.topic(topics, EVIL), routes.PARTICIPATION.topic(topics, EVIL))
        link.open(5)
        fleet.server(rounds=3)
        fleet.three_devices()
        spec = RunSpec.decode(await_message(link, topics.run, lambda payload: b"class_names" in payload))
        await_message(link, topics.round, lambda payload: RoundOpen.decode(payload).phase == "train")
        join(link, topics, spec)
        told = Participation.decode(await_message(link, routes.PARTICIPATION.topic(topics, EVIL)))
        for _ in range(4):
            for route, payload in attacks(told):
                publish(link, topics, route, payload)
        publish(link, topics, routes.INFER, b"x", correlation=b"1" * 600)
        publish(link, topics, routes.FEATURES, b"x", retain=True)
        await_message(
            link, topics.server_status, lambda payload: ServerStatus.decode(payload).quarantined == (EVIL,)
        )
        assert fleet.wait() == [0, 0, 0, 0]
        log = fleet.log("server")
    assert "evil is in quarantine: 20 messages were refused" in log
    assert "Traceback" not in log
    assert fleet.report()["weights_sha256"] == in_one_process("sequential", "step", rounds=3)


def test_retained_request_is_cleared_by_the_server(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    """The broker hands it to every server that subscribes, also after the device was revoked."""
    topics = Topics("retained")
    topic = routes.INFER.topic(topics, EVIL)
    with (
        Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet,
        closing(Link(mosquitto_broker.address, EVIL)) as link,
    ):
        link.subscribe(topic)
        link.open(5)
        link.publish(topic, b"x", retain=True, response_topic=f"{topics.base}/devices/evil/inbox/+")
        fleet.server(devices=1)
        assert await_message(link, topic, lambda payload: payload == b"") == b""
        fleet.processes["server"].terminate()
        assert fleet.wait("server") == [0]
    with closing(Link(mosquitto_broker.address, "later")) as later:
        later.subscribe(topic)
        later.open(5)
        event = later.receive(0.5)
        assert not isinstance(event, Message)


def join(link: Link, topics: Topics, spec: RunSpec) -> None:
    profile = Profile(
        protocol=1,
        instance=1,
        version="1",
        cut=1,
        class_names=spec.class_names,
        train_samples=64,
        held_out_samples=16,
    )
    status = DeviceStatus(state="online", instance=1)
    publish(link, topics, routes.STATUS, status.encode(), retain=True)
    publish(link, topics, routes.PROFILE, profile.encode(), retain=True)


def publish(
    link: Link,
    topics: Topics,
    route: Route,
    payload: bytes,
    *,
    retain: bool = False,
    correlation: bytes | None = b"1",
) -> None:
    link.publish(
        route.topic(topics, EVIL),
        payload,
        retain=retain,
        response_topic=routes.INFER_REPLY.topic(topics, EVIL),
        correlation=correlation,
    )
