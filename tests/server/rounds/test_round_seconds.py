# SPDX-License-Identifier: Apache-2.0
"""Where the time of a round goes, by the kind of work."""

from __future__ import annotations

from fakes import FakeClock

from splitee.protocol.fleet import RoundSeconds
from splitee_server.rounds.round_seconds import RoundClock


def test_time_is_assigned_to_the_open_phase_or_the_work_between_phases() -> None:
    clock = FakeClock()
    spent = RoundClock(clock)

    def passes(seconds: float) -> None:
        clock.advance(seconds)

    spent.open("gather")
    passes(1000)  # until people have started their devices
    spent.open("train")
    passes(30)
    spent.close()
    with spent.of("aggregation"):
        passes(2)
    with spent.of("commit"):
        passes(3)
    spent.open("statistics")
    passes(5)
    spent.close()
    with spent.of("commit"):
        passes(1)
    spent.open("evaluate")
    passes(7)
    assert spent.take(trained=20.0) == RoundSeconds(
        training=20.0, waiting=10.0, statistics=5.0, evaluation=7.0, aggregation=2.0, commit=4.0
    )
    passes(100)  # reports are written
    spent.open("gather")
    passes(50)  # a device is gone
    spent.open("train")
    passes(10)
    spent.open("evaluate")
    assert spent.take(trained=24.0) == RoundSeconds(training=4.0, waiting=56.0)


def test_waiting_time_is_never_negative() -> None:
    clock = FakeClock()
    spent = RoundClock(clock)
    spent.open("train")
    clock.advance(1)
    assert spent.take(trained=5.0) == RoundSeconds(training=5.0)
