# SPDX-License-Identifier: Apache-2.0
"""The flags that select the broker and the fleet of a command."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from splitee.cli.bounds import number
from splitee.cli.flags import option_group
from splitee.cli.pairs import given_as_flag, require
from splitee.cli.settings import setting
from splitee.errors import ConfigError
from splitee.mqtt.address import FORMS, BrokerAddress, TlsFiles
from splitee.mqtt.options import LinkOptions
from splitee.protocol.topics import check_name

log = logging.getLogger(__name__)

_FILE = click.Path(path_type=Path)
_FORMS = f"{FORMS}; for a password see --password-file"


_TIMEOUT = setting(
    "--connect-timeout",
    type=number(0),
    default=30.0,
    metavar="SECONDS",
    help="How long to try to reach the broker, in seconds; 0: for ever.",
)
_OPTIONS = (
    setting(
        "--broker",
        default="mqtt://127.0.0.1:1883",
        metavar="URL",
        help=f"Address of the broker: {_FORMS}.",
    ),
    setting(
        "--fleet",
        default="default",
        metavar="NAME",
        help="Name of the fleet, by which its devices and its server find each other.",
    ),
    _TIMEOUT,
    setting("--username", metavar="NAME", help="Account at the broker.", show_default="none"),
    setting(
        "--password-file",
        type=_FILE,
        metavar="FILE",
        help="File whose first line is the password of --username.",
        show_default="none",
    ),
    setting(
        "--ca",
        type=_FILE,
        metavar="FILE",
        help="Authority (PEM) that the broker's certificate must be signed by, with mqtts:// or wss://.",
        show_default="those of the system",
    ),
    setting(
        "--cert",
        type=_FILE,
        metavar="FILE",
        help="Certificate (PEM) of this client, with --key.",
        show_default="none",
    ),
    setting(
        "--key",
        type=_FILE,
        metavar="FILE",
        help="Private key (PEM) of the certificate --cert.",
        show_default="none",
    ),
)


def resolve(
    broker: str,
    fleet: str,
    connect_timeout: float,
    username: str | None = None,
    password_file: Path | None = None,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
) -> LinkOptions:
    """Check the options and return them.

    Raises:
        ConfigError: a malformed URL or name, a password that is unreadable or no account's, a certificate
            without its key.
    """
    address = BrokerAddress.parse(broker)
    if address.password is not None and given_as_flag("broker"):
        log.warning(
            "--broker: everybody on this machine can read its password in the list of processes; give it by "
            "--password-file, by SPLITEE_BROKER or in the settings file"
        )
    if username is not None:
        address = replace(address, username=username)
    if password_file is not None:
        address = replace(address, password=_first_line(password_file))
    require("--username", address.username is not None, "--password-file")
    if (ca or cert) is not None and not address.tls:
        given = "--ca" if ca is not None else "--cert"
        raise ConfigError(f"{given} is for TLS, and {address} has none: expected mqtts:// or wss://")
    return LinkOptions(address, check_name(fleet, "--fleet"), connect_timeout or None, _tls(ca, cert, key))


def resolve_if_given(broker: str | None, **options: Any) -> LinkOptions | None:
    """Like `resolve`; None without a broker."""
    return None if broker is None else resolve(broker, **options)


def _first_line(path: Path) -> str:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--password-file {path}: {getattr(error, 'strerror', None) or error}") from None
    if not lines or not lines[0]:
        raise ConfigError(f"--password-file {path}: expected the password on its first line, it is empty")
    return lines[0]


def _tls(ca: Path | None, cert: Path | None, key: Path | None) -> TlsFiles | None:
    if (cert is None) != (key is None):
        raise ConfigError("--cert and --key go together: give both or neither")
    return TlsFiles(ca, cert, key) if ca or cert else None


link_options = option_group("link", resolve, *_OPTIONS, title="Broker")
"""Adds the flags; the command gets them checked, as its argument `link: LinkOptions`."""

patient_link_options = option_group(
    "link",
    partial(resolve, connect_timeout=0.0),
    *(option for option in _OPTIONS if option is not _TIMEOUT),
    title="Broker",
)
"""The same flags for a command that never gives up."""

optional_link_options = option_group(
    "link",
    resolve_if_given,
    setting(
        "--broker",
        metavar="URL",
        help=f"Address of the broker: {_FORMS}.",
        show_default="none",
    ),
    *_OPTIONS[1:],
    title="Broker",
)
"""The same flags for a command that also works alone: without --broker, `link` is None."""
