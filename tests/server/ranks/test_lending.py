# SPDX-License-Identifier: Apache-2.0
"""A phase leaves the same commit, bit for bit, if another rank has trained some of its trunks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from splitee.networks.split import build_network
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import weights_digest
from splitee.training.weights import client_model
from splitee_export.combination import HeldOutLogits
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.ranks.state_transfer import pack, pack_score, unpack, unpack_score
from splitee_server.rounds.evaluation import Score

CUTS = {"a": 1, "b": 2, "c": 2, "d": 3}
ELSEWHERE = ("b", "d")  # devices that another rank serves
STEPS, BATCH = 2, 8
NETWORK = build_network("tiny_networks:tiny", num_classes=10)


def spec(**settings: Any) -> RunSpec:
    return RunSpec(
        protocol=1,
        run="r",
        network="tiny_networks:tiny",
        num_classes=10,
        rounds=5,
        strategy="averaging",
        batch_size=BATCH,
        steps=STEPS,
        exits="fleet",
        exit_cuts=(1, 2, 3),
        settled=True,
        deep_supervision=0.3,
        statistics_batches=2,
        **settings,
    )


class Server:
    """The models of a server, and those of its second rank if it has one."""

    def __init__(self, run: RunSpec, *, has_ranks: bool) -> None:
        self.spec = run
        self.model = FleetModel(run, copy.deepcopy(NETWORK))
        self.other = FleetModel(run, copy.deepcopy(NETWORK)) if has_ranks else None
        self.cuts = dict(CUTS)
        self._lacks_memory = set(ELSEWHERE)
        self._averages_are_new = True
        for device, cut in CUTS.items():
            self.model.join(device, cut, STEPS * BATCH)

    def round(self, number: int, **moves: int) -> None:
        """Train, commit, and take statistics."""
        self._lend(training=True)
        generator = torch.Generator().manual_seed(number)
        sent = {}
        for device, cut in self.cuts.items():
            for step in range(STEPS):
                features, labels = self._batch(cut, generator)
                model = self._at(device)
                model.train(device, features, labels, round_number=number, step=step, steps=STEPS)
            like = client_model(NETWORK, cut, self.spec).state_dict()
            sent[device] = {
                name: (tensor + torch.rand(tensor.shape, generator=generator)).to(tensor.dtype)
                for name, tensor in like.items()
            }
        for device in ELSEWHERE if self.other else ():
            self.model.load_round_result(device, unpack(pack(self.other.round_result(device))))
        contributions = {
            device: Contribution(weights, moves.get(device, 0)) for device, weights in sent.items()
        }
        moved = self.model.commit(number, contributions)
        self._averages_are_new = True
        self._lacks_memory.update(moved)
        self.cuts |= moved
        self._take_statistics(number, generator)

    def _take_statistics(self, number: int, generator: torch.Generator) -> None:
        self._lend(training=False)
        for device, cut in self.cuts.items():
            features, _ = self._batch(cut, generator)
            self._at(device).observe(device, features, round_number=number, step=0)
        for device in ELSEWHERE if self.other else ():
            self.model.load_observed_statistics(device, unpack(pack(self.other.observed_statistics(device))))
        self.model.refresh({device: {} for device in self.cuts})
        self._averages_are_new = True

    def logits(self, device: str) -> tuple[Tensor, Tensor | None]:
        self._lend(training=False)
        features, _ = self._batch(self.cuts[device], torch.Generator().manual_seed(7))
        model = self._at(device)
        return model.logits(device, features), model.exit_logits(device, features)

    def _lend(self, *, training: bool) -> None:
        if self.other is None:
            return
        self.other.load_phase_state(
            unpack(pack(self.model.phase_state(ELSEWHERE, averages=self._averages_are_new)))
        )
        self._averages_are_new = False
        for device in sorted(self._lacks_memory.intersection(ELSEWHERE)) if training else ():
            self.other.load_training_state(device, unpack(pack(self.model.training_state(device))))
            self._lacks_memory.discard(device)

    def _at(self, device: str) -> FleetModel:
        return self.other if self.other is not None and device in ELSEWHERE else self.model

    def _batch(self, cut: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = BATCH, *self.model.feature_shape(cut)
        return torch.randn(shape, generator=generator), torch.randint(0, 10, (BATCH,), generator=generator)


def digest(state: Mapping[str, Any]) -> str:
    return weights_digest(dict(leaves(state)))


def leaves(state: Mapping[Any, Any], path: str = "") -> list[tuple[str, Tensor]]:
    """All values of a commit's state by path, those that are no tensors as tensors of bytes."""
    found: list[tuple[str, Tensor]] = []
    for key, value in state.items():
        here = f"{path}/{key}"
        if isinstance(value, Mapping):
            found += leaves(value, here)
        elif isinstance(value, Tensor):
            found.append((here, value))
        else:
            found.append((here, torch.frombuffer(bytearray(repr(value).encode()), dtype=torch.uint8)))
    return found


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"balanced_loss": True, "soft_labels": 0.5, "server_momentum": 0.5, "optimizer": "adamw"},
        {"average": "median", "clip_updates": 1.0, "largest_loss": 1.01},
        {"client_averaging": "same-cut", "trunk_momentum": "dropped"},
    ],
    ids=["usual", "with-memory", "robust", "without-momentum"],
)
def test_commit_with_a_second_rank_equals_that_of_a_server_alone(settings: dict[str, Any]) -> None:
    alone, shared = (Server(spec(**settings), has_ranks=has) for has in (False, True))
    for server in (alone, shared):
        server.round(1)
        server.round(2, b=3)
        server.round(3)
    assert digest(shared.model.state()) == digest(alone.model.state())
    for device in CUTS:
        for mine, theirs in zip(shared.logits(device), alone.logits(device), strict=True):
            assert mine is not None
            assert theirs is not None
            assert torch.equal(mine, theirs)


