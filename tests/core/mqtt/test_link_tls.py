# SPDX-License-Identifier: Apache-2.0
"""TLS to a real Mosquitto: a valid certificate connects, and each refusal is explained."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from authority import Authority

from splitee.errors import BrokerRefused, BrokerUnreachable, CertificateExpired, ConfigError
from splitee.mqtt.address import BrokerAddress, TlsFiles
from splitee.mqtt.events import Connected, Message
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker

DEADLINE = 10.0
MakeBroker = Callable[..., RestartableBroker]


@pytest.fixture
def authority(public_path: Path) -> Authority:
    return Authority(public_path, "authority")


@pytest.fixture
def tls_broker(authority: Authority, make_broker: MakeBroker) -> BrokerAddress:
    """Mosquitto that requires a certificate of the authority."""
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
def test_client_with_a_certificate_of_the_authority_connects(
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
def test_tls_refusal_is_explained_in_one_line(
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
def test_broker_certificate_outside_its_validity_is_refused_with_a_remedy(
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
def test_client_certificate_outside_its_validity_is_refused_with_a_remedy(
    tls_broker: BrokerAddress, authority: Authority, days: tuple[int, int], words: str, remedy: str
) -> None:
    with pytest.raises(CertificateExpired) as error:
        Link(tls_broker, "link", tls=authority.issue("device", *days)).open(DEADLINE)
    line = str(error.value)
    assert words in line
    assert remedy in line
    assert f"this machine's clock says {datetime.date.today():%Y-%m-%d}" in line


@pytest.mark.mosquitto
def test_certificate_that_has_ended_is_reported_without_its_file(
    tls_broker: BrokerAddress, authority: Authority
) -> None:
    """The link tries again with what it has read at the start; another error would end its thread."""
    tls = authority.issue("device", -2, -1)
    link = Link(tls_broker, "link", tls=tls)
    assert tls.certificate is not None
    tls.certificate.unlink()
    with pytest.raises(CertificateExpired, match="is over by the broker's clock"):
        link.open(DEADLINE)


@pytest.mark.mosquitto
def test_mismatch_of_tls_and_plain_port_is_reported(
    tls_broker: BrokerAddress, authority: Authority, make_broker: MakeBroker
) -> None:
    with pytest.raises(BrokerUnreachable, match=r"without an MQTT reply|reset by peer"):
        Link(BrokerAddress(tls_broker.host, tls_broker.port), "link").open(0.1)
    plain = make_broker("mosquitto").address
    with pytest.raises((BrokerUnreachable, BrokerRefused), match="TLS"):
        Link(BrokerAddress(plain.host, plain.port, tls=True), "link").open(0.1)
    with pytest.raises(ConfigError, match="use mqtts://"):
        Link(plain, "link", tls=authority.issue("device"))
