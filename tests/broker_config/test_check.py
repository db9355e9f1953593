# SPDX-License-Identifier: Apache-2.0
"""`splitee broker check` on complete and limited real brokers, and on servers that are no brokers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from commands import refusal
from ejabberd import Ejabberd, ejabberd, find_ejabberd
from open_files import open_to_all

from splitee.cli.main import main
from splitee.errors import ExitCode
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.topics import Topics
from splitee_broker.checks.registry import CHECKS
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker, RunningBroker, free_port

from .conftest import FLEET, HOST, Fleet, mosquitto

DEADLINE = 10.0
NAMES = [check.name for check in CHECKS]
MakeBroker = Callable[..., RestartableBroker]
Check = Callable[..., "Outcome"]


class Outcome:
    """The output of a run of the command, and its exit code; `line`: of a refusal."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.line = refusal(err) if code else err
        self.found: dict[str, dict[str, Any]] = {}
        if out:
            self.found = {each["check"]: each for each in json.loads(out)["checks"]}

    def verdicts(self, verdict: str) -> set[str]:
        return {name for name, each in self.found.items() if each["verdict"] == verdict}


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """`check(address, *flags)`: the command in this process, with --json."""

    def run(address: BrokerAddress | None, *flags: str) -> Outcome:
        broker = [] if address is None else ["--broker", written(address)]
        with pytest.raises(SystemExit) as leave:
            main(["broker", "check", "--json", *broker, *flags])
        out, err = capsys.readouterr()
        return Outcome(int(leave.value.code or 0), out, err)

    return run


def written(address: BrokerAddress) -> str:
    """The address as a user writes it, with the password."""
    return str(address).replace("@", f":{address.password}@")


def figure(outcome: Outcome, name: str) -> float:
    value = outcome.found[name]["value"]
    assert isinstance(value, int | float)
    return value


@pytest.mark.slow(5)
@pytest.mark.mosquitto
def test_check_of_a_complete_broker_passes_and_leaves_nothing_behind(
    make_broker: MakeBroker, make_link: Callable[..., Link], check: Check
) -> None:
    address = make_broker("mosquitto", f"{MOSQUITTO_SETTINGS}sys_interval 1\n").address
    outcome = check(address, "--devices", "20", "--fleet", "barn")
    assert outcome.code == 0, outcome.line
    assert list(outcome.found) == NAMES
    assert outcome.verdicts("ok") == set(NAMES)
    assert figure(outcome, "connections") == 20
    link = make_link(
        address, "looks", f"{Topics('barn').base}/#", "$SYS/broker/uptime", "$SYS/broker/clients/total"
    )
    ticks, clients = 0, b""
    while ticks < 3:  # the broker's figures are a second old at most
        event = link.receive(DEADLINE)
        assert isinstance(event, Message)
        assert event.topic.startswith("$SYS"), f"left behind: {event.topic}"
        ticks += event.topic.endswith("uptime")
        clients = event.payload if event.topic.endswith("total") else clients
    assert clients == b"1", "a session is left behind"


CRIPPLED = [
    ("retain_available false", 3, {"retained", "message-expiry", "last-will"}, set()),
    ("max_packet_size 10000", 3, {"packet-size"}, set()),
    ("max_packet_size 100000", 3, set(), {"packet-size"}),
    ("max_queued_messages 5", 3, {"queue"}, set()),
    ("max_inflight_messages 5", 3, set(), {"receive-maximum"}),
    ("max_qos 0", 3, {"mqtt-v5"}, set()),
]


@pytest.mark.mosquitto
@pytest.mark.parametrize(("setting", "devices", "missing", "limited"), CRIPPLED)
def test_features_missing_or_limited_in_mosquitto_are_reported(
    make_broker: MakeBroker, check: Check, setting: str, devices: int, missing: set[str], limited: set[str]
) -> None:
    name = setting.split(maxsplit=1)[0]
    kept = [line for line in MOSQUITTO_SETTINGS.splitlines() if line.split()[0] != name]
    outcome = check(
        make_broker("mosquitto", "\n".join([*kept, setting, ""])).address, "--devices", str(devices)
    )
    assert outcome.verdicts("missing") == missing
    assert outcome.verdicts("limited") == limited
    assert outcome.code == (ExitCode.REFUSED if missing else ExitCode.OK)
    assert all(name in outcome.line for name in missing)


