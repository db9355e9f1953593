# SPDX-License-Identifier: Apache-2.0
"""Attacks while a hub invites: eavesdropping, guessed codes, a false hub in between, arbitrary data."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from invitations import FalseHub, Invitation, connection, joined, proven
from proxy import Proxy

from splitee.errors import ExitCode, PairingEnded
from splitee.mqtt.address import BrokerAddress
from splitee.pairing.channel import Channel
from splitee.pairing.code import new_code
from splitee.pairing.messages import VERSION, Granted, Greeting, Proof, Refused, Request, Welcome
from splitee.pairing.proofs import new_nonce
from splitee_broker.pairing.hub_certificate import hub_context
from splitee_broker.pairing.invitation import CERTIFICATES, TRIES
from splitee_broker.pairing.listener import MOST_FROM_ONE_ADDRESS
from splitee_device.joining.exchange import Hub
from splitee_device.joining.own_key import OwnKey

from .conftest import FLEET, HOST, run_broker

pytestmark = pytest.mark.slow

ELSEWHERE = "127.0.0.2"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fleet's authority, whose broker does not run."""
    folder = tmp_path_factory.mktemp("hub") / "own"
    assert run_broker("init", "--fleet", FLEET, "--name", HOST, directory=folder).exception is None
    return folder


def ledger(directory: Path) -> bytes:
    return (directory / "authority" / "ledger.json").read_bytes()


def send_bytes(hub: Hub, data: bytes, source: str = HOST) -> None:
    """Send `data` on a connection of its own, and wait until the hub has closed it: at any byte of them."""
    with (
        socket.create_connection((hub.host, hub.port), source_address=(source, 0)) as connected,
        suppress(OSError),
    ):
        connected.sendall(data)
        connected.shutdown(socket.SHUT_WR)
        while connected.recv(1 << 16):
            pass


def refusal(where: Hub, code: str, device: Path) -> str:
    """The line by which `splitee join` is refused; it has left nothing behind."""
    error = joined(where, code, device, "--id", f"pi-{secrets.token_hex(4)}").exception
    assert isinstance(error, PairingEnded), error
    assert not any(path.is_file() for path in device.rglob("*"))
    return str(error)


def test_eavesdropper_sees_no_code_or_key_and_replay_changes_nothing(directory: Path, tmp_path: Path) -> None:
    with Invitation(directory, tmp_path / "log", "--count", "2") as invitation:
        proxy = Proxy(BrokerAddress(invitation.hub.host, invitation.hub.port))
        proxy.sent, proxy.received = bytearray(), bytearray()
        device = tmp_path / "device"
        with closing(proxy):
            between = Hub(proxy.address.host, proxy.address.port)
            assert joined(between, invitation.code, device, "--id", "heard").exception is None
            invitation.wait_for("heard has joined")
        heard = bytes(proxy.sent + proxy.received)
        assert len(heard) > 2000
        plain = (
            invitation.code.encode(),
            invitation.code.replace("-", "").encode(),
            *(path.read_bytes()[40:80] for path in (device / "device").iterdir()),
            b"heard",
            FLEET.encode(),
        )
        assert [secret for secret in plain if secret in heard] == []

        before = ledger(directory)
        send_bytes(invitation.hub, bytes(proxy.sent))
        invitation.wait_for("left, or speaks something else")
        assert ledger(directory) == before
        assert joined(invitation.hub, invitation.code, tmp_path / "d", "--id", "other").exception is None
        assert "tries" not in invitation.shown()


def test_invitation_is_void_after_five_wrong_codes(directory: Path, tmp_path: Path) -> None:
    with Invitation(directory, tmp_path / "log") as invitation:
        for number in range(1, TRIES + 1):
            assert "it does not accept this code" in refusal(invitation.hub, new_code(), tmp_path / "d")
            invitation.wait_for(
                f"{HOST}: a wrong code, or an attacker in between ({number} of {TRIES} tries)"
            )
        assert invitation.ended() == ExitCode.PAIRING
        assert f"{TRIES} wrong codes came: the invitation is void" in invitation.shown().splitlines()[-1]
        error = joined(invitation.hub, invitation.code, tmp_path / "d", "--id", "late").exception
        assert "or with the fifth wrong code" in str(error)


