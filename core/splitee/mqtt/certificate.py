# SPDX-License-Identifier: Apache-2.0
"""The end date of this client's certificate, and the warnings in the log before it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from splitee.errors import ConfigError
from splitee.mqtt.address import TlsFiles

WARNED = timedelta(days=30)  # before the end
DAY = 24 * 3600.0  # seconds between two warnings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnCertificate:
    """A client's certificate: its owner and its validity."""

    path: Path
    name: str
    start: datetime
    end: datetime

    def explain_refusal(self, now: datetime) -> str:
        """What to do if a broker says that the certificate is not valid now: fix the clock, or renew it."""
        clock = f"this machine's clock says {now:%Y-%m-%d %H:%M}"
        if now > self.end:
            return (
                f"it ended on {self.end:%Y-%m-%d}, and {clock}: renew it (splitee broker renew {self.name}), "
                "or set the clock if that is wrong (timedatectl)"
            )
        if now < self.start:
            return f"it is valid from {self.start:%Y-%m-%d %H:%M} on, and {clock}: set it (timedatectl)"
        return (
            f"it is valid until {self.end:%Y-%m-%d}, and {clock}: if that is right, set the clock of the "
            "broker's machine (timedatectl)"
        )

    def warning(self, now: datetime) -> str | None:
        """The warning for now; None while it is valid for more than 30 days."""
        left = self.end - now
        if left > WARNED:
            return None
        ends = f"ends in {left.days} days, on {self.end:%Y-%m-%d}" if left > timedelta(0) else "has ended"
        return (
            f"the certificate of {self.name!r} in {self.path} {ends}: renew it where the authority is "
            f"(splitee broker renew {self.name}), bring it here, and start this command again"
        )


def own_certificate(tls: TlsFiles | None) -> OwnCertificate | None:
    """This client's certificate; None: it has none.

    Raises:
        ConfigError: the file is no PEM certificate.
    """
    if tls is None or tls.certificate is None:
        return None
    # Imported here because the package takes memory, which a device without a certificate can save.
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        certificate = x509.load_pem_x509_certificate(tls.certificate.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "expected a PEM certificate"
        raise ConfigError(f"TLS certificate {tls.certificate}: {reason}") from None
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    name = str(names[0].value) if names else tls.certificate.stem
    return OwnCertificate(
        tls.certificate, name, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    )


def warnings(
    certificate: OwnCertificate,
    *,
    wait: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Iterator[str]:
    """Warnings about the certificate: one at once, then one every day."""
    while True:
        text = certificate.warning(now())
        if text is not None:
            yield text
        wait(DAY)


def warn_before_it_ends(certificate: OwnCertificate | None) -> None:
    """From 30 days before the end, log a warning at once and every day while the process runs."""
    if certificate is not None:
        threading.Thread(target=_log, args=(certificate,), name="certificate", daemon=True).start()


def _log(certificate: OwnCertificate) -> None:
    for text in warnings(certificate):
        log.warning("%s", text)