@pytest.mark.mosquitto
def test_length_of_a_short_queue_is_measured(make_broker: MakeBroker, check: Check) -> None:
    outcome = check(make_broker("mosquitto", "allow_anonymous true\nmax_queued_messages 1200\n").address)
    assert figure(outcome, "queue") == 1200 + 20  # and those on their way, max_inflight_messages
    assert outcome.found["queue"]["needed"] == 16 * 100
    assert "max_queued_messages" in outcome.found["queue"]["found"]


@pytest.mark.mosquitto
def test_descriptor_limit_of_the_broker_is_reported_as_missing_connections(
    public_path: Path, check: Check
) -> None:
    address = BrokerAddress(HOST, free_port())
    settings = public_path / "broker" / "mosquitto.conf"
    settings.parent.mkdir()
    settings.write_text(f"listener {address.port} {HOST}\n{MOSQUITTO_SETTINGS}")
    with mosquitto(public_path, address.port, public_path / "log", limit=64):
        outcome = check(address, "--devices", "200")
    assert outcome.code == ExitCode.REFUSED
    assert outcome.verdicts("missing") == {"connections"}
    assert 40 <= figure(outcome, "connections") < 64
    assert "then the broker refused" in outcome.found["connections"]["found"]
    assert outcome.line == f"splitee: broker {address} lacks, for 200 devices: connections"


@pytest.mark.mosquitto
def test_full_broker_lacks_connections(make_broker: MakeBroker, check: Check) -> None:
    """Mosquitto 2.0.11 counts too few once a connection broke, and accepts more than its limit."""
    outcome = check(make_broker("mosquitto", f"{MOSQUITTO_SETTINGS}max_connections 10\n").address)
    assert outcome.code == ExitCode.REFUSED
    assert outcome.verdicts("missing") == {"connections"}
    assert figure(outcome, "connections") < 100


