# SPDX-License-Identifier: Apache-2.0
"""A stranger's connections to a real Mosquitto with the shipped configuration."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from splitee.mqtt.link import Link
from splitee.protocol.topics import Topics

from .conftest import DEADLINE, FLEET, Fleet

pytestmark = pytest.mark.mosquitto

BARE = 1100
# A process of its own, as it holds more descriptors than paho's select() takes.
STRANGER = """
import resource, socket, sys, time
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
address, count = ("127.0.0.1", int(sys.argv[1])), int(sys.argv[2])
held = []
for _ in range(count):
    held.append(socket.create_connection(address, timeout=10))
    time.sleep(0.001)  # a full backlog is tried again after whole seconds
print(len(held), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow(10)
def test_devices_connect_while_a_stranger_holds_many_bare_connections(
    fleet: Fleet, connect: Callable[..., Link]
) -> None:
    topic = Topics(FLEET).device("pi-1", "echo")
    command = [sys.executable, "-c", STRANGER, str(fleet.address.port), str(BARE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == f"{BARE}\n"
        for number in range(3):
            link = connect(fleet.device("pi-1"), topic, client_id=f"honest-{number}")
            link.publish(topic, b"x")
            assert link.receive(DEADLINE) is not None
        stranger.communicate()
    assert stranger.returncode == 0
