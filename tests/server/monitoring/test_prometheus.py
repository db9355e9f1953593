# SPDX-License-Identifier: Apache-2.0
"""/metrics: content of a scrape, bounds on its size, and agreement with the documentation."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import pytest
from commands import call
from fakes import FakeClock
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from retained_fleet import rollout

from splitee.errors import ConfigError, ExitCode
from splitee.protocol.accuracies import ClassRecall
from splitee.protocol.fleet import DeviceMetrics, DeviceStatus, FleetMetrics, Metrics, RoundSeconds
from splitee.protocol.rollouts import MOST_ROLLOUTS, MOST_WAVES, Rollouts, Wave
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_lab.local.brokers import free_port
from splitee_server.monitoring.prometheus import DEVICES, Figures, serving
from splitee_server.rounds.progress import DeviceSnapshot, Progress, RunProgress, Trained

CERTIFICATE_END = datetime(2031, 11, 27, tzinfo=UTC)
HOST = "127.0.0.1"
METRICS = (Path(__file__).parents[3] / "docs" / "reference" / "metrics.md").read_text()
SPEC = RunSpec(protocol=1, run="run-a", network="resnet18", num_classes=10, rounds=5)


TRAFFIC = Traffic(up=ByPurpose(training=4000, headers=60), down=ByPurpose(client_networks=700))


def progress(devices: int = 3, **changes: object) -> Progress:
    """Round 3 of 5; pi-0001 is waited for and offline, each device but the last has been evaluated."""
    names = [f"pi-{index:04}" for index in range(devices)]
    evaluated = {
        name: DeviceMetrics(
            cut=2,
            stage="layer1",
            train_samples=8,
            held_out_samples=20,
            exit_loss=1.5,
            trunk_loss=1.25,
            exit_accuracy=0.5,
            trunk_accuracy=0.75,
            adaptive_accuracy=0.7,
            offload_share=0.25,
        )
        for name in names[:-1]
    }
    run: dict[str, object] = {
        "spec": SPEC,
        "phase": "train",
        "committed": 2,
        "devices": tuple(DeviceSnapshot(name, 2, name != "pi-0001", 20, TRAFFIC) for name in names),
        "waiting_for": ("pi-0001",),
        "missing": 1,
        "waited": 12.5,
        "queued": 7,
        "duplicates": 3,
        "trained": Trained(60, 1900, 30.5),
        "metrics": Metrics(
            run="run-a",
            round=2,
            rounds=5,
            seconds=9.0,
            devices=evaluated,
            batches_trained=60,
            duplicates_dropped=3,
            fleet=FleetMetrics(
                images=40,
                exit_accuracy=0.5,
                trunk_accuracy=0.75,
                adaptive_accuracy=0.7,
                class_recalls=(ClassRecall('a "glass"', 30, 0.9), ClassRecall("paper", 10, 0.1)),
            ),
            spent=RoundSeconds(training=6.5, waiting=1.5),
        ),
        "estimate": 1_800_000_600.0,
    }
    return Progress(
        fleet="barn",
        run=RunProgress(**{**run, **changes}),  # type: ignore[arg-type]
        statuses={
            name: DeviceStatus(
                state="online",
                instance=1,
                doing="training",
                temperature=61.5,
                written=5_000_000,
                memory=300_000_000,
                memory_limit=512_000_000,
            )
            for name in names
        },
        rejected={("pi-1", "malformed"): 3, ("pi-2", "malformed"): 1, ("pi-1", "flood"): 5},
        quarantined=("pi-1",),
        received=123_456,
        sent=789,
        connected=True,
    )


@contextmanager
def scraped(figures: Figures) -> Iterator[dict[str, Metric]]:
    port = free_port()
    with serving(figures, HOST, port):
        yield scrape(port)


def scrape(port: int) -> dict[str, Metric]:
    with urlopen(f"http://{HOST}:{port}/metrics", timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=")
        return {family.name: family for family in text_string_to_metric_families(response.read().decode())}


def samples(families: dict[str, Metric]) -> dict[tuple[str, tuple[str, ...]], float]:
    """{(name, values of the labels): value}."""
    found = (sample for family in families.values() for sample in family.samples)
    return {(sample.name, tuple(sample.labels.values())): sample.value for sample in found}


def figures_of(progress: Progress) -> Figures:
    figures = Figures(CERTIFICATE_END)
    figures.tick(lambda: progress)
    figures.on_rollouts(Rollouts(rollouts=(rollout(),)))
    return figures


def test_scrape_reports_the_progress_of_the_run() -> None:
    with scraped(figures_of(progress())) as families:
        found = samples(families)
    expected = {
        ("splitee_broker_connected", ()): 1,
        ("splitee_rounds", ()): 5,
        ("splitee_rounds_committed", ()): 2,
        ("splitee_phase", ("train",)): 1,
        ("splitee_phase", ("gather",)): 0,
        ("splitee_devices", ("training",)): 2,
        ("splitee_devices", ("waiting",)): 0,
        ("splitee_devices", ("offline",)): 1,
        ("splitee_devices_waited_for", ()): 1,
        ("splitee_device_waited_for", ("pi-0001",)): 1,
        ("splitee_waiting_seconds", ()): 12.5,
        ("splitee_queue_batches", ()): 7,
        ("splitee_trained_batches_total", ()): 60,
        ("splitee_trained_samples_total", ()): 1900,
        ("splitee_training_seconds_total", ()): 30.5,
        ("splitee_duplicate_batches_total", ()): 3,
        ("splitee_rejected_messages_total", ("malformed",)): 4,
        ("splitee_rejected_messages_total", ("flood",)): 5,
        ("splitee_rejected_messages_total", ("foreign",)): 0,
        ("splitee_device_quarantined", ("pi-1",)): 1,
        ("splitee_received_bytes_total", ()): 123_456,
        ("splitee_sent_bytes_total", ()): 789,
        ("splitee_device_cut", ("pi-0002",)): 2,
        ("splitee_device_batches_total", ("pi-0002",)): 20,
        ("splitee_device_bytes_total", ("pi-0002", "up", "training")): 4000,
        ("splitee_device_bytes_total", ("pi-0002", "up", "headers")): 60,
        ("splitee_device_bytes_total", ("pi-0002", "down", "client_networks")): 700,
        ("splitee_device_temperature_celsius", ("pi-0000",)): 61.5,
        ("splitee_device_written_bytes_total", ("pi-0000",)): 5_000_000,
        ("splitee_device_memory_bytes", ("pi-0000",)): 300_000_000,
        ("splitee_device_memory_limit_bytes", ("pi-0000",)): 512_000_000,
        ("splitee_round_seconds", ("training",)): 6.5,
        ("splitee_round_seconds", ("evaluation",)): 0,
        ("splitee_run_end_timestamp_seconds", ()): 1_800_000_600,
        ("splitee_device_exit_loss", ("pi-0000",)): 1.5,
        ("splitee_device_trunk_loss", ("pi-0000",)): 1.25,
        ("splitee_device_exit_accuracy_ratio", ("pi-0000",)): 0.5,
        ("splitee_device_trunk_accuracy_ratio", ("pi-0000",)): 0.75,
        ("splitee_device_adaptive_accuracy_ratio", ("pi-0000",)): 0.7,
        ("splitee_device_offload_ratio", ("pi-0000",)): 0.25,
        ("splitee_device_held_out_images", ("pi-0000",)): 20,
        ("splitee_held_out_images", ()): 40,
        ("splitee_accuracy_ratio", ("exit",)): 0.5,
        ("splitee_accuracy_ratio", ("trunk",)): 0.75,
        ("splitee_accuracy_ratio", ("adaptive",)): 0.7,
        ("splitee_class_recall", ('a "glass"',)): 0.9,
        ("splitee_class_images", ("paper",)): 10,
        ("splitee_certificate_expiry_timestamp_seconds", ()): 1_953_504_000,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["splitee_server_written_bytes_total", ()] >= 0
    info = families["splitee_info"].samples[0].labels
    assert (info["fleet"], info["run"], info["network"], info["strategy"]) == (
        "barn", "run-a", "resnet18", "sequential",
    )  # fmt: skip
    for unknown in (
        ("splitee_device_exit_loss", "pi-0002"),
        ("splitee_device_temperature_celsius", "pi-0001"),
        ("splitee_device_memory_bytes", "pi-0001"),
        ("splitee_device_bytes_total", "pi-0002", "up", "models"),
    ):
        assert (unknown[0], unknown[1:]) not in found, "what is not known has no series"


def test_metric_names_match_the_documentation() -> None:
    with scraped(figures_of(progress())) as families:
        served = {name for name, _ in samples(families)}
    documented = re.findall(r"^\| `((?:splitee|process)_\w+)` \|", METRICS, re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == served


def test_metric_labels_match_the_documentation() -> None:
    with scraped(figures_of(progress())) as families:
        served = {s.name: set(s.labels) for family in families.values() for s in family.samples}
    rows = re.findall(r"^\| `((?:splitee|process)_\w+)` \| (.*?)\|", METRICS, re.MULTILINE)
    assert {name: set(re.findall(r"\w+", labels)) for name, labels in rows} == served


def test_metric_names_follow_the_prometheus_conventions() -> None:
    """prometheus.io, "Metric and label naming": counters end in _total, and in base units before it."""
    with scraped(figures_of(progress())) as families:
        for name, family in families.items():
            assert family.documentation
            assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name)
            assert not re.search(r"_(milliseconds|kb|mb|percent|minutes)$", name)
            if family.type == "counter":
                assert {sample.name for sample in family.samples} == {f"{name}_total"}


def test_only_process_metrics_are_served_before_the_run_is_open() -> None:
    with scraped(Figures()) as families:
        assert families and all(name.startswith("process_") for name in families)


def test_number_of_series_is_bounded_with_thousands_of_devices() -> None:
    with scraped(figures_of(progress(DEVICES + 500))) as families:
        assert sum(sample.value for sample in families["splitee_devices"].samples) == DEVICES + 500
        for name, family in families.items():
            each = 3 if name == "splitee_device_bytes" else 1  # purposes without traffic have no series
            assert len(family.samples) <= each * DEVICES, name
            if name == "splitee_device_cut":
                assert len(family.samples) == DEVICES


def test_rollout_is_reported_by_devices_state_and_wave() -> None:
    figures = Figures()
    figures.on_rollouts(Rollouts(rollouts=(rollout("spring", "paused", kind="software"),)))
    of_one = ("software", "spring")  # kind, rollout
    with scraped(figures) as families:
        found = samples(families)
    counts = {"in service": 5, "failed": 1, "asleep": 2, "late": 1, "waiting": 2, "later": 20}
    assert {state: found["splitee_rollout_devices", (*of_one, state)] for state in counts} == counts
    states = {labels[-1]: value for (name, labels), value in found.items() if name == "splitee_rollout_state"}
    assert [state for state, value in states.items() if value] == ["paused"] and len(states) == 6
    assert (found["splitee_rollout_wave", of_one], found["splitee_rollout_waves", of_one]) == (2, 3)


def test_many_rollouts_have_a_bounded_number_of_unique_series() -> None:
    figures, waves = Figures(), (Wave(1),) * MOST_WAVES
    most = tuple(rollout(f"r{number % 19}", waves=waves) for number in range(MOST_ROLLOUTS))
    figures.on_rollouts(Rollouts(rollouts=most))
    with scraped(figures) as families:
        names = [(name, *sample.labels.values()) for name, one in families.items() for sample in one.samples]
    assert len(names) == len(set(names))
    assert sum(name[0].startswith("splitee_rollout") for name in names) == 19 * (6 + 6 + 1 + 1)
    figures.on_rollouts(Rollouts())
    with scraped(figures) as families:
        assert not any(one.samples for name, one in families.items() if name.startswith("splitee_rollout"))


def test_progress_is_read_once_a_second_however_many_ticks_there_are() -> None:
    clock, looks = FakeClock(), 0
    figures = Figures(clock=clock)

    def look() -> Progress:
        nonlocal looks
        looks += 1
        return progress(queued=looks)

    for _ in range(30):  # a tenth of a second each
        figures.tick(look)
        clock.advance(0.1)
    assert looks == 3
    [queued] = [family for family in figures.collect() if family.name == "splitee_queue_batches"]
    assert queued.samples[0].value == 3, "the last that was read"


def test_metrics_port_in_use_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server((HOST, 0)) as other:
        port = other.getsockname()[1]
        nowhere = ("--broker", f"mqtt://{HOST}:{free_port()}", "--connect-timeout", "1")
        code, line = call(capsys, "server", "--state", str(tmp_path), *nowhere, "--metrics-port", str(port))
    assert code == ExitCode.CONFIG
    assert line.startswith(
        f"splitee: --metrics-port {port}: cannot listen on {HOST} (Address already in use): "
    )


@pytest.mark.parametrize(
    ("bind", "reason"),
    [
        ("192.0.2.1", "Cannot assign requested address"),  # another machine's
        ("::1%nowhere", "Name or service not known"),
        ("a..b", "no name of a machine"),
    ],
)
def test_unusable_bind_address_is_refused(bind: str, reason: str) -> None:
    with pytest.raises(ConfigError) as refusal, serving(Figures(), bind, free_port()):
        pass
    assert f"cannot listen on {bind} ({reason}): " in str(refusal.value)
    assert "--metrics-bind" in str(refusal.value)


def test_stopped_servers_leave_no_thread_and_free_their_port() -> None:
    """Two servers run side by side in one process."""
    before, port = set(threading.enumerate()), free_port()
    for _ in range(2):
        with serving(figures_of(progress()), HOST, port), serving(figures_of(progress()), HOST, free_port()):
            assert "splitee_rounds" in scrape(port)
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
