# SPDX-License-Identifier: Apache-2.0
"""Devices are dismissed by the server's identity only."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import call

from splitee.errors import ExitCode
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.fleet import Dismissal, ServerStatus
from splitee.protocol.topics import Topics

from .conftest import DEADLINE, FLEET, Fleet
from .test_access import Connect, Messages

pytestmark = pytest.mark.mosquitto

TOPICS = Topics(FLEET)


def link_flags(fleet: Fleet, folder: Path) -> tuple[str, ...]:
    ca, cert, key = (str(folder / name) for name in ("ca.crt", "client.crt", "client.key"))
    return "--broker", str(fleet.address), "--fleet", FLEET, "--ca", ca, "--cert", cert, "--key", key


@pytest.mark.parametrize("identity", ["pi-1", "viewer", "homeassistant"])
def test_dismiss_is_refused_in_one_line_to_identities_other_than_the_server(
    fleet: Fleet, connect: Connect, capsys: pytest.CaptureFixture[str], identity: str
) -> None:
    folder = fleet.device(identity) if identity == "pi-1" else fleet.directory / identity
    server = connect(fleet.directory / "server", routes.DISMISS.topic(TOPICS), TOPICS.server_claim)
    code, line = call(capsys, "dismiss", "pi-2", *link_flags(fleet, folder))
    assert code == ExitCode.REFUSED
    assert "does not let this client dismiss devices: it takes the server's identity (--config " in line
    server.publish(TOPICS.server_claim, b"fence")
    heard = server.receive(DEADLINE)
    assert getattr(heard, "topic", None) == TOPICS.server_claim, "nothing of it has reached the server"


def test_dismiss_request_is_sent_with_the_server_settings_alone(
    fleet: Fleet, connect: Connect, messages: Messages, capsys: pytest.CaptureFixture[str]
) -> None:
    """On an operator's machine that has the server's folder."""
    server: Link = connect(fleet.directory / "server", routes.DISMISS.topic(TOPICS))
    server.publish(TOPICS.server_status, ServerStatus(state="online", instance=1).encode(), retain=True)
    settings = ("--config", str(fleet.directory / "server" / "server.toml"))
    code, line = call(capsys, "dismiss", "pi-2", "pi-2", "--undo", *settings, "--wait", "0.5")
    assert (code, "no reply of `splitee server`" in line) == (ExitCode.STALLED, True)
    (message,) = messages(server, 1)
    request = Dismissal.decode(message.payload)
    assert (request.devices, request.undo) == (("pi-2",), True)
    server.publish(TOPICS.server_status, b"", retain=True)
    assert server.flush(DEADLINE)
