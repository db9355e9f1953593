# SPDX-License-Identifier: Apache-2.0
"""A real `splitee broker invite`, and its peers: devices, and attackers that guess or listen."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Protocol

import warm
from click.testing import CliRunner, Result
from waiting import until

from splitee.pairing.channel import Channel
from splitee.pairing.code import read_code
from splitee.pairing.messages import Greeting, Proof, Welcome
from splitee.pairing.proofs import new_nonce, proof
from splitee_broker.pairing.hub_certificate import hub_context
from splitee_device.commands.join import join
from splitee_device.joining.exchange import Hub
from splitee_lab.local.forked import without_settings


class Inviting(Protocol):
    """Address and code of a hub."""

    hub: Hub
    code: str


class Invitation:
    """A `splitee broker invite` process, as its operator sees it."""

    def __init__(self, authority: Path, log: Path, *flags: str) -> None:
        self._log = log
        command = ["broker", "invite", *flags, "--port", "0", "--directory", str(authority)]
        self._process = warm.WarmProcess(command, log, without_settings())
        until(lambda: "splitee join" in self.shown() or self._process.poll() is not None, self.shown)
        line = next(line for line in self.shown().splitlines() if line.startswith("splitee join"))
        address, self.code = line.removeprefix("splitee join ").split(" ")
        host, _, port = address.rpartition(":")
        self.hub = Hub(host, int(port))

    def __enter__(self) -> Invitation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def shown(self) -> str:
        return self._log.read_text()

    def wait_for(self, line: str) -> None:
        until(lambda: line in self.shown(), self.shown)

    def ended(self) -> int:
        """Wait for the process to end; returns its exit code."""
        return self._process.wait(60)

    def is_open(self) -> bool:
        return self._process.poll() is None


def joined(where: Hub | str, code: str, directory: Path, *flags: str) -> Result:
    """`splitee join` in this process; its exception, if any, in the result."""
    command = [str(where), code, "--directory", str(directory), *flags]
    return CliRunner().invoke(join, command, standalone_mode=False)


@contextmanager
def connection(hub: Hub, source: str = "127.0.0.1") -> Iterator[tuple[Channel, bytes]]:
    """A channel to a hub from the address `source`, and the hub's certificate (DER); it needs no code."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((hub.host, hub.port), 10, (source, 0)) as bare,
        context.wrap_socket(bare) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True)
        assert certificate is not None
        yield Channel(secured, 60.0), certificate


@contextmanager
def proven(invitation: Inviting) -> Iterator[Channel]:
    """A channel after a valid proof of the code, on which a test may send anything."""
    with connection(invitation.hub) as (channel, certificate):
        greeting, nonce = channel.receive(Greeting), new_nonce()
        code = read_code(invitation.code)
        channel.send(Proof(nonce, proof(code, "device", certificate, greeting.nonce, nonce)))
        channel.receive(Welcome)
        yield channel


class FalseHub:
    """An attacker between a device and a hub, with its own certificate, that reads all messages.

    Attributes:
        learned: the decrypted bytes that the device has sent to it.
    """

    def __init__(self, real: Hub) -> None:
        self.learned = bytearray()
        self._real = real
        self._context, _ = hub_context()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.hub = Hub("127.0.0.1", self._listener.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        with suppress(OSError):
            while True:
                bare, _ = self._listener.accept()
                near = self._context.wrap_socket(bare, server_side=True)
                far = client.wrap_socket(socket.create_connection((self._real.host, self._real.port)))
                for source, sink, captured in ((near, far, self.learned), (far, near, bytearray())):
                    threading.Thread(target=_relay, args=(source, sink, captured), daemon=True).start()

    def close(self) -> None:
        self._listener.close()


def _relay(source: ssl.SSLSocket, sink: ssl.SSLSocket, captured: bytearray) -> None:
    with suppress(OSError, ValueError):
        while data := source.recv(65536):
            captured += data
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
