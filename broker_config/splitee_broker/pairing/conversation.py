# SPDX-License-Identifier: Apache-2.0
"""The hub's conversation with one device that wants to join."""

from __future__ import annotations

import threading
from collections.abc import Callable

from splitee.errors import ConfigError, SpliteeError
from splitee.log_limits import FirstFew
from splitee.pairing.channel import Channel
from splitee.pairing.messages import (
    VERSION,
    Confirmed,
    Greeting,
    Proof,
    Reason,
    Refused,
    Request,
    Stored,
    Welcome,
)
from splitee.pairing.proofs import new_nonce, proof
from splitee_broker.pairing.invitation import TRIES, Invitation
from splitee_broker.pairing.registrar import NameTaken, Registrar

WRITING = 60.0  # seconds for a device that knows the code to make its key and store its identity

Report = Callable[[str], None]


class PairingServer:
    """Serves the devices of one invitation, one at a time, after each has shown that it knows the code."""

    def __init__(
        self, invitation: Invitation, registrar: Registrar, certificate: bytes, report: Report
    ) -> None:
        """`certificate`: of this hub's connections, DER; `report`: receives a line for the user."""
        self._invitation = invitation
        self._registrar = registrar
        self._certificate = certificate
        self._report = report
        self._lock = threading.Lock()
        self._refusals = FirstFew()

    def receive(self, channel: Channel, address: str) -> None:
        """The whole conversation on one connection.

        Raises:
            OSError: the device is gone, or too slow.
            MalformedMessage: the device sends a message out of turn.
        """
        if not self._check_code(channel, address):
            return
        channel.extend(WRITING)
        request = channel.receive(Request)
        is_free = self._lock.acquire(timeout=WRITING)
        channel.extend(WRITING)  # other devices used the time until then
        if not is_free:
            channel.send(Refused("busy"))
            return
        try:
            self._admit(channel, address, request)
        finally:
            self._lock.release()

    def finish(self) -> None:
        """Waits until the device that is being served has its identity, if there is one."""
        with self._lock:
            pass

    def _check_code(self, channel: Channel, address: str) -> bool:
        invitation, nonce = self._invitation, new_nonce()
        channel.send(Greeting(VERSION, nonce))
        came = channel.receive(Proof)
        if invitation.end is not None:
            channel.send(Refused("over"))
            return False
        expected = proof(invitation.code, "device", self._certificate, nonce, came.nonce)
        if invitation.accept(came.proof, expected):
            own = proof(invitation.code, "hub", self._certificate, nonce, came.nonce)
            channel.send(Welcome(own, self._registrar.fleet, invitation.name))
            return True
        self._report(
            f"{address}: a wrong code, or an attacker in between ({invitation.wrong} of {TRIES} tries)"
        )
        channel.send(Refused("code"))
        return False

    def _admit(self, channel: Channel, address: str, request: Request) -> None:
        name = self._invitation.name or request.name
        if self._invitation.end is not None:
            channel.send(Refused("over"))
            return
        if not self._invitation.has_place_for(name):
            self._refuse(channel, "over", f"{address}: {name} is refused: no place is left for it")
            return
        try:
            serial, granted = self._registrar.certify(request, self._invitation.name)
        except SpliteeError as error:
            self._refuse(channel, _reason(error), f"{address}: {name} is refused: {error}")
            return
        self._invitation.issued(name)
        channel.send(granted)
        try:
            channel.receive(Stored)
        except (OSError, SpliteeError):
            self._report(
                f"{address}: {name} did not confirm that it has stored its identity; it may try again"
            )
            return
        self._finish(channel, address, name, serial)

    def _refuse(self, channel: Channel, reason: Reason, line: str) -> None:
        if self._refusals.due():
            self._report(line)
        channel.send(Refused(reason))

    def _finish(self, channel: Channel, address: str, name: str, serial: str) -> None:
        try:
            lines = self._registrar.confirm(name, serial)
        except SpliteeError as error:
            self._report(f"{address}: {name} has an identity; its one from before is still valid: {error}")
            channel.send(Refused("failed"))
            return
        self._invitation.use()
        self._report(f"{address}: {name} has joined")
        for line in lines:
            self._report(line)
        channel.send(Confirmed())


def _reason(error: SpliteeError) -> Reason:
    if isinstance(error, NameTaken):
        return "name"
    return "request" if isinstance(error, ConfigError) else "failed"
