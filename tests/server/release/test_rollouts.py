# SPDX-License-Identifier: Apache-2.0
"""Releases in waves, on a fake port and clock: offers, reports of devices, and restarts of the server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from release_fleet import TOPICS, WAVES, ReleaseFleet

from splitee.errors import ConfigError
from splitee.protocol import routes
from splitee.protocol.inference import ModelReport, ServedModel
from splitee.protocol.rollouts import MOST_ROLLOUTS, Rollouts
from splitee_server.release.plans import AT_ONCE


@pytest.fixture
def fleet(tmp_path: Path) -> ReleaseFleet:
    return ReleaseFleet(tmp_path)


def test_next_wave_starts_when_all_awake_devices_have_decided(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, third, fourth = fleet.begin()
    assert fleet.offered == {first}
    fleet.report(first, "downloading", have=3)
    assert (fleet.update(first).state, fleet.update(first).have) == ("downloading", 3)
    fleet.report(first, "trying")
    assert fleet.offered == {first}
    fleet.report(first, "in service")
    assert fleet.offered == {first, second}
    assert (fleet.rollout().wave, fleet.update(second).wave, fleet.update(fourth).wave) == (2, 2, 3)
    fleet.report(second, "in service")
    assert fleet.offered == set(fleet.devices)
    for device in (third, fourth):
        fleet.report(device, "in service")
    assert fleet.rollout().state == "finished"
    assert [(wave.devices, wave.in_service) for wave in fleet.rollout().waves] == [(1, 1), (1, 1), (2, 2)]
    assert fleet.update(third).installed == "run round 5"


def test_soak_time_restarts_on_a_failure_but_not_on_a_server_restart(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, third, fourth = fleet.begin(pace=replace(WAVES, soak=60.0, max_failures="1"))
    fleet.report(first, "in service")
    fleet.tick(50)
    assert fleet.offered == {first}
    fleet.restart()
    fleet.tick(15)
    assert fleet.offered == {first, second}
    fleet.wake(second, third, fourth)
    fleet.report(second, "in service")
    fleet.tick(50)
    fleet.report(first, "failed", reason="later")
    fleet.tick(50)
    assert fleet.offered == {second}
    fleet.tick(20)
    assert fleet.offered == {second, third, fourth}


@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
def test_soak_time_does_not_depend_on_changes_of_the_time_of_day(fleet: ReleaseFleet, seconds: float) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin(pace=replace(WAVES, soak=60.0))
    fleet.report(first, "in service")
    fleet.tick(30)
    fleet.set_by = seconds
    fleet.tick(25)
    assert fleet.offered == {first}
    fleet.tick(10)
    assert fleet.offered == {first, second}


def test_sleeping_devices_delay_no_wave_and_get_the_release_on_waking(fleet: ReleaseFleet) -> None:
    first, second, third, fourth = fleet.begin(pace=replace(WAVES, waves=("2", "100%")))
    fleet.tick(1000)
    assert fleet.offered == {first, second}, "nobody has it in service yet"
    fleet.wake(first)
    fleet.report(first, "in service")
    assert fleet.offered == set(fleet.devices)
    assert [wave.asleep for wave in fleet.rollout().waves] == [1, 2]
    for device in (second, third, fourth):
        assert fleet.rollout().state == "running"
        fleet.wake(device)
        assert fleet.fetch(device) == f"{device}:model".encode()
        fleet.report(device, "in service")
    assert fleet.rollout().state == "finished"


def test_too_many_failures_stop_the_rollout_and_withdraw_its_offers(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, third, fourth = fleet.begin(pace=replace(WAVES, max_failures="1"))
    fleet.report(first, "in service")
    fleet.report(second, "failed", reason="worse")
    assert fleet.offered == set(fleet.devices) - {second}, "one may"
    fleet.report(third, "rolled back", reason="it does not load")
    stopped = fleet.rollout()
    assert (stopped.state, fleet.offered) == ("stopped", {first})
    assert stopped.reason in (
        f"2 failed, 1 may: {second}: worse; {third}: it does not load",
        f"2 failed, 1 may: {third}: it does not load; {second}: worse",
    )
    assert fleet.fetch(fourth) is None
    fleet.report(fourth, "downloading", have=3)  # it still has the withdrawn offer
    assert fleet.update(fourth).state == "expired", "it will not come"
    with pytest.raises(ConfigError, match="rollout a is stopped: there is nothing to resume"):
        fleet.releases.rollouts.carry_out("resume", "a")


def test_rollout_stops_after_a_wave_with_no_device_in_service(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, *_ = fleet.begin(pace=replace(WAVES, max_failures="100%"))
    fleet.report(first, "failed", reason="torn")
    assert (fleet.rollout().state, fleet.offered) == ("stopped", set())


def test_paused_rollout_lets_downloads_end_and_starts_no_wave(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin()
    assert fleet.releases.rollouts.carry_out("pause", "a") == "rollout a: paused"
    assert fleet.releases.rollouts.carry_out("pause", "a") == "rollout a: paused", (
        "saying it twice is no error"
    )
    assert fleet.fetch(first) == f"{first}:model".encode()
    fleet.report(first, "in service")
    fleet.restart()
    fleet.tick(100)
    assert fleet.offered == {first}
    fleet.wake(*fleet.devices)
    fleet.releases.rollouts.carry_out("resume", "a")
    fleet.tick()
    assert fleet.offered == {first, second}


def test_offer_that_is_not_taken_in_time_expires(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices[:3])
    fleet.begin(pace=replace(AT_ONCE, expires=3600.0))
    for device in fleet.devices[:3]:
        fleet.report(device, "in service")
    fleet.tick(3000)
    assert fleet.rollout().state == "running"
    fleet.restart()
    fleet.tick(1000)
    assert (fleet.rollout().state, fleet.offered) == ("expired", set(fleet.devices[:3]))
    assert fleet.update("d3").state == "expired"
    assert fleet.fetch("d3") is None


def test_rollback_is_offered_to_every_device_until_it_has_gone_back(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, third, fourth = fleet.begin(pace=AT_ONCE)
    for device in (first, second):
        fleet.report(device, "in service")
    fleet.report(third, "trying")
    assert fleet.releases.rollouts.carry_out("roll back", "a") == "rollout a: rolled back"
    fleet.restart()
    fleet.settle()
    assert {
        device: offer.action for device in fleet.devices if (offer := fleet.offer(device))
    } == dict.fromkeys(fleet.devices, "roll back")
    for device in (first, fourth):
        fleet.report(device, "rolled back")
    fleet.report(third, "in service")  # it was about to
    assert fleet.offered == {second, third}
    old = ModelReport(release="0" * 64, state="in service", serves=ServedModel("0" * 64, "old", 1, 1.0))
    for device in (second, third):  # the report that the broker retains may be of the previous model
        fleet.deliver(routes.MODEL_REPORT, device, old.encode(), retained=True)
    fleet.settle()
    assert fleet.offered == set()
    assert {fleet.update(device).state for device in fleet.devices} == {"rolled back"}
    assert fleet.update(second).installed == "old round 1"
    assert not any(wave.failed for wave in fleet.rollout().waves)
    assert list(fleet.store.path.glob("files/*")) == []


def test_newer_release_replaces_an_undecided_one(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin()
    fleet.report(first, "in service")
    fleet.begin("b", b"newer", AT_ONCE, devices=[first, second])
    assert fleet.update(second).rollout == "b"
    older = fleet.releases.rollouts.find("a")
    assert older is not None
    assert older.record.devices[second].reason == "replaced by b"
    assert fleet.fetch(second, name="b") == f"{second}:newer".encode()
    fleet.report(first, "in service", "b")
    fleet.report(second, "failed", "b")
    assert fleet.offer(second) is None
    fleet.restart()
    fleet.settle()
    offer = fleet.offer(first)
    assert offer is not None and offer.release == fleet.release_of(first, "b")


def test_install_click_offers_the_release_before_the_wave_of_the_device(fleet: ReleaseFleet) -> None:
    first, *_, last = fleet.begin()
    fleet.request_install(last, "software")
    assert fleet.offered == {first}
    fleet.request_install(last)
    fleet.request_install(last)
    fleet.request_install("stranger")
    assert fleet.offered == {first, last}
    fleet.restart()
    fleet.settle()
    assert fleet.offered == {first, last}


@pytest.mark.parametrize("kill_after", range(12))
def test_killed_server_resumes_the_rollout_at_any_step(fleet: ReleaseFleet, kill_after: int) -> None:
    """After each of its steps; the broker retains the reports of devices, and delivers them in any order."""
    steps = 0

    def step() -> None:
        nonlocal steps
        if steps == kill_after:
            fleet.restart()
            for device in reversed(fleet.devices):
                fleet.wake(device)
        steps += 1

    fleet.wake(*fleet.devices)
    order = fleet.begin(pace=replace(WAVES, max_failures="1"))
    for number, device in enumerate(order):
        step()
        fleet.tick()
        step()
        fleet.report(device, "downloading", have=1)
        step()
        fleet.report(device, "failed" if number == 1 else "in service", reason="torn" if number == 1 else "")
    assert fleet.rollout().state == "finished"
    assert fleet.offered == set(order) - {order[1]}
    assert [(wave.in_service, wave.failed) for wave in fleet.rollout().waves] == [(1, 0), (0, 1), (2, 0)]


def test_decisions_of_devices_without_a_server_are_counted_at_its_start(fleet: ReleaseFleet) -> None:
    """The broker retains the devices' reports."""
    first, second, third, fourth = fleet.begin(pace=replace(WAVES, waves=("3", "100%"), max_failures="1"))
    fleet.restart()
    for device in (first, second):
        fleet.report(device, "in service", retained=True)
    fleet.report(third, "failed", reason="torn", retained=True)
    fleet.settle()
    assert [(wave.in_service, wave.failed) for wave in fleet.rollout().waves] == [(2, 1), (0, 0)]
    assert fleet.offered == {first, second, fourth}


