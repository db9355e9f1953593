# SPDX-License-Identifier: Apache-2.0
"""What does `splitee page` cost if each of 1,000 devices sends its status once per second?

    python -m benchmarks.page_load [--devices 1000] [--browsers 1] [--seconds 30]

A process publishes synthetic statuses, with traffic and step like those of devices that train, on a real
Mosquitto. A real `splitee page` receives them, and `--browsers` clients read its event stream. Prints one
JSON line: CPU seconds per second of the page's process, its resident memory, and bytes per second to each
browser. Exits with 1 if, with one browser, the page would need more than 0.2 of a core for one status per
second and device. This is scaled from the rate of statuses that the machine reached.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import click
import psutil

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.link import Link
from splitee.protocol.fleet import Capability, CutCost, DeviceStatus, Profile, ServerStatus
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_lab.local.brokers import mosquitto

FLEET = "page-load"
TOPICS = Topics(FLEET)
MOST = 0.2  # CPU seconds per second, with one browser
WARM_UP = 5.0  # seconds
ROW = b'"id":"'
CUTS = tuple(
    CutCost(cut=cut, seconds=0.1 * cut, bytes=65536, memory=1 << 28, fits=True) for cut in range(1, 10)
)
CAPABILITY = Capability(
    network="resnet18",
    batch_size=32,
    codec="fp16",
    machine="Raspberry Pi 4 Model B Rev 1.4",
    cores=4,
    threads=4,
    memory=1 << 30,
    upload=1e6,
    round_trip=0.02,
    reason="the deepest that fits; its round takes 20 s",
    cuts=CUTS,
)


def publish(address: str, devices: int) -> None:
    """Publish the messages of a training fleet; does not return."""
    with closing(Link(BrokerAddress.parse(address), "page-load-devices")) as link:
        link.open(10)
        run = RunSpec(protocol=1, run="r1", network="resnet18", num_classes=10, rounds=100)
        opened = RoundOpen(run="r1", round=1, attempt=1, phase="train", participants=devices)
        link.publish(TOPICS.run, run.encode(), retain=True)
        link.publish(TOPICS.round, opened.encode(), retain=True)
        ids = [f"device-{number:05}" for number in range(devices)]
        for device in ids:
            profile = Profile(
                protocol=1,
                instance=1,
                version="0.1.0",
                cut=3,
                class_names=("a", "b"),
                train_samples=2000,
                held_out_samples=400,
                capability=CAPABILITY,
            )
            link.publish(TOPICS.device(device, "profile"), profile.encode(), retain=True)
        began = time.monotonic()
        for turn in range(1 << 30):
            server = ServerStatus(state="online", instance=1, run="r1", doing="training", time=time.time())
            link.publish(TOPICS.server_status, server.encode(), retain=True)
            for index, device in enumerate(ids):
                link.publish(TOPICS.device(device, "status"), status(turn).encode(), retain=True)
                ahead = began + turn + (index + 1) / devices - time.monotonic()
                if ahead > 0:
                    time.sleep(ahead)


def status(turn: int) -> DeviceStatus:
    up = ByPurpose(training=70_000 * turn, protocol=300 * turn, headers=90 * turn)
    down = ByPurpose(protocol=100 * turn, headers=40 * turn)
    return DeviceStatus(
        state="online",
        instance=1,
        doing="training",
        round=1,
        step=turn,
        steps=1 << 20,
        loss=2.0 / (1 + turn),
        batches=turn,
        bytes=70_000 * turn,
        temperature=50.0 + turn % 10,
        time=time.time(),
        traffic=Traffic(up=up, down=down),
        memory=(300 << 20) + (turn % 5 << 12),
        memory_limit=1 << 30,
    )


@contextmanager
def page(address: str) -> Iterator[tuple[psutil.Process, str]]:
    command = [sys.executable, "-m", "splitee", "page", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(
        [*command, "--broker", address, "--fleet", FLEET], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield psutil.Process(process.pid), process.stdout.readline().split()[-1]
        finally:
            process.terminate()


class Browser:
    """Reads the page's event stream, and counts its bytes and its devices' rows."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "", parts.port or 0))
        self._socket.sendall(f"GET /events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        self.bytes = self.rows = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while data := self._socket.recv(1 << 20):
            self.bytes += len(data)
            self.rows += data.count(ROW)


def cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@click.command()
@click.option("--devices", type=click.IntRange(1, 10_000), default=1000, show_default=True)
@click.option("--browsers", type=click.IntRange(1, 50), default=1, show_default=True)
@click.option("--seconds", type=click.FloatRange(1), default=30.0, show_default=True)
def main(devices: int, browsers: int, seconds: float) -> None:
    """Measure the CPU time and memory of `splitee page` under load."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(mosquitto(folder))
        fleet = multiprocessing.Process(target=publish, args=(str(broker.address), devices), daemon=True)
        fleet.start()
        stack.callback(fleet.terminate)
        process, url = stack.enter_context(page(str(broker.address)))
        time.sleep(WARM_UP)
        readers = [Browser(url) for _ in range(browsers)]
        time.sleep(WARM_UP)
        before, began = cpu(process), time.monotonic()
        earlier = [(reader.bytes, reader.rows) for reader in readers]
        time.sleep(seconds)
        elapsed = time.monotonic() - began
        share = (cpu(process) - before) / elapsed
        received = [
            (reader.bytes - b, reader.rows - r) for reader, (b, r) in zip(readers, earlier, strict=True)
        ]
        rate = max(rows for _, rows in received) / elapsed
        figures = {
            "devices": devices,
            "browsers": browsers,
            "cpu_seconds_a_second": round(share, 3),
            "cpu_microseconds_a_status": round(1e6 * share / rate) if rate else None,
            "resident_bytes": process.memory_info().rss,
            "bytes_a_second_a_browser": [round(count / elapsed) for count, _ in received],
            "statuses_a_second_a_browser": [round(rows / elapsed) for _, rows in received],
        }
    click.echo(json.dumps(figures))
    if not rate:
        raise SystemExit("no browser has received a status")
    if browsers == 1 and share / rate * devices > MOST:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
