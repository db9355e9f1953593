# SPDX-License-Identifier: Apache-2.0
"""Class folders that most devices had misspelt, and that are corrected before the first commit."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Sent
from msgspec.structs import replace
from virtual_fleet import CLASSES, TOPICS, VirtualFleet

from splitee.cli.signals import Stopped
from splitee.errors import ExitCode
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus, ErrorReport, ServerStatus
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee_server.rounds.policy import Policy

THREE = ("pi-1", "pi-2", "pi-3")
MISSPELT = ("a", "b", "x")


def misspelt(path: Path, *names: str, policy: Policy | None = None, **settings: Any) -> VirtualFleet:
    """Three devices; those of `names` have a misspelt class."""
    fleet = VirtualFleet(path / "server", *THREE, policy=policy, **settings)
    for device in map(fleet.devices.__getitem__, names):
        device.profile = replace(device.profile, class_names=MISSPELT)
    return fleet


def restart(fleet: VirtualFleet, *names: str, class_names: tuple[str, ...] = CLASSES) -> None:
    """These devices end, one after the other; the next process of each joins with other classes."""
    for device in map(fleet.devices.__getitem__, names):
        instance = device.profile.instance
        device.publish(routes.STATUS, DeviceStatus(state="offline", instance=instance).encode())
        device.join(instance=instance + 1, class_names=class_names)


def in_round_1(fleet: VirtualFleet, action: Callable[[], None]) -> None:
    """Do something once the trunk has been trained on some batches of round 1."""
    sent = []

    def before_batch(number: int, phase: str, step: int) -> None:
        if (number, phase, step) == (1, "train", 2) and not sent:
            sent.append(step)
            action()

    fleet.devices["pi-3"].before_batch = before_batch


def correct_in_round_1(fleet: VirtualFleet) -> None:
    """Two devices are corrected; then the third, and the first, which was refused, is started again."""

    def on_phase(opened: RoundOpen) -> None:
        if opened.phase == "gather" and len(fleet.phases) > 1:
            restart(fleet, "pi-1", "pi-3")

    fleet.on_phase = on_phase
    in_round_1(fleet, lambda: restart(fleet, "pi-1", "pi-2"))


def fatal_errors(fleet: VirtualFleet, name: str) -> list[ErrorReport]:
    """The errors by which a device was refused."""
    return [error for error in fleet.devices[name].errors if error.fatal]


@pytest.mark.parametrize("missing", ["wait", "skip"])
@pytest.mark.parametrize("strategy", ["sequential", "averaging", "data-parallel"])
def test_round_1_restarts_with_corrected_classes_to_the_same_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, strategy: str, missing: Any
) -> None:
    caplog.set_level(logging.INFO)
    right = VirtualFleet(tmp_path / "right", *THREE, strategy=strategy).run()
    policy = Policy(devices=3, quorum=1, missing=missing, floor=600.0)
    fleet = misspelt(tmp_path, *THREE, policy=policy, strategy=strategy)
    correct_in_round_1(fleet)
    report = fleet.run()
    assert fleet.phases[:4] == [("gather", 0), ("train", 1), ("gather", 0), ("train", 1)]
    assert report["weights_sha256"] == right["weights_sha256"]
    assert report["batches_trained"] == right["batches_trained"]
    last = RunSpec.decode(fleet.port.payloads(TOPICS.run)[-1])
    assert last.class_names == CLASSES
    (line,) = [record.getMessage() for record in caplog.records if "from now on" in record.getMessage()]
    assert (
        line
        == "the fleet's class names are [a, b, c] from now on, before [a, b, x]: 2 of the 3 devices have "
        "voted for them (pi-1, pi-2); the run begins anew, without pi-3"
    )


def test_refusal_for_class_names_states_the_devices_that_set_them(tmp_path: Path) -> None:
    fleet = misspelt(tmp_path, *THREE)
    correct_in_round_1(fleet)
    fleet.run()
    (first,) = fatal_errors(fleet, "pi-1")
    assert "until round 1 is committed, the fleet's names are those that more than half" in first.message
    (last,) = fatal_errors(fleet, "pi-3")
    assert (last.code, last.instance) == (ExitCode.REJECTED, 1)
    assert "pi-3 has the classes [a, b, x], the fleet [a, b, c] (set by pi-1, pi-2)" in last.message
    assert "correct them on pi-3 and start it again" in last.message
    assert fatal_errors(fleet, "pi-2") == []


def test_class_names_are_corrected_before_round_1(tmp_path: Path) -> None:
    """pi-3, which is right, was refused; its vote counts once pi-1 is right as well."""
    fleet = misspelt(tmp_path, "pi-1", "pi-2")
    join = fleet.devices["pi-3"].join

    def come_and_correct_pi_1(**changed: Any) -> None:
        join(**changed)
        restart(fleet, "pi-1")

    fleet.devices["pi-3"].join = come_and_correct_pi_1  # type: ignore[method-assign]
    receive = fleet.devices["pi-2"].receive

    def hear_and_correct(sent: Sent) -> None:
        known = len(fleet.devices["pi-2"].errors)
        receive(sent)
        if len(fleet.devices["pi-2"].errors) > known:
            restart(fleet, "pi-2", "pi-3")

    fleet.devices["pi-2"].receive = hear_and_correct  # type: ignore[method-assign]
    fleet.run()
    assert fleet.counted[2] == list(THREE)
    assert RunSpec.decode(fleet.port.payloads(TOPICS.run)[-1]).class_names == CLASSES


def test_repeated_votes_of_one_device_do_not_restart_the_round(tmp_path: Path) -> None:
    fleet = VirtualFleet(tmp_path / "server", *THREE)

    def flip() -> None:
        for names in (MISSPELT, ("x", "y"), MISSPELT, CLASSES):
            restart(fleet, "pi-3", class_names=names)

    in_round_1(fleet, flip)
    report = fleet.run()
    assert [phase for phase, number in fleet.phases if number < 2] == ["gather", "train", "evaluate"]
    right = VirtualFleet(tmp_path / "right", *THREE).run()
    assert report["weights_sha256"] == right["weights_sha256"]


def test_class_names_stay_after_the_first_commit_and_errors_suggest_fresh(tmp_path: Path) -> None:
    fleet = misspelt(tmp_path, *THREE)

    def on_phase(opened: RoundOpen) -> None:
        if (opened.phase, opened.round) == ("evaluate", 1):
            for name in ("pi-1", "pi-2"):
                fleet.devices[name].join(instance=2, class_names=CLASSES)

    fleet.on_phase = on_phase
    fleet.run()
    assert RunSpec.decode(fleet.port.payloads(TOPICS.run)[-1]).class_names == MISSPELT
    for name in ("pi-1", "pi-2"):
        (error,) = fleet.devices[name].errors
        assert f"correct them on {name} and start it again" in error.message
        assert "start the server anew with --fresh, or with --fresh and --classes FILE" in error.message


def test_class_names_of_the_operator_are_not_changed_by_votes(tmp_path: Path) -> None:
    fleet = misspelt(tmp_path, class_names=CLASSES)

    def vote() -> None:
        restart(fleet, "pi-1", "pi-2", class_names=MISSPELT)
        restart(fleet, "pi-1", "pi-2")

    in_round_1(fleet, vote)
    fleet.run()
    assert [phase for phase, number in fleet.phases if number < 2] == ["gather", "train", "evaluate"]
    assert (
        "start the server anew with --fresh and the right names in --classes FILE"
        in fleet.devices["pi-1"].errors[0].message
    )


def test_quarantine_persists_when_round_1_restarts(tmp_path: Path) -> None:
    policy = Policy(devices=3, quorum=1, quarantine_after=3)
    fleet = VirtualFleet(tmp_path, *THREE, "evil", policy=policy)
    for device in fleet.devices.values():
        device.profile = replace(device.profile, class_names=MISSPELT)

    def poison_and_correct() -> None:
        for _ in range(3):
            fleet.devices["evil"].publish(routes.FEATURES, b"\xc1")
        restart(fleet, "pi-1", "pi-2")

    def on_phase(opened: RoundOpen) -> None:
        if opened.phase == "gather" and len(fleet.phases) > 1:
            restart(fleet, "evil", "pi-1", "pi-3")

    in_round_1(fleet, poison_and_correct)
    fleet.on_phase = on_phase
    fleet.run()
    assert [phase for phase, _ in fleet.phases].count("gather") == 2
    assert fleet.counted[2] == list(THREE)
    status = ServerStatus.decode(fleet.port.payloads(TOPICS.server_status)[-1])
    assert status.quarantined == ("evil",)


@pytest.mark.parametrize("settings", [{}, {"normalize": "fleet"}], ids=["", "settled by the fleet"])
def test_server_stopped_before_the_first_commit_keeps_no_class_names(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    fleet = misspelt(tmp_path, *THREE, **settings)
    in_round_1(fleet, lambda: setattr(fleet, "stopped", True))
    with pytest.raises(Stopped):
        fleet.run()
    assert RunSpec.decode(fleet.port.payloads(TOPICS.run)[-1]).class_names == MISSPELT
    stored = fleet.checkpoints.begun()
    assert stored is not None
    assert stored.class_names == ()
    after = VirtualFleet(tmp_path / "server", *THREE, instance=200, **settings)
    after.run()
    assert RunSpec.decode(after.port.payloads(TOPICS.run)[-1]).class_names == CLASSES
    assert not any(device.errors for device in after.devices.values())


def test_run_stays_settled_when_class_names_are_corrected(tmp_path: Path) -> None:
    fleet = misspelt(tmp_path, *THREE, normalize="fleet")
    correct_in_round_1(fleet)
    fleet.run()
    last = RunSpec.decode(fleet.port.payloads(TOPICS.run)[-1])
    assert (last.settled, last.class_names) == (True, CLASSES)
