# SPDX-License-Identifier: Apache-2.0
"""A device's rounds against a scripted server: training, losses, superseded rounds, moves of the cut."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Sent
from image_folders import png, write_folder
from msgspec.structs import replace
from scripted_device import ONE_ROUND, SPEC, Device, ScriptedMonitor, new_trainer, steps_sent
from scripted_server import DEVICE, other_weights

from splitee.networks.split import build_for
from splitee.protocol import routes
from splitee.protocol.fleet import Profile
from splitee.protocol.rounds import Ack, RoundDone
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.training.soft_labels import SoftLabels, rows_per_round
from splitee.training.state import weights_digest
from splitee.training.weights import client_model
from splitee_device.agent.agent import Agent
from splitee_device.agent.monitor import CutRequest
from splitee_device.agent.phase import ActivePhase
from splitee_device.data.device_images import DeviceImages
from splitee_device.data.images import open_data
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer


def digest_of_round_1(make: Callable[..., Device]) -> str:
    """The digest that an undisturbed device reaches."""
    device = make(script=ONE_ROUND)
    device.server.open_run()
    device.run()
    return device.server.done[0].digest


def test_run_is_trained_and_committed_round_by_round(make: Callable[..., Device]) -> None:
    device = make()
    device.server.open_run()
    device.run()
    assert steps_sent(device) == [
        *((1, "train", step) for step in range(2)),
        (1, "evaluate", 0),
        *((2, "train", step) for step in range(2)),
        (2, "evaluate", 0),
    ]
    first, second = device.server.done
    assert (first.round, first.batches, second.round) == (1, 2, 2)
    assert first.digest != second.digest == device.trainers[-1].digest()
    assert first.bytes == sum(len(batch.encode()) for batch in device.server.batches[:2])
    assert all(batch.exit_entropy for batch in device.server.batches if batch.phase == "evaluate")
    assert device.directory.rounds() == [2, 1]
    facts = device.directory.facts()
    assert facts is not None and facts["finished"]
    last = device.server.statuses[-1]
    assert (last.doing, last.round) == ("finished", 2)
    assert last.batches == 4
    sent = last.traffic
    assert sent is not None
    assert sent.up.training == first.bytes + second.bytes
    assert sent.up.evaluation == sum(len(batch.encode()) for batch in device.server.batches[2::3])
    before = [one for one in device.port.sent if one.payload != last.encode()]
    assert last.bytes == sent.up.payload == sum(len(one.payload) for one in before)
    assert device.server.syncs == []


def test_phase_objects_are_freed_without_garbage_collection(make: Callable[..., Device]) -> None:
    """In a process with many objects, reference cycles are collected late."""
    device = make()
    device.server.open_run()
    gc.collect()
    gc.disable()
    try:
        device.run()
        left = [found for found in gc.get_objects() if type(found) is ActivePhase]
    finally:
        gc.enable()
    assert left == []


def test_lost_acknowledgement_is_requested_after_15_seconds(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND, train=8)
    device.server.samples = 8
    lost: list[Ack] = []

    def is_lost(route: Route, message: Any) -> bool:
        gone = route is routes.ACK and not device.server.syncs
        lost.extend([message] if gone else [])
        return gone

    device.server.is_lost = is_lost
    device.server.open_run()
    started = device.clock()
    device.run()
    assert len(lost) == SPEC.window  # the window was full then
    assert 15 <= device.clock() - started < 19
    assert len(device.server.syncs) == 1
    assert {step for number, phase, step in steps_sent(device) if phase == "train"} == {0, 1, 2, 3}
    assert len(device.server.done) == 1


def test_lost_batches_are_sent_again_unchanged(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    sent_once: list[Sent] = []
    take = device.server.handle

    def lose_the_first_batches(sent: Sent) -> None:
        if sent.topic.endswith("/features") and len(sent_once) < 2:
            sent_once.append(sent)
        else:
            take(sent)

    device.port.on_sent = lose_the_first_batches
    device.server.open_run()
    device.run()
    assert [batch.encode() for batch in device.server.batches[:2]] == [sent.payload for sent in sent_once]
    assert len(device.server.syncs) == 1


def test_lost_round_done_is_sent_again_with_its_weights(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    device.server.participant = {"weights": True}
    device.server.on_done = lambda _done: device.server.commit() if len(device.server.done) > 1 else None
    device.server.open_run()
    device.run()
    first, again = device.server.done
    assert first == again
    assert len(device.server.syncs) == 1
    assert device.server.tensors[0] == device.server.tensors[1]  # its weights, too


def test_round_restarted_before_round_done_is_trained_from_its_first_batch(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    """The batches of the previous attempt do not count."""
    caplog.set_level(logging.INFO, "splitee_device")
    device = make(script=ONE_ROUND)

    def restart_instead_of_an_ack(route: Route, message: Any) -> bool:
        if route is routes.ACK and message.attempt == 7:
            device.server.begin_anew()
            return True
        return False

    device.server.is_lost = restart_instead_of_an_ack
    device.server.open_run()
    device.run()
    assert "round 1: the server has moved on" in caplog.messages
    assert [(batch.attempt, batch.step) for batch in device.server.batches if batch.phase == "train"] == [
        (7, 0),
        (8, 0),
        (8, 1),
    ]
    assert [done.digest for done in device.server.done] == [digest_of_round_1(make)]


def test_next_phase_does_not_supersede_a_round_after_its_round_done(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND[:1])
    server = device.server

    def open_the_next_phase_before_the_commit_arrives(done: RoundDone) -> None:
        server.committed, server.digest, server.trained = 1, done.digest, done.digest
        server.open("evaluate", 1)
        server.script.extend(ONE_ROUND[2:])
        server.assign(5.0)

    server.on_done = open_the_next_phase_before_the_commit_arrives
    server.open_run()
    started = device.clock()
    device.run()
    assert [phase for _, phase, _ in steps_sent(device)] == ["train", "train", "evaluate"]
    assert len(server.done) == 1
    assert device.clock() - started == 5.0


def test_new_attempt_supersedes_a_round_after_its_round_done(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    server = device.server
    server.on_done = lambda done: server.begin_anew() if done.attempt == 7 else server.commit()
    server.open_run()
    device.run()
    first, again = server.done
    assert (first.attempt, again.attempt) == (7, 8)
    assert first.digest == again.digest == digest_of_round_1(make)


def test_device_discards_a_round_that_was_committed_without_it(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "splitee_device")
    device = make(script=(("train", 1), ("train", 2), ("finished", 2)))
    server = device.server
    server.on_done = lambda done: server.commit(without=done.round == 1)
    server.open_run()
    device.run()
    assert "round 1: the server has moved on" in caplog.messages
    trainer = new_trainer(SPEC, 1, device.data)
    for _ in trainer.round(2):
        pass
    assert server.done[1].digest == trainer.digest()  # round 2 starts from the same weights as round 1


@pytest.mark.parametrize("train", [4, 8])
def test_device_whose_image_count_changed_sends_the_expected_batches(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture, train: int
) -> None:
    """The device is restarted with more or fewer images during a round of 6."""
    device = make(script=ONE_ROUND, train=train, held_out=100)
    device.server.samples, device.server.held_out = 6, 40
    device.server.open_run()
    device.run()
    assert steps_sent(device) == [(1, "train", 0), (1, "train", 1), (1, "train", 2), (1, "evaluate", 0)]
    assert (
        f"round 1 began when this device had 6 images; with {train} it goes on for the same 3 batches"
        in caplog.messages
    )


def images_in(root: Path) -> DeviceImages:
    return DeviceImages(
        lambda division: open_data(str(root), input_shape=SPEC.input_shape, division=division), None, (root,)
    )


def run_with(device: Device, images: DeviceImages) -> list[int]:
    """Take part with `images`; returns the number of training images of each trainer that was made."""
    trained: list[int] = []
    server = device.server

    def trainer_at(spec: RunSpec, cut: int) -> ClientTrainer:
        trained.append(len(images.data.train))
        return new_trainer(spec, cut, images.data)

    def count_and_take_in(profile: Profile) -> None:
        server.samples, server.held_out = profile.train_samples, profile.held_out_samples
        server.take_in(profile)

    server.on_profile = count_and_take_in
    server.open_run()
    store = DeviceStore(device.directory, DEVICE, images)
    spec = device.session.await_run()
    agent = Agent(device.session, spec, 1, trainer_at, store, ScriptedMonitor(), clock=device.clock)
    agent.take_part(images)
    return trained


def test_round_after_an_evaluation_trains_on_the_images_that_came_in_it(
    make: Callable[..., Device], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next phase is open before the device handles the acknowledgement of its last batch."""
    root = tmp_path / "images"
    write_folder(root, {"a": 5, "b": 5})
    device = make()

    def add_images_and_commit(done: RoundDone) -> None:
        for number in range(10 if done.round == 1 else 0):
            (root / "a" / f"new-{number}.png").write_bytes(png(200 + number))
        device.server.commit()

    device.server.on_done = add_images_and_commit
    assert run_with(device, images_in(root)) == [8, 17]
    assert [done.batches for done in device.server.done] == [4, 8]
    assert "round 2 began when this device had" not in caplog.text


