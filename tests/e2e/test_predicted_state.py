# SPDX-License-Identifier: Apache-2.0
"""A device's state as an automation reads it: a process that predicts, is killed and started again."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from trained import Trained
from waiting import until
from warm import WarmProcess

from splitee.inference.graphs import ClientModel
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.inference import PredictedState, PredictionReport
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

LONG = 60.0  # seconds
FLEET, DEVICE = "states", "pi-2"
TOPICS = Topics(FLEET)
STATE = routes.PREDICTED_STATE.topic(TOPICS, DEVICE)
PREDICTIONS = routes.PREDICTIONS.topic(TOPICS, DEVICE)


@pytest.fixture
def images(trained: Trained, tmp_path: Path) -> list[Path]:
    """Two images of which the model predicts different classes."""
    pixels = trained.data.held_out.images
    labels = ClientModel(trained.model(DEVICE), threads=1)(pixels)[1].argmax(axis=1)
    [(first, _), (second, _)] = Counter(labels.tolist()).most_common(2)
    files = []
    for label in (first, second):
        files.append(tmp_path / f"class-{label}.png")
        Image.fromarray(pixels[labels.tolist().index(label)].transpose(1, 2, 0)).save(files[-1])
    return files


class Watched:
    """The device's folder, and the messages of the device."""

    def __init__(self, folder: Path, link: Link, log: Path) -> None:
        self.folder = folder
        self.states: list[PredictedState] = []  # in order, without retained ones
        self._link = link
        self.log = log
        self._count = 0
        folder.mkdir()

    def show(self, image: Path) -> str:
        """The label that the device gives the image."""
        self._count += 1
        name = f"{self._count:03}.png"
        shutil.copy(image, self.folder / f".{name}")
        (self.folder / f".{name}").rename(self.folder / name)
        while True:
            message = self._next()
            if message.topic == PREDICTIONS:
                report = PredictionReport.decode(message.payload)
                assert report.image == name
                return report.label

    def wait_for_states(self, count: int) -> None:
        while len(self.states) < count:
            self._next()

    def _next(self) -> Message:
        while not isinstance(event := self._link.receive(LONG), Message):
            assert event is not None, self.log.read_text()
        if event.topic == STATE and not event.retained:
            self.states.append(PredictedState.decode(event.payload))
        return event


@pytest.fixture
def service(
    trained: Trained, mosquitto_broker: RunningBroker, tmp_path: Path
) -> Iterator[Callable[[], WarmProcess]]:
    """`service()`: starts the device's process."""
    started = []

    def start() -> WarmProcess:
        where = (
            "--fleet",
            FLEET,
            "--id",
            DEVICE,
            "--models",
            tmp_path / "models",
            "--watch",
            tmp_path / "watched",
        )
        flags = ("--model", trained.model(DEVICE), "--threshold", 1, "--agree", "3/5")
        latest = ("--keep-latest", tmp_path / "latest.png")
        environment = {**os.environ, "SPLITEE_BROKER": str(mosquitto_broker.address)}
        words = [str(word) for word in ("infer", *where, *flags, *latest)]
        started.append(WarmProcess(words, tmp_path / "infer.log", environment))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_predicted_state_follows_the_images_and_outlives_the_process(
    images: list[Path],
    service: Callable[[], WarmProcess],
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    tmp_path: Path,
) -> None:
    first, second = images
    link = make_link(mosquitto_broker.address, "watches-states", STATE, PREDICTIONS)
    watched = Watched(tmp_path / "watched", link, tmp_path / "infer.log")
    process = service()
    until(lambda: "in service: round" in watched.log.read_text())
    seen = [watched.show(image) for image in (first, second, first, first)]
    watched.wait_for_states(1)
    [state] = watched.states
    assert (state.label, state.unsure) == (seen[0], False)
    assert 0 < state.confidence <= 1
    assert (tmp_path / "latest.png").read_bytes() == first.read_bytes()
    process.kill()
    process.wait()

    process = service()
    watched.wait_for_states(2)
    assert (watched.states[1].label, watched.states[1].since) == (state.label, state.since)
    seen = [watched.show(image) for image in (first, second, second, first, second)]
    watched.wait_for_states(3)
    assert watched.states[2].label == seen[1] != state.label
    assert watched.states[2].since > state.since
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONG) == 0
    assert len(watched.states) == 3

    late = make_link(mosquitto_broker.address, "comes-late", STATE)
    message = late.receive(LONG)
    assert isinstance(message, Message) and message.retained, "it stays, whether or not the device is there"
    assert PredictedState.decode(message.payload).label == seen[1]
    assert "Traceback" not in (tmp_path / "infer.log").read_text()
