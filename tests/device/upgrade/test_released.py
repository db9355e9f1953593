# SPDX-License-Identifier: Apache-2.0
"""Software that is offered to a device: what it takes, what it reports, and how a trial goes."""

from __future__ import annotations

import fcntl
import hashlib
import sys
from pathlib import Path

import msgspec
import pytest
from fakes import FakeClock, FakePort
from file_limit import room_for
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
    """A device that its launcher has started; `restart` is another process."""

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
        request = {"release": RELEASE, "action": action, "name": NAME}
        (self.software.path / STATE).write_bytes(msgspec.json.encode({"signed_at": at, "requested": request}))
        self.software.point(TRIED, NAME)
        self.restart()

    @property
    def reports(self) -> list[SoftwareReport]:
        payloads = self.port.payloads(ROUTES.report.topic(TOPICS, DEVICE))
        return [SoftwareReport.decode(payload) for payload in payloads]

    @property
    def has_requested(self) -> bool:
        return bool(self.port.payloads(ROUTES.want.topic(TOPICS, DEVICE)))


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_running_software_is_reported_once_at_a_start(device: Device) -> None:
    for _ in range(3):
        device.delivery.tick()
    [report] = device.reports
    assert (report.release, report.state, report.runs) == ("", "in service", __version__)


def test_software_is_not_fetched_without_a_launcher_or_a_key(device: Device) -> None:
    device.restart(launched=False)
    device.hear(device.offer())
    assert device.reports[-1].state == "failed"
    assert "runs from an environment of its own" in device.reports[-1].reason
    device.restart(signed=False)
    device.hear(device.offer())
    assert (device.reports[-1].state, "only taken signed" in device.reports[-1].reason) == ("failed", True)
    assert not device.has_requested


@pytest.mark.parametrize("version", [__version__, "0.0.9", "latest"])
def test_software_that_is_not_newer_is_not_fetched(device: Device, version: str) -> None:
    device.hear(device.offer(version))
    assert (
        device.reports[-1].reason == f"splitee {version} is not newer than {__version__}, which is in service"
    )
    assert not device.has_requested


@pytest.mark.parametrize(
    "case", ["another version", "another key", "no software", "changed wheel", "cut off"]
)
def test_unsuitable_software_fails_before_anything_is_installed(
    device: Device, case: str, tmp_path: Path
) -> None:
    """Each file is the one that the release has announced; its content is wrong."""
    wheel = small_wheel(tmp_path, "hetero_splitee", "9.1" if case == "another version" else NEW)
    signing = make_keys(tmp_path / "other")[0] if case == "another key" else device.signing
    data = software_file(tmp_path / "file", signing, wheel).read_bytes()
    if case == "no software":
        data = b"splitee software"
    elif case == "changed wheel":
        data = data[:-1] + bytes([data[-1] ^ 1])
    elif case == "cut off":
        data = data[:-1]
    device.hear(device.offer(NEW, data))
    device.fetch(data)
    assert [report.state for report in device.reports if report.release] == [
        "downloading",
        "trying",
        "failed",
    ]
    words = {
        "another version": "the file has splitee 9.1, the release says 9.0",
        "another key": "signature is not this fleet's",
        "no software": "expected software for devices",
        "changed wheel": f"the software is damaged at {wheel.name}",
        "cut off": "the software is cut off",
    }
    assert words[case] in device.reports[-1].reason
    assert sorted(path.name for path in device.software.path.iterdir()) in (["base"], [".lock", "base"])


def test_software_on_trial_is_reported_trying_and_then_in_service(device: Device) -> None:
    device.on_trial()
    device.delivery.tick()
    assert device.reports == []
    offer = device.offer()
    device.hear(offer)  # the broker keeps it
    assert [report.state for report in device.reports] == ["trying"]
    device.software.accept_trial()
    device.software.note_release(NAME, RELEASE)
    device.delivery.tick()
    assert {report.state for report in device.reports[1:]} == {"in service"}
    assert (device.reports[-1].release, device.reports[-1].version) == (RELEASE, NEW)


