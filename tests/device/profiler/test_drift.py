# SPDX-License-Identifier: Apache-2.0
"""A device that watches its own rounds: what it reports, when, and which cut it requests."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from profiles import MIB, measured

from splitee_device.machine import hardware
from splitee_device.machine.hardware import throttled_now
from splitee_device.profiler.choice import Preference
from splitee_device.profiler.cost_model import LinkSpeed, Work
from splitee_device.profiler.drift import Deviation, DriftDetector, DriftMonitor, Expected
from splitee_device.profiler.forecast import Forecast
from splitee_device.profiler.meter import Conditions, Meter, Round

CALM = Conditions(cores=1.0, threads=1, machine_cores=4, others=0.1, cpu=1.0, temperature=50.0)
DEEPEST, BEFORE_IT = 4, 3


def forecast(prefer: Preference = "fastest", available: int | None = None) -> Forecast:
    """A device whose link is slow: the deepest cut is its best, as long as it trains as fast as measured."""
    link = LinkSpeed(upload=2e5, round_trip=0.01)
    return Forecast(measured((1, 2, 3, 4), available=available), Work(320, 10, 64 * MIB, link=link), prefer)


def took(cut: int, slowdown: float = 1.0, *, memory: float = 1.0, available: int | None = None) -> Round:
    row = forecast().rows()[cut - 1]
    return Round(slowdown * row.step, int(memory * (row.needed - row.code)), available, CALM)


def notes(detector: DriftDetector, cut: int, rounds: list[Round]) -> list[str]:
    """The kind of departure found in each of the rounds; "" for none."""
    return [found.kind if found else "" for found in (detector.note(cut, one) for one in rounds)]


def test_slower_rounds_in_a_row_are_reported_once() -> None:
    detector = DriftDetector(3, forecast())
    rounds = [took(2, slowdown) for slowdown in (1.0, 1.2, 2.0, 2.0, 1.0, 2.0, 2.1, 1.9)]
    assert notes(detector, 2, rounds) == [*[""] * 7, "slower"]
    assert detector.slowdown == pytest.approx(2.0)
    assert notes(detector, 2, [took(2, 2.0)] * 20) == [""] * 20  # a known slowdown is not reported again


def test_recovery_is_reported_after_the_rounds_that_are_skipped() -> None:
    detector = DriftDetector(2, forecast())
    assert notes(detector, 2, [took(2, 3.0)] * 2) == ["", "slower"]
    assert notes(detector, 2, [took(2)] * 4) == ["", "", "", "faster"]
    assert detector.slowdown == pytest.approx(1.0)


def test_slowdown_known_at_one_cut_is_expected_at_the_next() -> None:
    detector = DriftDetector(2, forecast())
    assert notes(detector, 4, [took(4, 3.0)] * 2) == ["", "slower"]
    assert notes(detector, 3, [took(3, 3.0)] * 10) == [""] * 10
    assert notes(detector, 3, [took(3, 9.0)] * 2) == ["", "slower"]


def test_memory_beyond_the_prediction_is_reported_once() -> None:
    detector = DriftDetector(3, forecast())
    assert notes(detector, 1, [took(1, memory=1.2)] * 5 + [took(1, memory=1.5)] * 3) == [*[""] * 7, "memory"]
    assert detector.more_memory == pytest.approx(0.5 * took(1).memory, rel=1e-6)
    assert notes(detector, 1, [took(1, memory=1.5)] * 10) == [""] * 10


def test_memory_shortage_is_reported_once_until_it_ends() -> None:
    detector = DriftDetector(2, forecast())
    enough = forecast().rows()[0].needed + 64 * MIB
    short, back = took(1, available=enough - 1), took(1, available=enough)
    assert notes(detector, 1, [short] * 8) == ["", "short", *[""] * 6]
    assert notes(detector, 1, [back, short, short]) == ["", "", "short"]


def test_first_rounds_are_the_reference_without_a_forecast() -> None:
    detector = DriftDetector(3)
    rounds = [took(2, slowdown) for slowdown in (5.0, 4.0, 4.2, 5.2, 9.0, 9.0, 9.0)]
    assert notes(detector, 2, rounds) == [*[""] * 6, "slower"]


class Scripted(Meter):
    """A meter that returns the rounds that it is given."""

    def __init__(self, rounds: list[Round]) -> None:
        super().__init__(threads=1)
        self._rounds = iter(rounds)

    def round(self) -> Round:
        return next(self._rounds)


def requested_cuts(watch: DriftMonitor, cut: int, count: int) -> list[int]:
    """The cuts that the monitor requests after each of the rounds; 0 for none."""
    requested = []
    for number in range(1, count + 1):
        cut_request = watch.end_round(number, cut)
        requested.append(cut_request.cut if cut_request else 0)
        cut = cut_request.cut if cut_request else cut
    return requested


def test_slow_device_requests_a_shallower_cut_until_it_recovers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hot = replace(CALM, temperature=84.0, throttled=("frequency capped",))
    rounds = [
        *[took(DEEPEST)] * 2,
        *[replace(took(DEEPEST, 8.0), conditions=hot)] * 3,
        *[took(BEFORE_IT, 8.0)] * 5,
        *[took(BEFORE_IT)] * 3,
        *[took(DEEPEST)] * 5,
    ]
    watch = DriftMonitor(Scripted(rounds), forecast=forecast(), adapts=True)
    expected = [0] * len(rounds)
    expected[4], expected[12] = BEFORE_IT, DEEPEST
    assert requested_cuts(watch, DEEPEST, len(rounds)) == expected
    slow, fast = (record.getMessage() for record in caplog.records)
    step = 1000 * forecast().rows()[DEEPEST - 1].step
    assert slow.startswith(
        f"round 5: for 3 rounds {8 * step:.3g} ms a step, {step:.3g} ms were expected (8 times): "
        "throttled (frequency capped), hot, 84 °C; requesting cut 3 (stage3): the fastest round, "
    )
    assert fast.startswith("round 13: for 3 rounds ")
    assert "(0.12 times); requesting cut 4 (stage4): the fastest round, " in fast


def test_device_that_may_not_adapt_logs_the_cut_it_would_request(caplog: pytest.LogCaptureFixture) -> None:
    rounds = [took(DEEPEST, 8.0)] * 3
    assert requested_cuts(DriftMonitor(Scripted(rounds), forecast=forecast()), DEEPEST, 3) == [0, 0, 0]
    assert "; --adapt-cut would request cut 3 (stage3): " in caplog.text
    caplog.clear()
    known = [took(DEEPEST)] * 3
    assert requested_cuts(DriftMonitor(Scripted(known + rounds)), DEEPEST, 6) == [0] * 6
    assert caplog.records[0].getMessage().endswith("no cause found: not hot, not throttled, no other load")
    assert caplog.records[0].levelno == logging.WARNING


def test_cut_that_still_suits_best_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    watch = DriftMonitor(Scripted([took(DEEPEST, 2.0)] * 3), forecast=forecast(), adapts=True)
    assert requested_cuts(watch, DEEPEST, 3) == [0, 0, 0]
    assert caplog.records[0].getMessage().endswith("; cut 4 still suits it best")


def test_device_short_of_memory_requests_a_cut_that_fits(caplog: pytest.LogCaptureFixture) -> None:
    left = forecast().rows()[1].needed + 64 * MIB
    deep = forecast("deepest")
    watch = DriftMonitor(Scripted([took(DEEPEST, available=left)] * 3), forecast=deep, adapts=True)
    assert requested_cuts(watch, DEEPEST, 3) == [0, 0, 2]
    assert f"{left / MIB:,.0f} MiB available" in caplog.text
    starved = DriftMonitor(Scripted([took(DEEPEST, available=MIB)] * 3), forecast=deep, adapts=True)
    assert requested_cuts(starved, DEEPEST, 3) == [0, 0, 0]
    assert "no cut fits this device" in caplog.records[-1].getMessage()


@pytest.mark.parametrize(
    ("changed", "cores_measured", "said"),
    [
        ({"temperature": 79.9}, 1.0, "no cause found: not hot, not throttled, no other load"),
        ({"temperature": 80.0}, 1.0, "hot, 80 °C"),
        ({"throttled": ("under-voltage",)}, None, "throttled (under-voltage)"),
        ({"cores": 0.25}, 1.0, "0.25 cores allowed, 1 when it was measured"),
        ({"others": 3.5}, 1.0, "others keep 3.5 of 4 cores busy"),
        ({"others": 2.9}, 1.0, "no cause found: not hot, not throttled, no other load"),
        ({"cpu": 0.4}, 1.0, "it had the CPU for 40% of the time"),
    ],
)
def test_conditions_name_the_causes_of_a_slowdown(
    changed: dict[str, object], cores_measured: float | None, said: str
) -> None:
    conditions = replace(CALM, **changed)  # type: ignore[arg-type]
    assert conditions.causes(cores_measured) == said


def test_memory_departures_are_described_in_words() -> None:
    last = Round(0.1, 400 * MIB, 300 * MIB, CALM)
    expected = Expected(0.1, 200 * MIB, 350 * MIB)
    for kind, said in (
        ("memory", "for 3 rounds 400 MiB at the peak, 200 MiB were expected"),
        ("short", "for 3 rounds 300 MiB available, 350 MiB needed"),
    ):
        departure = Deviation(kind, 3, expected, 0.1, 400 * MIB, last)  # type: ignore[arg-type]
        assert departure.describe(None) == said


def test_throttling_since_boot_does_not_count_as_present() -> None:
    assert throttled_now(("under-voltage", "throttled since boot")) == ("under-voltage",)
    assert throttled_now(("none",)) == throttled_now(None) == ()


def busy(clock: Callable[[], float]) -> Iterator[int]:
    """Three batches that take 20 ms each, by `clock`."""
    for number in range(3):
        until = clock() + 0.02
        while clock() < until:
            pass
        yield number


def test_meter_excludes_the_time_between_steps() -> None:
    meter = Meter(threads=1, memory=1)
    for _ in meter.steps(busy(time.perf_counter)):
        time.sleep(0.2)
    found = meter.round()
    assert found is not None
    assert 0.02 <= found.step < 0.2
    assert found.available == 1
    assert found.memory > 1 * MIB
    assert 0 < found.conditions.cpu <= 1.1


def test_step_under_a_quota_takes_at_least_its_cpu_time_over_the_quota(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hardware, "usable_cores", lambda: 0.25)
    meter = Meter(threads=1)
    assert list(meter.steps(busy(time.process_time))) == [0, 1, 2]
    found = meter.round()
    assert found is not None
    assert 0.08 <= found.step < 0.8
    assert found.conditions.cpu <= 0.25 + 1e-9


def test_round_without_steps_is_no_round_to_compare() -> None:
    """A server may give a device nothing to do in a round."""
    monitor = DriftMonitor(Meter(threads=1), rounds=1)
    assert list(monitor.steps(iter(()))) == []
    assert monitor.end_round(1, 1) is None