def test_equal_tensors_are_packed_once() -> None:
    server = Server(spec(), has_ranks=False)
    server.round(1)
    one, four = (len(pack(server.model.phase_state(list(CUTS)[:count], averages=True))) for count in (1, 4))
    without = len(pack(server.model.phase_state(CUTS, averages=False)))
    assert four < 1.5 * one  # plus the exits and counters of each device
    assert without < four
    weights = server.model.trunk_weights()
    trunks = {device: {n: t for n, t in weights.items() if n.startswith(device)} for device in "bc"}
    same = {
        device: {name.partition("/")[2]: tensor.clone() for name, tensor in trunk.items()}
        for device, trunk in trunks.items()
    }
    found = unpack(pack(same))
    kept = {tensor.data_ptr() for trunk in found.values() for tensor in trunk.values()}
    assert len(kept) == len(found["b"]) == len(found["c"])


def test_tensors_are_packed_once_only_if_all_their_bits_are_equal() -> None:
    values = {"a": {"w": torch.tensor([0.0, 1.0])}, "b": {"w": torch.tensor([-0.0, 1.0])}}
    values["c"] = {"w": torch.tensor([float("nan"), 1.0])}
    values["d"] = {"w": torch.tensor([float("nan"), 1.0])}
    found = unpack(pack(values))
    for name, tensors in values.items():
        assert found[name]["w"].numpy().tobytes() == tensors["w"].numpy().tobytes()
    assert found["c"]["w"].data_ptr() == found["d"]["w"].data_ptr()


def test_score_is_packed_and_unpacked_completely() -> None:
    draw = np.random.default_rng(1)
    score = Score(room=100)
    for count in (5, 3):
        labels, exits = draw.integers(0, 4, count), draw.integers(0, 4, count)
        trunk = draw.normal(size=(count, 4)).astype(np.float32)
        score.add(labels, exits, draw.random(count, np.float32), trunk.argmax(axis=1), 0.5)
        score.keep_logits(draw.normal(size=(count, 4)).astype(np.float32), trunk, labels)
    found = unpack_score(pack_score(score))
    assert found.images == 8
    assert found.accuracies() == score.accuracies()
    assert isinstance(found.logits, HeldOutLogits)
    assert score.logits is not None
    for name, array in vars(score.logits).items():
        assert np.array_equal(getattr(found.logits, name), array)
    assert unpack_score(pack_score(Score())).logits is None
