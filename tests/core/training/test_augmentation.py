"""Augmented pictures are the same ones, mirrored or shifted, as the generator's state decides."""

from __future__ import annotations

import torch
from torch import Tensor

from splitee.training.augmentation import augment

COUNT = 200


def pictures() -> Tensor:
    """Different in every pixel, so that a mirrored or shifted one is known for what it is."""
    return torch.arange(1.0, COUNT * 3 * 16 * 8 + 1).reshape(COUNT, 3, 16, 8)


def test_none_changes_nothing_and_draws_nothing() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(augment(pictures(), "none"), pictures())
    assert torch.equal(torch.get_rng_state(), before)


def test_about_half_are_mirrored_and_the_others_as_they_were() -> None:
    torch.manual_seed(1)
    made = augment(pictures(), "flip")
    mirrored = [torch.equal(one, was.flip(2)) for one, was in zip(made, pictures(), strict=True)]
    kept = [torch.equal(one, was) for one, was in zip(made, pictures(), strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


def test_shifts_go_up_to_an_eighth_of_each_side_and_bring_in_zeros() -> None:
    torch.manual_seed(1)
    found = set()
    for one, was in zip(augment(pictures(), "flip-crop"), pictures(), strict=True):
        shifts = {
            (down, right)
            for source in (was, was.flip(2))
            for down in range(-3, 4)
            for right in range(-2, 3)
            if torch.equal(one, shifted(source, down, right))
        }
        assert shifts
        found |= shifts
    assert found == {(down, right) for down in range(-2, 3) for right in range(-1, 2)}


def test_the_generators_state_decides() -> None:
    torch.manual_seed(1)
    one = augment(pictures(), "flip-crop")
    torch.manual_seed(1)
    assert torch.equal(augment(pictures(), "flip-crop"), one)
    assert not torch.equal(augment(pictures(), "flip-crop"), one)


def shifted(picture: Tensor, down: int, right: int) -> Tensor:
    moved = torch.zeros_like(picture)
    height, width = picture.shape[1:]
    rows = slice(max(down, 0), height + min(down, 0)), slice(max(-down, 0), height - max(down, 0))
    columns = slice(max(right, 0), width + min(right, 0)), slice(max(-right, 0), width - max(right, 0))
    moved[:, rows[0], columns[0]] = picture[:, rows[1], columns[1]]
    return moved