def test_concurrent_guesses_share_the_tries_of_an_invitation(directory: Path, tmp_path: Path) -> None:
    """No guess is compared after the fifth, however many connections are open."""
    with Invitation(directory, tmp_path / "log") as invitation, ExitStack() as stack:
        channels = []
        for number in range(12):
            address = f"127.0.0.{10 + number // 4}"  # few connections of one address are accepted at a time
            channel, _ = stack.enter_context(connection(invitation.hub, address))
            channel.receive(Greeting)
            channels.append(channel)
        replies: list[Refused | Welcome] = []

        def guess(channel: Channel) -> None:
            channel.send(Proof(new_nonce(), secrets.token_bytes(32)))
            replies.append(channel.receive_or_refusal(Welcome))

        threads = [threading.Thread(target=guess, args=(channel,)) for channel in channels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(repr, replies)) == sorted(
            map(repr, [Refused("code")] * TRIES + [Refused("over")] * (12 - TRIES))
        )
        assert invitation.ended() == ExitCode.PAIRING
        assert invitation.shown().count("a wrong code") == TRIES


def test_false_hub_between_device_and_hub_is_refused_and_learns_nothing(
    directory: Path, tmp_path: Path
) -> None:
    before = ledger(directory)
    with Invitation(directory, tmp_path / "log") as invitation, closing(FalseHub(invitation.hub)) as false:
        assert "it does not accept this code" in refusal(false.hub, invitation.code, tmp_path / "d")
        invitation.wait_for(f"a wrong code, or an attacker in between (1 of {TRIES} tries)")
        learned = bytes(false.learned)
        assert b"Proof" in learned
        assert b"Request" not in learned and b"CERTIFICATE" not in learned and b"pi-" not in learned
        assert invitation.code.replace("-", "").encode() not in learned
        assert ledger(directory) == before
        assert joined(invitation.hub, invitation.code, tmp_path / "d", "--id", "after").exception is None


def reflected(_greeting: Greeting, came: Proof) -> bytes:
    return came.proof


def guessed(_greeting: Greeting, _came: Proof) -> bytes:
    return secrets.token_bytes(32)


@pytest.mark.parametrize("reply", [reflected, guessed])
def test_device_sends_nothing_more_to_a_hub_that_does_not_know_the_code(
    tmp_path: Path, reply: Callable[[Greeting, Proof], bytes]
) -> None:
    context, _ = hub_context()
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        bare, _ = listener.accept()
        with context.wrap_socket(bare, server_side=True) as secured:
            channel, greeting = Channel(secured, 30.0), Greeting(VERSION, new_nonce())
            channel.send(greeting)
            channel.send(Welcome(reply(greeting, channel.receive(Proof)), FLEET, "pi-1"))
            heard.append(secured.recv(1))

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        line = refusal(Hub(HOST, listener.getsockname()[1]), new_code(), tmp_path / "d")
        thread.join()
    assert "it does not know the code, so it is not the hub that showed it; nothing was told to it" in line
    assert heard == [b""]


def test_garbage_and_silent_connections_do_not_count_as_tries(directory: Path, tmp_path: Path) -> None:
    with Invitation(directory, tmp_path / "log") as invitation, ExitStack() as stack:
        where = (invitation.hub.host, invitation.hub.port)
        for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", os.urandom(5000)):
            send_bytes(invitation.hub, garbage, source=ELSEWHERE)
        invitation.wait_for(f"{ELSEWHERE}: left, or speaks something else (")
        for garbage in (b"\xff" * 8, b"\0\0\0\0", (5).to_bytes(4, "big") + b"\x91" * 5):
            with connection(invitation.hub, ELSEWHERE) as (channel, _):
                channel.receive(Greeting)
                channel._connection.sendall(garbage)  # around its framing
                with suppress(OSError):
                    channel._connection.recv(1)
        for _ in range(20):  # silent, and kept open
            stack.enter_context(socket.create_connection(where, source_address=(ELSEWHERE, 0)))
        invitation.wait_for(f"{ELSEWHERE}: sent away, too many connections at once")
        assert joined(invitation.hub, invitation.code, tmp_path / "d", "--id", "calm").exception is None
        assert invitation.ended() == 0
        assert "tries" not in invitation.shown()
        assert "Traceback" not in invitation.shown()