@pytest.mark.parametrize("hears_it_again", [True, False])
def test_software_that_did_not_come_up_is_rolled_back_with_the_reason(
    device: Device, hears_it_again: bool
) -> None:
    device.on_trial()
    device.software.reject_trial(NAME, "it did not come up within 60 s")
    device.restart()
    device.delivery.tick()
    if hears_it_again:
        device.hear(device.offer())
    report = device.reports[-1]
    assert (report.state, report.reason) == ("rolled back", "it did not come up within 60 s")
    assert (report.version, report.runs) == (NEW, __version__)
    assert not device.has_requested, "it is not tried again before it is signed anew"
    device.hear(device.offer(at=1001, data=b"x"))
    assert device.has_requested


def test_trial_outcome_is_reported_on_a_full_disk_and_again_after_a_restart(device: Device) -> None:
    device.on_trial()
    device.software.reject_trial(NAME, "it ended")
    device.restart()
    with room_for(0):
        device.delivery.tick()
    assert (device.reports[-1].state, device.reports[-1].reason) == ("rolled back", "it ended")
    device.restart()
    device.delivery.tick()
    assert device.reports[-1].state == "rolled back", "it is told again, as it could not be noted"


def test_roll_back_that_could_not_be_tried_may_be_offered_again(device: Device) -> None:
    """Such as while the owner installs software."""
    device.on_trial()
    device.software.accept_trial()
    device.software.note_release(NAME, RELEASE)
    (device.software.path / STATE).unlink()
    device.restart()
    back = device.offer(at=1001, action="roll back")
    with (device.software.path / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        device.hear(back)
        assert "another process installs software now" in device.reports[-1].reason
    device.restart()
    device.delivery.tick()
    assert (device.reports[-1].release, device.reports[-1].state) == (RELEASE, "in service")
    assert device.reports[-1].reason == "", "it was not tried"
    device.hear(back)
    assert device.reports[-1].state == "trying"


def test_second_offer_waits_for_the_end_of_the_trial(device: Device) -> None:
    device.on_trial()
    device.hear(device.offer("9.1", b"another", at=1001))
    assert device.reports == []
    device.software.reject_trial(NAME, "it ended")
    device.delivery.tick()
    assert (device.reports[0].release, device.reports[0].state) == (RELEASE, "rolled back")
    assert device.has_requested


def test_roll_back_is_reported_once_the_earlier_software_has_come_up(device: Device) -> None:
    device.on_trial()
    device.software.accept_trial()
    device.software.note_release(NAME, RELEASE)
    device.restart()
    device.hear(device.offer(at=1001, action="roll back"))
    assert device.reports[-1].state == "trying"
    assert device.software.target("trial") == "base"
    device.software.move("trial", TRIED)
    device.restart()
    device.hear(device.offer(at=1001, action="roll back"))
    assert [report.state for report in device.reports] == ["trying"]
    device.software.accept_trial()
    device.delivery.tick()
    assert device.reports[-1].state == "rolled back"
    assert device.software.in_service == "base"


def test_software_stays_in_service_if_its_roll_back_does_not_come_up(device: Device) -> None:
    device.on_trial(action="roll back")
    device.software.reject_trial(NAME, "it ended")
    device.software.point(CURRENT, "base")
    device.restart()
    device.delivery.tick()
    assert (device.reports[-1].state, device.reports[-1].reason) == (
        "in service",
        "not rolled back: it ended",
    )


def test_software_is_refused_while_the_newest_signature_cannot_be_read(device: Device) -> None:
    (device.software.path / STATE).write_text("{")
    device.delivery.tick()
    device.hear(device.offer())
    assert (device.reports[-1].state, "remove it" in device.reports[-1].reason) == ("failed", True)
    assert not device.has_requested
