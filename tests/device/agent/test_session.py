# SPDX-License-Identifier: Apache-2.0
"""How a device waits: what it handles meanwhile, when it asks, and when it gives up."""

from __future__ import annotations

import logging
import socket
from itertools import pairwise

import pytest
from fakes import FakeClock, FakePort
from msgspec.structs import replace

from splitee.errors import BrokerRefused, Stalled
from splitee.mqtt.events import Connected, Disconnected, Overflow
from splitee.protocol import routes
from splitee.protocol.fleet import ErrorReport, Profile, ServerStatus
from splitee.protocol.gate import EVENTS_AT_ONCE
from splitee.protocol.rounds import Ack, Assignment, RoundOpen, Sync
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_device.agent.requests import SYNC_AFTER
from splitee_device.agent.session import READ, SPREAD, Session

TOPICS = Topics("fleet")
SPEC = RunSpec(protocol=1, run="r", network="n", num_classes=2, rounds=3)
WHO = Profile(
    protocol=1, instance=5, version="1", cut=2, class_names=("a", "b"), train_samples=4, held_out_samples=2
)
ASSIGNMENT = Assignment(run="r", attempt=7, instance=5, cut=2)
ACK = Ack(run="r", round=1, attempt=7, phase="train", step=0, room=3)
SYNC = Sync(run="r", instance=5)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def port(clock: FakeClock) -> FakePort:
    return FakePort(clock)


@pytest.fixture
def session(port: FakePort, clock: FakeClock) -> Session:
    return Session(port, TOPICS, "pi-1", 5, clock=clock)


def topic(route: routes.Route) -> str:
    return route.topic(TOPICS, "pi-1")


def leaves(port: FakePort) -> list[str]:
    return [sent.topic.rpartition("/")[2] for sent in port.sent]


def joined(port: FakePort, session: Session) -> None:
    """Have the session know its run and be taken in."""
    port.deliver(topic(routes.RUN), SPEC.encode(), retained=True)
    session.await_run()
    port.deliver(topic(routes.ASSIGNMENT), ASSIGNMENT.encode())
    session.join(WHO)
    port.sent.clear()


def test_the_watchdog_is_fed_while_the_links_thread_lives(
    systemd: socket.socket, port: FakePort, session: Session
) -> None:
    session.drain()
    assert systemd.recv(1000) == b"WATCHDOG=1"
    port.alive = False
    session.drain()
    with pytest.raises(BlockingIOError):
        systemd.recv(1000)


def test_a_session_reads_its_own_devices_topics_and_the_fleets(port: FakePort, session: Session) -> None:
    assert sorted(port.subscribed) == sorted(route.topic(TOPICS, "pi-1") for route in READ)
    port.subscribe(routes.ASSIGNMENT.topic(TOPICS))
    port.deliver(routes.ASSIGNMENT.topic(TOPICS, "pi-2"), ASSIGNMENT.encode())
    session.drain()
    assert session.heard.assignment is None


def test_the_run_is_waited_for(port: FakePort, clock: FakeClock, session: Session) -> None:
    port.later(100.0, topic(routes.RUN), SPEC.encode())
    started = clock()
    assert session.await_run() == SPEC
    assert clock() - started == 100.0
    assert port.sent == []  # there is nobody to ask yet


