# SPDX-License-Identifier: Apache-2.0
"""A server claims its fleet: whether another one is there is found out in no more time than it takes."""

from __future__ import annotations

import pytest
from fakes import FakeClock, FakePort, Sent

from splitee.errors import IdInUse
from splitee.protocol.fleet import ServerClaim, ServerStatus
from splitee.protocol.topics import Topics
from splitee_server.announcer import CLAIM, ECHO, SILENT, claim_fleet

TOPICS = Topics("claimed")
OWN, EARLIER, LATER = 200, 100, 300


class Broker:
    """Where the server under test claims; what it says comes back after `trips`, its brokers' round trips."""

    def __init__(self, *trips: float) -> None:
        self.clock = FakeClock()
        self.port = FakePort(self.clock)
        self.port.on_sent = self._echo
        self._trips = trips

    def _echo(self, sent: Sent) -> None:
        for seconds in self._trips:
            self.port.later(seconds, sent.topic, sent.payload)

    def status(self, seconds: float, state: str = "online", *, retained: bool = False) -> None:
        """Another server's status comes in so many seconds."""
        status = ServerStatus(state=state, instance=EARLIER)  # type: ignore[arg-type]
        self.port.later(seconds, TOPICS.server_status, status.encode(), retained=retained)

    def claim(self, seconds: float, instance: int) -> None:
        """Another server's claim comes in so many seconds."""
        self.port.later(seconds, TOPICS.server_claim, ServerClaim(instance=instance).encode())

    def claimed(self) -> float:
        """Seconds that the claim has taken."""
        before = self.clock()
        claim_fleet(self.port, TOPICS, OWN, brokers=max(1, len(self._trips)), clock=self.clock)
        return self.clock() - before


def test_where_nobody_is_the_claims_way_back_decides() -> None:
    assert Broker(0.01).claimed() == pytest.approx(0.01 + ECHO)
    assert Broker(0.5).claimed() == pytest.approx(0.5 + 4 * 0.5)


def test_a_broker_that_lets_nobody_hear_itself_takes_a_second() -> None:
    assert Broker().claimed() == pytest.approx(CLAIM)


@pytest.mark.parametrize("trip", [0.01, 0.5])
def test_a_running_server_says_so_in_its_round_trip(trip: float) -> None:
    broker = Broker(trip)
    broker.status(2 * trip + 0.1)
    with pytest.raises(IdInUse, match="another server serves fleet 'claimed'"):
        broker.claimed()


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_one_that_was_online_is_waited_for_whether_it_is_heard_of_before_the_claim_or_after(
    seconds: float,
) -> None:
    broker = Broker(0.01)
    broker.status(seconds, retained=True)
    assert broker.claimed() == pytest.approx(seconds + SILENT)
    broker = Broker(0.01)
    broker.status(seconds, retained=True)
    broker.status(SILENT - 0.1)
    with pytest.raises(IdInUse):
        broker.claimed()


def test_one_that_has_gone_is_not_waited_for() -> None:
    broker = Broker(0.01)
    broker.status(0.0, "offline", retained=True)
    assert broker.claimed() == pytest.approx(0.01 + ECHO)


def test_of_two_that_begin_together_the_earlier_stays_and_the_later_is_told() -> None:
    """The later one may not have listened yet when the earlier claimed."""
    broker = Broker(0.01)
    broker.claim(0.1, LATER)
    assert broker.claimed() == pytest.approx(0.01 + ECHO)
    claims = [ServerClaim.decode(payload).instance for payload in broker.port.payloads(TOPICS.server_claim)]
    assert claims == [OWN, OWN]
    broker = Broker(0.01)
    broker.claim(0.1, EARLIER)
    with pytest.raises(IdInUse):
        broker.claimed()


def test_all_brokers_are_heard() -> None:
    broker = Broker(0.01, 0.4)
    broker.status(0.4, retained=True)
    assert broker.claimed() == pytest.approx(0.4 + SILENT)


def test_claims_without_end_do_not_put_it_off() -> None:
    broker = Broker(0.01)
    for number in range(1000):
        broker.claim(number / 100, LATER)
    assert broker.claimed() == pytest.approx(0.01 + ECHO, abs=0.01)
