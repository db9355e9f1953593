# SPDX-License-Identifier: Apache-2.0
"""The broker's address, and the TLS files."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from splitee.errors import ConfigError

PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
WEBSOCKET_PATH = "/mqtt"  # where managed brokers listen; Mosquitto takes any path
FORMS = "mqtt://HOST:PORT, mqtts:// (TLS), ws://HOST:PORT/PATH (websockets) or wss:// (TLS)"
_ENCODE = "percent-encode what a user name or password has of / as %2F, @ %40, # %23, ? %3F, % %25"
_STRAY_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
_PATH = re.compile("[!-~]*")


@dataclass(frozen=True)
class BrokerAddress:
    """A broker's address; its text and its repr never show the password, nor a path's query."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    path: str | None = field(default=None, repr=False)  # websocket path and query; None: plain MQTT

    @classmethod
    def parse(cls, text: str) -> BrokerAddress:
        """Parse SCHEME://[USER[:PASSWORD]@]HOST[:PORT][/PATH]; `FORMS` lists the schemes.

        A path is for websockets only: ws://HOST is ws://HOST:80/mqtt.

        Raises:
            ConfigError: the address is malformed; the message shows nothing that may be a password.
        """
        _check_account(text)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ConfigError(
                f"broker address: expected {FORMS}, with a port from 1 to 65535 and an IPv6 address in []; "
                f"before the host, {_ENCODE}"
            ) from None
        shown, host = text.rpartition("@")[2], parts.hostname or ""
        if parts.scheme not in PORTS or not _is_host(host) or port == 0:
            raise ConfigError(f"broker address {shown!r}: expected {FORMS}")
        return cls(
            host=host,
            port=port or PORTS[parts.scheme],
            tls=parts.scheme in ("mqtts", "wss"),
            username=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
            path=_path(parts, shown),
        )

    def __str__(self) -> str:
        scheme = ("mqtt" if self.path is None else "ws") + "s" * self.tls
        user = "" if self.username is None else quote(self.username, safe="") + "@"
        return f"{scheme}://{user}{self.netloc}{(self.path or '').partition('?')[0]}"

    @property
    def netloc(self) -> str:
        """HOST:PORT, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _check_account(text: str) -> None:
    """Reject unencoded delimiters in the account: urlsplit would report them as a wrong port or host."""
    account = text.partition("://")[2].rpartition("@")[0]
    if set(account) & set("/?#@") or _STRAY_PERCENT.search(account):
        raise ConfigError(f"broker address: before the @ of the host, {_ENCODE}; or use --password-file")


def _is_host(name: str) -> bool:
    """Whether a name can be looked up: no label of it is empty or too long."""
    try:
        return bool(name.encode("idna"))
    except UnicodeError:
        return False


def _path(parts: SplitResult, shown: str) -> str | None:
    rest = parts.path + ("?" + parts.query if parts.query else "")
    if parts.scheme in ("ws", "wss"):
        if parts.fragment or not _PATH.fullmatch(rest):
            raise ConfigError(
                f"broker address {shown!r}: expected a path in ASCII, percent-encoded, without #"
            )
        return rest if parts.path else WEBSOCKET_PATH + rest
    if rest.strip("/") or parts.fragment:
        raise ConfigError(
            f"broker address {shown!r}: expected {FORMS}; nothing comes after the port of {parts.scheme}://"
        )
    return None


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the trusted authority (None: the system's), and this client's certificate and key."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or later that checks the broker's certificate and name; ConfigError names a bad file."""
        if self.key is not None and self.certificate is None:
            raise ConfigError(f"TLS key {self.key} is given without its certificate")
        for path in (self.ca, self.certificate, self.key):
            try:
                if path is not None and not path.is_file():
                    raise ConfigError(f"TLS file {path}: no such file")
            except OSError as error:  # such as a folder that this user may not enter
                raise ConfigError(f"TLS file {path}: {error.strerror}") from None
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
