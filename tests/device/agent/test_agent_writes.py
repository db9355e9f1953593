# SPDX-License-Identifier: Apache-2.0
"""What a device writes: its state once a round, before round-done if only the device has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import Sent
from msgspec.structs import replace
from scripted_device import SPEC, Device, new_trainer
from scripted_server import other_weights
from torch import Tensor

from splitee.networks.split import build_for
from splitee.protocol import routes
from splitee.protocol.rounds import RoundDone
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import is_statistic
from splitee.training.state import pack_state, unpack_state, weights_digest
from splitee.training.weights import client_model

AVERAGED = replace(SPEC, client_averaging="layerwise", statistics_batches=2)
ROUNDS = 2
WITH_STATISTICS = tuple(
    (phase, number) for number in range(1, ROUNDS + 1) for phase in ("train", "statistics", "evaluate")
)


class StateFiles:
    """The round states that a device has written, as seen at each of its messages."""

    def __init__(self, device: Device) -> None:
        self.written: list[str] = []  # names, in their order
        self._path = device.directory.path
        self._seen: set[tuple[str, int]] = set()
        take = device.port.on_sent

        def look_and_take(sent: Sent) -> None:
            self.look()
            take(sent)

        device.port.on_sent = look_and_take

    def look(self) -> None:
        for file in sorted(self._path.glob("round-*")):
            found = file.name, file.stat().st_mtime_ns
            if found not in self._seen:
                self._seen.add(found)
                self.written.append(file.name)


class AveragingServer:
    """Commits an average, and sends it again with fresh statistics."""

    def __init__(self, device: Device, average: Callable[[RoundDone], dict[str, Tensor]]) -> None:
        self._server = device.server
        self._average = average
        self._server.on_done = self.end_phase
        self._server.participant = {"weights": True}

    def end_phase(self, done: RoundDone) -> None:
        server = self._server
        if done.phase == "train":
            server.held, server.fresh = self._average(done), False
            server.committed, server.trained = done.round, done.digest
        else:
            assert server.held is not None
            server.held = {
                name: tensor + 0.5 if is_statistic(name) else tensor for name, tensor in server.held.items()
            }
            server.fresh = True
        server.digest = weights_digest(server.held)
        server.assign()
        server.open_next()


def an_average(spec: RunSpec, value: float) -> dict[str, Tensor]:
    shapes = other_weights(client_model(build_for(spec), 1, spec).state_dict())
    return {name: tensor * value if tensor.is_floating_point() else tensor for name, tensor in shapes.items()}


def stored(path: Path, number: int) -> dict[str, Tensor]:
    model: dict[str, Tensor] = unpack_state((path / f"round-{number:06d}.state").read_bytes()[40:])["model"]
    return model


def test_averaged_state_is_written_once_a_round_with_fresh_statistics(make: Callable[..., Device]) -> None:
    """It is the final state of the round: the average, with its fresh statistics."""
    device = make(AVERAGED, script=(*WITH_STATISTICS, ("finished", ROUNDS)))
    files = StateFiles(device)
    AveragingServer(device, lambda done: an_average(AVERAGED, float(done.round)))
    device.server.open_run()
    device.run()
    files.look()
    assert files.written == ["round-000001.state", "round-000002.state"]
    assert weights_digest(stored(device.directory.path, 2)) == device.server.digest
    facts = json.loads((device.directory.path / "run.json").read_text())
    assert facts["finished"]


def test_device_whose_network_is_the_average_fetches_only_statistics(make: Callable[..., Device]) -> None:
    """As in a fleet of one device."""
    device = make(AVERAGED, script=(*WITH_STATISTICS, ("finished", ROUNDS)))
    files = StateFiles(device)
    AveragingServer(
        device, lambda _done: {name: tensor.clone() for name, tensor in device.trainers[-1].weights().items()}
    )
    device.server.open_run()
    device.run()
    files.look()
    assert files.written == ["round-000001.state", "round-000002.state"]
    requested = {name for sync in device.server.syncs for name in sync.weights}
    assert requested and all(map(is_statistic, requested))


def test_statistics_are_sent_again_if_the_broker_lost_them_and_had_an_older_round(
    make: Callable[..., Device],
) -> None:
    """A broker that was killed has the messages of its last autosave: here, that of the training."""
    device = make(AVERAGED, script=(*WITH_STATISTICS, ("finished", ROUNDS)))
    averaging = AveragingServer(device, lambda done: an_average(AVERAGED, float(done.round)))
    server, lost = device.server, []

    def lose_first_statistics(done: RoundDone) -> None:
        if done.phase == "statistics" and not lost:
            lost.append(done)
            assert server.opened is not None
            server.send(routes.ROUND, replace(server.opened, phase="train"))
            server.send(routes.ROUND, server.opened, seconds=1)
        else:
            averaging.end_phase(done)

    server.on_done = lose_first_statistics
    server.open_run()
    device.run()
    sent = [(done.phase, done.round) for done in server.done]
    assert sent.count(("statistics", 1)) == 2
    assert device.server.committed == ROUNDS


def test_state_without_averaging_is_on_disk_when_round_done_is_sent(make: Callable[..., Device]) -> None:
    """Only the device has its weights and its momentum."""
    device = make()
    files = StateFiles(device)
    kept: list[str] = []
    take = device.server.on_done

    def look_at_the_disk(done: RoundDone) -> None:
        kept.append(weights_digest(stored(device.directory.path, done.round)))
        take(done)

    device.server.on_done = look_at_the_disk
    device.server.open_run()
    device.run()
    assert kept == [done.digest for done in device.server.done]
    files.look()
    assert files.written == ["round-000001.state", "round-000002.state"]


@pytest.mark.parametrize("is_old", [False, True])
def test_process_killed_before_saving_an_average_fetches_it(
    make: Callable[..., Device], is_old: bool
) -> None:
    """`is_old`: an older version of the software had saved the trained weights, which are no commit."""
    device = make(AVERAGED, script=(("train", 2), ("finished", 2)))
    server, average = device.server, an_average(AVERAGED, 1.0)
    if is_old:
        trainer = new_trainer(AVERAGED, 1, device.data)
        for _ in trainer.round(1):
            pass
        device.directory.save_round(1, pack_state(trainer.state()))
    AveragingServer(device, lambda _done: average)
    server.committed, server.held, server.fresh = 1, average, True
    server.digest = server.trained = weights_digest(average)
    server.open_run()
    device.run()
    trainer = new_trainer(AVERAGED, 1, device.data)
    trainer.adopt(average)
    for _ in trainer.round(2):
        pass
    assert server.done[0].digest == trainer.digest()
    assert torch.equal(*(next(iter(found.values())) for found in (stored(device.directory.path, 1), average)))