def test_dismissed_device_gets_no_offer_and_is_not_waited_for(fleet: ReleaseFleet) -> None:
    fleet.gone.add("d0")
    fleet.wake(*fleet.devices)
    fleet.begin(pace=AT_ONCE)
    assert fleet.offered == {"d1", "d2", "d3"}
    for device in ("d1", "d2", "d3"):
        fleet.report(device, "in service")
    assert fleet.rollout().state == "finished"
    fleet.gone.clear()
    fleet.releases.rollouts.republish()
    fleet.settle()
    assert "d0" in fleet.offered and fleet.fetch("d0") == b"d0:model"


def test_release_file_is_stored_once_and_deleted_when_the_rollout_stops(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    fleet.begin(data=b"x" * 1000)
    [kept] = fleet.store.path.glob("files/*")
    assert kept.stat().st_size == 1000
    fleet.releases.rollouts.carry_out("stop", "a")
    fleet.tick()
    assert list(fleet.store.path.glob("files/*")) == []


def test_device_that_fetches_again_after_a_failure_gets_the_release_while_the_rollout_is_open(
    fleet: ReleaseFleet,
) -> None:
    fleet.wake("d0", "d1")
    content, other = fleet.content(b"model", ["d0"]), fleet.content(b"of another cut", ["d1"])
    content.releases += other.releases
    content.sizes |= other.sizes
    content.paths |= other.paths
    fleet.releases.begin(content, "a", replace(AT_ONCE, max_failures="1"))
    fleet.tick()
    fleet.report("d0", "failed", reason="it takes 5 B, and the disk has only 4 B left")
    fleet.report("d0", "downloading")
    assert fleet.offered == {"d0", "d1"}
    assert fleet.fetch("d0") == b"d0:model"


def test_release_file_may_be_named_by_a_symbolic_link(fleet: ReleaseFleet) -> None:
    content = fleet.content(b"model")
    [(digest, path)] = content.paths.items()
    content.paths[digest] = path.with_name("latest")
    content.paths[digest].symlink_to(path.name)
    fleet.releases.begin(content, "a", AT_ONCE)
    fleet.tick()
    assert fleet.fetch("d0") == b"d0:model"


def test_repeated_downloads_of_a_release_are_limited_per_device(
    fleet: ReleaseFleet,
) -> None:
    fleet.begin(data=bytes(1 << 20), pace=AT_ONCE)
    parts = [fleet.fetch("d0") for _ in range(50)]
    assert sum(part is not None for part in parts) == 16
    assert fleet.fetch("d1") is not None
    fleet.begin("b", data=bytes(1 << 19), pace=AT_ONCE)
    assert fleet.fetch("d0", name="b") is not None, "a newer release is another one"
    fleet.tick(60)
    assert fleet.fetch("d0", name="b") is not None


def test_next_wave_is_offered_only_when_its_record_can_be_written(fleet: ReleaseFleet) -> None:
    fleet.wake(*fleet.devices)
    first, second, *_ = fleet.begin()
    folder = fleet.store.path
    folder.rename(folder.with_name("unplugged"))
    fleet.report(first, "in service")
    assert fleet.offered == {first}
    folder.with_name("unplugged").rename(folder)
    fleet.tick()
    assert fleet.offered == {first, second}


def test_damaged_rollout_record_is_logged_and_left_while_other_rollouts_go_on(
    fleet: ReleaseFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.begin("a", b"one", AT_ONCE, ["d0"])
    fleet.begin("b", b"two", AT_ONCE, ["d1"])
    plan = (fleet.store.path / "a.plan").read_bytes()
    (fleet.store.path / "a.json").write_bytes(b"{")
    fleet.restart()
    fleet.settle()
    assert [one.rollout for one in fleet.releases.rollouts.overview().rollouts] == ["b"]
    assert "a.json cannot be read" in caplog.text
    assert routes.ROLLOUTS.topic(TOPICS) in {sent.topic for sent in fleet.port.sent}
    fleet.report("d1", "in service", "b")
    assert fleet.rollout("b").state == "finished"
    assert (fleet.store.path / "a.json").read_bytes() == b"{"
    assert (fleet.store.path / "a.plan").read_bytes() == plan
    assert b"one" in {file.read_bytes() for file in fleet.store.path.glob("files/*")}


def test_rollout_list_fits_one_message_and_keeps_an_open_rollout(fleet: ReleaseFleet) -> None:
    fleet.begin("open", b"open", devices=["d3"])
    for number in range(MOST_ROLLOUTS + 5):
        fleet.begin(f"r{number}", bytes([number]), replace(AT_ONCE, max_failures="0"), ["d0"])
        fleet.report("d0", "failed", f"r{number}", reason="w" * 1000)
    fleet.tick()
    published = Rollouts.decode(fleet.retained(routes.ROLLOUTS.topic(TOPICS)))
    assert len(published.encode()) <= routes.LARGEST_WHOLE
    assert [one.rollout for one in published.rollouts][:2] == ["r24", "r23"]
    assert published.rollouts[-1].rollout == "open"
    assert len(list(fleet.store.path.glob("*.json"))) == MOST_ROLLOUTS


def test_offers_over_a_slow_link_are_spread_over_several_ticks(tmp_path: Path) -> None:
    fleet = ReleaseFleet(tmp_path, devices=20)
    fleet.wake(*fleet.devices)
    fleet.port.on_sent = lambda _sent: fleet.now.advance(0.1)
    before = fleet.now()
    fleet.begin(pace=AT_ONCE)
    assert fleet.now() - before < 2.0, "the others have their turn at the next look"
    assert 0 < len(fleet.offered) < 20
    for _ in range(20):
        fleet.tick()
    assert fleet.offered == set(fleet.devices)
    assert fleet.rollout().state == "running"
