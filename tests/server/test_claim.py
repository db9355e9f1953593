# SPDX-License-Identifier: Apache-2.0
"""A server claims its fleet: it detects another server, and waits no longer than that takes."""

from __future__ import annotations

import pytest
from fakes import FakeClock, FakePort, Sent

from splitee.errors import IdInUse
from splitee.protocol.fleet import ServerClaim, ServerStatus
from splitee.protocol.topics import Topics
from splitee_server.announcer import LOST_AFTER, MIN_WAIT, REPLY_TIMEOUT, claim_fleet

TOPICS = Topics("claimed")
OWN, EARLIER, LATER = 200, 100, 300


class Broker:
    """The broker of the server under test; its messages come back after `trips`, the brokers' round trips."""

    def __init__(self, *trips: float) -> None:
        self.clock = FakeClock()
        self.port = FakePort(self.clock)
        self.port.on_sent = self._echo
        self._trips = trips

    def _echo(self, sent: Sent) -> None:
        for seconds in self._trips:
            self.port.later(seconds, sent.topic, sent.payload)

    def status(self, seconds: float, state: str = "online", *, retained: bool = False) -> None:
        """Another server's status arrives after so many seconds."""
        status = ServerStatus(state=state, instance=EARLIER)  # type: ignore[arg-type]
        self.port.later(seconds, TOPICS.server_status, status.encode(), retained=retained)

    def claim(self, seconds: float, instance: int) -> None:
        """Another server's claim arrives after so many seconds."""
        self.port.later(seconds, TOPICS.server_claim, ServerClaim(instance=instance).encode())

    def claimed(self) -> float:
        """Seconds that the claim has taken."""
        before = self.clock()
        claim_fleet(self.port, TOPICS, OWN, brokers=max(1, len(self._trips)), clock=self.clock)
        return self.clock() - before


def test_duration_of_an_unopposed_claim_depends_on_its_round_trip() -> None:
    assert Broker(0.01).claimed() == pytest.approx(0.01 + MIN_WAIT)
    assert Broker(0.5).claimed() == pytest.approx(0.5 + 4 * 0.5)


def test_claim_without_an_echo_ends_after_a_fixed_time() -> None:
    assert Broker().claimed() == pytest.approx(REPLY_TIMEOUT)


@pytest.mark.parametrize("trip", [0.01, 0.5])
def test_claim_is_refused_when_a_running_server_replies(trip: float) -> None:
    broker = Broker(trip)
    broker.status(2 * trip + 0.1)
    with pytest.raises(IdInUse, match="another server serves fleet 'claimed'"):
        broker.claimed()


@pytest.mark.parametrize("seconds", [0.0, 0.02])
def test_claim_waits_for_a_server_whose_retained_status_is_online(
    seconds: float,
) -> None:
    broker = Broker(0.01)
    broker.status(seconds, retained=True)
    assert broker.claimed() == pytest.approx(seconds + LOST_AFTER)
    broker = Broker(0.01)
    broker.status(seconds, retained=True)
    broker.status(LOST_AFTER - 0.1)
    with pytest.raises(IdInUse):
        broker.claimed()


def test_claim_does_not_wait_for_an_offline_server() -> None:
    broker = Broker(0.01)
    broker.status(0.0, "offline", retained=True)
    assert broker.claimed() == pytest.approx(0.01 + MIN_WAIT)


def test_earlier_of_two_simultaneous_claims_wins_and_is_repeated() -> None:
    """The later server may not have subscribed yet when the earlier one claimed."""
    broker = Broker(0.01)
    broker.claim(0.1, LATER)
    assert broker.claimed() == pytest.approx(0.01 + MIN_WAIT)
    claims = [ServerClaim.decode(payload).instance for payload in broker.port.payloads(TOPICS.server_claim)]
    assert claims == [OWN, OWN]
    broker = Broker(0.01)
    broker.claim(0.1, EARLIER)
    with pytest.raises(IdInUse):
        broker.claimed()


def test_claim_listens_on_all_brokers() -> None:
    broker = Broker(0.01, 0.4)
    broker.status(0.4, retained=True)
    assert broker.claimed() == pytest.approx(0.4 + LOST_AFTER)


def test_endless_claims_of_another_server_do_not_delay_the_claim() -> None:
    broker = Broker(0.01)
    for number in range(1000):
        broker.claim(number / 100, LATER)
    assert broker.claimed() == pytest.approx(0.01 + MIN_WAIT, abs=0.01)
