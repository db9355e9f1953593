# SPDX-License-Identifier: Apache-2.0
"""Delivery of a model to a device over a fake port: lost parts, withdrawn offers, malformed messages."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import graphs
import pytest
from fakes import FakeClock, FakePort

from splitee.errors import ModelError
from splitee.inference.manifest import CLIENT
from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.inference import ModelOffer, ModelReport, ReleasePart, ReleaseWant
from splitee.protocol.topics import Topics
from splitee_device.inference.delivery import REQUEST_AGAIN, Delivery
from splitee_device.inference.model_installer import ModelInstaller
from splitee_device.inference.model_store import ModelStore

TOPICS = Topics("fleet")
BUNDLE = b"no model, ten times" * 10
RELEASE = hashlib.sha256(BUNDLE).hexdigest()
REPORTS = routes.MODEL_REPORT.topic(TOPICS, "pi-1")
OFFER = ModelOffer(release=RELEASE, size=len(BUNDLE), run="r1").encode()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def port(clock: FakeClock) -> FakePort:
    return FakePort(clock)


@pytest.fixture
def delivery(port: FakePort, clock: FakeClock, tmp_path: Path) -> Delivery:
    return Delivery(port, TOPICS, "pi-1", ModelInstaller(ModelStore(tmp_path), "pi-1"), clock=clock)


def offer(delivery: Delivery, payload: bytes = OFFER) -> None:
    delivery.handle(Message(routes.MODEL_OFFER.topic(TOPICS, "pi-1"), payload, retained=True))


def part(delivery: Delivery, offset: int, data: bytes) -> None:
    message = ReleasePart(release=RELEASE, offset=offset, data=data)
    delivery.handle(Message(routes.MODEL_PART.topic(TOPICS, "pi-1"), message.encode()))


def requested_offsets(port: FakePort) -> list[int]:
    topic = routes.MODEL_WANT.topic(TOPICS, "pi-1")
    return [ReleaseWant.decode(payload).offset for payload in port.payloads(topic)]


def test_missing_part_is_requested_again(port: FakePort, clock: FakeClock, delivery: Delivery) -> None:
    offer(delivery)
    part(delivery, 0, BUNDLE[:50])
    clock.advance(REQUEST_AGAIN - 1)
    delivery.tick()
    assert requested_offsets(port) == [0, 50]
    clock.advance(1)
    delivery.tick()
    delivery.tick()
    assert requested_offsets(port) == [0, 50, 50]


def test_delivered_file_that_is_no_model_fails_and_is_not_fetched_again(
    port: FakePort, delivery: Delivery
) -> None:
    offer(delivery)
    part(delivery, 0, BUNDLE)
    reports = [ModelReport.decode(payload) for payload in port.payloads(REPORTS)]
    assert [(one.state, one.have, one.size) for one in reports] == [
        ("downloading", 0, len(BUNDLE)),
        ("trying", 0, 0),
        ("failed", 0, 0),
    ]
    offer(delivery)
    assert requested_offsets(port) == [0]  # the release is not fetched again


def test_last_report_is_sent_again_unchanged(port: FakePort, delivery: Delivery) -> None:
    delivery.republish()
    assert port.sent == []
    offer(delivery)
    part(delivery, 0, BUNDLE)
    delivery.republish()
    first, second = port.payloads(REPORTS)[-2:]
    assert first == second
    report = ModelReport.decode(second)
    assert (report.run, report.serves) == ("r1", None)
    assert report.time > 0


def test_malformed_offers_and_parts_are_rejected_and_a_withdrawal_is_not(
    port: FakePort, delivery: Delivery
) -> None:
    offer(delivery, b"")
    assert delivery.rejected == 0
    offer(delivery, b"{")
    offer(delivery)
    part(delivery, 0, BUNDLE + b"more")
    delivery.handle(Message(routes.MODEL_PART.topic(TOPICS, "pi-1"), b""))
    delivery.handle(Message(routes.MODEL_OFFER.topic(TOPICS, "pi-2"), b"{"))
    assert delivery.rejected == 3
    assert requested_offsets(port) == [0]


def test_download_is_reported_each_second_until_the_offer_is_withdrawn(
    port: FakePort, clock: FakeClock, delivery: Delivery, tmp_path: Path
) -> None:
    offer(delivery)
    for offset in range(0, 100, 20):
        part(delivery, offset, BUNDLE[offset : offset + 20])
        clock.advance(0.3)
    reports = [ModelReport.decode(payload) for payload in port.payloads(REPORTS)]
    assert [(one.state, one.have) for one in reports] == [("downloading", 0), ("downloading", 100)]
    offer(delivery, b"")
    part(delivery, 100, BUNDLE[100:])
    clock.advance(REQUEST_AGAIN)
    delivery.tick()
    assert requested_offsets(port) == [0, 20, 40, 60, 80, 100]
    assert (tmp_path / f"{RELEASE}.incoming").stat().st_size == 100, "it may be offered again"


def test_release_that_does_not_fit_the_disk_fails_before_it_is_fetched(
    port: FakePort, delivery: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = ModelOffer(release=RELEASE, size=1 << 28, run="r1")
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: free)
    offer(delivery, huge.encode())
    report = ModelReport.decode(port.payloads(REPORTS)[-1])
    assert (report.state, report.reason) == ("failed", "it takes 268.4 MB, and the disk has only 1.0 KB left")
    assert requested_offsets(port) == []


def test_damaged_model_is_fetched_again_and_put_into_service(
    port: FakePort, delivery: Delivery, tmp_path: Path
) -> None:
    bundle = graphs.bundle()
    release = hashlib.sha256(bundle).hexdigest()
    sound = ModelOffer(release=release, size=len(bundle), run="run-a").encode()
    whole = Message(
        routes.MODEL_PART.topic(TOPICS, "pi-1"), ReleasePart(release=release, offset=0, data=bundle).encode()
    )
    store = ModelStore(tmp_path)
    offer(delivery, sound)
    delivery.handle(whole)
    (store.current / CLIENT).write_bytes(b"spoilt")
    with pytest.raises(ModelError, match="is damaged"):
        store.load()
    delivery.refetch("it is damaged")
    delivery.handle(whole)
    assert store.release == release and store.load()
    assert requested_offsets(port) == [0, 0]
    reports = [ModelReport.decode(payload) for payload in port.payloads(REPORTS)]
    taken = ["trying", "in service"]
    assert [one.state for one in reports] == ["downloading", *taken, "failed", *taken]


def test_release_that_the_disk_does_not_take_has_failed_and_is_reported(
    port: FakePort, delivery: Delivery, tmp_path: Path
) -> None:
    """Here a file is in the place of the folder that the model is unpacked into."""
    bundle = graphs.bundle()
    release = hashlib.sha256(bundle).hexdigest()
    (tmp_path / "releases" / release).write_bytes(b"")
    offer(delivery, ModelOffer(release=release, size=len(bundle), run="r1").encode())
    message = ReleasePart(release=release, offset=0, data=bundle)
    delivery.handle(Message(routes.MODEL_PART.topic(TOPICS, "pi-1"), message.encode()))
    last = ModelReport.decode(port.payloads(REPORTS)[-1])
    assert last.state == "failed"
    assert last.reason.startswith(f"cannot write {tmp_path}: File exists")
    assert delivery.rejected == 0
    assert not list(tmp_path.glob("*.incoming"))
