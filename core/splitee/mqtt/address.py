"""Where the broker is and how it is trusted: the address and the TLS files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from splitee.errors import ConfigError

PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True)
class BrokerAddress:
    """A broker's address; its text and its repr never show the password."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> BrokerAddress:
        """Reads mqtt://[USER[:PASSWORD]@]HOST[:PORT], or mqtts:// for TLS; ConfigError says what is wrong."""
        expected = "expected mqtt://HOST:PORT or mqtts://HOST:PORT"
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"broker address: {expected}, but {error}") from None
        shown = text.rpartition("@")[2]
        if parts.scheme not in PORTS or not parts.hostname or port == 0:
            raise ConfigError(f"broker address {shown!r}: {expected}")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ConfigError(f"broker address {shown!r}: {expected}, nothing after the port")
        return cls(
            host=parts.hostname,
            port=port or PORTS[parts.scheme],
            tls=parts.scheme == "mqtts",
            username=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
        )

    def __str__(self) -> str:
        user = "" if self.username is None else quote(self.username, safe="") + "@"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{user}{host}:{self.port}"


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the authority to trust (None: the system's), and this side's certificate and key."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later that checks the broker's certificate and name; ConfigError names a bad file."""
        if self.key is not None and self.certificate is None:
            raise ConfigError(f"TLS key {self.key} is given without its certificate")
        for path in (self.ca, self.certificate, self.key):
            if path is not None and not path.is_file():
                raise ConfigError(f"TLS file {path}: no such file")
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"TLS authority {self.ca}: expected PEM certificates ({error})") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except (ssl.SSLError, OSError) as error:
                raise ConfigError(
                    f"TLS certificate {self.certificate}, key {self.key or self.certificate}: "
                    f"expected a PEM certificate and its own key ({error})"
                ) from None
        return context
