# SPDX-License-Identifier: Apache-2.0
"""A device whose card has died: the run goes on without it, with real processes on a real broker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import warm
from commands import call
from fleets import Fleet, await_message
from waiting import until

from splitee.errors import ExitCode
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

pytestmark = pytest.mark.mosquitto

FLAGS = ("--steps", "40", "--client-averaging", "layerwise")
OTHERS = ("pi-1", "pi-2")


def is_round_2(payload: bytes) -> bool:
    opened = RoundOpen.decode(payload)
    return (opened.phase, opened.round) == ("train", 2)


def retained(broker: RunningBroker, topics: Topics, device: str) -> list[str]:
    """The topics of a device on which the broker retains something."""
    link, fence = Link(broker.address, f"{topics.fleet}-looks"), f"{topics.base}/fence"
    link.subscribe(topics.device(device, "#"), fence)
    link.open(5)
    link.publish(fence, b"x")
    found = []
    while (event := link.receive(10)) is not None and getattr(event, "topic", "") != fence:
        if isinstance(event, Message) and event.retained:
            found.append(event.topic)
    link.close()
    return found


def run_without_pi_3(broker: RunningBroker, path: Path, name: str, *, is_killed: bool) -> str:
    """The weights of a run whose third device dies in round 2, and is dismissed.

    `is_killed`: the server is killed right after its reply.
    """
    topics = Topics(name)
    watcher = Link(broker.address, f"{name}-watcher")
    watcher.subscribe(topics.round, topics.device("pi-3", "features"))
    watcher.open(5)
    path.mkdir()
    with Fleet(str(broker.address), topics.fleet, path) as fleet:
        fleet.server(*FLAGS, rounds=3)
        fleet.three_devices()
        await_message(watcher, topics.round, is_round_2)
        await_message(watcher, topics.device("pi-3", "features"))
        fleet.processes["pi-3"].kill()
        fleet.processes["pi-3"].wait()
        until(lambda: "pi-3 is offline" in fleet.log("server"))
        assert retained(broker, topics, "pi-3")
        with fleet.frozen("pi-1"):  # the run does not end before these checks
            done = warm.run("dismiss", "pi-3", *fleet.link)
            assert done.returncode == 0, done.stderr
            said = "dismissed: pi-3; the run goes on with pi-1, pi-2"
            assert done.stdout == f"{said}; round 2: training begins anew without pi-3\n"
            if is_killed:
                fleet.processes["server"].kill()
                fleet.processes["server"].wait()
                fleet.server(*FLAGS, rounds=3)
                until(lambda: f"{said}\n" in fleet.log("server"))
            until(lambda: not retained(broker, topics, "pi-3"))
            fleet.device("pi-3", 3, shard="3/3")
            assert fleet.wait("pi-3") == [ExitCode.DISMISSED]
            last = fleet.log("pi-3").splitlines()[-1]
            assert last == (
                f"splitee: pi-3 was dismissed from fleet {name}, which goes on without it: "
                "`splitee dismiss --undo pi-3` lets it in again"
            )
            until(lambda: not retained(broker, topics, "pi-3"))
            shown = warm.run("status", "--once", *fleet.link).stdout
            assert "1 dismissed: pi-3" in shown
            assert {line.split()[0] for line in shown.splitlines() if line.startswith("pi-")} == set(OTHERS)
        assert fleet.wait("server", *OTHERS) == [0, 0, 0], fleet.log("server")
        report = fleet.report()
    watcher.close()
    assert {device["id"]: device["batches"] for device in report["devices"]} == {
        "pi-1": 120, "pi-2": 120, "pi-3": 40,
    }  # fmt: skip
    return str(report["weights_sha256"])


@pytest.mark.slow(9)
def test_weights_after_a_dismissal_are_unchanged_by_a_killed_server(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    alone = run_without_pi_3(mosquitto_broker, tmp_path / "alone", "gone-alone", is_killed=False)
    killed = run_without_pi_3(mosquitto_broker, tmp_path / "killed", "gone-killed", is_killed=True)
    assert killed == alone


def test_run_begins_without_a_dismissed_device_and_takes_it_after_undo(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    topics = Topics("gone-before")
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.device("pi-2", 2, shard="2/2")
        until(
            lambda: "waiting for a server" in fleet.log("pi-2") or retained(mosquitto_broker, topics, "pi-2")
        )
        fleet.server(*FLAGS, devices=2, rounds=4)
        until(lambda: "pi-2" in str(retained(mosquitto_broker, topics, "pi-2")))
        until(lambda: "profile" in str(retained(mosquitto_broker, topics, "pi-2")))
        fleet.processes["pi-2"].kill()
        fleet.processes["pi-2"].wait()
        fleet.device("pi-1", 1, shard="1/2")
        until(lambda: "profile" in str(retained(mosquitto_broker, topics, "pi-1")))
        with fleet.frozen("pi-1"):
            unknown = warm.run("dismiss", "pi-9", *fleet.link)
            assert (unknown.returncode, unknown.stdout) == (ExitCode.CONFIG, "")
            assert unknown.stderr == "splitee: pi-9: no such device; known: pi-1, pi-2; nothing is changed\n"
            done = warm.run("dismiss", "pi-2", *fleet.link)
            assert done.stdout.startswith("dismissed: pi-2; round 1 waits for 1 of the 2 devices (--devices)")
            until(lambda: "round 1 of 4: training" in server_activity(mosquitto_broker, topics))
            undone = warm.run("dismiss", "--undo", "pi-2", *fleet.link)
            assert undone.stdout.startswith("let in again: pi-2; ")
            fleet.device("pi-2", 2, shard="2/2")
            until(lambda: "pi-2 joined" in fleet.log("server").partition("let in again")[2])
        assert fleet.wait("server", "pi-1", "pi-2") == [0, 0, 0], fleet.log("server")
        batches = [device["batches"] for device in fleet.report()["devices"]]
    assert batches == [160, 120]


def server_activity(broker: RunningBroker, topics: Topics) -> str:
    """The activity that the server reports."""
    link = Link(broker.address, f"{topics.fleet}-requests")
    link.subscribe(topics.server_status)
    link.open(5)
    status = ServerStatus.decode(await_message(link, topics.server_status))
    link.close()
    return status.doing


@pytest.mark.parametrize("was_there", [True, False])
def test_dismissal_without_a_server_is_refused_in_one_line(
    mosquitto_broker: RunningBroker, capsys: pytest.CaptureFixture[str], was_there: bool
) -> None:
    topics = Topics(f"gone-nowhere-{was_there}")
    if was_there:
        link = Link(mosquitto_broker.address, f"{topics.fleet}-server")
        link.open(5)
        link.publish(topics.server_status, ServerStatus(state="offline", instance=1).encode(), retain=True)
        link.close()
    started = time.monotonic()
    arguments = ("--broker", str(mosquitto_broker.address), "--fleet", topics.fleet)
    code, line = call(capsys, "dismiss", "pi-1", *arguments)
    assert (code, time.monotonic() - started < 10) == (ExitCode.STALLED, True)
    assert line.startswith(f"splitee: no server runs for fleet '{topics.fleet}' at ")


def test_dismissal_gives_up_on_a_silent_server(
    mosquitto_broker: RunningBroker, capsys: pytest.CaptureFixture[str]
) -> None:
    """The server has been killed, and the broker has not noticed yet; or it is `splitee serve`."""
    topics = Topics("gone-silent")
    link = Link(mosquitto_broker.address, f"{topics.fleet}-server")
    link.open(5)
    link.publish(topics.server_status, ServerStatus(state="online", instance=1).encode(), retain=True)
    arguments = ("--broker", str(mosquitto_broker.address), "--fleet", topics.fleet, "--wait", "1")
    code, line = call(capsys, "dismiss", "pi-1", *arguments)
    link.close()
    assert code == ExitCode.STALLED
    assert line.startswith("splitee: no reply of `splitee server` within 1 s: ")
