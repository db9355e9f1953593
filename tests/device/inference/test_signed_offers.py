# SPDX-License-Identifier: Apache-2.0
"""A device that has pinned its fleet's key fetches only releases that are signed for it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import graphs
import pytest
from commands import call
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from fakes import FakeClock, FakePort
from msgspec.structs import replace

from splitee.errors import ConfigError, ExitCode, ModelError
from splitee.inference.signatures import ReleaseKey, ReleaseSigner
from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.inference import ModelOffer, ModelReport, ReleasePart, SoftwareOffer
from splitee.protocol.topics import Topics
from splitee_broker.signing_keys import RELEASE_KEY, SIGNING_KEY, new_key
from splitee_device.inference.delivery import Delivery
from splitee_device.inference.model_installer import ModelInstaller
from splitee_device.inference.model_store import ModelStore

TOPICS, DEVICE = Topics("barn"), "pi-1"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with both halves of the fleet's key, and another fleet's in `other`."""
    for folder in (tmp_path / "keys", tmp_path / "keys" / "other"):
        folder.mkdir()
        for name, data in new_key(SIGNING_KEY, RELEASE_KEY).items():
            (folder / name).write_bytes(data)
    return tmp_path / "keys"


class Receiver:
    """A device that waits for releases."""

    def __init__(self, models: Path, key: Path) -> None:
        self.port = FakePort(FakeClock())
        self.store = ModelStore(models)
        self.delivery = Delivery(
            self.port, TOPICS, DEVICE, ModelInstaller(self.store, DEVICE), key=ReleaseKey.read(key)
        )

    def hear(self, offer: ModelOffer, data: bytes | None = None) -> ModelReport:
        """Delivers an offer, then its bytes if given; returns the device's last report."""
        self.delivery.handle(Message(routes.MODEL_OFFER.topic(TOPICS, DEVICE), offer.encode(), retained=True))
        if data is not None:
            assert self.has_requested
            part = ReleasePart(release=offer.release, offset=0, data=data)
            self.delivery.handle(Message(routes.MODEL_PART.topic(TOPICS, DEVICE), part.encode()))
        return ModelReport.decode(self.port.payloads(routes.MODEL_REPORT.topic(TOPICS, DEVICE))[-1])

    @property
    def has_requested(self) -> bool:
        return bool(self.port.payloads(routes.MODEL_WANT.topic(TOPICS, DEVICE)))


@pytest.fixture
def receiver(keys: Path, tmp_path: Path) -> Receiver:
    return Receiver(tmp_path / "models", keys / RELEASE_KEY)


def offer_of(bundle: bytes, run: str = "run-a") -> ModelOffer:
    return ModelOffer(release=hashlib.sha256(bundle).hexdigest(), size=len(bundle), run=run)


Forge = Callable[[ReleaseSigner, ReleaseSigner, ModelOffer], ModelOffer]
FORGED: dict[str, Forge] = {
    "not signed": lambda ours, other, offer: offer,
    "another key": lambda ours, other, offer: other.sign(offer, "barn", DEVICE),
    "another fleet": lambda ours, other, offer: ours.sign(offer, "bay", DEVICE),
    "another device": lambda ours, other, offer: ours.sign(offer, "barn", "pi-2"),
    "another run": lambda ours, other, offer: replace(ours.sign(offer, "barn", DEVICE), run="run-b"),
    "another release": lambda ours, other, offer: replace(ours.sign(offer, "barn", DEVICE), release="a" * 64),
    "another time": lambda ours, other, offer: replace(
        ours.sign(offer, "barn", DEVICE), signed_at=253_402_300_799_999
    ),
    "nonsense": lambda ours, other, offer: replace(offer, signature="0" * 128),
}


@pytest.mark.parametrize("kind", FORGED)
def test_release_that_is_not_signed_for_this_device_is_not_fetched(
    keys: Path, receiver: Receiver, kind: str
) -> None:
    ours, other = ReleaseSigner(keys / SIGNING_KEY), ReleaseSigner(keys / "other" / SIGNING_KEY)
    report = receiver.hear(FORGED[kind](ours, other, offer_of(graphs.bundle())))
    assert report.state == "failed"
    assert ("is not signed" if kind == "not signed" else "signature is not this fleet's") in report.reason
    assert not receiver.has_requested