def test_a_join_is_asked_for_again_until_it_is_answered(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    port.deliver(topic(routes.RUN), SPEC.encode())
    session.await_run()
    port.later(60.0, topic(routes.ASSIGNMENT), ASSIGNMENT.encode())
    session.join(WHO)
    assert leaves(port) == ["profile", "sync", "profile", "sync", "profile"]
    assert {Sync.decode(payload) for payload in port.payloads(topic(routes.SYNC))} == {SYNC}


def test_a_run_that_is_over_needs_no_answer(port: FakePort, clock: FakeClock, session: Session) -> None:
    port.deliver(topic(routes.RUN), SPEC.encode())
    session.await_run()
    finished = RoundOpen(run="r", round=3, attempt=7, phase="finished")
    port.deliver(topic(routes.ROUND), finished.encode())
    started = clock()
    session.join(WHO)
    assert clock() == started


def test_while_the_server_answers_it_is_not_asked(port: FakePort, clock: FakeClock, session: Session) -> None:
    joined(port, session)
    for seconds in range(10, 100, 10):
        port.later(seconds, topic(routes.ACK), ACK.encode())
    started = clock()
    session.wait(lambda: clock() - started >= 100, "something")
    assert port.sent == []


def test_that_the_server_lives_is_no_answer(
    port: FakePort, clock: FakeClock, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """It may wait for what was lost on the way: so it is asked after 15 s, then ever more seldom."""
    caplog.set_level(logging.INFO, "splitee_device")
    joined(port, session)
    waits_for = ServerStatus(state="online", instance=7, waiting_for=("pi-2",))
    for seconds in range(5, 300, 5):
        port.later(seconds, topic(routes.SERVER_STATUS), waits_for.encode())
    asked: list[float] = []
    started = clock()
    port.on_sent = lambda _sent: asked.append(clock() - started)
    session.wait(lambda: clock() - started >= 200, "the next round")
    first = asked[0]
    assert SYNC_AFTER <= first <= SYNC_AFTER + SPREAD + 1
    pauses = [after - before for before, after in pairwise(asked)]
    assert pauses == pytest.approx([2 * first, 60, 60], abs=1)
    assert leaves(port) == 4 * ["sync"]
    assert caplog.messages == [
        "waiting for the next round (30 s); the server waits for pi-2",
        "waiting for the next round (90 s); the server waits for pi-2",
    ]


def test_an_answer_puts_the_next_request_off(port: FakePort, clock: FakeClock, session: Session) -> None:
    joined(port, session)
    port.later(10.0, topic(routes.ACK), ACK.encode())
    started = clock()
    session.wait(lambda: port.sent != [], "something")
    assert 25 <= clock() - started <= 25 + SPREAD + 1


def test_many_devices_do_not_ask_all_at_once(port: FakePort, clock: FakeClock) -> None:
    asked = []
    for number in range(20):
        session, started = Session(port, TOPICS, f"pi-{number}", 5, clock=clock), clock()
        session.heard.add(SPEC, clock())
        session.presence.introduce(WHO)
        port.sent.clear()
        session.wait(lambda: port.sent != [], "something")
        asked.append(clock() - started)
    assert SYNC_AFTER <= min(asked) <= SYNC_AFTER + 1
    assert SYNC_AFTER + SPREAD - 1 <= max(asked) <= SYNC_AFTER + SPREAD + 1


def test_who_has_lost_messages_asks_at_once_and_not_for_each(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    joined(port, session)
    for _ in range(3):
        port.happen(Overflow())
    session.drain()
    assert leaves(port) == ["sync"]
    clock.advance(SYNC_AFTER)
    port.happen(Overflow())
    session.drain()
    assert leaves(port) == ["sync", "sync"]


def test_a_device_that_waits_for_long_says_so_ever_more_seldom(
    port: FakePort, clock: FakeClock, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Not silent in the first minutes; six lines an hour from the second hour on, for as long as it lasts."""
    caplog.set_level(logging.INFO, "splitee_device")
    joined(port, session)
    started, said = clock(), []
    log = logging.getLogger("splitee_device.agent.session")
    handler = logging.Handler()
    handler.emit = lambda _record: said.append(clock() - started)  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        session.wait(lambda: clock() - started >= 6 * 3600, "the next round")
    finally:
        log.removeHandler(handler)
    assert [when for when in said if when < 600] == [30.0, 90.0, 210.0, 450.0]
    for hour in range(1, 6):
        assert len([when for when in said if hour <= when / 3600 < hour + 1]) == 6


def test_a_server_that_reports_again_and_again_fills_no_log(
    port: FakePort, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    joined(port, session)
    for number in range(100):
        report = ErrorReport(code=9, message=f"report {number}", fatal=False, instance=0)
        port.deliver(topic(routes.ERROR), report.encode())
    session.drain()
    assert caplog.messages[:2] == ["the server reports: report 0", "the server reports: report 1"]
    assert len(caplog.messages) <= 6


def test_patience_counts_from_the_servers_last_word(port: FakePort, clock: FakeClock) -> None:
    session = Session(port, TOPICS, "pi-1", 5, patience=20, clock=clock)
    port.later(15.0, topic(routes.ACK), ACK.encode())
    started = clock()
    with pytest.raises(Stalled, match="waited 20 s for a server to open a run"):
        session.await_run()
    assert 35 < clock() - started <= 36


def test_after_a_reconnect_everything_is_said_again(
    port: FakePort, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    joined(port, session)
    port.happen(Disconnected("no route"))
    port.happen(Connected(fresh=True))
    session.drain()
    assert leaves(port) == ["status", "profile", "sync"]
    assert caplog.messages == ["connection lost (no route); reconnecting"]


def test_a_reconnect_before_the_run_is_known(port: FakePort, session: Session) -> None:
    port.happen(Connected(fresh=True))
    session.drain()
    assert leaves(port) == ["status"]


def test_a_flood_does_not_keep_a_device_from_training(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    for step in range(EVENTS_AT_ONCE + 1):
        port.deliver(topic(routes.ACK), replace(ACK, step=step).encode())
    session.drain()
    assert session.heard.ack == replace(ACK, step=EVENTS_AT_ONCE - 1)


def test_what_the_server_reports_is_logged(
    port: FakePort, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    for instance, said in ((0, "to whoever it is"), (5, "to this process"), (4, "to another")):
        report = ErrorReport(code=9, message=said, instance=instance)
        port.deliver(topic(routes.ERROR), report.encode())
    session.drain()
    assert caplog.messages == [
        "the server reports: to whoever it is",
        "the server reports: to this process",
    ]


def test_a_broker_that_denies_what_is_this_devices_own(port: FakePort, session: Session) -> None:
    port.happen(BrokerRefused("denies reading"))
    with pytest.raises(BrokerRefused, match="denies reading"):
        session.drain()
    port.refused = 1
    with pytest.raises(BrokerRefused, match="not as 'pi-1'"):
        session.drain()


def test_one_wrong_message_does_not_hide_the_next(
    port: FakePort, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    port.deliver(topic(routes.RUN), b'{"protocol":1}')
    port.deliver(topic(routes.RUN), SPEC.encode())
    assert session.await_run() == SPEC
    [line] = caplog.messages
    assert line.startswith("splitee/v1/fleet/run rejected: RunSpec: ")
