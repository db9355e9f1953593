# SPDX-License-Identifier: Apache-2.0
"""What ends a device's part in a run early, whatever it is doing, and what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace
from scripted_device import ONE_ROUND, SPEC, Device, steps_sent, when
from scripted_server import other_weights

from splitee.cli.signals import Stopped
from splitee.errors import Dismissed, Diverged, ExitCode, IdInUse, Rejected, Stalled, VersionMismatch
from splitee.networks.split import build_for
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus, ErrorReport, Profile, ServerStatus
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import weights_digest
from splitee.training.weights import client_model
from splitee_device.agent.session import RunChanged


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (ExitCode.REJECTED, Rejected),
        (ExitCode.VERSION, VersionMismatch),
        (ExitCode.DISMISSED, Dismissed),
        (ExitCode.CONFIG, Rejected),  # the mistake is not in this device's settings
    ],
)
def test_refused_join_raises_the_error_for_its_code(
    make: Callable[..., Device], code: ExitCode, error: type[Exception]
) -> None:
    device = make()

    def refuse(profile: Profile) -> None:
        for instance, fatal, text in ((profile.instance + 1, True, "another"), (0, False, "only a word")):
            report = ErrorReport(code=int(code), message=text, fatal=fatal, instance=instance)
            device.server.send(routes.ERROR, report)
        report = ErrorReport(code=int(code), message="other classes", fatal=True, instance=profile.instance)
        device.server.send(routes.ERROR, report)

    device.server.on_profile = refuse
    device.server.open_run()
    with pytest.raises(error, match="other classes"):
        device.run()


@pytest.mark.parametrize("doing", ["waiting", "training", "evaluating"])
def test_process_ends_when_a_later_process_uses_its_id(make: Callable[..., Device], doing: str) -> None:
    device = make()

    def speak_as_this_device() -> None:
        for instance in (0, 2):
            device.server.send(routes.STATUS, DeviceStatus(state="online", instance=instance))

    when(device, doing, speak_as_this_device)
    device.server.open_run()
    with pytest.raises(IdInUse, match="another process has started with the id 'pi-1'"):
        device.run()


@pytest.mark.parametrize("changed", [replace(SPEC, run="run-b"), replace(SPEC, rounds=99)])
@pytest.mark.parametrize("doing", ["waiting", "training", "evaluating"])
def test_spec_with_another_run_or_round_count_ends_the_run(
    make: Callable[..., Device], doing: str, changed: RunSpec
) -> None:
    device = make()
    when(device, doing, lambda: device.server.send(routes.RUN, changed))
    device.server.open_run()
    with pytest.raises(RunChanged, match=r"another run|99 rounds now, before \d"):
        device.run()
    assert device.session.await_run() == changed


def test_repeated_run_spec_does_not_end_the_run(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    when(device, "training", lambda: device.server.send(routes.RUN, replace(SPEC, class_names=("a", "b"))))
    device.server.open_run()
    device.run()
    assert len(device.server.done) == 1


def test_server_with_another_protocol_version_is_refused(make: Callable[..., Device]) -> None:
    device = make()
    device.server.send(routes.RUN, replace(SPEC, protocol=2))
    with pytest.raises(VersionMismatch, match="the server speaks protocol 2, this device 1"):
        device.run()


@pytest.mark.parametrize("doing", ["training", "evaluating"])
def test_device_gives_up_when_server_is_silent_beyond_the_patience(
    make: Callable[..., Device], doing: str
) -> None:
    device = make(patience=60)
    silent = False

    def fall_silent() -> None:
        nonlocal silent
        silent = True

    when(device, doing, fall_silent)
    device.server.is_lost = lambda _route, _message: silent
    device.server.open_run()
    with pytest.raises(Stalled, match=r"waited 60 s for .*: is this fleet's server running\?"):
        device.run()
    assert len(device.server.syncs) == 2  # after 15 and 45 seconds, or a little more


def test_stop_request_takes_effect_between_two_batches(make: Callable[..., Device]) -> None:
    made: list[Device] = []
    device = make(stop=lambda: len(made[0].server.batches) == 1)
    made.append(device)
    device.server.open_run()
    with pytest.raises(Stopped):
        device.run()
    assert steps_sent(device) == [(1, "train", 0)]


def test_stop_request_takes_effect_while_lost_rounds_are_trained_again(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    """Rounds 1 to 5 take hours on a small device, in which systemd's watchdog must be fed as well."""
    device = make(
        script=(("train", 6),),
        spec=replace(SPEC, rounds=6),
        stop=lambda: "training round 1 to 5 again, the files are missing" in caplog.text,
    )
    device.server.committed = 5
    device.server.open_run()
    with pytest.raises(Stopped):
        device.run()
    assert device.directory.rounds() == []


def test_diverged_exit_over_frozen_stages_ends_the_device_and_is_not_saved(
    make: Callable[..., Device],
) -> None:
    """Its features stay finite, but a server accepts neither its round-done nor its predictions."""
    device = make(replace(SPEC, frozen=1, learning_rate=1e38), script=ONE_ROUND, train=8)
    device.server.samples = 8
    device.server.open_run()
    with pytest.raises(Diverged, match=r"round 1: .* not finite: training diverged, lower the learning rate"):
        device.run()
    assert device.server.done == []
    assert device.directory.rounds() == []


def test_device_joining_after_the_run_does_not_wait_for_an_offline_server(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    device = make(replace(SPEC, client_averaging="layerwise"), script=(("finished", 2),))
    server = device.server
    average = other_weights(client_model(build_for(SPEC), 1, SPEC).state_dict())
    server.held, server.committed, server.digest = average, 2, weights_digest(average)
    server.open_run()
    server.send(routes.SERVER_STATUS, ServerStatus(state="offline", instance=server.attempt))
    device.run()
    assert server.syncs == []
    [line] = [message for message in caplog.messages if "its server is gone" in message]
    assert "does not get the network of round 2" in line


def test_device_stops_its_last_fetch_when_the_server_goes_offline(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    device = make(replace(SPEC, client_averaging="layerwise"), script=(("finished", 2),), patience=600)
    server = device.server
    average = other_weights(client_model(build_for(SPEC), 1, SPEC).state_dict())
    server.held, server.committed, server.digest = average, 2, weights_digest(average)
    server.is_lost = lambda route, _message: route is routes.HELD_WEIGHTS
    server.open_run()
    server.send(routes.SERVER_STATUS, ServerStatus(state="offline", instance=server.attempt), seconds=20)
    device.run()
    assert server.syncs
    [line] = [message for message in caplog.messages if "its server is gone" in message]
    assert "does not get the network of round 2" in line
    assert server.statuses[-1].doing == "finished"


def test_device_waits_for_an_offline_server_in_the_release_phase(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    device = make(replace(SPEC, client_averaging="layerwise"), script=(("release", 2),), patience=600)
    server = device.server
    average = other_weights(client_model(build_for(SPEC), 1, SPEC).state_dict())
    server.held, server.committed, server.digest = average, 2, weights_digest(average)
    back = device.clock() + 30
    server.is_lost = lambda route, _message: route is routes.HELD_WEIGHTS and device.clock() < back
    server.open_run()
    server.send(routes.SERVER_STATUS, ServerStatus(state="offline", instance=server.attempt), seconds=5)
    server.open_run(seconds=30)
    device.run()
    assert device.trainers[-1].digest() == server.digest
    assert not [message for message in caplog.messages if "its server is gone" in message]