def test_release_is_taken_once_signed_and_a_replayed_older_offer_fails(
    keys: Path, receiver: Receiver
) -> None:
    signer = ReleaseSigner(keys / SIGNING_KEY)
    first, second = (graphs.bundle(graphs.graph(tensors=graphs.sound_tensors(seed))) for seed in (0, 5))
    assert receiver.hear(offer_of(first)).state == "failed"
    signed = signer.sign(offer_of(first), "barn", DEVICE)
    assert receiver.hear(signed, first).state == "in service"
    assert receiver.hear(signed).state == "in service"  # repeated, as a retained offer is
    newer = replace(signed, signed_at=signed.signed_at)
    while newer.signed_at == signed.signed_at:
        newer = signer.sign(offer_of(second), "barn", DEVICE)
    assert receiver.hear(newer, second).state == "in service"
    replayed = receiver.hear(signed)
    assert (replayed.state, receiver.store.release) == ("failed", newer.release)
    assert "signed before the newest that this device took" in replayed.reason
    receiver.store.roll_back()  # the owner may roll back
    assert receiver.store.release == signed.release
    assert receiver.hear(newer).state == "rolled back"  # and the retained offer does not undo that


def test_model_of_another_run_than_the_signed_one_is_refused(keys: Path, receiver: Receiver) -> None:
    data = graphs.bundle(run="run-b")
    signed = ReleaseSigner(keys / SIGNING_KEY).sign(offer_of(data), "barn", DEVICE)
    report = receiver.hear(signed, data)
    assert report.state == "failed" and "it is of run run-b, the signature of run run-a" in report.reason


def test_signatures_are_ignored_without_a_pinned_key(keys: Path, tmp_path: Path) -> None:
    receiver = Receiver(tmp_path / "models", keys / RELEASE_KEY)
    receiver.delivery = Delivery(receiver.port, TOPICS, DEVICE, ModelInstaller(receiver.store, DEVICE))
    data = graphs.bundle()
    forged = replace(offer_of(data), signature="0" * 128, signed_at=253_402_300_799_999)
    assert receiver.hear(forged, data).state == "in service"
    assert receiver.store.trust.read().signed_at == 0


def taken(signer: ReleaseSigner, receiver: Receiver, *seeds: int) -> list[ModelOffer]:
    """Releases that were put into service one after the other."""
    offers: list[ModelOffer] = []
    for seed in seeds:
        data = graphs.bundle(graphs.graph(tensors=graphs.sound_tensors(seed)))
        at = offers[-1].signed_at + 10 if offers else None
        offers.append(signer.sign(offer_of(data), "barn", DEVICE, at=at))
        assert receiver.hear(offers[-1], data).state == "in service"
    return offers


class Killed(BaseException):
    """Ends the process at once."""


@pytest.mark.parametrize(
    ("file", "nth"), [("trust.json", 1), ("previous", 1), ("current", 1), ("trust.json", 2)]
)
def test_kill_while_a_release_is_put_into_service_lets_only_this_one_follow(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, nth: int
) -> None:
    signer = ReleaseSigner(keys / SIGNING_KEY)
    [first] = taken(signer, Receiver(tmp_path / "models", keys / RELEASE_KEY), 0)
    older, newer = (graphs.bundle(graphs.graph(tensors=graphs.sound_tensors(seed))) for seed in (5, 6))
    offer = signer.sign(offer_of(newer), "barn", DEVICE, at=first.signed_at + 20)
    replace_file, seen = os.replace, []

    def killed_at(source: str, target: str, **folders: int) -> None:
        seen.append(Path(target).name)
        if seen.count(file) == nth and seen[-1] == file:
            raise Killed
        replace_file(source, target, **folders)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", killed_at)
        Receiver(tmp_path / "models", keys / RELEASE_KEY).hear(offer, newer)

    receiver = Receiver(tmp_path / "models", keys / RELEASE_KEY)
    between = signer.sign(offer_of(older), "barn", DEVICE, at=first.signed_at + 10)
    assert receiver.hear(offer).state == "in service"  # its bytes are here
    assert receiver.hear(between).state == "failed"
    receiver.store.roll_back()
    assert receiver.hear(offer).state == "rolled back"


def test_damaged_release_is_fetched_again_by_the_same_offer(keys: Path, receiver: Receiver) -> None:
    [only] = taken(ReleaseSigner(keys / SIGNING_KEY), receiver, 0)
    for file in receiver.store.current.glob("*.onnx"):
        file.write_bytes(b"")
    with pytest.raises(ModelError):
        receiver.store.load()
    receiver.delivery.refetch("its files on this device are damaged")
    data = graphs.bundle(graphs.graph(tensors=graphs.sound_tensors(0)))
    assert receiver.hear(only, data).state == "in service"


def back_from(signer: ReleaseSigner, offer: ModelOffer) -> ModelOffer:
    return signer.sign(replace(offer, action="roll back"), "barn", DEVICE, at=offer.signed_at + 1)


