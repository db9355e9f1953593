# SPDX-License-Identifier: Apache-2.0
"""A hub's replies to devices that have to wait for another one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from invitations import proven

from splitee.pairing.code import new_code, read_code
from splitee.pairing.messages import Granted, Refused, Request
from splitee_broker.pairing import conversation, listener
from splitee_broker.pairing.hub_certificate import hub_context
from splitee_broker.pairing.invitation import Invitation
from splitee_broker.pairing.registrar import Registrar
from splitee_device.joining.exchange import Hub
from splitee_device.joining.own_key import OwnKey

from .conftest import FLEET, HOST, run_broker

pytestmark = pytest.mark.slow


class Hosting:
    """A hub in this process."""

    def __init__(self, directory: Path, count: int) -> None:
        assert run_broker("init", "--fleet", FLEET, "--name", HOST, directory=directory).exception is None
        context, certificate = hub_context()
        listening = listener.PairingListener(0, context, print)
        self.code = new_code()
        self.hub = Hub(HOST, listening.port)
        registrar = Registrar(directory, days=30, reload=None)
        invitation = Invitation(read_code(self.code), "", 600.0, count)
        host = conversation.PairingServer(invitation, registrar, certificate, print)
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=listening.serve, args=(host.receive, lambda: not self._ended.is_set())
        )
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture
def hosting(tmp_path: Path) -> Iterator[Hosting]:
    hub = Hosting(tmp_path / "hub", count=3)
    yield hub
    hub.close()


def test_device_waiting_too_long_for_others_is_refused_as_busy(
    hosting: Hosting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three devices never confirm their certificates, so one has to wait for two others."""
    monkeypatch.setattr(conversation, "WRITING", 4.0)  # not a minute
    monkeypatch.setattr(listener, "PROVING", 3.0)
    with ExitStack() as stack:
        channels = [stack.enter_context(proven(hosting)) for _ in range(3)]
        for number, channel in enumerate(channels):
            channel.send(Request(f"pi-{number}", OwnKey().request("x")))
        heard = [channel.receive_or_refusal(Granted) for channel in channels]
    assert Refused("busy") in heard
    assert any(isinstance(each, Granted) for each in heard)


def test_device_silent_after_its_proof_does_not_delay_the_next_one(hosting: Hosting) -> None:
    with proven(hosting), proven(hosting) as channel:
        channel.send(Request("pi-1", OwnKey().request("x")))
        assert isinstance(channel.receive_or_refusal(Granted), Granted)
