# SPDX-License-Identifier: Apache-2.0
"""An attacker with the server's certificate: a device sends no more of its images than its owner allowed."""

from __future__ import annotations

import time
from pathlib import Path

from fleets import Fleet, await_message
from waiting import until

from splitee.mqtt.link import Link
from splitee.networks.split import build_for
from splitee.protocol.codecs import decode_tensor
from splitee.protocol.fleet import Profile, ServerStatus
from splitee.protocol.rounds import Assignment, Features, Participant, Participation, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

RUN = RunSpec(
    protocol=1, run="forced", network="tiny_networks:tiny", num_classes=10, rounds=1, steps=1, codec="fp32"
)


def test_device_ignores_an_assignment_below_its_cut(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    """An assignment to cut 1, where the image still shows; then an honest one, which is followed."""
    topics, attempt = Topics("hostile-server"), time.time_ns()
    profile, features = (topics.device("pi-1", leaf) for leaf in ("profile", "features"))
    link = Link(mosquitto_broker.address, "hostile-server")
    link.subscribe(profile, features)
    link.open(5)

    def assign(cut: int, instance: int) -> None:
        told = Assignment(run=RUN.run, attempt=attempt, instance=instance, cut=cut)
        link.publish(topics.device("pi-1", "inbox/plan"), told.encode(), retain=True)
        mine = Participant(cut=cut, steps=1, base=0, samples=64)
        phase = {"run": RUN.run, "round": 1, "attempt": attempt, "phase": "train"}
        part = Participation(**phase, part=mine, room=8)  # type: ignore[arg-type]
        link.publish(topics.device("pi-1", "inbox/participation"), part.encode(), retain=True)
        opened = RoundOpen(**phase, participants=1)  # type: ignore[arg-type]
        link.publish(topics.round, opened.encode(), retain=True)

    server = ServerStatus(state="online", instance=attempt, run=RUN.run, time=time.time())
    link.publish(topics.server_status, server.encode(), retain=True)
    link.publish(topics.run, RUN.encode(), retain=True)
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.device("pi-1", 3)
        joined = Profile.decode(await_message(link, profile))
        assign(1, joined.instance)
        until(lambda: "the server cuts this device at 1" in fleet.log("pi-1"), lambda: fleet.log("pi-1"))
        assign(3, joined.instance)
        batch = Features.decode(await_message(link, features))
        assert fleet.log("pi-1").count("the server cuts this device at 1") == 1
    link.close()
    shape = decode_tensor(batch.features).shape[1:]
    assert shape == tuple(build_for(RUN).stages[2].feature_shape)
