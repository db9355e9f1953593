# SPDX-License-Identifier: Apache-2.0
"""A fleet's certificate authority: identities, the ledger of issued certificates, and the revocation list."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import repeat
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from splitee.durable import StateDirectory, write_atomically
from splitee.errors import ConfigError, StateError, StateInUse
from splitee.mqtt.backoff import tries
from splitee.protocol.topics import check_name
from splitee_broker.limits import DEVICES
from splitee_broker.outside_topics import check_outside

BACKDATED = timedelta(days=1)  # because clocks differ
AUTHORITY_DAYS = 20 * 365
PATIENCE = 5.0  # seconds to wait for another `splitee broker` command to end
HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*")


class Role(StrEnum):
    """The purpose of a certificate. The name of every certificate but a device's is its role."""

    BROKER = "broker"
    SERVER = "server"
    VIEWER = "viewer"
    HEALTH = "health"
    HOME_ASSISTANT = "homeassistant"
    DEVICE = "device"


@dataclass(frozen=True)
class Identity:
    """A certificate with its key, and the authority that signed it; all PEM."""

    certificate: bytes
    key: bytes
    authority: bytes

    def __repr__(self) -> str:
        return "Identity(...)"  # keeps keys out of logs


class Issued(msgspec.Struct, frozen=True):
    """One line of the ledger."""

    name: str
    role: Role
    serial: str  # hexadecimal
    until: datetime
    revoked: datetime | None = None

    def valid(self, now: datetime) -> bool:
        return self.revoked is None and now < self.until


class Ledger(msgspec.Struct, frozen=True):
    """The authority's records, apart from its key."""

    fleet: str
    hosts: tuple[str, ...] = ()  # names of the broker; the first is in the bundles
    port: int = 8883
    devices: int = DEVICES  # number of devices for which the broker's limits are set
    device_reads: tuple[str, ...] = ()  # filters of topics outside of the fleet
    issued: tuple[Issued, ...] = ()


