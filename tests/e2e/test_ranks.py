# SPDX-License-Identifier: Apache-2.0
"""Servers side by side under torchrun: the weights of one process, whatever happens to a rank."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fleets import CUTS, Fleet, in_one_process
from waiting import until

from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RestartableBroker, RunningBroker, free_port

BIN = Path(sys.executable).parent
FORKED_RANK = Path(__file__).parents[1] / "support" / "forked_rank.py"
RESTART = 600.0  # seconds in which all ranks load torch once more, with other tests beside them
AVERAGING = "--strategy", "averaging", "--client-averaging", "layerwise"
FOUR = {"pi-1": 1, "pi-2": 2, "pi-3": 3, "pi-4": 2}  # one for each of four ranks, by its lane too


def ranks(count: int, *flags: str) -> list[str]:
    """The words that run a `splitee` command as `count` ranks."""
    alone = ("--standalone", "--nproc-per-node", str(count))
    return [str(BIN / "torchrun"), *alone, *flags, str(BIN / "splitee")]


def machine(endpoint: str, *, is_host: bool) -> list[str]:
    """The words that run a rank as one of two machines would; with `is_host` they meet there."""
    meeting = ("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "two-machines")
    others = f"is_host={is_host:d},last_call_timeout=1"  # seconds to wait for them
    flags = ("--nnodes", "1:2", *meeting, "--rdzv-conf", others, "--max-restarts", "2")
    return [word for word in forked(1, *flags) if word != "--standalone"]


def forked(count: int, *flags: str) -> list[str]:
    """The same by forks of torchrun, which has loaded torch: 2 CPU seconds are saved each."""
    return [*ranks(count, "--run-path", "--start-method", "fork", *flags)[:-1], str(FORKED_RANK)]


def rank_process(fleet: Fleet, rank: int) -> psutil.Process:
    """The process of a rank that runs now."""
    running = psutil.Process(fleet.processes["server"].pid).children()
    in_order = sorted(running, key=lambda process: (process.create_time(), process.pid))
    assert len(in_order) > rank, f"rank {rank} does not run"
    return in_order[rank]


def check(fleet: Fleet, rounds: int, strategy: str = "averaging", **settings: Any) -> None:
    """The run ended as that of one process, with each batch counted once."""
    assert set(fleet.wait(timeout=RESTART)) == {0}
    report = fleet.report()
    assert report["weights_sha256"] == in_one_process(
        strategy, "step", rounds, averaging="layerwise", **settings
    )
    assert report["batches_trained"] == report["batches_published"]


def await_training(link: Link, topics: Topics, number: int) -> None:
    """Wait until a device has sent a batch of round `number` or later."""
    deadline = time.monotonic() + RESTART
    opened = False
    while time.monotonic() < deadline:
        event = link.receive(1)
        if not isinstance(event, Message):
            continue
        if event.topic == topics.round:
            phase = RoundOpen.decode(event.payload)
            opened = phase.phase == "train" and phase.round >= number
        elif opened:
            return
    raise AssertionError(f"round {number} is not trained after {RESTART:.0f} s")


@pytest.mark.slow(20)
@pytest.mark.mosquitto
@pytest.mark.parametrize("strategy", ["averaging", "data-parallel"])
def test_four_ranks_then_two_train_the_weights_of_one_process(
    strategy: str, mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """Round 1 by four ranks; two that are started in their place in round 2 take over all devices."""
    topics = Topics(f"four-ranks-{strategy}")
    watcher = Link(mosquitto_broker.address, f"watches-{topics.fleet}")
    watcher.subscribe(topics.round, topics.device("pi-1", "features"))
    watcher.open(10)
    flags = ("--strategy", strategy, "--client-averaging", "layerwise", "--steps", "20")
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*flags, devices=4, program=forked(4))
        for index, (name, cut) in enumerate(FOUR.items(), start=1):
            fleet.device(name, cut, shard=f"{index}/4")
        await_training(watcher, topics, 2)
        assert [rank_process(fleet, rank).is_running() for rank in range(4)] == [True] * 4
        fleet.processes["server"].terminate()
        fleet.processes["server"].wait()
        fleet.server(*flags, devices=4, program=forked(2))
        check(fleet, 2, strategy, steps=20, cuts=FOUR)
        for device in fleet.report()["devices"]:
            assert device["traffic"]["up"]["training"] > 0  # whichever rank has counted it
    watcher.close()


@pytest.mark.slow(25)
@pytest.mark.mosquitto
def test_killed_ranks_leave_the_weights_unchanged(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    topics = Topics("killed-ranks")
    watcher = Link(mosquitto_broker.address, "watches-killed-ranks")
    watcher.subscribe(topics.round, topics.device("pi-1", "features"))
    watcher.open(10)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server(*AVERAGING, "--steps", "20", rounds=2, program=forked(2, "--max-restarts", "2"))
        fleet.three_devices()
        for number, rank in ((1, 1), (2, 0)):
            await_training(watcher, topics, number)
            rank_process(fleet, rank).kill()
        check(fleet, 2, steps=20)
    watcher.close()


@pytest.mark.slow(25)
@pytest.mark.mosquitto
def test_training_goes_on_when_one_of_two_machines_leaves(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    topics = Topics("two-machines")
    watcher = Link(mosquitto_broker.address, "watches-two-machines")
    watcher.subscribe(topics.round, topics.device("pi-1", "features"))
    watcher.open(10)
    endpoint = f"127.0.0.1:{free_port()}"
    flags = (*AVERAGING, "--steps", "20", "--state", str(tmp_path / "server"))
    with Fleet(str(mosquitto_broker.address), "two-machines", tmp_path) as fleet:
        for name in ("server", "other"):
            fleet.server(*flags, name=name, program=machine(endpoint, is_host=name == "server"))
        until(lambda: "of 2: trains for" in fleet.log("server") + fleet.log("other"), long=RESTART)
        fleet.three_devices()
        await_training(watcher, topics, 2)
        leaving = fleet.processes.pop("other")
        leaving.terminate()
        leaving.wait()
        check(fleet, 2, steps=20)
        assert "it was asked to stop" in fleet.log("server")
    watcher.close()


@pytest.mark.slow(20)
@pytest.mark.mosquitto
def test_each_rank_may_use_its_own_broker(
    mosquitto_broker: RunningBroker, make_broker: Callable[..., RestartableBroker], tmp_path: Path
) -> None:
    """A device is served by the rank whose broker it uses, and receives all that other devices do."""
    other = str(make_broker().address)
    with Fleet(str(mosquitto_broker.address), "two-brokers", tmp_path) as fleet:
        brokers = f"{mosquitto_broker.address},{other}"
        fleet.server(*AVERAGING, "--brokers", brokers, release=True, program=forked(2))
        fleet.device("pi-1", CUTS["pi-1"], shard="1/3")
        for name in ("pi-2", "pi-3"):
            fleet.device(name, CUTS[name], "--broker", other, shard=f"{name[-1]}/3")
        check(fleet, 2)
        for device in CUTS:
            assert (tmp_path / device / "models" / "current").exists(), fleet.log(device)


@pytest.mark.slow(15)
@pytest.mark.mosquitto
def test_rank_without_its_broker_ends_all_ranks_with_an_error_line(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    brokers = f"{mosquitto_broker.address},mqtt://127.0.0.1:1"
    with Fleet(str(mosquitto_broker.address), "no-broker", tmp_path) as fleet:
        fleet.server(*AVERAGING, "--brokers", brokers, "--connect-timeout", "1", program=ranks(2))
        assert fleet.wait(timeout=RESTART) == [1]
        said = fleet.log("server")
    assert "splitee: no broker at mqtt://127.0.0.1:1 within" in said
    assert "Traceback" not in said.partition("torch/distributed/elastic")[0]


@pytest.mark.slow(10)
@pytest.mark.mosquitto
def test_ranks_with_different_settings_end_before_writing_state(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    differing = tmp_path / "differing.py"
    differing.write_text(
        "import os, runpy\n"
        "os.environ['SPLITEE_STEPS'] = str(3 + int(os.environ['RANK']))\n"
        f"runpy.run_path({str(FORKED_RANK)!r}, run_name='__main__')\n"
    )
    program = [*forked(2)[:-1], str(differing)]
    with Fleet(str(mosquitto_broker.address), "other-settings", tmp_path) as fleet:
        fleet.server(*AVERAGING, program=program)
        assert fleet.wait(timeout=RESTART) == [1]
        said = fleet.log("server")
    assert "splitee: the ranks' settings differ: steps is " in said
    assert "exitcode  : 2" in said
    assert not (tmp_path / "server").exists()
