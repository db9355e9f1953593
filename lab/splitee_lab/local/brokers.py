# SPDX-License-Identifier: Apache-2.0
"""Brokers for work on one machine: Mosquitto or the embedded iotcore on loopback, or a running one."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from splitee.errors import ChildFailed, ConfigError, ExtraMissing
from splitee.mqtt.address import BrokerAddress
from splitee.suggestions import did_you_mean

HOST = "127.0.0.1"
UNASSIGNED_PORTS = range(10_000, 32_768)  # below Linux's own, net.ipv4.ip_local_port_range
START_LIMIT = 10.0  # seconds until a broker must accept connections

# broker_config/mosquitto-dev.conf without its listener: an installed package has no such folder.
MOSQUITTO_SETTINGS = """\
allow_anonymous true
persistence false
max_packet_size 2097152
max_inflight_messages 20
max_inflight_bytes 67108864
max_queued_messages 10000
max_queued_bytes 536870912
memory_limit 1073741824
persistent_client_expiration 1h
set_tcp_nodelay true
connection_messages false
log_dest stderr
log_type error
log_type warning
log_type notice
"""

# rumqttd keeps a log of segments in memory for each topic filter; a reader further behind than all of them
# (128 MiB here) misses what they held.
EMBEDDED_SETTINGS = """\
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 16777216
max_segment_count = 8

[v5.1]
name = "loopback"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 16777216
max_inflight_count = 20
"""


@dataclass(frozen=True)
class RunningBroker:
    """A broker that accepts connections; `process` is None if this program has not started it."""

    kind: str
    address: BrokerAddress
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    log: Path | None = None

    @property
    def pid(self) -> int | None:
        return None if self.process is None else self.process.pid

    def check(self) -> None:
        """Raises ChildFailed, with the last lines of its log, if the broker has died."""
        if self.process is not None and (status := self.process.poll()) is not None:
            raise ChildFailed(f"the {self.kind} broker ended with status {status}: {self._log_tail()}")

    def _log_tail(self) -> str:
        lines = [] if self.log is None else self.log.read_text(errors="replace").strip().splitlines()
        return "; ".join(lines[-2:]) or "its log is empty"


class RestartableBroker:
    """A broker that can be killed and started again on the same port."""

    def __init__(
        self, kind: str, directory: Path, settings: str = MOSQUITTO_SETTINGS, port: int | None = None
    ) -> None:
        self._start = partial(mosquitto, settings=settings) if kind == "mosquitto" else embedded
        self._directory = directory
        self._port = port or free_port()
        self._running = ExitStack()
        self.address = BrokerAddress(HOST, self._port)
        self.broker: RunningBroker | None = None

    def start(self) -> RunningBroker:
        self.broker = self._running.enter_context(self._start(self._directory, self._port))
        return self.broker

    def kill(self) -> None:
        """SIGKILL: nothing is saved, no connection is closed in order."""
        if self.broker is not None and self.broker.process is not None:
            self.broker.process.kill()
            self.broker.process.wait()

    def stop(self) -> None:
        self._running.close()


def find_mosquitto() -> str | None:
    """The program's path; Debian installs it outside a user's PATH."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def mosquitto(
    directory: Path, port: int | None = None, settings: str = MOSQUITTO_SETTINGS
) -> Iterator[RunningBroker]:
    """Mosquitto on 127.0.0.1, on a free port unless one is given; its log and settings go to `directory`."""
    program = find_mosquitto()
    if program is None:
        raise ConfigError(
            "no mosquitto on PATH: install it (apt install mosquitto), or choose --broker embedded"
        )
    port = port or free_port()
    config = directory / f"mosquitto-{port}.conf"
    config.write_text(f"listener {port} {HOST}\n{settings}")
    with _running("mosquitto", [program, "-c", str(config)], directory, port) as broker:
        yield broker


@contextmanager
def embedded(directory: Path, port: int | None = None) -> Iterator[RunningBroker]:
    """iotcore (rumqttd) in a process of its own on 127.0.0.1: a demo's broker that installs with pip.

    It gives a demo what it needs, not a fleet: it forgets a session's expiry, and a reader that falls far
    behind misses messages.
    """
    if find_spec("iotcore") is None:
        raise ExtraMissing(
            "the embedded broker needs iotcore: pip install 'hetero-splitee[lab]', or use Mosquitto"
        )
    port = port or free_port()
    config = directory / f"embedded-{port}.toml"
    config.write_text(EMBEDDED_SETTINGS.format(port=port))
    # rumqttd logs every packet as an error; real errors are raised as Python exceptions.
    command = [sys.executable, "-P", "-m", "iotcore", "--config", str(config), "--log-level", "CRITICAL"]
    with _running("embedded", command, directory, port) as broker:
        yield broker


def open_broker(choice: str, directory: Path) -> AbstractContextManager[RunningBroker]:
    """The broker for `auto` (Mosquitto if there, else embedded), `mosquitto`, `embedded` or an address."""
    if choice == "mosquitto" or (choice == "auto" and find_mosquitto()):
        return mosquitto(directory)
    if choice in ("auto", "embedded"):
        return embedded(directory)
    if "://" not in choice:
        raise ConfigError(
            f"--broker {choice}: expected auto, mosquitto, embedded or an address such as mqtt://HOST:PORT"
            + did_you_mean(choice, ("mosquitto", "embedded"))
        )
    return nullcontext(RunningBroker("external", BrokerAddress.parse(choice)))


@contextmanager
def _running(kind: str, command: list[str], directory: Path, port: int) -> Iterator[RunningBroker]:
    _check_that_it_is_free(port)
    path = directory / f"{kind}-{port}.log"
    with path.open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    broker = RunningBroker(kind, BrokerAddress(HOST, port), process, path)
    try:
        _wait_until_it_accepts(broker)
        yield broker
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_accepts(broker: RunningBroker) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        broker.check()
        try:
            socket.create_connection((broker.address.host, broker.address.port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise ChildFailed(
        f"the {broker.kind} broker accepts nothing on {broker.address} after {START_LIMIT:.0f} s"
    )


def _check_that_it_is_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as brokers do: a restart needs no wait
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"cannot start a broker on {HOST}:{port}: {error.strerror}") from None


def free_port() -> int:
    """A port without a listener, outside the range that the system gives to outgoing connections.

    A client that tries a port of that range before the broker listens may get the same port for its own end,
    and is then connected to itself.
    """
    for port in random.SystemRandom().sample(UNASSIGNED_PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise ConfigError(f"no free port on {HOST} between {UNASSIGNED_PORTS[0]} and {UNASSIGNED_PORTS[-1]}")
