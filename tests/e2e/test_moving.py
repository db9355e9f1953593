# SPDX-License-Identifier: Apache-2.0
"""Devices that move to other cuts in mid-run: the weights of one process, though one is killed just then."""

from __future__ import annotations

import signal
from pathlib import Path

from fleets import CUTS, Fleet, await_message, in_one_process
from msgspec.structs import replace

from splitee.durable import StateDirectory
from splitee.mqtt.link import Link
from splitee.protocol.fleet import Profile
from splitee.protocol.rounds import Assignment, Participation
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_device.data.sources import open_source
from splitee_lab.local.brokers import RunningBroker

ROUNDS = 3
MOVES = {"pi-1": 3, "pi-3": 1}


def write_state_with_request(path: Path, run: RunSpec, cut: int, wanted: int) -> None:
    """The state of a device that has trained no round yet, and has requested another cut."""
    directory = StateDirectory(path)
    facts = {"run": run.run, "network": run.network, "cut": cut, "cuts": [cut, wanted], "finished": False}
    directory.save_facts(facts)
    directory.close()


def test_devices_move_to_deeper_and_shallower_cuts_despite_a_kill(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """The test requests cuts in the devices' names before the first round, so all move at its commit.

    A device moves only to a cut that it has requested: its state says that an earlier process did.
    """
    topics = Topics("moving")
    watcher = Link(mosquitto_broker.address, "moving-watcher")
    watcher.subscribe(
        topics.run,
        *(topics.all_devices(leaf) for leaf in ("profile", "inbox/plan", "inbox/participation")),
        *(topics.all_devices(leaf) for leaf in ("features", "round-done")),
    )
    watcher.open(5)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        classes = tmp_path / "classes.txt"  # so that each device is let in without waiting for the others
        classes.write_text("\n".join(open_source("builtin:fashion-mnist").class_names))
        fleet.server("--classes", str(classes), rounds=ROUNDS)
        run = RunSpec.decode(await_message(watcher, topics.run))
        for name, cut in MOVES.items():
            write_state_with_request(tmp_path / name, run, CUTS[name], cut)
            fleet.device(name, CUTS[name], "--lowest-cut", "1", shard=f"{name[-1]}/3")
            profile = Profile.decode(await_message(watcher, topics.device(name, "profile")))
            await_message(watcher, topics.device(name, "inbox/plan"))  # it has joined
            wish = replace(profile, next_cut=cut)
            watcher.publish(topics.device(name, "profile"), wish.encode(), retain=True)
        fleet.device("pi-2", CUTS["pi-2"], shard="2/3")

        for name, cut in sorted({**MOVES, "pi-2": 0}.items()):
            told = await_message(watcher, topics.device(name, "inbox/participation"))
            part = Participation.decode(told).part
            assert part is not None and part.next_cut == cut
        await_message(watcher, topics.device("pi-2", "features"))
        fleet.processes["pi-2"].send_signal(signal.SIGSTOP)  # no commit without it
        await_message(watcher, topics.device("pi-1", "round-done"))
        fleet.processes["pi-1"].kill()
        fleet.processes["pi-1"].wait()
        assert "cut at 3 from now on" not in fleet.log("pi-1")
        fleet.processes["pi-2"].send_signal(signal.SIGCONT)
        await_message(
            watcher, topics.device("pi-1", "inbox/plan"), lambda payload: Assignment.decode(payload).cut == 3
        )
        fleet.device("pi-1", CUTS["pi-1"], "--lowest-cut", "1", shard="1/3")
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
    watcher.close()
    assert [device["cut"] for device in report["devices"]] == [3, 2, 1]
    assert report["rejected"] == 0
    assert "cut at 3 from now on, before at 1" in fleet.log("pi-1")
    assert report["weights_sha256"] == in_one_process("sequential", "step", ROUNDS, moves=MOVES)
