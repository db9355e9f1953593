# SPDX-License-Identifier: Apache-2.0
"""How a device waits: what it handles meanwhile, when it sends requests, and when it gives up."""

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
from splitee_device.agent.session import SUBSCRIPTIONS, SYNC_JITTER, RunChanged, Session

TOPICS = Topics("fleet")
SPEC = RunSpec(protocol=1, run="r", network="n", num_classes=2, rounds=3)
OWN_PROFILE = Profile(
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


def join(port: FakePort, session: Session) -> None:
    """Have the session learn its run and join it."""
    port.deliver(topic(routes.RUN), SPEC.encode(), retained=True)
    session.await_run()
    port.deliver(topic(routes.ASSIGNMENT), ASSIGNMENT.encode())
    session.join(OWN_PROFILE)
    port.sent.clear()


def test_watchdog_is_fed_while_the_link_thread_is_alive(
    systemd: socket.socket, port: FakePort, session: Session
) -> None:
    session.drain()
    assert systemd.recv(1000) == b"WATCHDOG=1"
    port.alive = False
    session.drain()
    with pytest.raises(BlockingIOError):
        systemd.recv(1000)


def test_session_reads_topics_of_its_own_device_and_the_fleet(port: FakePort, session: Session) -> None:
    assert sorted(port.subscribed) == sorted(route.topic(TOPICS, "pi-1") for route in SUBSCRIPTIONS)
    port.subscribe(routes.ASSIGNMENT.topic(TOPICS))
    port.deliver(routes.ASSIGNMENT.topic(TOPICS, "pi-2"), ASSIGNMENT.encode())
    session.drain()
    assert session.last_received.assignment is None


def test_session_waits_for_a_run_without_sending_requests(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    port.later(100.0, topic(routes.RUN), SPEC.encode())
    started = clock()
    assert session.await_run() == SPEC
    assert clock() - started == 100.0
    assert port.sent == []  # no server is known yet


def test_join_is_requested_again_until_an_assignment_arrives(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    port.deliver(topic(routes.RUN), SPEC.encode())
    session.await_run()
    port.later(60.0, topic(routes.ASSIGNMENT), ASSIGNMENT.encode())
    session.join(OWN_PROFILE)
    assert leaves(port) == ["profile", "sync", "profile", "sync", "profile"]
    assert {Sync.decode(payload) for payload in port.payloads(topic(routes.SYNC))} == {SYNC}


def test_join_of_a_finished_run_returns_without_an_assignment(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    port.deliver(topic(routes.RUN), SPEC.encode())
    session.await_run()
    finished = RoundOpen(run="r", round=3, attempt=7, phase="finished")
    port.deliver(topic(routes.ROUND), finished.encode())
    started = clock()
    session.join(OWN_PROFILE)
    assert clock() == started


def test_session_sends_no_request_while_acknowledgements_arrive(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    join(port, session)
    for seconds in range(10, 100, 10):
        port.later(seconds, topic(routes.ACK), ACK.encode())
    started = clock()
    session.wait(lambda: clock() - started >= 100, "something")
    assert port.sent == []


def test_requests_are_sent_ever_less_often_while_only_server_status_arrives(
    port: FakePort, clock: FakeClock, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """The server may wait for a lost message: the first request comes after 15 s."""
    caplog.set_level(logging.INFO, "splitee_device")
    join(port, session)
    waits_for = ServerStatus(state="online", instance=7, waiting_for=("pi-2",))
    for seconds in range(5, 300, 5):
        port.later(seconds, topic(routes.SERVER_STATUS), waits_for.encode())
    requested: list[float] = []
    started = clock()
    port.on_sent = lambda _sent: requested.append(clock() - started)
    session.wait(lambda: clock() - started >= 200, "the next round")
    first = requested[0]
    assert SYNC_AFTER <= first <= SYNC_AFTER + SYNC_JITTER + 1
    pauses = [after - before for before, after in pairwise(requested)]
    assert pauses == pytest.approx([2 * first, 60, 60], abs=1)
    assert leaves(port) == 4 * ["sync"]
    assert caplog.messages == [
        "waiting for the next round (30 s); the server waits for pi-2",
        "waiting for the next round (90 s); the server waits for pi-2",
    ]


def test_acknowledgement_postpones_the_next_request(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    join(port, session)
    port.later(10.0, topic(routes.ACK), ACK.encode())
    started = clock()
    session.wait(lambda: port.sent != [], "something")
    assert 25 <= clock() - started <= 25 + SYNC_JITTER + 1


def test_requests_of_many_devices_are_spread_over_time(port: FakePort, clock: FakeClock) -> None:
    requested = []
    for number in range(20):
        session, started = Session(port, TOPICS, f"pi-{number}", 5, clock=clock), clock()
        session.last_received.add(SPEC, clock())
        session.presence.introduce(OWN_PROFILE)
        port.sent.clear()
        session.wait(lambda: port.sent != [], "something")
        requested.append(clock() - started)
    assert SYNC_AFTER <= min(requested) <= SYNC_AFTER + 1
    assert SYNC_AFTER + SYNC_JITTER - 1 <= max(requested) <= SYNC_AFTER + SYNC_JITTER + 1


def test_overflows_cause_one_request_at_once_per_interval(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    join(port, session)
    for _ in range(3):
        port.happen(Overflow())
    session.drain()
    assert leaves(port) == ["sync"]
    clock.advance(SYNC_AFTER)
    port.happen(Overflow())
    session.drain()
    assert leaves(port) == ["sync", "sync"]


def test_long_wait_is_logged_ever_less_often(
    port: FakePort, clock: FakeClock, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Four lines in the first ten minutes; six an hour from the second hour on."""
    caplog.set_level(logging.INFO, "splitee_device")
    join(port, session)
    started, logged = clock(), []
    log = logging.getLogger("splitee_device.agent.session")
    handler = logging.Handler()
    handler.emit = lambda _record: logged.append(clock() - started)  # type: ignore[method-assign]
    log.addHandler(handler)
    try:
        session.wait(lambda: clock() - started >= 6 * 3600, "the next round")
    finally:
        log.removeHandler(handler)
    assert [when for when in logged if when < 600] == [30.0, 90.0, 210.0, 450.0]
    for hour in range(1, 6):
        assert len([when for when in logged if hour <= when / 3600 < hour + 1]) == 6


def test_repeated_error_reports_are_limited_in_the_log(
    port: FakePort, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    join(port, session)
    for number in range(100):
        report = ErrorReport(code=9, message=f"report {number}", fatal=False, instance=0)
        port.deliver(topic(routes.ERROR), report.encode())
    session.drain()
    assert caplog.messages[:2] == ["the server reports: report 0", "the server reports: report 1"]
    assert len(caplog.messages) <= 6


def test_patience_counts_from_the_last_message_of_the_server(port: FakePort, clock: FakeClock) -> None:
    session = Session(port, TOPICS, "pi-1", 5, patience=20, clock=clock)
    port.later(15.0, topic(routes.ACK), ACK.encode())
    started = clock()
    with pytest.raises(Stalled, match="waited 20 s for a server to open a run"):
        session.await_run()
    assert 35 < clock() - started <= 36


def test_status_profile_and_request_are_sent_again_after_a_reconnect(
    port: FakePort, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    join(port, session)
    port.happen(Disconnected("no route"))
    port.happen(Connected(fresh=True))
    session.drain()
    assert leaves(port) == ["status", "profile", "sync"]
    assert caplog.messages == ["connection lost (no route); reconnecting"]


def test_reconnect_before_the_run_is_known_sends_only_the_status(port: FakePort, session: Session) -> None:
    port.happen(Connected(fresh=True))
    session.drain()
    assert leaves(port) == ["status"]


def test_run_that_only_the_broker_remembers_is_not_returned_to(port: FakePort, session: Session) -> None:
    """As after a power cut of a broker that saves its messages now and then."""
    join(port, session)
    later = replace(SPEC, run="later")
    for run, retained in ((later, False), (SPEC, False)):
        port.deliver(topic(routes.RUN), run.encode(), retained=retained)
        with pytest.raises(RunChanged):
            session.drain()
    port.deliver(topic(routes.RUN), later.encode(), retained=True)
    session.drain()
    assert session.await_run() == SPEC
    port.deliver(topic(routes.RUN), later.encode(), retained=False)
    with pytest.raises(RunChanged):
        session.drain()
    assert session.await_run() == later


def test_drain_handles_a_limited_number_of_messages_at_once(
    port: FakePort, clock: FakeClock, session: Session
) -> None:
    for step in range(EVENTS_AT_ONCE + 1):
        port.deliver(topic(routes.ACK), replace(ACK, step=step).encode())
    session.drain()
    assert session.last_received.ack == replace(ACK, step=EVENTS_AT_ONCE - 1)


def test_error_reports_to_this_process_or_to_all_are_logged(
    port: FakePort, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    for instance, text in ((0, "to whoever it is"), (5, "to this process"), (4, "to another")):
        report = ErrorReport(code=9, message=text, instance=instance)
        port.deliver(topic(routes.ERROR), report.encode())
    session.drain()
    assert caplog.messages == [
        "the server reports: to whoever it is",
        "the server reports: to this process",
    ]


def test_broker_refusal_of_own_topics_is_raised(port: FakePort, session: Session) -> None:
    port.happen(BrokerRefused("denies reading"))
    with pytest.raises(BrokerRefused, match="denies reading"):
        session.drain()
    port.refused = 1
    with pytest.raises(BrokerRefused, match="not as 'pi-1'"):
        session.drain()


def test_malformed_message_is_logged_and_the_next_is_read(
    port: FakePort, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    port.deliver(topic(routes.RUN), b'{"protocol":1}')
    port.deliver(topic(routes.RUN), SPEC.encode())
    assert session.await_run() == SPEC
    [line] = caplog.messages
    assert line.startswith("splitee/v1/fleet/run rejected: RunSpec: ")
