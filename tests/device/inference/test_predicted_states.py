# SPDX-License-Identifier: Apache-2.0
"""Reports of the state that a device's predictions agree on, and what a restart keeps of it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from commands import call
from fakes import FakeClock, FakePort

from splitee.errors import ExitCode
from splitee.protocol import routes
from splitee.protocol.fields import PredictionSource
from splitee.protocol.inference import PredictedState, PredictionReport
from splitee.protocol.topics import Topics
from splitee_device.inference.agreement import WEIGHTED
from splitee_device.inference.latest_image import EVERY, LatestImage
from splitee_device.inference.predicted_states import (
    FILE,
    REFRESH,
    SAVE_EVERY,
    AgreementCriteria,
    PredictedStates,
)

RECORDED = Path(__file__).parents[2] / "data" / "predictions.json"  # by `benchmarks.agreement --record`
TOPICS = Topics("fleet")
TOPIC = routes.PREDICTED_STATE.topic(TOPICS, "pi-1")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def port(clock: FakeClock) -> FakePort:
    return FakePort(clock)


class Device:
    """A device whose predictions come a second apart."""

    def __init__(
        self,
        port: FakePort,
        folder: Path,
        clock: FakeClock,
        rule: str = "3",
        unsure_above: float | None = None,
    ) -> None:
        self.clock = clock
        self.states = PredictedStates(
            port, TOPICS, "pi-1", folder, AgreementCriteria(rule, unsure_above), clock=clock
        )
        self.states.serve(5)

    def sees(
        self,
        labels: Iterable[str],
        probability: float = 0.9,
        entropy: float = 0.1,
        source: PredictionSource = "exit",
    ) -> None:
        for label in labels:
            self.clock.advance(1)
            self.states.take(
                PredictionReport(
                    image="a.png",
                    label=label,
                    probability=probability,
                    entropy=entropy,
                    source=source,
                    milliseconds=1.0,
                    time=self.clock.now,
                )
            )
            self.states.tick()


def published(port: FakePort) -> list[PredictedState]:
    assert all(sent.retain and sent.payload for sent in port.sent)
    return [PredictedState.decode(payload) for payload in port.payloads(TOPIC)]


def test_state_follows_the_truth_of_a_noisy_recording_within_three_images(
    port: FakePort, clock: FakeClock, tmp_path: Path
) -> None:
    """300 images with the label, probability and entropy that a network predicted."""
    rows = json.loads(RECORDED.read_text())
    assert len(rows) == 300
    wrong = sum(true != label for true, label, _, _ in rows)
    assert 30 <= wrong <= 60, "from a tenth to a fifth of the images"
    device = Device(port, tmp_path, clock, WEIGHTED)
    begun = clock.now + 1
    for _, label, probability, entropy in rows:
        device.sees([label], probability, entropy)
    truth = [(index, row[0]) for index, row in enumerate(rows) if not index or row[0] != rows[index - 1][0]]
    states = dict.fromkeys((round(state.since - begun), state.label) for state in published(port))
    assert [label for _, label in states] == [label for _, label in truth]
    late = [index - start for (index, _), (start, _) in zip(states, truth, strict=True)]
    assert all(0 <= images <= 3 for images in late), late


def test_state_is_published_when_it_changes_and_not_with_each_image(
    port: FakePort, clock: FakeClock, tmp_path: Path
) -> None:
    device = Device(port, tmp_path, clock)
    device.sees("aa")
    assert published(port) == []
    device.sees("aaababbbb")
    first, second = published(port)
    assert (first.label, first.confidence, first.unsure) == ("a", 0.9, False)
    assert (second.label, second.since - first.since) == ("b", 7.0)


def test_unchanged_state_is_refreshed_with_the_latest_confidence(
    port: FakePort, clock: FakeClock, tmp_path: Path
) -> None:
    device = Device(port, tmp_path, clock)
    device.sees("a" * 10)
    device.sees("a" * round(2.5 * REFRESH), probability=0.7)
    confidences = [state.confidence for state in published(port)]
    assert confidences == [0.9, 0.7, 0.7]
    assert len({state.since for state in published(port)}) == 1
    clock.advance(10 * REFRESH)
    device.states.tick()
    device.states.tick()
    assert len(published(port)) == 4, "images that have come since, and none after them"


def test_state_is_published_again_on_request_if_there_is_one(
    port: FakePort, clock: FakeClock, tmp_path: Path
) -> None:
    device = Device(port, tmp_path, clock)
    device.states.republish()
    assert published(port) == [], "there is none yet"
    device.sees("aaa")
    device.states.republish()
    first, again = published(port)
    assert (first.label, first.since) == (again.label, again.since)


def test_state_survives_a_restart(port: FakePort, clock: FakeClock, tmp_path: Path) -> None:
    Device(port, tmp_path, clock).sees("aaa")
    after = Device(port, tmp_path, clock)  # the first one was killed
    after.states.republish()
    after.sees("ba")
    first, again = published(port)
    assert (first.label, first.since, first.confidence) == (again.label, again.since, again.confidence)
    after.sees("bbb")
    assert published(port)[-1].label == "b"


def test_state_file_is_written_seldom_and_ends_with_the_last_state(
    port: FakePort, clock: FakeClock, tmp_path: Path
) -> None:
    device = Device(port, tmp_path, clock, "1")
    written = set()
    for _ in range(20):
        device.sees("ab")
        written.add((tmp_path / FILE).stat().st_ino)
    assert len(published(port)) == 40
    assert len(written) <= 40 / SAVE_EVERY + 1
    clock.advance(SAVE_EVERY)
    device.states.tick()
    assert PredictedState.decode((tmp_path / FILE).read_bytes()).since == published(port)[-1].since
    device.sees("a")
    device.sees("c")
    device.states.close()
    assert PredictedState.decode((tmp_path / FILE).read_bytes()).label == "c"


@pytest.mark.parametrize("content", [b"", b"{", b'{"label":"a"}', b"\xff" * (1 << 17)])
def test_damaged_state_file_is_logged_and_the_state_begins_anew(
    port: FakePort, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / FILE).write_bytes(content)
    device = Device(port, tmp_path, clock)
    assert "the state begins anew" in caplog.text
    device.sees("aaa")
    kept, [state] = PredictedState.decode((tmp_path / FILE).read_bytes()), published(port)
    assert (kept.label, kept.since) == (state.label, state.since)


def test_state_that_cannot_be_saved_is_published_and_saved_later(
    port: FakePort, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(port, tmp_path / "gone", clock)
    device.sees("aaa")
    assert [state.label for state in published(port)] == ["a"]
    assert "not kept over a restart" in caplog.text
    (tmp_path / "gone").mkdir()  # the disk has room again
    clock.advance(SAVE_EVERY)
    device.states.tick()
    assert (tmp_path / "gone" / FILE).exists()


def test_uncertain_images_count_for_unsure_unless_the_trunk_predicts_them(
    port: FakePort, clock: FakeClock, tmp_path: Path
) -> None:
    device = Device(port, tmp_path, clock, "3/5", unsure_above=0.5)
    device.sees("aaa")
    device.sees("aaa", entropy=0.9, source="trunk")
    assert [state.label for state in published(port)] == ["a"]
    device.sees("aaa", entropy=0.9, source="local-fallback")
    state = published(port)[-1]
    assert (state.label, state.unsure, state.confidence) == ("unsure", True, 0.0)
    device.states.close()
    after = Device(port, tmp_path, clock, "3/5", unsure_above=0.5)
    after.states.republish()
    assert published(port)[-1].unsure
    after.sees("aaa")
    assert published(port)[-1].label == "a"


def test_predictions_with_nan_probability_count_for_unsure(
    port: FakePort, clock: FakeClock, tmp_path: Path
) -> None:
    device = Device(port, tmp_path, clock, WEIGHTED)
    device.sees("aaa")
    device.sees("aaa", probability=math.nan, entropy=math.nan)
    device.sees("bbb")
    assert [state.label for state in published(port)] == ["a", "unsure", "b"]


def test_class_named_unsure_is_not_the_unsure_state(port: FakePort, clock: FakeClock, tmp_path: Path) -> None:
    states = Device(port, tmp_path, clock).states
    for _ in range(3):
        states.take(
            PredictionReport(
                label="unsure", probability=0.9, entropy=0.1, source="exit", milliseconds=1.0, time=clock.now
            )
        )
    assert [(state.label, state.unsure) for state in published(port)] == [("unsure", False)]


def test_each_state_change_is_logged_in_one_line(
    port: FakePort, clock: FakeClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    Device(port, tmp_path, clock).sees("aaaabbbb")
    assert [record.getMessage() for record in caplog.records] == ["state: a", "state: b"]


def test_latest_image_file_is_replaced_at_most_once_per_interval(tmp_path: Path, clock: FakeClock) -> None:
    file, source = tmp_path / "latest.jpg", tmp_path / "incoming.jpg"
    source.write_bytes(b"third")
    latest = LatestImage(file, clock=clock)
    latest.offer(b"first")
    latest.offer(b"second")
    assert file.read_bytes() == b"first"
    latest.offer(source)
    clock.advance(EVERY)
    latest.tick()
    assert file.read_bytes() == b"third"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["incoming.jpg", "latest.jpg"]


def test_latest_image_replaces_links_and_unreadable_images_are_logged(
    tmp_path: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"mine")
    (tmp_path / ".latest.jpg.new").symlink_to(other)
    (tmp_path / "latest.jpg").symlink_to(other)
    latest = LatestImage(tmp_path / "latest.jpg", clock=clock)
    latest.offer(b"first")
    assert other.read_bytes() == b"mine"
    assert (tmp_path / "latest.jpg").read_bytes() == b"first"
    clock.advance(EVERY)
    os.mkfifo(tmp_path / "fifo.jpg")
    for name in ("gone.jpg", "fifo.jpg"):
        latest.offer(tmp_path / name)
        clock.advance(EVERY)
        assert "was not kept" in caplog.messages[-1]
    assert "got no regular file" in caplog.messages[-1]
    assert (tmp_path / "latest.jpg").read_bytes() == b"first"


def test_invalid_state_and_latest_image_flags_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    device = ("infer", "--id", "pi-1", "--models", tmp_path / "models", "--watch", watched)
    refused = {
        ("--agree", "2/5"): "--agree 2/5: expected weighted, N (images in a row) or N/M",
        ("--unsure-above", "1.5"): "--unsure-above 1.5: between 0 and 1",
        ("--keep-latest", watched / "latest.jpg"): "would be classified again",
        ("--keep-latest", tmp_path / "gone" / "latest.jpg"): "a file in a folder that exists",
    }
    for flags, line in refused.items():
        code, printed = call(capsys, *map(str, (*device, *flags)))
        assert code == ExitCode.CONFIG and line in printed
    train = ("device", "--id", "pi-1", "--state", tmp_path / "state", "--data", "builtin:fashion-mnist")
    code, printed = call(capsys, *map(str, (*train, "--agree", "3")))
    assert code == ExitCode.CONFIG and "--agree does nothing without --watch, --camera or --stdin" in printed
