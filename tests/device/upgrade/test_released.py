# SPDX-License-Identifier: Apache-2.0
"""Software that is offered to a device: what it takes, what it says, and what it does on a trial."""

from __future__ import annotations

import fcntl
import hashlib
import resource
import sys
from pathlib import Path

import msgspec
import pytest
from fakes import FakeClock, FakePort
from wheels import make_keys, small_wheel, software_file

from splitee import __version__
from splitee.inference.signatures import ReleaseKey, ReleaseSigner
from splitee.mqtt.events import Message
from splitee.protocol.fields import ReleaseAction
from splitee.protocol.inference import ReleasePart, SoftwareOffer, SoftwareReport
from splitee.protocol.routes import RELEASES
from splitee.protocol.topics import Topics
from splitee_device.inference.delivery import Delivery
from splitee_device.upgrade.released import STATE, ReleasedSoftware
from splitee_device.upgrade.software import CURRENT, LOCK, TRIED, Software

TOPICS, DEVICE, ROUTES = Topics("barn"), "pi-1", RELEASES["software"]
NEW, NAME = "9.0", "9.0-aaaaaaaaaaaa"
RELEASE = "a" * 64


class Device:
    """One whose launcher has started it; `restart` is another process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.signing, self.public = make_keys(path / "keys")
        self.software = Software(path / "software")
        self.software.path.mkdir()
        self.software.install_base(Path(sys.prefix))
        self.restart()

    def restart(self, *, launched: bool = True, signed: bool = True) -> None:
        key = ReleaseKey.read(self.public) if signed else None
        self.port = FakePort(FakeClock())
        installer = ReleasedSoftware(self.software if launched else None, key)
        self.delivery = Delivery(self.port, TOPICS, DEVICE, installer, key=key, clock=self.port.clock)

    def hear(self, offer: SoftwareOffer) -> None:
        self.delivery.handle(Message(ROUTES.offer.topic(TOPICS, DEVICE), offer.encode(), retained=True))
        self.delivery.tick()

    def fetch(self, data: bytes) -> None:
        part = ReleasePart(release=hashlib.sha256(data).hexdigest(), offset=0, data=data)
        self.delivery.handle(Message(ROUTES.part.topic(TOPICS, DEVICE), part.encode()))

    def offer(
        self, version: str = NEW, data: bytes = b"", at: int = 1000, **changes: object
    ) -> SoftwareOffer:
        release = hashlib.sha256(data).hexdigest() if data else RELEASE
        offer = SoftwareOffer(release=release, size=len(data) or 1, version=version, **changes)  # type: ignore[arg-type]
        return ReleaseSigner(self.signing).sign(offer, TOPICS.fleet, DEVICE, at=at)

    def on_trial(self, action: ReleaseAction = "install", at: int = 1000) -> None:
        """As a process that was started to see whether `NAME` comes up."""
        python = self.software.python(NAME)
        python.parent.mkdir(parents=True, exist_ok=True)
        if not python.exists():
            python.symlink_to(sys.executable)
        asked = {"release": RELEASE, "action": action, "name": NAME}
        (self.software.path / STATE).write_bytes(msgspec.json.encode({"signed_at": at, "asked": asked}))
        self.software.point(TRIED, NAME)
        self.restart()

    @property
    def said(self) -> list[SoftwareReport]:
        payloads = self.port.payloads(ROUTES.report.topic(TOPICS, DEVICE))
        return [SoftwareReport.decode(payload) for payload in payloads]

    @property
    def has_asked(self) -> bool:
        return bool(self.port.payloads(ROUTES.want.topic(TOPICS, DEVICE)))


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_what_runs_is_said_at_a_start_once(device: Device) -> None:
    for _ in range(3):
        device.delivery.tick()
    [said] = device.said
    assert (said.release, said.state, said.runs) == ("", "in service", __version__)


def test_without_a_launcher_or_a_key_nothing_is_fetched(device: Device) -> None:
    device.restart(launched=False)
    device.hear(device.offer())
    assert device.said[-1].state == "failed"
    assert "runs from an environment of its own" in device.said[-1].reason
    device.restart(signed=False)
    device.hear(device.offer())
    assert (device.said[-1].state, "only taken signed" in device.said[-1].reason) == ("failed", True)
    assert not device.has_asked


@pytest.mark.parametrize("version", [__version__, "0.0.9", "latest"])
def test_what_is_not_newer_is_not_fetched(device: Device, version: str) -> None:
    device.hear(device.offer(version))
    assert device.said[-1].reason == f"splitee {version} is not newer than {__version__}, which is in service"
    assert not device.has_asked


@pytest.mark.parametrize("case", ["another version", "another key", "no software"])
def test_what_is_not_as_it_was_offered_fails(device: Device, case: str, tmp_path: Path) -> None:
    wheel = small_wheel(tmp_path, "hetero_splitee", "9.1" if case == "another version" else NEW)
    signing = make_keys(tmp_path / "other")[0] if case == "another key" else device.signing
    data = software_file(tmp_path / "file", signing, wheel).read_bytes()
    if case == "no software":
        data = b"splitee software"
    device.hear(device.offer(NEW, data))
    device.fetch(data)
    assert [said.state for said in device.said if said.release] == ["downloading", "trying", "failed"]
    words = {
        "another version": "the file has splitee 9.1, the release says 9.0",
        "another key": "signature is not this fleet's",
        "no software": "expected software for devices",
    }
    assert words[case] in device.said[-1].reason
    assert sorted(path.name for path in device.software.path.iterdir()) in (["base"], [".lock", "base"])


def test_on_trial_it_says_so_and_afterwards_that_it_is_in_service(device: Device) -> None:
    device.on_trial()
    device.delivery.tick()
    assert device.said == []
    offer = device.offer()
    device.hear(offer)  # the broker keeps it
    assert [said.state for said in device.said] == ["trying"]
    device.software.take()
    device.software.note_release(NAME, RELEASE)
    device.delivery.tick()
    assert {said.state for said in device.said[1:]} == {"in service"}
    assert (device.said[-1].release, device.said[-1].version) == (RELEASE, NEW)


@pytest.mark.parametrize("hears_it_again", [True, False])
def test_what_did_not_come_up_is_rolled_back_with_the_reason(device: Device, hears_it_again: bool) -> None:
    device.on_trial()
    device.software.give_up(NAME, "it did not come up within 60 s")
    device.restart()
    device.delivery.tick()
    if hears_it_again:
        device.hear(device.offer())
    said = device.said[-1]
    assert (said.state, said.reason) == ("rolled back", "it did not come up within 60 s")
    assert (said.version, said.runs) == (NEW, __version__)
    assert not device.has_asked, "it is not tried again before it is signed anew"
    device.hear(device.offer(at=1001, data=b"x"))
    assert device.has_asked


def test_on_a_full_disk_it_says_how_the_trial_went_and_runs_on(device: Device) -> None:
    device.on_trial()
    device.software.give_up(NAME, "it ended")
    device.restart()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        device.delivery.tick()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (device.said[-1].state, device.said[-1].reason) == ("rolled back", "it ended")
    device.restart()
    device.delivery.tick()
    assert device.said[-1].state == "rolled back", "it is told again, as it could not be noted"


def test_what_could_not_be_tried_may_be_offered_again(device: Device) -> None:
    """Such as where the owner installs something at that moment."""
    device.on_trial()
    device.software.take()
    device.software.note_release(NAME, RELEASE)
    (device.software.path / STATE).unlink()
    device.restart()
    back = device.offer(at=1001, action="roll back")
    with (device.software.path / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        device.hear(back)
        assert "another process installs software now" in device.said[-1].reason
    device.restart()
    device.delivery.tick()
    assert (device.said[-1].release, device.said[-1].state) == (RELEASE, "in service")
    assert device.said[-1].reason == "", "it was not tried"
    device.hear(back)
    assert device.said[-1].state == "trying"


def test_another_offer_waits_for_the_trials_end(device: Device) -> None:
    device.on_trial()
    device.hear(device.offer("9.1", b"another", at=1001))
    assert device.said == []
    device.software.give_up(NAME, "it ended")
    device.delivery.tick()
    assert (device.said[0].release, device.said[0].state) == (RELEASE, "rolled back")
    assert device.has_asked


def test_going_back_is_rolled_back_once_it_has_come_up(device: Device) -> None:
    device.on_trial()
    device.software.take()
    device.software.note_release(NAME, RELEASE)
    device.restart()
    device.hear(device.offer(at=1001, action="roll back"))
    assert device.said[-1].state == "trying"
    assert device.software.target("trial") == "base"
    device.software.move("trial", TRIED)
    device.restart()
    device.hear(device.offer(at=1001, action="roll back"))
    assert [said.state for said in device.said] == ["trying"]
    device.software.take()
    device.delivery.tick()
    assert device.said[-1].state == "rolled back"
    assert device.software.in_service == "base"


def test_going_back_to_what_does_not_come_up_stays_in_service(device: Device) -> None:
    device.on_trial(action="roll back")
    device.software.give_up(NAME, "it ended")
    device.software.point(CURRENT, "base")
    device.restart()
    device.delivery.tick()
    assert (device.said[-1].state, device.said[-1].reason) == ("in service", "not rolled back: it ended")


def test_where_the_newest_signature_cannot_be_read_nothing_is_taken(device: Device) -> None:
    (device.software.path / STATE).write_text("{")
    device.delivery.tick()
    device.hear(device.offer())
    assert (device.said[-1].state, "remove it" in device.said[-1].reason) == ("failed", True)
    assert not device.has_asked