def test_signed_roll_back_restores_the_earlier_model_and_is_final(keys: Path, receiver: Receiver) -> None:
    signer = ReleaseSigner(keys / SIGNING_KEY)
    first, second = taken(signer, receiver, 0, 5)
    assert receiver.hear(back_from(signer, second)).state == "rolled back"
    assert receiver.store.release == first.release
    assert receiver.hear(back_from(signer, second)).state == "rolled back"  # as a retained offer is repeated
    assert receiver.store.release == first.release
    again = receiver.hear(second)  # an older offer, replayed
    assert (again.state, "signed before the newest" in again.reason) == ("failed", True)


@pytest.mark.parametrize("kind", ["not signed", "another key", "the offer itself", "of an older release"])
def test_forged_roll_back_is_refused(keys: Path, receiver: Receiver, kind: str) -> None:
    signer, other = ReleaseSigner(keys / SIGNING_KEY), ReleaseSigner(keys / "other" / SIGNING_KEY)
    first, second = taken(signer, receiver, 0, 5)
    forged = {
        "not signed": replace(second, action="roll back", signature=""),
        "another key": back_from(other, second),
        "the offer itself": replace(second, action="roll back"),  # its signature is of another action
        "of an older release": replace(back_from(signer, first), release=second.release),
    }[kind]
    report = receiver.hear(forged)
    assert (report.state, receiver.store.release) == ("in service", second.release)
    assert "not rolled back" in report.reason


def test_roll_back_without_an_earlier_model_keeps_the_model_in_service(
    keys: Path, receiver: Receiver
) -> None:
    signer = ReleaseSigner(keys / SIGNING_KEY)
    [only] = taken(signer, receiver, 0)
    report = receiver.hear(back_from(signer, only))
    assert (report.state, "keeps no model from before" in report.reason) == ("in service", True)
    assert receiver.store.release == only.release


def test_release_rolled_back_during_its_download_is_not_put_into_service(
    keys: Path, receiver: Receiver
) -> None:
    signer = ReleaseSigner(keys / SIGNING_KEY)
    offer = signer.sign(offer_of(graphs.bundle()), "barn", DEVICE)
    receiver.hear(offer)
    assert receiver.has_requested
    assert receiver.hear(back_from(signer, offer)).state == "rolled back"
    part = ReleasePart(release=offer.release, offset=0, data=graphs.bundle())
    receiver.delivery.handle(Message(routes.MODEL_PART.topic(TOPICS, DEVICE), part.encode()))
    assert receiver.store.release is None
    assert not list(receiver.store.path.glob("*.incoming"))


def test_signature_of_software_is_refused_for_a_model(keys: Path) -> None:
    signer, key = ReleaseSigner(keys / SIGNING_KEY), ReleaseKey.read(keys / RELEASE_KEY)
    software = signer.sign(SoftwareOffer(release="a" * 64, size=1, version="run-a"), "barn", DEVICE)
    key.check(software, "barn", DEVICE)
    model = ModelOffer(
        release="a" * 64, size=1, run="run-a", signed_at=software.signed_at, signature=software.signature
    )
    with pytest.raises(ModelError, match="signature is not this fleet's"):
        key.check(model, "barn", DEVICE)


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


@pytest.mark.parametrize("kind", ["elliptic", "certificate", "empty", "none", "halves exchanged"])
def test_key_that_is_not_ed25519_is_refused_with_the_reason(keys: Path, tmp_path: Path, kind: str) -> None:
    private, public = tmp_path / "private", tmp_path / "public"
    halves = {
        "elliptic": pem(ec.generate_private_key(ec.SECP256R1())),
        "certificate": (b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",) * 2,
        "empty": (b"", b""),
        "none": None,
        "halves exchanged": ((keys / RELEASE_KEY).read_bytes(), (keys / SIGNING_KEY).read_bytes()),
    }[kind]
    if halves is not None:
        private.write_bytes(halves[0])
        public.write_bytes(halves[1])
    expected = "No such file" if kind == "none" else "expected an Ed25519"
    with pytest.raises(ConfigError, match=expected):
        ReleaseSigner(private)
    with pytest.raises(ConfigError, match=expected):
        ReleaseKey.read(public)


def test_commands_refuse_a_wrong_key_and_name_the_flag(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, keys: Path
) -> None:
    wrong = str(keys / RELEASE_KEY)
    code, line = call(capsys, "release", str(tmp_path), "--signing-key", wrong)
    assert (code, "--signing-key" in line) == (ExitCode.CONFIG, True)
    flags = ("infer", "--id", "pi-1", "--models", str(tmp_path), "--watch", str(tmp_path))
    code, line = call(capsys, *flags, "--release-key", str(keys / SIGNING_KEY))
    assert (code, "--release-key" in line) == (ExitCode.CONFIG, True)
