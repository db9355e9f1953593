# SPDX-License-Identifier: Apache-2.0
"""The owner decides where a device is cut: a server moves it only to a cut that it had or requested."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scripted_device import ONE_ROUND, SPEC, WHOLE_RUN, Device

from splitee.networks.split import build_for
from splitee.protocol import routes
from splitee.protocol.codecs import decode_tensor
from splitee.protocol.fleet import Profile
from splitee.protocol.rounds import Assignment, RoundDone
from splitee_device.agent.monitor import CutRequest


def shapes_sent(device: Device) -> set[tuple[int, ...]]:
    """The shapes of one image's features, in all batches."""
    return {decode_tensor(batch.features).shape[1:] for batch in device.server.batches}


def shape_at(cut: int) -> tuple[int, ...]:
    return tuple(build_for(SPEC).stages[cut - 1].feature_shape)


@pytest.mark.parametrize(("own", "forced"), [(3, 1), (2, 3)])
def test_assignment_to_a_cut_that_was_not_requested_is_rejected(
    make: Callable[..., Device], own: int, forced: int
) -> None:
    device = make(script=ONE_ROUND, cut=own)
    server = device.server

    def force_then_give_in(profile: Profile) -> None:
        server.cut = forced
        server.take_in(profile)
        server.cut = own
        server.assign(5.0)

    server.on_profile = force_then_give_in
    server.open_run()
    device.run()
    assert shapes_sent(device) == {shape_at(own)}
    assert {profile.cut for profile in server.profiles} == {own}
    assert server.statuses[-1].rejected == 1


def test_assignment_received_before_joining_is_not_followed(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    """The retained assignment comes while the device still chooses its cut."""
    device = make(script=ONE_ROUND, cut=3)
    server = device.server
    told = Assignment(run=SPEC.run, attempt=server.attempt, instance=0, cut=1)
    server.send(routes.ASSIGNMENT, told)
    server.open_run(1.0)
    device.run()
    assert shapes_sent(device) == {shape_at(3)}
    assert "not followed: the server cuts this device at 1" in caplog.text


def test_device_requests_and_accepts_no_cut_below_its_lowest_cut(make: Callable[..., Device]) -> None:
    device = make(script=WHOLE_RUN, cut=2, lowest_cut=2, cut_request=CutRequest(1, "cut 1: faster"))
    server = device.server

    def force(done: RoundDone) -> None:
        if done.round == 1:
            server.cut = 1
            server.assign()
            server.cut = 2
        server.commit()

    server.on_done = force
    server.open_run()
    device.run()
    assert {(profile.cut, profile.next_cut) for profile in server.profiles} == {(2, 0)}
    assert shapes_sent(device) == {shape_at(2)}
    assert server.statuses[-1].rejected == 1
