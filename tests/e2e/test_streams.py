# SPDX-License-Identifier: Apache-2.0
"""A device that classifies a stream: to its end, past bytes that are no image, and by triggers alone."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from trained import Trained
from waiting import LONG, until

from splitee.errors import ExitCode
from splitee.inference.manifest import CLIENT
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.inference import PredictionReport, Serving
from splitee.protocol.topics import Topics
from splitee.samples.fitting import Pixels
from splitee_lab.local.brokers import RunningBroker, free_port
from systemd import FakeSystemd

DEVICE = "pi-2"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def infer(trained: Trained, mosquitto_broker: RunningBroker, tmp_path: Path) -> Iterator[Start]:
    """`infer(fleet, ...)`: a service whose standard input is a pipe, and its log `tmp_path / "log"`.

    `model`: whether its owner puts one into service.
    """
    running: list[subprocess.Popen[bytes]] = []

    def start(fleet: str, *flags: str, model: bool = True) -> subprocess.Popen[bytes]:
        where = ("--broker", str(mosquitto_broker.address), "--fleet", fleet, "--id", DEVICE)
        models = ["--models", str(tmp_path / "models")]
        models += ["--model", str(trained.model(DEVICE))] if model else []
        words = [sys.executable, "-m", "splitee", "infer", *where, *models, "--threshold", "1", *flags]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=log, stderr=log)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def image(trained: Trained) -> bytes:
    return jpeg(trained.data.held_out.images[0])


def jpeg(pixels: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG")
    return file.getvalue()


class Published:
    """Messages of a device: the `names` of predicted images, and its last `Serving`."""

    def __init__(self, link: Link, fleet: str) -> None:
        self.names: list[str] = []
        self.serving: Serving | None = None
        self._link = link
        self._predictions = routes.PREDICTIONS.topic(Topics(fleet), DEVICE)
        link.subscribe(self._predictions, routes.SERVING.topic(Topics(fleet), DEVICE))

    def read(self) -> Published:
        while (event := self._link.receive(0.05)) is not None:
            if isinstance(event, Message) and event.topic == self._predictions:
                self.names.append(PredictionReport.decode(event.payload).image)
            elif isinstance(event, Message):
                self.serving = Serving.decode(event.payload)
        return self


def test_stream_is_classified_in_order_past_invalid_images(
    infer: Start,
    image: bytes,
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    tmp_path: Path,
) -> None:
    published = Published(make_link(mosquitto_broker.address, "hears-stream"), "stream")
    process = infer("stream", "--stdin", "--every", "0", "--backlog", "0")
    size = image.index(b"\xff\xc0") + 5
    hostile = image[:size] + b"\xff\xf0" * 2 + image[size + 4 :]  # 65,520 pixels wide and high
    process.communicate(image * 30 + hostile + b"no image" + image * 10, timeout=LONG)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 0, log
    until(lambda: len(published.read().names) >= 40, lambda: log)
    assert published.names == [f"{number}.jpg" for number in range(1, 42) if number != 31]
    assert "skipped: 31.jpg" in log
    assert "stopped after 40 images" in log
    assert "Traceback" not in log


def test_unchanged_images_of_a_stream_are_skipped(
    infer: Start,
    trained: Trained,
    image: bytes,
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    tmp_path: Path,
) -> None:
    published = Published(make_link(mosquitto_broker.address, "hears-changes"), "changes")
    process = infer("changes", "--stdin", "--every", "0", "--backlog", "0", "--on-change", "0.05")
    other = jpeg(255 - trained.data.held_out.images[0])
    process.communicate(image * 20 + other * 20 + image * 20, timeout=LONG)
    log = (tmp_path / "log").read_text()
    assert process.returncode == 0, log
    until(lambda: len(published.read().names) >= 3, lambda: log)
    assert published.names == ["1.jpg", "21.jpg", "41.jpg"]
    assert "stopped after 3 images" in log


def test_trigger_takes_one_image_and_a_flood_of_triggers_is_merged(
    infer: Start,
    image: bytes,
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    tmp_path: Path,
) -> None:
    link = make_link(mosquitto_broker.address, "hears-triggers")
    published = Published(link, "triggers")
    flags = ("--stdin", "--every", "0", "--on-topic", "own", "--on-payload", "ON", "--on-topic-for", "0")
    process = infer("triggers", *flags)
    ended = threading.Event()

    def deliver() -> None:
        assert process.stdin is not None
        while not ended.wait(0.02):
            process.stdin.write(image)
            process.stdin.flush()

    camera = threading.Thread(target=deliver)
    camera.start()
    try:
        until(lambda: published.read().serving is not None and "in service" in (tmp_path / "log").read_text())
        trigger = Topics("triggers").trigger(DEVICE)
        link.publish(trigger, b"OFF")
        time.sleep(0.5)
        assert published.read().names == []
        link.publish(trigger, b"ON")
        until(lambda: published.read().names)
        time.sleep(0.5)
        assert len(published.read().names) == 1
        for _ in range(3000):
            link.publish(trigger, b"ON")
        assert link.flush(LONG)
        link.publish(trigger, b"ON" * 100_000)
        until(lambda: "they count as one" in (tmp_path / "log").read_text())
        time.sleep(0.5)
        assert 2 <= len(published.read().names) < 1000
        assert process.poll() is None
    finally:
        ended.set()
        camera.join()
    process.terminate()
    assert process.wait(LONG) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_stream_without_images_ends_with_an_error_line(infer: Start, tmp_path: Path) -> None:
    process = infer("words", "--stdin")
    process.communicate(b"no image" * (2 << 20), timeout=LONG)
    log = (tmp_path / "log").read_text()
    assert process.returncode == ExitCode.DATA, log
    assert "images of up to 8 MiB, got something else, which is passed over" in log
    last = "splitee: --stdin: expected motion JPEG with images of up to 8 MiB, got none before its end"
    assert log.splitlines()[-1] == last
    assert "Traceback" not in log


def test_service_with_a_damaged_model_waits_for_another_one(
    infer: Start, image: bytes, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    infer("spoilt", "--stdin").communicate(image, timeout=LONG)
    assert "stopped after 1 images" in log.read_text()
    (tmp_path / "models" / "current" / CLIENT).write_bytes(b"spoilt")
    waits = infer("spoilt", "--stdin", model=False)
    until(lambda: "waiting for a release to pi-2" in log.read_text(), log.read_text)
    assert "is damaged: SHA-256" in log.read_text()
    waits.terminate()
    assert waits.wait(LONG) == 0, log.read_text()
    infer("spoilt", "--stdin").communicate(image, timeout=LONG)
    assert "stopped after 1 images" in log.read_text(), "its owner's copy mends it"


def test_service_waiting_for_its_broker_can_be_stopped(infer: Start, tmp_path: Path) -> None:
    nowhere, log = f"mqtt://127.0.0.1:{free_port()}", tmp_path / "log"
    process = infer("nowhere", "--stdin", "--broker", nowhere, "--connect-timeout", "0")
    until(lambda: log.exists() and log.read_text().count("next try in") >= 3, log.read_text)
    process.terminate()
    assert process.wait(LONG) == 0
    assert log.read_text().splitlines()[-1].endswith("stopped after 0 images")


def test_systemd_is_notified_of_readiness_activity_and_stop(
    infer: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with FakeSystemd(tmp_path / "notify", 60) as systemd:
        for name, value in systemd.environment.items():
            monkeypatch.setenv(name, value)
        process = infer("told", "--stdin")
        until(lambda: "READY=1" in systemd.states, (tmp_path / "log").read_text)
        before = len(systemd.states)
        until(lambda: systemd.states[before:].count("WATCHDOG=1") > 3, (tmp_path / "log").read_text)
        process.terminate()
        assert process.wait(LONG) == 0
        until(lambda: "STOPPING=1" in systemd.states)
    assert systemd.expired == []


def test_watched_image_files_may_have_any_name(
    infer: Start,
    image: bytes,
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    tmp_path: Path,
) -> None:
    published = Published(make_link(mosquitto_broker.address, "hears-names"), "names")
    watched = tmp_path / "watched"
    watched.mkdir()
    for name in (b"a line\nmore.jpg", b"caf\xe9.jpg", "caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg".encode()):
        Path(os.fsdecode(bytes(watched) + b"/" + name)).write_bytes(image)
    process = infer("names", "--watch", str(watched), "--existing")
    until(lambda: len(published.read().names) == 3, (tmp_path / "log").read_text)
    assert sorted(published.names) == [
        "a line\\nmore.jpg",
        "caf\\udce9.jpg",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}.jpg",
    ]
    process.terminate()
    assert process.wait(LONG) == 0, (tmp_path / "log").read_text()


def test_trigger_topic_with_wildcards_is_refused(infer: Start, tmp_path: Path) -> None:
    process = infer("wildcards", "--stdin", "--on-topic", "garden/#")
    assert process.wait(LONG) == ExitCode.CONFIG
    assert "--on-topic 'garden/#': expected one topic, without + and #" in (tmp_path / "log").read_text()
