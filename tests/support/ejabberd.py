# SPDX-License-Identifier: Apache-2.0
"""ejabberd, from Debian's package, as an MQTT v5 broker besides Mosquitto."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitee.mqtt.address import BrokerAddress
from splitee_lab.local.brokers import HOST, free_port

LIBRARIES = Path("/usr/lib")
START_LIMIT = 120.0  # seconds
# It requires an account; with these settings any name and password will do.
SETTINGS = """\
loglevel: warning
hosts: [localhost]
auth_method: anonymous
anonymous_protocol: login_anon
allow_multiple_connections: true
listen:
  - {{port: {tcp}, ip: "127.0.0.1", module: mod_mqtt, max_payload_size: 2097152}}
  - {{port: {websockets}, ip: "127.0.0.1", module: ejabberd_http, request_handlers: {{/mqtt: mod_mqtt}}}}
modules:
  mod_mqtt:
    access_publish: {{"#": [allow]}}
    access_subscribe: {{"#": [allow]}}
    max_queue: 10000
"""


@dataclass(frozen=True)
class Ejabberd:
    tcp: BrokerAddress
    websockets: BrokerAddress


def find_ejabberd() -> Path | None:
    """The folder of its Erlang libraries; None: it is not installed."""
    found = next(iter(sorted(LIBRARIES.glob("*/ejabberd-*/ebin/mod_mqtt.beam"))), None)
    return None if found is None or shutil.which("erl") is None else found.parents[2]


@contextmanager
def ejabberd(libraries: Path, directory: Path) -> Iterator[Ejabberd]:
    tcp, websockets = free_port(), free_port()
    settings = directory / "ejabberd.yml"
    settings.write_text(SETTINGS.format(tcp=tcp, websockets=websockets))
    environment = {
        **os.environ,
        "ERL_LIBS": str(libraries),
        "ERL_CRASH_DUMP_BYTES": "0",
        "EJABBERD_CONFIG_PATH": str(settings),
        "EJABBERD_LOG_PATH": str(directory / "ejabberd.log"),
    }
    command = ["erl", "-noinput", "-mnesia", "dir", f'"{directory / "mnesia"}"', "-s", "ejabberd"]
    with (directory / "ejabberd.out").open("wb") as out:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=directory
        )
    try:
        for port in (tcp, websockets):
            _wait_until_it_accepts(process, port, directory)
        account = {"username": "anybody", "password": "x"}
        yield Ejabberd(
            BrokerAddress(HOST, tcp, **account), BrokerAddress(HOST, websockets, path="/mqtt", **account)
        )
    finally:
        process.kill()
        process.wait()


def _wait_until_it_accepts(process: subprocess.Popen[bytes], port: int, directory: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection((HOST, port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"ejabberd accepts nothing: {(directory / 'ejabberd.out').read_text()[-2000:]}")
