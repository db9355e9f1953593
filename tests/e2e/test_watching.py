# SPDX-License-Identifier: Apache-2.0
"""A fleet that people watch by Prometheus, Home Assistant and TensorBoard, through a death of the server."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from event_files import curves
from fleets import Fleet
from prometheus_client.parser import text_string_to_metric_families

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import Metrics
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker, free_port

LONG = 120.0  # seconds
ROUNDS = 6
PREFIX = "watched-home"
TOPICS = Topics("watched")

Figures = dict[tuple[str, ...], float]


def scrape(port: int) -> Figures:
    """{(name, values of the labels...): value}; empty while no server runs."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
    except URLError:
        return {}
    found = (sample for family in families for sample in family.samples)
    return {(sample.name, *sample.labels.values()): sample.value for sample in found}


def scrape_until(port: int, condition: Callable[[Figures], bool]) -> Figures:
    deadline = time.monotonic() + LONG
    while not condition(figures := scrape(port)):
        assert time.monotonic() < deadline, figures
        time.sleep(0.05)
    return figures


@pytest.mark.mosquitto
def test_monitoring_follows_a_fleet_through_a_death_of_the_server(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], tmp_path: Path
) -> None:
    port, folder = free_port(), tmp_path / "curves"
    flags = ("--metrics-port", str(port), "--tensorboard", str(folder))
    home = ("--home-assistant", "--home-assistant-prefix", PREFIX)
    view = FleetView(TOPICS.fleet)
    listener = make_link(mosquitto_broker.address, "watches", *view.filters, f"{PREFIX}/#")
    announced: dict[str, bytes] = {}
    evaluated: list[Metrics] = []

    def receive(patience: float) -> bool:
        event = listener.receive(patience)
        if isinstance(event, Message) and not event.topic.startswith(PREFIX):
            view.take(event, time.time())
            metrics = view.snapshot().metrics
            if event.topic == TOPICS.metrics and metrics is not None:
                evaluated.append(metrics)
        elif isinstance(event, Message):
            announced[event.topic] = event.payload
        return event is not None

    with Fleet(str(mosquitto_broker.address), TOPICS.fleet, tmp_path) as fleet:
        fleet.server(*flags, *home, devices=2, rounds=ROUNDS)
        fleet.device("pi-1", 1, shard="1/2")
        fleet.device("pi-2", 3, shard="2/2")
        while not evaluated:
            assert receive(LONG), fleet.log("server")
        os.kill(fleet.processes["pi-2"].pid, signal.SIGSTOP)
        waits = ("splitee_device_waited_for", "pi-2")
        figures = scrape_until(port, lambda found: waits in found and found[("splitee_waiting_seconds",)] > 2)
        while receive(0) or not view.snapshot().waiting:  # it comes with the server's heartbeat
            receive(1.0)
        committed = int(figures[("splitee_rounds_committed",)])
        assert 1 <= committed < ROUNDS
        assert (figures[("splitee_rounds",)], figures[("splitee_devices_waited_for",)]) == (ROUNDS, 1)
        snapshot = view.snapshot()
        (waited,) = snapshot.waiting
        assert waited.device == "pi-2"
        assert waited.since == pytest.approx(time.time(), abs=LONG)
        assert snapshot.opened is not None and snapshot.opened <= waited.since
        assert snapshot.estimate is not None and snapshot.estimate > snapshot.opened
        assert figures[("splitee_run_end_timestamp_seconds",)] == pytest.approx(time.time(), abs=LONG)
        spent = snapshot.seconds
        assert spent is not None
        assert figures[("splitee_round_seconds", "training")] == spent.training > 0
        assert spent.commit > 0 and spent.evaluation > 0
        for seen in snapshot.devices:
            assert seen.memory is not None and seen.memory_limit is not None
            memory = figures[("splitee_device_memory_bytes", seen.id)]
            assert 1 << 20 < memory < figures[("splitee_device_memory_limit_bytes", seen.id)]
        last = evaluated[-1]
        for device, values in last.devices.items():
            assert figures[("splitee_device_exit_accuracy_ratio", device)] == values.exit_accuracy
            assert figures[("splitee_device_trunk_loss", device)] == values.trunk_loss
            of_device = ("splitee_device_bytes_total", device, "up")
            up = {of[-1]: count for of, count in figures.items() if of[:3] == of_device}
            assert up["training"] > 0 and up["evaluation"] > 0
            assert sum(up.values()) - up["headers"] >= values.bytes
        assert figures[("splitee_trained_batches_total",)] >= last.batches_trained
        sent = sum(values.bytes for values in last.devices.values())
        assert figures[("splitee_received_bytes_total",)] > sent > 0
        assert figures[("splitee_rejected_messages_total", "malformed")] == 0
        assert set(announced) == {TOPICS.discovery(PREFIX, device) for device in ("pi-1", "pi-2")}
        for payload in announced.values():
            said = json.loads(payload)
            topic = TOPICS.device(said["device"]["name"], "metrics")
            assert said["components"]["accuracy"]["state_topic"] == topic

        fleet.processes["server"].kill()
        fleet.processes["server"].wait()
        fleet.server(*flags, devices=2, rounds=ROUNDS)  # without Home Assistant
        resumed = scrape_until(port, lambda found: ("splitee_rounds_committed",) in found)
        assert resumed[("splitee_rounds_committed",)] >= committed
        os.kill(fleet.processes["pi-2"].pid, signal.SIGCONT)
        assert fleet.wait(timeout=LONG) == [0, 0, 0], fleet.log("server")
        while receive(0.5):
            pass
    snapshot = view.snapshot()
    rounds = list(range(1, ROUNDS + 1))
    assert [point.round for point in snapshot.history] == rounds, "those before the server's death, too"
    assert snapshot.confusion is not None and snapshot.metrics is not None
    assert sum(map(sum, snapshot.confusion.counts)) == snapshot.metrics.fleet.images > 0
    assert [stage.name for stage in snapshot.network_stages][2] == last.devices["pi-2"].stage
    for seen in snapshot.devices:
        assert [point.round for point in seen.history] == rounds
        assert seen.confusion is not None and sum(map(sum, seen.confusion.counts)) == seen.held_out_samples
    assert snapshot.malformed == 0
    assert set(announced.values()) == {b""}, "taken back"
    assert scrape(port) == {}
    (run,) = folder.iterdir()
    found = curves(run)
    assert sorted(found) == ["cut-1", "cut-1/pi-1", "cut-3", "cut-3/pi-2", "fleet"]
    for of_folder in found.values():
        assert [step for step, _ in of_folder["accuracy/exit"]] == list(range(1, ROUNDS + 1))
    accuracies = [
        (e.round, e.devices["pi-2"].exit_accuracy) for e in {e.round: e for e in evaluated}.values()
    ]
    assert found["cut-3/pi-2"]["accuracy/exit"] == [(n, pytest.approx(value)) for n, value in accuracies]
