"""TLS to a real Mosquitto: what opens the door, and each refusal named."""

from __future__ import annotations

import datetime
import ipaddress
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from splitee.errors import BrokerRefused, BrokerUnreachable, CertificateExpired, ConfigError
from splitee.mqtt.address import BrokerAddress, TlsFiles
from splitee.mqtt.events import Connected, Message
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, OwnBroker

DEADLINE = 10.0
MakeBroker = Callable[..., OwnBroker]


class Authority:
    """A certificate authority for one test, and the files that it signs."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.file = directory / f"{name}.pem"
        certificate = self._build(self._name, self._key).add_extension(
            x509.BasicConstraints(True, None), True
        )
        self.file.write_bytes(self._sign(certificate))

    def issue(self, name: str, from_day: int = -1, to_day: int = 1) -> TlsFiles:
        """A certificate for `name`, and for 127.0.0.1, valid from and to so many days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = self._directory / f"{name}.crt"
        certificate.write_bytes(
            self._sign(self._build(subject, key, from_day, to_day).add_extension(names, False))
        )
        private = self._directory / f"{name}.key"
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        private.chmod(0o644)  # Mosquitto, started by root, reads it as its own user
        return TlsFiles(self.file, certificate, private)

    def _build(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, from_day: int = -1, to_day: int = 1
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder(issuer_name=self._name, subject_name=subject, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(from_day))
            .not_valid_after(now + datetime.timedelta(to_day))
        )

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(public_path: Path) -> Authority:
    return Authority(public_path, "authority")


@pytest.fixture
def tls_broker(authority: Authority, make_broker: MakeBroker) -> BrokerAddress:
    """Mosquitto that asks for a certificate of the authority."""
    files = authority.issue("broker")
    settings = (
        f"cafile {files.ca}\ncertfile {files.certificate}\nkeyfile {files.key}\nrequire_certificate true\n"
    )
    address = make_broker("mosquitto", settings + MOSQUITTO_SETTINGS).address
    return BrokerAddress(address.host, address.port, tls=True)


def refused(address: BrokerAddress, tls: TlsFiles | None = None) -> str:
    started = time.monotonic()
    with pytest.raises(BrokerRefused) as error:
        Link(address, "link", tls=tls).open(DEADLINE)
    assert time.monotonic() - started < DEADLINE / 2, "a refusal comes at once"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.mosquitto
def test_a_certificate_of_the_authority_opens_the_door(
    tls_broker: BrokerAddress, authority: Authority
) -> None:
    link = Link(tls_broker, "link", tls=authority.issue("device"))
    link.subscribe("t")
    link.open(DEADLINE)
    assert link.receive(DEADLINE) == Connected(fresh=True)
    link.publish("t", bytes(1_000_000))
    message = link.receive(DEADLINE)
    assert isinstance(message, Message)
    assert len(message.payload) == 1_000_000
    link.close()


@pytest.mark.mosquitto
def test_tls_refusals_name_the_certificate_at_fault(
    tls_broker: BrokerAddress, authority: Authority, public_path: Path
) -> None:
    foreign = Authority(public_path, "foreign").issue("stranger")
    own = authority.issue("device")
    assert "its certificate is not trusted (self" in refused(tls_broker, foreign)
    assert "its certificate is not trusted (self" in refused(tls_broker)
    elsewhere = BrokerAddress("localhost", tls_broker.port, tls=True)
    assert "Hostname mismatch" in refused(elsewhere, own)
    assert "TLS failed" in refused(tls_broker, TlsFiles(ca=authority.file))
    assert "TLS failed" in refused(tls_broker, TlsFiles(authority.file, foreign.certificate, foreign.key))
    assert "TLS failed" in refused(tls_broker, authority.issue("old", from_day=-3, to_day=-1))


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("days", "words", "remedy"),
    [((1, 2), "not yet valid", "; set it (timedatectl)"), ((-2, -1), "has expired", "splitee broker init)")],
    ids=["not yet", "no longer"],
)
def test_a_brokers_certificate_that_this_clock_does_not_allow(
    authority: Authority, make_broker: MakeBroker, days: tuple[int, int], words: str, remedy: str
) -> None:
    files = authority.issue("other-day", *days)
    settings = f"certfile {files.certificate}\nkeyfile {files.key}\n"
    address = make_broker("mosquitto", settings + MOSQUITTO_SETTINGS).address
    line = refused(BrokerAddress(address.host, address.port, tls=True), TlsFiles(ca=authority.file))
    assert f"{words}): this machine's clock says {datetime.date.today():%Y-%m-%d}" in line
    assert line.endswith(remedy)


@pytest.mark.mosquitto
@pytest.mark.parametrize(
    ("days", "words", "remedy"),
    [
        ((1, 2), "is not valid yet by the broker's clock: it is valid from ", "set it (timedatectl)"),
        ((-2, -1), "is over by the broker's clock: it ended on ", "renew it (splitee broker renew device)"),
    ],
    ids=["not yet", "no longer"],
)
def test_a_clients_certificate_that_the_brokers_clock_does_not_allow(
    tls_broker: BrokerAddress, authority: Authority, days: tuple[int, int], words: str, remedy: str
) -> None:
    with pytest.raises(CertificateExpired) as error:
        Link(tls_broker, "link", tls=authority.issue("device", *days)).open(DEADLINE)
    line = str(error.value)
    assert words in line
    assert remedy in line
    assert f"this machine's clock says {datetime.date.today():%Y-%m-%d}" in line


@pytest.mark.mosquitto
def test_plain_to_a_tls_port_and_tls_to_a_plain_port(
    tls_broker: BrokerAddress, authority: Authority, make_broker: MakeBroker
) -> None:
    with pytest.raises(BrokerUnreachable, match=r"without an MQTT answer|reset by peer"):
        Link(BrokerAddress(tls_broker.host, tls_broker.port), "link").open(0.1)
    plain = make_broker("mosquitto").address
    with pytest.raises((BrokerUnreachable, BrokerRefused), match="TLS"):
        Link(BrokerAddress(plain.host, plain.port, tls=True), "link").open(0.1)
    with pytest.raises(ConfigError, match="use mqtts://"):
        Link(plain, "link", tls=authority.issue("device"))
