# SPDX-License-Identifier: Apache-2.0
"""Clears the retained messages of a revoked device, as the server, which may write everywhere."""

from __future__ import annotations

import time
import tomllib
from contextlib import closing
from pathlib import Path

from splitee.cli.link_options import resolve
from splitee.errors import BrokerUnreachable, ConfigError
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.retained import clear
from splitee.protocol.topics import Topics

PATIENCE = 2.0  # seconds for the broker to reply
QUIET = 0.5  # seconds without a message after which all retained messages have come


def clear_retained(server: Path, device: str) -> int:
    """Clears the retained topics of `device`, whoever has written to them; returns their number.

    Args:
        server: folder of the server's identity.

    Raises:
        SpliteeError: the broker cannot be reached or lets nobody in, or the folder is not the server's.
    """
    try:
        settings = tomllib.loads((server / "server.toml").read_text())
        files = {name: server / settings[name] for name in ("ca", "cert", "key")}
        options = resolve(settings["broker"], settings["fleet"], PATIENCE, **files)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{server / 'server.toml'}: expected the server's settings ({error})") from None
    topics = Topics(options.fleet)
    with closing(Link(options.address, f"splitee-revoke-{time.time_ns()}", tls=options.tls)) as link:
        link.subscribe(topics.device(device, "#"))
        link.open(options.connect_timeout)
        found = clear(link, _retained(link))
        if not link.flush(PATIENCE):
            raise BrokerUnreachable(f"broker {options.address} does not acknowledge")
    return len(found)


def _retained(link: Link) -> set[str]:
    """The topics of the messages that come in one burst after the subscription."""
    found = set()
    last = time.monotonic()
    while time.monotonic() - last < QUIET:  # whatever else the device publishes meanwhile
        event = link.receive(QUIET)
        if isinstance(event, Message) and event.retained:
            found.add(event.topic)
            last = time.monotonic()
    return found