class Authority:
    """The authority in one directory, locked for this process: `ca.key`, `ca.crt` and `ledger.json`."""

    def __init__(self, directory: Path, fleet: str | None = None) -> None:
        """Opens the authority. With `fleet`, makes one for this fleet if there is none.

        It waits briefly if another command has it open. An invitation opens it for a moment for each device.

        Raises:
            ConfigError: there is none, or it is that of another fleet.
            StateError: the directory cannot be written, is damaged, or is in use.
        """
        if fleet is None and not _has_ledger(directory):
            raise ConfigError(f"no authority in {directory}: make it with `splitee broker init`")
        if directory.is_symlink():
            raise StateError(f"authority in {directory}: it is a link; take another --directory")
        self._state = _locked(directory)
        try:
            _keep_private(directory)
            if fleet is not None and not (directory / "ledger.json").exists():
                self._create(check_name(fleet, "--fleet"))
            self._load()
            if fleet is not None and fleet != self.fleet:
                raise ConfigError(
                    f"the authority in {directory} is of fleet {self.fleet!r}, not {fleet!r}: "
                    "take another --directory"
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._state.close()

    @property
    def fleet(self) -> str:
        return self._ledger.fleet

    @property
    def hosts(self) -> tuple[str, ...]:
        """The broker's names; none before `configure_broker`."""
        return self._ledger.hosts

    @property
    def port(self) -> int:
        return self._ledger.port

    @property
    def url(self) -> str:
        """The address at which clients reach the broker."""
        if not self.hosts:
            raise ConfigError("the broker has no name yet: run `splitee broker init` again")
        host = f"[{self.hosts[0]}]" if ":" in self.hosts[0] else self.hosts[0]
        return f"mqtts://{host}:{self.port}"

    @property
    def certificate(self) -> bytes:
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def issued(self) -> tuple[Issued, ...]:
        """All certificates that it has issued, the oldest first."""
        return self._ledger.issued

    def valid(self, name: str) -> Issued | None:
        """The certificate with which `name` is let in now."""
        now = datetime.now(UTC)
        return next((line for line in reversed(self.issued) if line.name == name and line.valid(now)), None)

    def revoked_names(self) -> list[str]:
        """The names whose last certificate has been revoked."""
        last = {line.name: line for line in self.issued}
        return sorted(name for name, line in last.items() if line.revoked is not None)

    @property
    def devices(self) -> int:
        """Number of devices for which the broker is configured."""
        return self._ledger.devices

    @property
    def device_reads(self) -> tuple[str, ...]:
        """Filters of topics outside of the fleet that devices may read."""
        return self._ledger.device_reads

    def configure_broker(
        self, hosts: tuple[str, ...], port: int, devices: int, device_reads: tuple[str, ...]
    ) -> None:
        """Sets the broker's names, its port, and its number of devices from now on.

        Args:
            device_reads: filters of topics outside of the fleet that devices may read.

        Raises:
            ConfigError: a host is not a name, or a topic not a filter.
        """
        for host in hosts:
            general_name(host)
        reads = check_outside(device_reads)
        ledger = msgspec.structs.replace(
            self._ledger, hosts=hosts, port=port, devices=devices, device_reads=reads
        )
        self._save_ledger(ledger)

    def issue(self, name: str, role: Role, days: int, hosts: tuple[str, ...] = ()) -> Identity:
        """A new key and its certificate, valid for `days` from now; `hosts`: a broker's names."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.certify(name, role, days, key.public_key(), hosts)
        return Identity(certificate.public_bytes(Encoding.PEM), _private(key), self.certificate)

    def certify(
        self, name: str, role: Role, days: int, key: ec.EllipticCurvePublicKey, hosts: tuple[str, ...] = ()
    ) -> x509.Certificate:
        """Like `issue`, for a key made elsewhere; the certificate is in the ledger when this returns.

        It is valid from the authority's own first day. A clock that is ahead at the time therefore does no
        harm once it is right.

        Raises:
            StateError: it cannot be written, or this machine's clock is behind the authority's certificate.
        """
        now = datetime.now(UTC)
        if now < self._certificate.not_valid_before_utc:
            raise StateError(
                f"this machine's clock is behind: the authority was made after {now:%Y-%m-%d}; set the "
                "clock, then run it again"
            )
        usage = ExtendedKeyUsageOID.SERVER_AUTH if role is Role.BROKER else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            _builder(
                x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key, self._certificate.subject
            )
            .not_valid_before(self._certificate.not_valid_before_utc)
            .not_valid_after(now + timedelta(days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=True)
            .add_extension(self._key_identifier(), critical=False)
        )
        if hosts:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([general_name(host) for host in hosts]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        line = Issued(name, role, f"{certificate.serial_number:x}", certificate.not_valid_after_utc)
        self._save_ledger(msgspec.structs.replace(self._ledger, issued=(*self.issued, line)))
        return certificate

    def revoke(self, name: str, keep: str = "") -> int:
        """Revokes all valid certificates of `name`, except that with serial `keep`; returns their number."""
        now = datetime.now(UTC)
        hit = {
            line.serial
            for line in self.issued
            if line.name == name and line.serial != keep and line.valid(now)
        }
        issued = tuple(
            msgspec.structs.replace(line, revoked=now) if line.serial in hit else line for line in self.issued
        )
        self._save_ledger(msgspec.structs.replace(self._ledger, issued=issued))
        return len(hit)

    def revocation_list(self) -> bytes:
        """The current list in PEM: the certificates that a broker must refuse.

        It is valid as long as the authority, whatever this machine's clock says, because a broker refuses
        everybody while its list has expired or is not valid yet.
        """
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(self._certificate.not_valid_before_utc)
            .next_update(self._certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(int(datetime.now(UTC).timestamp())), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        for line in self.issued:
            if line.revoked is not None:
                entry = x509.RevokedCertificateBuilder().serial_number(int(line.serial, 16))
                builder = builder.add_revoked_certificate(entry.revocation_date(line.revoked).build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _create(self, fleet: str) -> None:
        now = datetime.now(UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        # The number distinguishes two fleets of one name: a client can report which of them it does not know.
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
                x509.NameAttribute(NameOID.COMMON_NAME, f"splitee authority {x509.random_serial_number():x}"),
            ]
        )
        certificate = (
            _builder(name, key.public_key(), name)
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + timedelta(AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS, critical=True)
            .sign(key, hashes.SHA256())
        )
        self._write("ca.key", _private(key))
        self._write("ca.crt", certificate.public_bytes(Encoding.PEM))
        self._write("ledger.json", msgspec.json.encode(Ledger(fleet)))

    def _load(self) -> None:
        folder = self._state.path
        try:
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
            self._certificate = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
            self._ledger = msgspec.json.decode((folder / "ledger.json").read_bytes(), type=Ledger)
        except (OSError, ValueError, TypeError) as error:
            raise StateError(f"authority in {folder}: {error}; bring it back from your backup") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise StateError(f"authority in {folder}: expected an elliptic curve's key in ca.key")
        self._key = key

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def _save_ledger(self, ledger: Ledger) -> None:
        self._write("ledger.json", msgspec.json.format(msgspec.json.encode(ledger), indent=1))
        self._ledger = ledger

    def _write(self, name: str, data: bytes) -> None:
        write_atomically(self._state.path / name, data)


def _locked(directory: Path) -> StateDirectory:
    for pause in tries(PATIENCE, repeat(0.1)):
        try:
            return StateDirectory(directory)
        except StateInUse:
            if not pause:
                raise
    raise AssertionError("the last try returns or raises")


def _has_ledger(directory: Path) -> bool:
    """Raises StateError: this account may not look there."""
    try:
        return (directory / "ledger.json").exists()
    except OSError as error:
        raise StateError(
            f"authority in {directory}: {error.strerror}; run it by sudo, or take another --directory"
        ) from None


def _keep_private(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder(issuer_name=issuer, subject_name=subject, public_key=key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def general_name(host: str) -> x509.GeneralName:
    """A broker's name in the form of its certificate: an IP address or a host's name.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not HOST.fullmatch(host):
            raise ConfigError(f"--name {host!r}: expected a host's name or an IP address") from None
        return x509.DNSName(host)


def check_device(name: str, what: str) -> str:
    """Checks a name for a device, and returns it.

    Raises:
        ConfigError: topics or certificates forbid it, or it is the name of a role.
    """
    check_name(name, what)
    if name in set(Role) - {Role.DEVICE}:
        raise ConfigError(f"{what} {name!r}: expected a device's own name; this one is the {name}'s")
    return name


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
