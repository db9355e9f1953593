# SPDX-License-Identifier: Apache-2.0
"""What does the link cost per message, compared with plain paho-mqtt? CPU time to receive and to publish.

    python -m benchmarks.link_cost [--messages 5000] [--turns 7]

Messages of 8 KB at QoS 1 go from one process through a real Mosquitto to another. In turns the receiver, and
then the publisher, is either paho with a counting callback, or the link with a receiving thread and a
device's meter. The CPU time of all threads of that process counts, from the first message to the last. Each
turn of the link is divided by the neighbouring turn of paho, and the median of these ratios counts.
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
MOST = 1.2  # times what paho takes
LONGEST = 120.0  # seconds of a turn

Role = Callable[[str, int, Connection], None]


def paho_client(address: str) -> Client:
    """A client as paho's documentation has it, connected, with its network thread."""
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
    began = time.process_time()
    for _ in range(messages):
        slots.acquire()
        client.publish(TOPIC, payload, qos=1)
    for _ in range(IN_FLIGHT):
        slots.acquire()
    parent.send(time.process_time() - began)
    client.disconnect()


def publish_with_link(address: str, messages: int, parent: Connection) -> None:
    payload = bytes(SIZE)
    with closing(Link(BrokerAddress.parse(address), "link-cost-publisher")) as link:
        link.meter = DeviceMeter(Topics("link-cost"))
        link.open(LONGEST)
        parent.send("ready")
        parent.recv()
        began = time.process_time()
        for _ in range(messages):
            link.publish(TOPIC, payload)
        link.flush(LONGEST)
        parent.send(time.process_time() - began)


class Received:
    """Counts messages, and the CPU seconds of this process from the first of them to the last."""

    def __init__(self, expected: int) -> None:
        self._left = expected
        self._began: float | None = None
        self.cpu = 0.0

    def count(self, payload: bytes | bytearray) -> bool:
        """True: that was the last."""
        if self._began is None:
            self._began = time.process_time()
        assert len(payload) == SIZE
        self._left -= 1
        if self._left == 0:
            self.cpu = time.process_time() - self._began
        return self._left == 0


def turn(address: str, messages: int, receive: Role, publish: Role) -> tuple[float, float]:
    """CPU microseconds a message of the process that receives and of the one that publishes."""
    context = multiprocessing.get_context("spawn")
    processes, ends = [], []
    for role in (receive, publish):
        here, there = context.Pipe()
        process = context.Process(target=role, args=(address, messages, there), daemon=True)
        process.start()
        processes.append(process)
        ends.append(here)
        if here.recv() != "ready":
            raise RuntimeError("expected it to be ready")
    ends[1].send("go")
    if not all(end.poll(LONGEST) for end in ends):
        raise click.ClickException(f"no end of {messages} messages within {LONGEST:.0f} s")
    cpu = [end.recv() for end in ends]
    for process in processes:
        process.join(LONGEST)
    return cpu[0] / messages * 1e6, cpu[1] / messages * 1e6


@click.command()
@click.option("--messages", default=5000, show_default=True, type=click.IntRange(min=100), help="In a turn.")
@click.option("--turns", default=7, show_default=True, type=click.IntRange(min=1))
def main(messages: int, turns: int) -> None:
    """Measure the link's CPU a message beside paho's."""
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
        ratios = [ours / theirs for ours, theirs in zip(costs["link"], costs["paho"], strict=True)]
        report[name] = {side: round(median(values), 1) for side, values in costs.items()}
        report[name] |= {"ratio": round(median(ratios), 3), "ratios": [round(ratio, 2) for ratio in ratios]}
    click.echo(json.dumps(report))
    sys.exit(any(report[name]["ratio"] > MOST for name in ("receive", "publish")))


if __name__ == "__main__":
    main()