def test_evaluation_mistakes_are_stored_on_the_device_only(make: Callable[..., Device]) -> None:
    device = make(held_out=40)
    device.server.held_out = 40
    device.server.open_run()
    device.run()
    kept = json.loads((device.directory.path / "mistakes.json").read_text())
    assert kept["round"] == 2
    assert 0 < len(kept["mistakes"]) <= 10
    for one in kept["mistakes"]:
        assert {one["class"], one["predicted"]} == {"a", "b"}
        assert one["image"].startswith("image ")
        assert not any(one["image"].encode() in sent.payload for sent in device.port.sent)


def test_restarted_process_sends_only_batches_that_the_server_lacks(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    server = device.server

    def go_on_where_the_last_process_ended(_profile: Profile) -> None:
        server.open_next()
        server.next_step = 1
        server.acknowledge(resend=True)
        server.assign()

    server.on_profile = go_on_where_the_last_process_ended
    server.open_run()
    device.run()
    assert steps_sent(device) == [(1, "train", 1), (1, "evaluate", 0)]
    assert server.done[0].digest == digest_of_round_1(make)


def test_device_moves_to_another_cut_with_the_weights_held_by_the_server(
    make: Callable[..., Device],
) -> None:
    spec = replace(SPEC, rounds=3)
    script = (("train", 1), ("train", 2), ("train", 3), ("finished", 3))
    device = make(spec, script=script, cut_request=CutRequest(2, "cut 2: faster"))
    server = device.server
    moved = other_weights(client_model(build_for(spec), 2, spec).state_dict())

    def move(done: RoundDone) -> None:
        if done.round == 2:
            server.cut, server.held = 2, moved
            server.committed, server.trained, server.digest = 2, done.digest, weights_digest(moved)
            server.assign()
            server.open_next()
        else:
            server.held = None
            server.commit()

    server.on_done = move
    server.open_run()
    device.run()
    cuts = [(profile.cut, profile.next_cut) for profile in server.profiles]
    assert cuts == [(1, 0), (1, 2), (2, 0)]
    assert [sync.weights for sync in server.syncs] == [tuple(sorted(moved))]
    trainer = new_trainer(spec, 2, device.data)
    trainer.adopt(moved)
    for _ in trainer.round(3):
        pass
    assert server.done[2].digest == trainer.digest()
    facts = device.directory.facts()
    assert facts is not None and (facts["cut"], facts["cuts"]) == (2, [1, 2])


def test_soft_labels_are_fetched_and_used_in_training(make: Callable[..., Device]) -> None:
    spec = replace(SPEC, soft_labels=1.0)
    device = make(spec, script=(("train", 2), ("finished", 2)))
    rows = rows_per_round(spec, 4)
    probabilities = np.full((rows, 2), 0.5, np.float16)
    device.server.soft_labels = SoftLabels(1, torch.from_numpy(probabilities))
    device.server.participant = {"soft_labels": 1}
    device.server.open_run()
    device.run()
    assert [sync.soft_labels for sync in device.server.syncs] == [0]
    trainer = new_trainer(spec, 1, device.data)
    for _ in trainer.round(2, device.server.soft_labels):
        pass
    assert device.server.done[0].digest == trainer.digest()


@pytest.mark.parametrize("is_moved", [False, True])
def test_soft_labels_of_other_images_are_not_used(
    make: Callable[..., Device], tmp_path: Path, is_moved: bool
) -> None:
    """An image has moved to another class: there are as many as before, but under other numbers."""
    root = tmp_path / "images"
    write_folder(root, {"a": 5, "b": 5})
    images = images_in(root)
    device = make(replace(SPEC, soft_labels=1.0))
    server = device.server

    def move_an_image_and_commit(done: RoundDone) -> None:
        rows = rows_per_round(device.spec, done.batches * SPEC.batch_size)
        server.soft_labels = SoftLabels(1, torch.full((rows, 2), 0.5).half())
        server.participant = {"soft_labels": 1}
        if is_moved and done.round == 1:
            Path(images.data.train.name(0)).rename(root / "b" / "moved.png")
        server.commit()

    server.on_done = move_an_image_and_commit
    run_with(device, images)
    assert [done.batches for done in server.done] == [4, 4]
    assert [sync.soft_labels for sync in server.syncs] == ([] if is_moved else [0])


def test_weights_are_sent_with_round_done_and_their_average_is_fetched(make: Callable[..., Device]) -> None:
    device = make(replace(SPEC, client_averaging="layerwise"), script=ONE_ROUND)
    server = device.server
    server.participant = {"weights": True}
    average = other_weights(client_model(build_for(SPEC), 1, SPEC).state_dict())

    def average_and_commit(done: RoundDone) -> None:
        server.participant = {}
        server.held, server.committed, server.trained = average, 1, done.digest
        server.digest = weights_digest(average)
        server.assign()
        server.open_next()

    server.on_done = average_and_commit
    server.open_run()
    device.run()
    sent = {name for message in server.tensors for name in message.tensors}
    assert sent == set(average)
    assert device.trainers[0].digest() == weights_digest(average)
    assert server.done[0].bytes == sum(len(message.encode()) for message in server.batches[:2])
    traffic = server.statuses[-1].traffic
    assert traffic is not None
    assert traffic.up.client_networks == sum(len(message.encode()) for message in server.tensors)
    assert traffic.down.client_networks > 0
