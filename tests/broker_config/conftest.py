# SPDX-License-Identifier: Apache-2.0
"""A fleet's authority, its certificates, and a real Mosquitto with the shipped production configuration."""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import warm
from click.testing import CliRunner, Result

from splitee.mqtt.address import BrokerAddress, TlsFiles
from splitee.mqtt.events import Connected
from splitee.mqtt.link import Link
from splitee_broker.authority import Authority, Role
from splitee_broker.commands.broker import broker
from splitee_broker.files import client_files, write_folder
from splitee_lab.local.brokers import find_mosquitto, free_port
from splitee_lab.local.forked import without_settings

HOST = "127.0.0.1"
DEADLINE = 10.0  # seconds
FLEET = "barn"


def run_broker(*arguments: str, directory: Path) -> Result:
    """`splitee broker ...` in this process; its exception, if any, in the result."""
    return CliRunner().invoke(broker, [*arguments, "--directory", str(directory)], standalone_mode=False)


@dataclass(frozen=True)
class Fleet:
    """A running broker and the directory of its authority."""

    directory: Path
    address: BrokerAddress
    pid: int
    log: Path

    def device(self, name: str) -> Path:
        """The folder of a device's files, created on first use."""
        folder = self.directory / "bundles" / name
        if not folder.exists():
            assert run_broker("add-device", name, "--folder", directory=self.directory).exception is None
        return folder

    def issue(self, name: str, days: int) -> Path:
        """The folder of a device whose certificate is valid for `days` from now; negative: it has expired."""
        with closing(Authority(self.directory / "authority")) as authority:
            identity = authority.issue(name, Role.DEVICE, days)
            folder = self.directory / "bundles" / name
            write_folder(folder, client_files(name, Role.DEVICE, identity, authority))
        return folder

    def reload(self) -> None:
        """Reload as `systemctl reload mosquitto` does; the broker may read its files a moment later."""
        os.kill(self.pid, signal.SIGHUP)


def files(folder: Path) -> TlsFiles:
    """The TLS files of one identity's folder."""
    return TlsFiles(folder / "ca.crt", folder / "client.crt", folder / "client.key")


@contextmanager
def mosquitto(directory: Path, port: int, log: Path, limit: int | None = None) -> Iterator[int]:
    """Mosquitto on the configuration of `splitee broker init`, accepting connections; yields its process id.

    `limit`: of its file descriptors; None: that of the shipped unit.
    """
    program = find_mosquitto()
    assert program is not None
    with log.open("wb") as output:
        limited = ["sh", "-c", f'ulimit -n {limit or descriptors()} && exec "$@"', "sh"]
        command = [*limited, program, "-c", str(directory / "broker" / "mosquitto.conf")]
        process = subprocess.Popen(command, stderr=output)
    try:
        until = time.monotonic() + DEADLINE
        while True:
            assert process.poll() is None, log.read_text()
            try:
                socket.create_connection((HOST, port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait(DEADLINE)


def descriptors() -> int:
    """The shipped unit's limit of file descriptors, or this process's hard limit if that is lower."""
    unit = (Path(__file__).parents[2] / "broker_config" / "splitee-broker.service").read_text()
    found = re.search(r"(?m)^LimitNOFILE=(\d+)$", unit)
    assert found is not None
    hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return int(found[1]) if hard_limit == resource.RLIM_INFINITY else min(int(found[1]), hard_limit)


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """One fleet per module, in a folder that the broker's account may enter, unlike pytest's own."""
    with TemporaryDirectory(prefix="splitee-broker-") as folder:
        root, port = Path(folder), free_port()
        root.chmod(0o755)
        state = root / "state"
        state.mkdir()
        state.chmod(0o777)
        made = run_broker(
            *("init", "--fleet", FLEET, "--name", HOST, "--port", str(port), "--broker-state", str(state)),
            directory=root / "splitee",
        )
        assert made.exception is None, made.exception
        log = root / "mosquitto.log"
        with mosquitto(root / "splitee", port, log) as pid:
            yield Fleet(root / "splitee", BrokerAddress(HOST, port, tls=True), pid, log)


@pytest.fixture
def connect(fleet: Fleet) -> Iterator[Callable[..., Link]]:
    """`connect(folder, *filters)`: a link with that identity, connected and subscribed."""
    with ExitStack() as stack:

        def make(folder: Path, *filters: str, client_id: str = "") -> Link:
            link = Link(fleet.address, client_id or folder.name, tls=files(folder))
            link.subscribe(*filters)
            stack.callback(link.close)
            link.open(DEADLINE)
            assert link.receive(DEADLINE) == Connected(fresh=True)
            return link

        yield make


def splitee_device(name: str, *flags: str, state: Path) -> subprocess.CompletedProcess[str]:
    """A real `splitee device` process, which must end by itself."""
    own = ("--id", name, "--state", state, "--data", "builtin:fashion-mnist")
    return warm.run("device", *own, *flags, environment=without_settings())