@pytest.mark.mosquitto
def test_descriptor_limit_of_this_machine_gives_no_verdict_on_connections(
    mosquitto_broker: RunningBroker,
) -> None:
    limited = 'ulimit -n 200 && exec "$@"'
    run = (sys.executable, "-m", "splitee", "broker", "check", "--broker", str(mosquitto_broker.address))
    done = subprocess.run(
        ["sh", "-c", limited, "sh", *run, "--devices", "150"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == ExitCode.CONFIG
    assert "unknown  connections" in done.stdout
    assert "ulimit -n" in done.stdout
    assert done.stderr.strip() == "splitee: --devices 150: this machine could not try connections"
    assert [line.split()[1] for line in done.stdout.splitlines()] == NAMES


def test_embedded_broker_is_limited_in_sessions_only(embedded_broker: RunningBroker, check: Check) -> None:
    outcome = check(embedded_broker.address, "--devices", "20")
    assert outcome.code == 0
    assert outcome.verdicts("limited") == {"session"}


@pytest.fixture
def ejabberd_broker(tmp_path: Path) -> Iterator[Ejabberd]:
    libraries = find_ejabberd()
    if libraries is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no ejabberd, and CI=true: install it (scripts/ensure_ejabberd.sh)")
        pytest.skip("no ejabberd (apt install ejabberd; it starts a service of its own)")
    with ejabberd(libraries, tmp_path) as broker:
        yield broker


@pytest.mark.slow(6)
def test_ejabberd_passes_over_tcp_and_websockets(ejabberd_broker: Ejabberd, check: Check) -> None:
    for address in (ejabberd_broker.tcp, ejabberd_broker.websockets):
        outcome = check(address, "--devices", "50")
        assert outcome.code == 0, outcome.found
        assert outcome.verdicts("missing") == set()
        assert figure(outcome, "connections") == 50


@contextmanager
def server(reply: Callable[[bytes], bytes | None]) -> Iterator[BrokerAddress]:
    """A server that is no broker: `reply` to the first bytes of each connection; None: it sends nothing."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve_one(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.settimeout(DEADLINE)
            sent = reply(connection.recv(65536))
            if sent is None:
                connection.recv(65536)
            else:
                connection.sendall(sent)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with listener:
        yield BrokerAddress("127.0.0.1", listener.getsockname()[1])


HTTP = b"HTTP/1.1 400 Bad Request\r\n\r\n"
STRANGERS = [
    (lambda _packet: None, ExitCode.UNREACHABLE, "no broker at"),
    (lambda _packet: HTTP, ExitCode.REFUSED, "is a web server"),
    (lambda _packet: b"\xff" * 8, ExitCode.REFUSED, "does not speak MQTT"),
]


@pytest.mark.parametrize(("reply", "code", "line"), STRANGERS, ids=["silent", "web", "garbage"])
def test_check_reports_a_server_that_is_no_broker_in_one_line(
    check: Check, reply: Callable[[bytes], bytes | None], code: ExitCode, line: str
) -> None:
    with server(reply) as address:
        outcome = check(address, "--connect-timeout", "1")
    assert (outcome.code, outcome.found) == (code, {})
    assert line in outcome.line


def test_broker_of_mqtt_311_lacks_v5_and_is_checked_no_further(check: Check) -> None:
    level = 8  # the byte of CONNECT that holds the protocol's version
    with server(lambda packet: bytes.fromhex("20020000" if packet[level] == 4 else "20020001")) as address:
        outcome = check(address)
    assert outcome.code == ExitCode.REFUSED
    assert list(outcome.found) == ["mqtt-v5"]
    assert "does not speak MQTT v5" in outcome.found["mqtt-v5"]["found"]


def flags(folder: Path) -> tuple[str, ...]:
    """The flags for an identity's folder."""
    files = ("--ca", folder / "ca.crt", "--cert", folder / "client.crt", "--key", folder / "client.key")
    return ("--fleet", FLEET, *map(str, files))


@pytest.mark.mosquitto
def test_shipped_configuration_passes_for_200_devices(fleet: Fleet, check: Check) -> None:
    settings = fleet.directory / "server" / "server.toml"
    outcome = check(None, "--config", str(settings), "--devices", "200")
    assert outcome.code == 0, outcome.line
    assert outcome.verdicts("ok") == set(NAMES)
    assert figure(outcome, "queue") == 16 * 200


@pytest.mark.mosquitto
@pytest.mark.parametrize("identity", ["viewer", "pi-1", "check"])
def test_check_is_refused_to_identities_other_than_the_server(
    fleet: Fleet, check: Check, identity: str
) -> None:
    """The topics of the checks are closed to a device called `check` too."""
    folder = fleet.directory / identity if identity == "viewer" else fleet.device(identity)
    outcome = check(fleet.address, *flags(folder))
    assert outcome.code == ExitCode.REFUSED
    assert list(outcome.found) == ["mqtt-v5", "access"]
    assert "not authorized" in outcome.found["access"]["found"]
    assert "--config server/server.toml" in outcome.found["access"]["found"]


@pytest.mark.slow(5)
@pytest.mark.mosquitto
def test_second_broker_from_the_same_folder_passes_the_check(
    fleet: Fleet, public_path: Path, check: Check
) -> None:
    """As in docs/how-to/broker-check.md, but on one machine: at another port."""
    port, state = free_port(), public_path / "state"
    subprocess.run(["cp", "-a", fleet.directory / "broker", public_path], check=True)  # with their owners
    settings = public_path / "broker" / "mosquitto.conf"
    text = settings.read_text().replace(f"listener {fleet.address.port}", f"listener {port}")
    text = text.replace(str(fleet.directory / "broker"), str(settings.parent))
    settings.write_text(text.replace(str(fleet.directory.parent / "state"), str(state)))
    state.mkdir(mode=0o777)
    state.chmod(0o777)
    open_to_all(public_path)
    with mosquitto(public_path, port, public_path / "log"):
        for address in (fleet.address, BrokerAddress(HOST, port, tls=True)):
            outcome = check(address, *flags(fleet.directory / "server"), "--devices", "20")
            assert outcome.code == 0, outcome.line


def test_documentation_lists_every_check() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "broker-check.md").read_text()
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")] == NAMES