def test_silent_connections_are_closed_and_make_room_for_a_device(directory: Path, tmp_path: Path) -> None:
    with Invitation(directory, tmp_path / "log") as invitation, ExitStack() as stack:
        where = (invitation.hub.host, invitation.hub.port)
        greeted, _ = stack.enter_context(connection(invitation.hub))
        greeted.receive(Greeting)
        silent = [
            stack.enter_context(socket.create_connection(where)) for _ in range(MOST_FROM_ONE_ADDRESS - 1)
        ]
        with socket.create_connection(where) as one_more:
            assert closed(one_more)
        done = joined(invitation.hub, invitation.code, tmp_path / "d", "--id", "patient")
        assert done.exception is None
        assert "many devices join at once, or it is no hub that invites; trying again" in done.output
        assert all(closed(each) for each in silent)
        with pytest.raises(ConnectionError):
            greeted.receive(Welcome)


def closed(connection: socket.socket) -> bool:
    """Whether the other side hangs up, within a minute."""
    connection.settimeout(60)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.fixture
def open_invitation(directory: Path, tmp_path: Path) -> Iterator[Invitation]:
    """An invitation whose code a hostile device knows."""
    with Invitation(directory, tmp_path / "log") as invitation:
        yield invitation


def request_by(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def invalid_requests() -> dict[str, bytes]:
    """Signing requests that no device sends."""
    foreign = x509.load_pem_x509_csr(request_by(ec.generate_private_key(ec.SECP256R1())))
    forged = bytearray(foreign.public_bytes(Encoding.DER))
    forged[-1] ^= 1
    unsigned = x509.load_der_x509_csr(bytes(forged)).public_bytes(Encoding.PEM)
    return {
        "empty": b"",
        "junk": os.urandom(8000),
        "cut-off": request_by(ec.generate_private_key(ec.SECP256R1()))[:200],
        "rsa": request_by(rsa.generate_private_key(65537, 2048)),
        "another-curve": request_by(ec.generate_private_key(ec.SECP384R1())),
        "not-its-own": unsigned,
    }


@pytest.mark.parametrize(("kind", "request_bytes"), invalid_requests().items())
def test_invalid_signing_request_is_refused(
    open_invitation: Invitation, directory: Path, kind: str, request_bytes: bytes
) -> None:
    before = ledger(directory)
    with proven(open_invitation) as channel:
        channel.send(Request("pi-1", request_bytes))
        assert channel.receive_or_refusal(Welcome) == Refused("request")
    assert ledger(directory) == before
    assert open_invitation.is_open()


def test_invitation_for_one_device_limits_names_and_certificates(
    open_invitation: Invitation, directory: Path
) -> None:
    """A device that never confirms its certificates gets no more of them for that."""

    def certificate_for(name: str) -> Granted | Refused:
        with proven(open_invitation) as channel:
            channel.send(Request(name, OwnKey().request(name)))
            return channel.receive_or_refusal(Granted)

    assert isinstance(certificate_for("greedy"), Granted)
    assert certificate_for("greedy-2") == Refused("over")
    open_invitation.wait_for("greedy-2 is refused: no place is left for it")
    assert all(isinstance(certificate_for("greedy"), Granted) for _ in range(CERTIFICATES - 1))
    before = ledger(directory)
    assert certificate_for("greedy") == Refused("over")
    assert ledger(directory) == before
    assert b"greedy-2" not in before
    assert open_invitation.is_open()


def test_certificate_ignores_subject_of_the_request_and_is_for_clients_only(
    open_invitation: Invitation, directory: Path
) -> None:
    """The certificate is for the name in the message, not for the subject of the signing request."""
    with proven(open_invitation) as channel:
        channel.send(Request("subject", request_by(ec.generate_private_key(ec.SECP256R1()))))
        granted = channel.receive(Granted)
    certificate = x509.load_pem_x509_certificate(granted.certificate)
    assert certificate.subject.rfc4514_string() == "CN=subject"
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose._name for purpose in usage] == ["clientAuth"]


@pytest.mark.parametrize("name", ["server", "broker", "pi/1", "#", "", "pi\n1", "\x1b[31m"])
def test_name_of_a_role_or_with_invalid_characters_is_refused(
    open_invitation: Invitation, directory: Path, name: str
) -> None:
    before = ledger(directory)
    with proven(open_invitation) as channel:
        channel.send(Request(name, OwnKey().request("x")))
        assert channel.receive_or_refusal(Welcome) == Refused("request")
    assert ledger(directory) == before
    assert "\x1b" not in open_invitation.shown()
    assert "is refused: name" in open_invitation.shown().splitlines()[-1]
