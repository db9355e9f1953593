# SPDX-License-Identifier: Apache-2.0
"""An open connection by the old key of a device, once the device is paired anew."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from invitations import Invitation, joined

from splitee.errors import CertificateRevoked
from splitee.mqtt.events import Disconnected
from splitee.mqtt.link import Link
from splitee.protocol.topics import Topics

from .conftest import DEADLINE, FLEET, Fleet, files

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

Connect = Callable[..., Link]


def test_connection_by_the_old_key_stays_open_until_its_client_id_is_taken(
    fleet: Fleet, connect: Connect, tmp_path: Path
) -> None:
    """The broker's log has the client id; another connection with it ends the first."""
    old = tmp_path / "old"
    shutil.copytree(fleet.device("again"), old)
    held = connect(old, client_id="its-own-secret")
    reload = ("--reload", f"kill -HUP {fleet.pid}")
    with Invitation(fleet.directory, tmp_path / "log", "again", *reload) as invitation:
        assert joined(invitation.hub, invitation.code, tmp_path / "device").exception is None
        assert invitation.ended() == 0
    until = time.monotonic() + DEADLINE
    while is_let_in(fleet, old):
        assert time.monotonic() < until
    held.publish(Topics(FLEET).device("again", "status"), b"x")
    assert held.flush(DEADLINE)
    assert held.refused == 0, "it is not ended by the revocation"
    lines = [line for line in fleet.log.read_text().splitlines() if "u'again'" in line]
    assert any(" as its-own-secret (" in line for line in lines), lines
    connect(fleet.directory / "server", client_id="its-own-secret").close()
    assert isinstance(held.receive(DEADLINE), Disconnected)


def is_let_in(fleet: Fleet, folder: Path) -> bool:
    link = Link(fleet.address, "probe", tls=files(folder))
    try:
        link.open(DEADLINE)
    except CertificateRevoked:
        return False
    finally:
        link.close()
    return True
