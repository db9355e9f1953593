# SPDX-License-Identifier: Apache-2.0
"""The figures that a predicting device publishes."""

from __future__ import annotations

import pytest
from fakes import FakeClock, FakePort

from splitee.inference.predictor import Prediction, Source
from splitee.protocol import routes
from splitee.protocol.inference import MOST_LAST, Serving
from splitee.protocol.topics import Topics
from splitee_device.inference.recent import AT_LEAST_EVERY, KEPT, REPORT_EVERY, WINDOW, RecentPredictions

TOPICS = Topics("fleet")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def port(clock: FakeClock) -> FakePort:
    return FakePort(clock)


@pytest.fixture
def recent(port: FakePort, clock: FakeClock) -> RecentPredictions:
    return RecentPredictions(port, TOPICS, "pi-1", 5, clock=clock)


def prediction(label: str = "cat", source: Source = "exit", milliseconds: float = 10.0) -> Prediction:
    return Prediction(label, 0.75, 0.1, source, milliseconds)


def published(port: FakePort) -> list[Serving]:
    assert all(sent.retain for sent in port.sent)
    return [Serving.decode(payload) for payload in port.payloads(routes.SERVING.topic(TOPICS, "pi-1"))]


def test_figures_cover_the_predictions_of_the_last_window(
    port: FakePort, clock: FakeClock, recent: RecentPredictions
) -> None:
    sources: tuple[Source, ...] = ("exit", "exit", "trunk", "local-fallback")
    for source, milliseconds in zip(sources, (10.0, 12.0, 80.0, 2000.0), strict=True):
        recent.add(prediction(source=source, milliseconds=milliseconds))
    recent.publish_if_due()
    [serving] = published(port)
    assert (serving.state, serving.instance, serving.per_minute, serving.latency) == ("online", 5, 4.0, 46.0)
    assert (serving.offloaded_share, serving.fallback_share) == (0.5, 0.25)
    clock.advance(WINDOW + 1)
    recent.publish_if_due()
    last = published(port)[-1]
    assert (last.per_minute, last.latency, last.offloaded_share) == (0.0, None, None)
    assert len(last.last) == 4  # labels stay


def test_dropped_images_are_reported(port: FakePort, clock: FakeClock, recent: RecentPredictions) -> None:
    recent.publish_if_due()
    clock.advance(REPORT_EVERY)
    recent.dropped = 12
    recent.publish_if_due()
    assert [serving.dropped for serving in published(port)] == [0, 12]


def test_newest_labels_come_first_and_long_labels_are_shortened(
    port: FakePort, recent: RecentPredictions
) -> None:
    for index in range(7):
        recent.add(prediction(f"class {index}"))
    recent.add(prediction("x" * 300))
    recent.publish_if_due()
    [serving] = published(port)
    labels = [last.label for last in serving.last]
    assert labels == ["x" * 200, *(f"class {index}" for index in (6, 5, 4, 3))]
    assert len(labels) == MOST_LAST


def test_figures_are_published_at_intervals_and_seldom_when_unchanged(
    port: FakePort, clock: FakeClock, recent: RecentPredictions
) -> None:
    clock.advance(10 * WINDOW)  # the device has been up for long
    for _ in range(10):
        recent.publish_if_due()
    assert len(published(port)) == 1
    recent.add(prediction())
    recent.publish_if_due()
    assert len(published(port)) == 1
    clock.advance(REPORT_EVERY)
    recent.publish_if_due()
    recent.publish_if_due()
    assert len(published(port)) == 2
    clock.advance(REPORT_EVERY)
    recent.publish_if_due()  # nothing has changed
    assert len(published(port)) == 2
    clock.advance(AT_LEAST_EVERY)
    recent.publish_if_due()
    assert len(published(port)) == 3


def test_figures_are_published_again_after_a_reconnection(port: FakePort, recent: RecentPredictions) -> None:
    recent.publish_if_due()
    recent.republish()
    recent.publish_if_due()
    assert len(published(port)) == 2


def test_rate_of_a_fast_device_follows_from_its_latest_predictions(
    port: FakePort, clock: FakeClock, recent: RecentPredictions
) -> None:
    for _ in range(2 * KEPT):
        clock.advance(0.02)
        recent.add(prediction())
    recent.publish_if_due()
    assert published(port)[0].per_minute == pytest.approx(60 / 0.02, rel=0.01)
