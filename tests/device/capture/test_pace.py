# SPDX-License-Identifier: Apache-2.0
"""Which images of a stream are taken: by time, and by triggers, of which a flood counts as one."""

from __future__ import annotations

import pytest
from fakes import FakeClock

from splitee.mqtt.events import Message
from splitee_device.capture.pace import Pace
from splitee_device.capture.trigger import FLOOD, Trigger

RATE = 30.0  # images a second


def taken(pace: Pace, clock: FakeClock, seconds: float) -> int:
    """How many images of `seconds` are taken."""
    count = 0
    for _ in range(round(RATE * seconds)):
        count += pace.takes()
        clock.advance(1 / RATE)
    return count


@pytest.mark.parametrize(("every", "count"), [(0, 300), (0.01, 300), (0.1, 100), (0.2, 50), (5, 2), (60, 1)])
def test_one_image_is_taken_per_interval(every: float, count: int) -> None:
    clock = FakeClock()
    assert taken(Pace(every, clock=clock), clock, 10) == pytest.approx(count, abs=1)


@pytest.mark.parametrize("pause", [10.5, 20.5, 100.5])
def test_one_image_per_interval_is_taken_after_a_pause_of_the_stream(pause: float) -> None:
    """As when a camera's program is started again."""
    clock = FakeClock()
    pace = Pace(10.0, clock=clock)
    assert pace.takes()
    clock.advance(pause)
    assert taken(pace, clock, 9) == 1


def test_images_are_taken_only_for_a_trigger_and_its_window() -> None:
    clock = FakeClock()
    pace = Pace(1.0, window=5.0, clock=clock)
    assert taken(pace, clock, 100) == 0
    pace.trigger()
    assert taken(pace, clock, 100) == 5
    pace.trigger()
    clock.advance(60)  # no image came meanwhile
    assert taken(pace, clock, 10) == 1, "a trigger has an image"


def test_trigger_within_the_window_extends_it() -> None:
    clock = FakeClock()
    pace = Pace(1.0, window=5.0, clock=clock)
    pace.trigger()
    assert taken(pace, clock, 4) == 4
    pace.trigger()
    assert taken(pace, clock, 100) == 5


def message(payload: bytes = b"ON", *, topic: str = "garden/motion", retained: bool = False) -> Message:
    return Message(topic, payload, retained=retained)


def test_window_of_zero_takes_one_image_per_trigger_of_any_payload() -> None:
    clock = FakeClock()
    pace = Pace(0.0, window=0.0, clock=clock)
    trigger = Trigger("garden/motion", None, pace, clock=clock)
    for payload in (b"ON", b"", b"\xff" * 100_000):
        assert trigger.take(message(payload))
        assert taken(pace, clock, 3) == 1
    assert not trigger.take(message(topic="garden/other"))
    assert trigger.take(message(retained=True)), "it is the trigger's, but says what was once"
    assert taken(pace, clock, 3) == 0
    assert trigger.count == 3


def test_only_the_configured_payload_triggers() -> None:
    clock = FakeClock()
    pace = Pace(0.0, window=0.0, clock=clock)
    trigger = Trigger("garden/motion", "ON", pace, clock=clock)
    for payload in (b"OFF", b"", b"on", b"ON "):
        assert trigger.take(message(payload))
    assert taken(pace, clock, 3) == 0
    assert trigger.take(message(b"ON"))
    assert taken(pace, clock, 3) == 1


def test_flood_of_triggers_counts_as_one_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    pace = Pace(0.0, window=0.0, clock=clock)
    trigger = Trigger("garden/motion", None, pace, clock=clock)
    for _ in range(50_000):
        trigger.take(message())
    assert taken(pace, clock, 3) == 1
    assert trigger.count == 50_000
    assert [record.getMessage() for record in caplog.records] == [
        f"--on-topic garden/motion: {FLOOD} triggers within a second; they count as one"
    ]
