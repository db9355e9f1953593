# SPDX-License-Identifier: Apache-2.0
"""Malformed messages are counted, and do not change what a device does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import Sent
from msgspec.structs import replace
from scripted_device import SPEC, Device, when
from scripted_server import DEVICE, TOPICS

from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.rounds import Assignment, RoundDone
from splitee_device.agent.session import SUBSCRIPTIONS

MALFORMED = (b"", b"{", b"null", b"\xc1", b"\x80", b"{}", b'{"run":7}', b"\x94\x01\x00\x02\x08", b"\xff" * 64)


def test_malformed_messages_are_counted_and_ignored_in_every_phase(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = make()
    undisturbed.server.open_run()
    undisturbed.run()

    device = make()
    disturbances = 0

    def disturb() -> None:
        """Sends all malformed payloads on every route that the device reads."""
        nonlocal disturbances
        disturbances += 1
        for route in SUBSCRIPTIONS:
            for payload in MALFORMED:
                device.port.deliver(route.topic(TOPICS, DEVICE), payload)

    disturb()
    for doing in ("waiting", "training", "evaluating", "finished"):
        when(device, doing, disturb)

    def disturb_and_take_in(profile: Profile) -> None:
        disturb()
        device.server.take_in(profile)

    def disturb_and_commit(_done: RoundDone) -> None:
        disturb()
        device.server.commit()

    device.server.on_profile, device.server.on_done = disturb_and_take_in, disturb_and_commit
    device.server.open_run()
    device.run()
    device.session.drain()
    device.session.presence.report("finished", 3)
    assert disturbances == 8  # before the run, at joining, in four activities, at two commits
    assert device.server.statuses[-1].rejected == disturbances * len(SUBSCRIPTIONS) * len(MALFORMED)
    assert [comparable(sent) for sent in device.port.sent[:-1]] == [
        comparable(sent) for sent in undisturbed.port.sent
    ]
    lines = [line for line in caplog.messages if "rejected" in line]
    assert len([line for line in lines if "/pi-1/status rejected" in line]) == 10  # its own status
    assert len(lines) == 20


def test_assignment_of_held_weights_without_their_digest_is_rejected(make: Callable[..., Device]) -> None:
    device = make()
    server = device.server

    def mislead_then_take_in(profile: Profile) -> None:
        attempt, instance = server.attempt, profile.instance
        wrong = Assignment(run=SPEC.run, attempt=attempt, instance=instance, cut=1, held=True)
        server.send(routes.ASSIGNMENT, wrong)
        server.open_next()
        server.assign(5.0)

    server.on_profile = mislead_then_take_in
    server.open_run()
    device.run()
    assert server.statuses[-1].rejected == 1
    assert server.statuses[-1].doing == "finished"


def test_truncated_server_messages_are_ignored(make: Callable[..., Device]) -> None:
    undisturbed = make()
    undisturbed.server.open_run()
    undisturbed.run()

    device = make()
    damaged: set[str] = set()
    deliver = device.port.later

    def with_a_damaged_copy(seconds: float, topic: str, payload: bytes, **properties: Any) -> None:
        deliver(seconds, topic, payload[:-1])
        damaged.add(topic)
        deliver(seconds, topic, payload, **properties)

    device.port.later = with_a_damaged_copy  # type: ignore[method-assign]
    device.server.open_run()
    device.run()
    assert len(damaged) == 7
    assert [comparable(sent) for sent in device.port.sent] == [
        comparable(sent) for sent in undisturbed.port.sent
    ]


def comparable(sent: Sent) -> Sent:
    """A message without what differs from run to run: rejections, the time, gauges of the process."""
    if not sent.topic.endswith("/status"):
        return sent
    status = DeviceStatus.decode(sent.payload)
    gauges = dict.fromkeys(("temperature", "memory", "memory_limit", "written", "traffic"))
    return sent._replace(payload=replace(status, rejected=0, time=0.0, bytes=0, **gauges).encode())
