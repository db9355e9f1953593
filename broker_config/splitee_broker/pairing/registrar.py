# SPDX-License-Identifier: Apache-2.0
"""Signs the requests of devices, and revokes their earlier certificates."""

from __future__ import annotations

import shlex
import subprocess
from contextlib import closing
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from splitee.errors import ConfigError
from splitee.pairing.messages import Granted, Request
from splitee_broker.authority import Authority, Issued, Role, check_device
from splitee_broker.files import RELOAD, access_files, write_broker_folder
from splitee_broker.signing_keys import RELEASE_KEY, SOFTWARE_KEY, pinned_keys

UNIT = "splitee-broker.service"


class NameTaken(ConfigError):
    """The authority knows the name, but its operator has not invited it."""


class Registrar:
    """Opens the authority only while it signs, so that other commands can work meanwhile."""

    def __init__(self, directory: Path, days: int, reload: str | None) -> None:
        """`reload`: command that has the broker read its files; None: systemctl, if systemd runs the broker.

        Raises:
            ConfigError: there is no authority, its broker has no name, or `reload` is not a command.
            StateError: it cannot be read.
        """
        self._directory = directory
        self._days = days
        self._reload = _split_command(reload) if reload else _systemd_reload()
        self._unconfirmed: set[str] = set()  # names certified by this process and not yet confirmed
        self._returning: set[str] = set()  # those of them that had been revoked
        with self._authority() as authority:
            self.fleet, self._broker = authority.fleet, authority.url
            self.host = authority.hosts[0]

    def valid(self, name: str) -> Issued | None:
        """The certificate with which `name` is let in now."""
        with self._authority() as authority:
            return authority.valid(name)

    def certify(self, request: Request, invited: str) -> tuple[str, Granted]:
        """The serial number of a new certificate for the key of `request`, and the reply to the device.

        Args:
            invited: the name that the operator gave; empty: the device's own name counts.

        Raises:
            NameTaken: the name was given before.
            ConfigError: the name or the request is not valid.
            StateError: the authority cannot be opened or written.
        """
        name, key = invited or check_device(request.name, "name"), _key_of(request.request)
        with self._authority() as authority:
            known = {line.name for line in authority.issued} - self._unconfirmed
            if not invited and name in known:
                raise NameTaken(f"{name} is taken")
            if name in authority.revoked_names():
                self._returning.add(name)
            certificate = authority.certify(name, Role.DEVICE, self._days, key)
            keys = pinned_keys(self._directory)
            granted = Granted(
                certificate.public_bytes(Encoding.PEM),
                authority.certificate,
                self._broker,
                keys.get(RELEASE_KEY, b""),
                keys.get(SOFTWARE_KEY, b""),
            )
        self._unconfirmed.add(name)
        return f"{certificate.serial_number:x}", granted

    def confirm(self, name: str, serial: str) -> list[str]:
        """`name` has stored its certificate: its other ones are revoked. Returns lines for the user.

        Raises:
            StateError: the authority or the broker's folder cannot be written.
        """
        with self._authority() as authority:
            count = authority.revoke(name, keep=serial)
            changed = count > 0 or name in self._returning
            if changed:
                write_broker_folder(self._directory / "broker", access_files(authority))
        self._unconfirmed.discard(name)
        self._returning.discard(name)
        lines = [self._reload_broker(name)] if changed else []
        if count:
            lines.append(
                f"{name}: its certificate from before is revoked; a connection that is still open by it ends "
                "when the broker is restarted"
            )
        return lines

    def _reload_broker(self, name: str) -> str:
        if not self._reload:
            return f"{name}: {RELOAD}"
        try:
            done = subprocess.run(
                self._reload, capture_output=True, timeout=30, text=True, errors="replace", check=False
            )
            failed = done.stderr.strip().splitlines()[-1:] if done.returncode else None
        except (OSError, subprocess.TimeoutExpired) as error:
            failed = [str(error)]
        command = shlex.join(self._reload)
        if failed is not None:
            return f"{name}: the broker did not read who is let in ({command}: {' '.join(failed)})"
        return f"{name}: the broker has read who is let in ({command})"

    def _authority(self) -> closing[Authority]:
        return closing(Authority(self._directory / "authority"))


def _split_command(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--reload {command}: expected a command as a shell reads it ({error})") from None


def _systemd_reload() -> list[str]:
    """The command, if systemd runs the broker; otherwise an empty list."""
    if not Path("/run/systemd/system").is_dir():
        return []
    active = subprocess.run(["systemctl", "is-active", "--quiet", UNIT], check=False).returncode == 0
    return ["systemctl", "reload", UNIT] if active else []


def _key_of(request: bytes) -> ec.EllipticCurvePublicKey:
    """The key for which a certificate is requested: of the devices' kind, and signer of the request.

    Raises:
        ConfigError: it is not.
    """
    try:
        parsed = x509.load_pem_x509_csr(request)
        key = parsed.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError
        if parsed.is_signature_valid:
            return key
    except (ValueError, TypeError, UnsupportedAlgorithm):
        pass
    raise ConfigError("expected a signing request for a key on P-256, signed by it")
