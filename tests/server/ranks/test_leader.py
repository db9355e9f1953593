# SPDX-License-Identifier: Apache-2.0
"""Phases of rank 0 and another rank, which runs on a thread, without torchrun and a broker."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from averaged_models import digests_of
from msgspec.structs import replace
from two_ranks import (
    CUTS,
    SPEC,
    STEPS,
    JointRanks,
    Ranks,
    batch_of,
    features,
    train_batch,
    train_here,
    trunk_digest,
    windows_of,
)
from virtual_fleet import TOPICS
from waiting import until

from splitee.mqtt.events import Connected
from splitee.protocol import routes
from splitee.protocol.rounds import Ack, RoundOpen
from splitee.training.state import weights_digest
from splitee_server.learning.fleet_model import Contribution
from splitee_server.learning.lanes import in_order
from splitee_server.rounds.phase import Phase


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.end()


def acknowledged(ranks: Ranks) -> list[tuple[int, bool]]:
    acks = map(Ack.decode, ranks.other_port.payloads(routes.ACK.topic(TOPICS, "pi-2")))
    return [(ack.step, ack.resend) for ack in acks]


def test_batches_are_trained_by_the_rank_that_their_device_is_dealt_to(ranks: Ranks) -> None:
    phase = ranks.open()
    assert [ranks.leader.is_remote(device) for device in CUTS] == [False, True, False]
    assert ranks.port.subscribed == [routes.FEATURES.topic(TOPICS, one) for one in ("pi-1", "pi-3")]
    assert ranks.other_port.subscribed == [routes.FEATURES.topic(TOPICS, "pi-2")]
    for step in (1, 0, 2):
        ranks.say("pi-2", features(phase, "pi-2", step))
    ranks.follow(phase, lambda: phase.next_step("pi-2") == STEPS)
    requested = (0, True)  # once batch 1 has come before batch 0
    assert acknowledged(ranks) == [(0, False), requested, (1, False), (2, False), (3, False)]
    ranks.leader.collect(phase, ranks.model)
    assert phase.trunk_loss("pi-2") is not None
    found = ranks.model.round_result("pi-2")
    assert found["trained"] == 4 * STEPS
    assert found["strategy"]["trunk"]


def test_duplicate_and_malformed_messages_are_reported_to_rank_0(ranks: Ranks) -> None:
    phase = ranks.open()
    refused, duplicates = Counter[tuple[str, str]](), 0
    ranks.say("pi-2", b"no message")
    ranks.say("pi-2", features(phase, "pi-2", 0))
    ranks.say("pi-2", features(phase, "pi-2", 0))

    def all_is_reported() -> bool:
        nonlocal duplicates
        refused.update(ranks.leader.take_refused())
        duplicates += ranks.leader.take_duplicates()
        return bool(refused and duplicates)

    ranks.follow(phase, all_is_reported)
    assert refused == {("pi-2", "malformed"): 1}
    assert duplicates == 1
    until(lambda: len(acknowledged(ranks)) == 3)  # at the start, for the batch, and for its duplicate
    assert (1, False) in acknowledged(ranks)
    assert len(ranks.other_port.payloads(routes.ERROR.topic(TOPICS, "pi-2"))) == 1


def test_message_refused_between_two_phases_is_counted(ranks: Ranks) -> None:
    ranks.leader.collect(ranks.open("evaluate"), ranks.model)
    ranks.say("pi-2", b"no message")
    until(lambda: ranks.other_port.payloads(routes.ERROR.topic(TOPICS, "pi-2")))
    phase = ranks.open(number=2)
    refused = Counter[tuple[str, str]]()

    def is_reported() -> bool:
        refused.update(ranks.leader.take_refused())
        return bool(refused)

    ranks.follow(phase, is_reported)
    assert refused == {("pi-2", "malformed"): 1}


def test_device_is_acknowledged_again_on_request_and_after_a_reconnect(ranks: Ranks) -> None:
    ranks.open()
    ranks.leader.acknowledge("pi-2")
    until(lambda: acknowledged(ranks) == [(0, False), (0, True)])
    ranks.other_port.happen(Connected(fresh=True))  # the link of that rank
    until(lambda: acknowledged(ranks) == [(0, False), (0, True), (0, True)])


def test_dropped_device_is_unsubscribed_and_its_training_is_forgotten(
    ranks: Ranks,
) -> None:
    phase = ranks.open()
    ranks.say("pi-2", features(phase, "pi-2", 0))
    ranks.follow(phase, lambda: phase.next_step("pi-2") == 1)
    ranks.drop(phase, "pi-2")
    until(lambda: ranks.other_port.subscribed == [])
    ranks.leader.collect(phase, ranks.model)
    assert not ranks.model.round_result("pi-2")["strategy"]
    phase = ranks.open(number=2)
    for step in range(STEPS):
        ranks.say("pi-2", features(phase, "pi-2", step))
    ranks.follow(phase, lambda: phase.next_step("pi-2") == STEPS)
    ranks.leader.collect(phase, ranks.model)
    alone = ranks.new_model()
    alone.join("pi-2", CUTS["pi-2"], 4 * STEPS)
    train_here(alone, phase)
    assert trunk_digest(ranks.model) == trunk_digest(alone)


@pytest.mark.parametrize("settings", [{}, {"balanced_loss": True, "soft_labels": 1.0}])
def test_rounds_with_a_dropped_device_equal_those_of_a_server_alone(settings: dict[str, Any]) -> None:
    """It drops out of its first round, and of its third one after an average that has its training."""
    spec = replace(SPEC, rounds=9, **settings)
    ranks = Ranks(spec)
    alone = ranks.new_model()
    for device, cut in CUTS.items():
        alone.join(device, cut, 4 * STEPS)
    for number, arrives in enumerate((1, STEPS, 1, STEPS), start=1):
        phase = ranks.open(number=number)
        for step in range(arrives):
            ranks.say("pi-2", features(phase, "pi-2", step))
        ranks.follow(phase, lambda: phase.next_step("pi-2") == arrives)  # noqa: B023  it ends here
        for step in range(arrives):
            train_batch(alone, phase, "pi-2", step, batch_of(alone, phase, "pi-2", step))
        is_dropped = arrives < STEPS
        if is_dropped:
            alone.forget("pi-2")
            ranks.drop(phase, "pi-2")
        ranks.leader.collect(phase, ranks.model)
        for model in (alone, ranks.model):
            model.commit(number, {} if is_dropped else {"pi-2": Contribution()})
        ranks.leader.models_have_changed()
    assert digests_of(alone) == digests_of(ranks.model)
    ranks.end()


def test_device_that_changes_its_rank_keeps_its_momentum(ranks: Ranks) -> None:
    alone = ranks.new_model()
    for device, cut in CUTS.items():
        alone.join(device, cut, 4 * STEPS)
    for number, rank in enumerate((1, 0, 1), start=1):
        ranks.bound["pi-2"] = [rank]
        phase = ranks.open(number=number)
        assert ranks.leader.is_remote("pi-2") == bool(rank)
        train_here(alone, phase)
        if rank:
            for step in range(STEPS):
                ranks.say("pi-2", features(phase, "pi-2", step))
            ranks.follow(phase, lambda: phase.next_step("pi-2") == STEPS)  # noqa: B023  it ends here
        else:
            train_here(ranks.model, phase)
        ranks.leader.collect(phase, ranks.model)
        for model in (alone, ranks.model):
            model.commit(number, {"pi-2": Contribution()})
        ranks.leader.models_have_changed()
    mine, expected = (weights_digest(one.trunk_weights()) for one in (ranks.model, alone))
    assert mine == expected


def test_new_attempt_starts_at_step_0_from_the_weights_and_momentum_of_rank_0(ranks: Ranks) -> None:
    """Batches of the attempt before it are ignored, and what was trained on them is discarded."""
    alone = ranks.new_model()
    alone.join("pi-2", CUTS["pi-2"], 4 * STEPS)

    def train_there(phase: Phase, first: int = 0) -> None:
        for step in range(first, STEPS):
            ranks.say("pi-2", features(phase, "pi-2", step))
        ranks.follow(phase, lambda: phase.next_step("pi-2") == STEPS)
        ranks.leader.collect(phase, ranks.model)
        train_here(alone, phase)

    train_there(ranks.open())
    for model in (alone, ranks.model):
        model.commit(1, {"pi-2": Contribution()})
    ranks.leader.models_have_changed()
    phase = ranks.open(number=2)
    ranks.say("pi-2", features(phase, "pi-2", 0))
    ranks.follow(phase, lambda: phase.next_step("pi-2") == 1)
    again = ranks.open(number=2, attempt=2)
    ranks.say("pi-2", features(phase, "pi-2", 1))  # of attempt 1
    ranks.say("pi-2", features(again, "pi-2", 0))
    ranks.follow(again, lambda: again.next_step("pi-2") == 1)
    assert acknowledged(ranks)[-4:] == [(0, False), (1, False)] * 2
    train_there(again, first=1)
    assert trunk_digest(ranks.model) == trunk_digest(alone)


def test_scores_and_statistics_are_collected_from_the_other_rank(ranks: Ranks) -> None:
    phase = ranks.open("statistics")
    for step in range(STEPS):
        ranks.say("pi-2", features(phase, "pi-2", step))
    ranks.follow(phase, lambda: phase.next_step("pi-2") == STEPS)
    ranks.leader.collect(phase, ranks.model)
    assert ranks.model.observed_statistics("pi-2")["batches"] == STEPS
    phase = ranks.open("evaluate")
    for step in range(STEPS):
        ranks.say("pi-2", features(phase, "pi-2", step))
    ranks.follow(phase, lambda: phase.next_step("pi-2") == STEPS)
    ranks.leader.collect(phase, ranks.model)
    assert phase.scores["pi-2"].images == 4 * STEPS
    assert ranks.leader.traffic_of("pi-2").up.evaluation > 0


def test_phase_without_participants_is_collected_without_the_other_rank(ranks: Ranks) -> None:
    """Such a phase evaluates a resumed run in which no device has held-out images."""
    opened = RoundOpen(run=SPEC.run, round=1, attempt=1, phase="evaluate")
    no_windows = windows_of(opened, {})
    phase = Phase(opened, {}, order="any", window=8, windows=no_windows, num_classes=3, clock=time.monotonic)
    ranks.leader.collect(phase, ranks.model)
    phase = ranks.open(number=2)
    ranks.say("pi-2", features(phase, "pi-2", 0))
    ranks.follow(phase, lambda: phase.next_step("pi-2") == 1)


@pytest.fixture
def joint_ranks() -> Iterator[JointRanks]:
    made = JointRanks()
    yield made
    made.end()


def test_joint_step_waits_for_the_batches_of_the_last_step_on_all_ranks(joint_ranks: JointRanks) -> None:
    ranks = joint_ranks
    phase = ranks.open()
    assert [ranks.leader.is_remote(device) for device in CUTS] == [False, True, True]
    alone = ranks.new_model()
    for device, cut in CUTS.items():
        alone.join(device, cut, 4 * STEPS)
    ranks.offer_here(phase)
    for step in range(STEPS):
        ranks.say("pi-2", features(phase, "pi-2", step))
    ranks.work_until(phase, 1)
    assert phase.take() is None
    ranks.say("pi-3", features(phase, "pi-3", 0))
    ranks.work_until(phase, 2)
    ranks.drop(phase, "pi-3")
    ranks.work_until(phase, STEPS)
    ranks.follow(phase, lambda: phase.next_step("pi-2") == STEPS)
    ranks.leader.collect(phase, ranks.model)
    for step in range(STEPS):
        for device in in_order(CUTS if step == 0 else ("pi-1", "pi-2")):
            train_batch(alone, phase, device, step, batch_of(alone, phase, device, step))
    for model in (alone, ranks.model):
        model.commit(1, {device: Contribution() for device in ("pi-1", "pi-2")})
    mine, expected = (weights_digest(one.trunk_weights()) for one in (ranks.model, alone))
    assert mine == expected


def test_round_that_all_devices_have_left_can_be_opened_again(joint_ranks: JointRanks) -> None:
    ranks = joint_ranks
    phase = ranks.open()
    ranks.offer_here(phase)
    ranks.work_until(phase, 1)
    ranks.drop(phase, *CUTS)
    ranks.model.abandon_round()
    before = weights_digest(ranks.model.trunk_weights())
    phase = ranks.open()
    assert weights_digest(ranks.model.trunk_weights()) == before
    ranks.offer_here(phase)
    for device in ("pi-2", "pi-3"):
        for step in range(STEPS):
            ranks.say(device, features(phase, device, step))
    ranks.work_until(phase, STEPS)
    ranks.follow(phase, lambda: not phase.has_batches_left())
    ranks.leader.collect(phase, ranks.model)
    assert weights_digest(ranks.model.trunk_weights()) != before


@pytest.mark.parametrize("is_last", [False, True])
def test_batch_of_a_dropped_device_counts_in_its_step_as_on_a_server_alone(
    joint_ranks: JointRanks, is_last: bool
) -> None:
    """It is alone in the step when the device drops out: others' batches come later, or they have fewer."""
    ranks, (dropped, other) = joint_ranks, in_order(("pi-2", "pi-3"))  # of rank 1
    steps = {"pi-1": 1, dropped: 2, other: 1}
    phase = ranks.open(steps=steps)
    alone = ranks.new_model()
    for device, cut in CUTS.items():
        alone.join(device, cut, 4 * STEPS)

    def train(*batches: tuple[str, int]) -> None:
        for device, step in batches:
            if device == "pi-1":
                phase.offer(device, step, batch_of(ranks.model, phase, device, step))
                while (taken := phase.take()) is not None:
                    train_batch(ranks.model, phase, *taken, steps=1)
            else:
                ranks.say(device, features(phase, device, step))
        ranks.follow(phase, lambda: all(phase.next_step(device) == step + 1 for device, step in batches))

    if is_last:
        train(*((device, 0) for device in CUTS))
        train((dropped, 1))
    else:
        train((dropped, 0))
    ranks.drop(phase, dropped)
    if not is_last:
        train(("pi-1", 0), (other, 0))
    ranks.leader.collect(phase, ranks.model)
    for device, step in [*((device, 0) for device in in_order(CUTS)), *[(dropped, 1)][:is_last]]:
        train_batch(alone, phase, device, step, batch_of(alone, phase, device, step), steps[device])
    alone.forget(dropped)
    for model in (alone, ranks.model):
        model.commit(1, {device: Contribution() for device in ("pi-1", other)})
    mine, expected = (weights_digest(one.trunk_weights()) for one in (ranks.model, alone))
    assert mine == expected
