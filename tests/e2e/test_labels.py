# SPDX-License-Identifier: Apache-2.0
"""Uncertain images are kept and labelled on their device; the broker sees nothing of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from labels import write_images
from trained import Trained
from waiting import until
from warm import WarmProcess

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.inference import PredictionReport
from splitee.protocol.topics import Topics
from splitee_device.inference.unsure_images import kept_guess
from splitee_device.labelling.labeller import Labeller
from splitee_lab.local.brokers import RunningBroker

LONG = 60.0  # seconds


def test_uncertain_image_is_kept_on_the_device_and_can_be_labelled(
    trained: Trained, mosquitto_broker: RunningBroker, make_link: Callable[..., Link], tmp_path: Path
) -> None:
    topics, watched, unsure = Topics("labels"), tmp_path / "watched", tmp_path / "unsure"
    watched.mkdir()
    (tmp_path / "data" / "coat").mkdir(parents=True)
    [image] = write_images(tmp_path / "images", 1)
    link = make_link(mosquitto_broker.address, "watches-labels", f"{topics.base}/#")
    flags = [
        "--fleet",
        "labels",
        "--id",
        "pi-2",
        "--models",
        tmp_path / "models",
        "--model",
        trained.model("pi-2"),
    ]
    keep = [
        "--watch",
        watched,
        "--threshold",
        1,
        "--keep-unsure",
        unsure,
        "--keep-above",
        0,
        "--keep-every",
        1,
    ]
    environment = {**os.environ, "SPLITEE_BROKER": str(mosquitto_broker.address)}
    process = WarmProcess(["infer", *map(str, flags + keep)], tmp_path / "log", environment)
    payloads = []
    try:
        until(lambda: "in service" in (tmp_path / "log").read_text(), (tmp_path / "log").read_text)
        shutil.copy(image, watched / "seen.png")
        until(lambda: unsure.is_dir() and list(unsure.glob("*.png")), (tmp_path / "log").read_text)
        while not any(topic == topics.device("pi-2", "predictions") for topic, _ in payloads):
            event = link.receive(LONG)
            assert event is not None
            if isinstance(event, Message):
                payloads.append((event.topic, event.payload))
    finally:
        process.kill()
        process.wait()
    [kept] = unsure.glob("*.png")
    assert kept.name.endswith("-seen.png")
    report = PredictionReport.decode(payloads[-1][1])
    guess = kept_guess(kept)
    assert guess is not None and (guess.label, guess.entropy) == (report.label, report.entropy)
    assert not any(image.read_bytes()[:64] in payload for _, payload in payloads)
    with closing(Labeller(tmp_path / "data", [unsure])) as labeller:
        assert len(labeller.label([labeller.images()[0].identifier], "coat").moved) == 1
    assert (tmp_path / "data" / "coat" / kept.name).read_bytes() == image.read_bytes()
