# SPDX-License-Identifier: Apache-2.0
"""Where a page is served, and the token that a browser must know."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from splitee.cli.flags import option_group
from splitee.cli.settings import setting
from splitee.errors import ConfigError

SHORTEST = 16  # characters of a token: 96 bits, if they are base64
LOCAL_NAMES = ("localhost", "localhost.localdomain")


@dataclass(frozen=True)
class ListenOptions:
    """An address of this machine, and the token that opens the page; None: it is open."""

    host: str
    port: int
    token: str | None = None

    def url(self, port: int) -> str:
        """The URL of the page, for a browser on this machine; `port`: the one that was bound."""
        if self.host in ("0.0.0.0", "::"):  # noqa: S104 -- only compared with
            return f"http://localhost:{port}/"
        return f"http://[{self.host}]:{port}/" if ":" in self.host else f"http://{self.host}:{port}/"


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address without brackets, is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOCAL_NAMES


def listening(listen: str, token_file: Path | None) -> ListenOptions:
    """`listen`: HOST:PORT, [ADDRESS]:PORT or PORT.

    Raises:
        ConfigError: it is none of these, the token cannot be read or is too short, or the address is beyond
            loopback and there is no token.
    """
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"--listen {listen}: expected HOST:PORT, [ADDRESS]:PORT or PORT")
    token = None if token_file is None else read_token(token_file)
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--listen {listen}: an address beyond loopback needs --token-file as well; "
            "for TLS, put a reverse proxy in front of it"
        )
    return ListenOptions(host, int(port), token)


def read_token(path: Path) -> str:
    """The token in the first line of a file.

    Raises:
        ConfigError: there is none, or it is no word of SHORTEST printable ASCII characters or more.
    """
    try:
        with path.open(encoding="ascii") as file:
            token = file.readline(4096).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        raise ConfigError(f"--token-file {path}: {why}") from None
    if len(token) < SHORTEST or not token.isprintable() or " " in token:
        raise ConfigError(
            f"--token-file {path}: expected one word of at least {SHORTEST} characters in the first line; "
            f"make one: openssl rand -base64 24 > {path}"
        )
    return token


def listening_options(port: int) -> Callable[[Any], Any]:
    """A decorator that adds --listen and --token-file; the command gets `where: ListenOptions`."""
    return option_group(
        "where",
        listening,
        setting(
            "--listen",
            default=f"127.0.0.1:{port}",
            metavar="HOST:PORT",
            help="Address at which the page is served; beyond loopback it needs --token-file.",
        ),
        setting(
            "--token-file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="File with the token that a browser must give once.",
            show_default="none: the page is open to everybody who can reach its address",
        ),
        title="Page",
    )
