# SPDX-License-Identifier: Apache-2.0
"""Features of frozen stages are the same bits with a cache, without one, and after any accident to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.images import DeviceData, open_data
from splitee_device.training.feature_cache import HEAD, NAME, CacheRoom
from splitee_device.training.trainer import ClientTrainer

SPEC = RunSpec(
    protocol=1,
    run="r",
    network="tiny_networks:tiny",
    num_classes=10,
    rounds=2,
    freeze=2,
    frozen=2,
    batch_size=8,
)
RECORD = HEAD + 4 * 8 * 3 * 3  # bytes, of the features at cut 2
PLENTY = 1 << 20


@pytest.fixture(scope="module")
def data() -> DeviceData:
    return open_data("builtin:fashion-mnist", input_shape=(3, 32, 32), limit=40)


def train(data: DeviceData, room: CacheRoom | None, rounds: tuple[int, ...] = (1, 2), seed: int = 0) -> str:
    """The weights' digest, and all features of these rounds and of the evaluation after them."""
    network = build_for(SPEC)
    if seed:
        network.module.load_state_dict(build_for(SPEC.__replace__(seed=seed)).module.state_dict())
    trainer = ClientTrainer(network, 2, SPEC, "pi-1", data)
    trainer.features.cache_in(room)
    seen = [batch.features for number in rounds for batch in trainer.round(number)]
    seen += [batch.features for batch in trainer.evaluate()]
    return trainer.digest() + str(hash(np.concatenate(seen).tobytes()))


def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each convolution of real images; the meta device only describes a network."""
    passes: list[int] = []
    convolve = torch.nn.Conv2d.forward

    def counted(layer: torch.nn.Conv2d, images: torch.Tensor) -> torch.Tensor:
        if images.device.type == "cpu":
            passes.append(len(images))
        return convolve(layer, images)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", counted)
    return passes


def test_cached_features_give_the_same_bits_without_computing_again(
    data: DeviceData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(data, None)
    assert train(data, CacheRoom(tmp_path, PLENTY)) == expected
    images = len(data.train) + len(data.held_out)
    assert (tmp_path / NAME).stat().st_size == 32 + images * RECORD
    passes = computed(monkeypatch)
    assert train(data, CacheRoom(tmp_path, PLENTY)) == expected
    assert passes == []


@pytest.mark.parametrize("accident", ["full", "torn", "cut off", "another network"])
def test_full_damaged_or_foreign_cache_gives_the_same_bits(
    data: DeviceData, tmp_path: Path, accident: str
) -> None:
    expected, path = train(data, None), tmp_path / NAME
    room = CacheRoom(tmp_path, 32 + 10 * RECORD + 5 if accident == "full" else PLENTY)
    train(data, room, seed=7 if accident == "another network" else 0)
    if accident == "torn":
        kept = bytearray(path.read_bytes())
        kept[32 + HEAD + 3] ^= 1
        path.write_bytes(kept)
    elif accident == "cut off":
        path.write_bytes(path.read_bytes()[: 32 + 3 * RECORD + 7])
    assert train(data, room) == expected
    if accident == "full":
        assert path.stat().st_size == 32 + 10 * RECORD


@pytest.mark.parametrize("kept", [10, 0])
def test_smaller_room_shrinks_the_cache_of_before(data: DeviceData, tmp_path: Path, kept: int) -> None:
    expected, path = train(data, CacheRoom(tmp_path, PLENTY)), tmp_path / NAME
    room = CacheRoom(tmp_path, 32 + kept * RECORD + 5 if kept else 0)
    assert train(data, room) == expected
    assert (path.stat().st_size if path.exists() else 0) == (32 + kept * RECORD if kept else 0)


def test_unwritable_cache_folder_is_logged_and_training_goes_on(
    data: DeviceData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(data, CacheRoom(tmp_path / "none", PLENTY)) == train(data, None)
    assert "features are not kept on disk" in caplog.text


def test_features_of_an_image_do_not_depend_on_its_batch(data: DeviceData) -> None:
    trainer = ClientTrainer(build_for(SPEC), 2, SPEC, "pi-1", data)
    alone, among = trainer.features.batches(data.train, [np.array([5]), np.arange(20)])
    assert torch.equal(alone.images[0], among.images[5])
