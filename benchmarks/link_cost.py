# SPDX-License-Identifier: Apache-2.0
"""The CPU time of the link to receive or publish a message, compared with that of plain paho-mqtt.

    python -m benchmarks.link_cost [--messages 5000] [--turns 7]

One process sends messages of 8 KB at QoS 1 through a real Mosquitto to another. The receiver, and then the
publisher, is alternately plain paho or the link with a device's meter. The CPU time of all threads of that
process is measured, from the first message to the last. Each turn of the link is divided by the turn of paho
before it, and the median of these ratios counts.
Prints one JSON line, and exits with 1 if a ratio is above 1.2.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import click
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Message
from splitee.mqtt.in_flight import IN_FLIGHT
from splitee.mqtt.link import Link
from splitee.protocol.device_meter import DeviceMeter
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import mosquitto

TOPIC = "splitee/link-cost/messages"
SIZE = 8192  # bytes
MOST = 1.2  # CPU time, relative to paho's
LONGEST = 120.0  # seconds that a turn may take

Role = Callable[[str, int, Connection], None]


def paho_client(address: str) -> Client:
    """A connected client with a network thread, as in paho's documentation."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(IN_FLIGHT)
    broker = BrokerAddress.parse(address)
    client.connect(broker.host, broker.port)
    client.loop_start()
    return client


def receive_with_paho(address: str, messages: int, parent: Connection) -> None:
    received = Received(messages)
    finished, subscribed = threading.Event(), threading.Event()

    def on_message(_client: Client, _data: Any, message: MQTTMessage) -> None:
        if received.count(message.payload):
            finished.set()

    client = paho_client(address)
    client.on_message = on_message
    client.on_subscribe = lambda *_: subscribed.set()
    client.subscribe(TOPIC, qos=1)
    subscribed.wait(LONGEST)
    parent.send("ready")
    finished.wait(LONGEST)
    parent.send(received.cpu)


def receive_with_link(address: str, messages: int, parent: Connection) -> None:
    received = Received(messages)
    with closing(Link(BrokerAddress.parse(address), "link-cost-receiver")) as link:
        link.meter = DeviceMeter(Topics("link-cost"))
        link.subscribe(TOPIC)
        link.open(LONGEST)
        parent.send("ready")
        while (event := link.receive(LONGEST)) is not None:
            if isinstance(event, Message) and received.count(event.payload):
                break
        parent.send(received.cpu)


def publish_with_paho(address: str, messages: int, parent: Connection) -> None:
    client, payload = paho_client(address), bytes(SIZE)
    slots = threading.Semaphore(IN_FLIGHT)
    client.on_publish = lambda *_: slots.release()
    parent.send("ready")
    parent.recv()
    started = time.process_time()
    for _ in range(messages):
        slots.acquire()
        client.publish(TOPIC, payload, qos=1)
    for _ in range(IN_FLIGHT):
        slots.acquire()
    parent.send(time.process_time() - started)
    client.disconnect()


def publish_with_link(address: str, messages: int, parent: Connection) -> None:
    payload = bytes(SIZE)
    with closing(Link(BrokerAddress.parse(address), "link-cost-publisher")) as link:
        link.meter = DeviceMeter(Topics("link-cost"))
        link.open(LONGEST)
        parent.send("ready")
        parent.recv()
        started = time.process_time()
        for _ in range(messages):
            link.publish(TOPIC, payload)
        link.flush(LONGEST)
        parent.send(time.process_time() - started)


class Received:
    """Counts received messages; `cpu`: CPU seconds of this process from the first to the last."""

    def __init__(self, expected: int) -> None:
        self._left = expected
        self._began: float | None = None
        self.cpu = 0.0

    def count(self, payload: bytes | bytearray) -> bool:
        """Count a message; return whether it was the last."""
        if self._began is None:
            self._began = time.process_time()
        assert len(payload) == SIZE
        self._left -= 1
        if self._left == 0:
            self.cpu = time.process_time() - self._began
        return self._left == 0


def turn(address: str, messages: int, receive: Role, publish: Role) -> tuple[float, float]:
    """CPU microseconds per message of the receiving and of the publishing process."""
    context = multiprocessing.get_context("spawn")
    processes, ends = [], []
    for role in (receive, publish):
        parent_end, child_end = context.Pipe()
        process = context.Process(target=role, args=(address, messages, child_end), daemon=True)
        process.start()
        processes.append(process)
        ends.append(parent_end)
        if parent_end.recv() != "ready":
            raise RuntimeError("the process did not report that it is ready")
    ends[1].send("go")
    if not all(end.poll(LONGEST) for end in ends):
        raise click.ClickException(f"{messages} messages took longer than {LONGEST:.0f} s")
    cpu = [end.recv() for end in ends]
    for process in processes:
        process.join(LONGEST)
    return cpu[0] / messages * 1e6, cpu[1] / messages * 1e6


@click.command()
@click.option("--messages", default=5000, show_default=True, type=click.IntRange(min=100), help="Per turn.")
@click.option("--turns", default=7, show_default=True, type=click.IntRange(min=1))
def main(messages: int, turns: int) -> None:
    """Measure the link's CPU time per message, relative to paho's."""
    received: dict[str, list[float]] = {"paho": [], "link": []}
    published: dict[str, list[float]] = {"paho": [], "link": []}
    with tempfile.TemporaryDirectory() as directory, mosquitto(Path(directory)) as broker:
        address = str(broker.address)
        for _ in range(turns):
            received["paho"].append(turn(address, messages, receive_with_paho, publish_with_paho)[0])
            received["link"].append(turn(address, messages, receive_with_link, publish_with_paho)[0])
            published["paho"].append(turn(address, messages, receive_with_paho, publish_with_paho)[1])
            published["link"].append(turn(address, messages, receive_with_paho, publish_with_link)[1])
    report: dict[str, Any] = {"messages": messages, "turns": turns, "most": MOST}
    for name, costs in (("receive", received), ("publish", published)):
        ratios = [link / paho for link, paho in zip(costs["link"], costs["paho"], strict=True)]
        report[name] = {side: round(median(values), 1) for side, values in costs.items()}
        report[name] |= {"ratio": round(median(ratios), 3), "ratios": [round(ratio, 2) for ratio in ratios]}
    click.echo(json.dumps(report))
    sys.exit(any(report[name]["ratio"] > MOST for name in ("receive", "publish")))


if __name__ == "__main__":
    main()
