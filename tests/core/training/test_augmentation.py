# SPDX-License-Identifier: Apache-2.0
"""Augmented images: mirrored, shifted, cropped and recoloured, as the generator's state decides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from splitee.protocol.fields import Augmentation
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee.training.augmentation import GREY, JITTER, RATIO, SCALE, augment

COUNT = 200


def images() -> Tensor:
    """All pixels differ, so that mirrored and shifted ones are recognized."""
    return torch.arange(1.0, COUNT * 3 * 16 * 8 + 1).reshape(COUNT, 3, 16, 8)


def run(how: Augmentation, *, mean: tuple[float, ...] = (0.0,), std: tuple[float, ...] = (1.0,)) -> RunSpec:
    return RunSpec(
        protocol=PROTOCOL,
        run="r",
        network="resnet18",
        num_classes=2,
        rounds=1,
        augmentation=how,
        mean=mean,
        std=std,
    )


def test_augmentation_none_keeps_images_and_the_generators_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(augment(images(), run("none")), images())
    assert torch.equal(torch.get_rng_state(), before)


def test_flip_mirrors_about_half_of_the_images_and_keeps_the_rest() -> None:
    torch.manual_seed(1)
    made = augment(images(), run("flip"))
    mirrored = [torch.equal(one, was.flip(2)) for one, was in zip(made, images(), strict=True)]
    kept = [torch.equal(one, was) for one, was in zip(made, images(), strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 70 < sum(mirrored) < 130


def test_flip_crop_shifts_images_by_up_to_an_eighth_and_pads_with_zeros() -> None:
    torch.manual_seed(1)
    found = set()
    for one, was in zip(augment(images(), run("flip-crop")), images(), strict=True):
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


@pytest.mark.parametrize("how", ["flip-crop", "photo"])
def test_random_augmentation_follows_the_generators_state(how: Augmentation) -> None:
    given = images() / images().max()
    torch.manual_seed(1)
    one = augment(given, run(how))
    torch.manual_seed(1)
    assert torch.equal(augment(given, run(how)), one)
    assert not torch.equal(augment(given, run(how)), one)


# --- photographs


@dataclass(frozen=True)
class Shown:
    """The part of an image that a crop shows; red is the image's place across, green its place down."""

    left: float
    top: float
    width: float
    height: float
    mirrored: bool


def coordinates(height: int, width: int) -> Tensor:
    """(3, H, W): red is the middle of a pixel across, in 0..1, green down; blue is a half."""
    red = ((torch.arange(width) + 0.5) / width).expand(height, width)
    green = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    return torch.stack([red, green, torch.full((height, width), 0.5)])


def shown(image: Tensor) -> Shown:
    """The crop, from the slopes of the colours in the middle, which no border changes."""
    _, height, width = image.shape
    row, column = height // 2, width // 2
    across = float(image[0, row, column + 1] - image[0, row, column - 1]) / 2 * width
    down = float(image[1, row + 1, column] - image[1, row - 1, column]) / 2 * height
    middle_x = float(image[0, row, column]) - across * (0.5 / width)
    middle_y = float(image[1, row, column]) - down * (0.5 / height)
    return Shown(middle_x - abs(across) / 2, middle_y - down / 2, abs(across), down, across < 0)


def crops(monkeypatch: pytest.MonkeyPatch, height: int, width: int) -> tuple[Tensor, list[Shown]]:
    """Many crops of one image, with unchanged colours."""
    monkeypatch.setattr("splitee.training.augmentation.JITTER", 0.0)
    torch.manual_seed(1)
    made = augment(coordinates(height, width).expand(COUNT, -1, -1, -1), run("photo"))
    return made, [shown(one) for one in made]


def test_photo_crops_stay_within_the_image_and_their_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = 48, 64
    _, found = crops(monkeypatch, height, width)
    for one in found:
        assert min(one.left, one.top) > -0.01
        assert max(one.left + one.width, one.top + one.height) < 1.01
        assert SCALE[0] * 0.9 < one.width * one.height < SCALE[1] * 1.01
        whole = one.width > 0.98 or one.height > 0.98  # the image's edge has cut the crop
        assert whole or RATIO[0] * 0.98 < one.width * width / (one.height * height) < RATIO[1] * 1.02
    assert 70 < sum(one.mirrored for one in found) < 130
    assert len({one.left for one in found}) > COUNT / 2


def test_photo_crop_scales_its_part_of_the_image_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    height, width = 48, 64
    x, y = (torch.arange(width) + 0.5) / width, (torch.arange(height) + 0.5) / height
    for one, part in zip(*crops(monkeypatch, height, width), strict=True):
        red = part.left + part.width * (1 - x if part.mirrored else x)
        green = part.top + part.height * y
        inner = (
            slice(2, -2),
            slice(2, -2),
        )  # the outermost half pixel of an image is not interpolated
        torch.testing.assert_close(one[0][inner], red.expand(height, -1)[inner], atol=0.003, rtol=0)
        torch.testing.assert_close(one[1][inner], green[:, None].expand(-1, width)[inner], atol=0.003, rtol=0)


def test_photo_colours_change_as_with_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The crops show the whole image, so brightness, contrast and saturation follow from the colours."""
    monkeypatch.setattr("splitee.training.augmentation.SCALE", (1.0, 1.0))
    monkeypatch.setattr("splitee.training.augmentation.RATIO", (1.0, 1.0))
    mean, std = (0.48, 0.46, 0.41), (0.23, 0.22, 0.25)
    torch.manual_seed(1)
    once = 0.3 + 0.4 * torch.rand(3, 16, 8)  # far enough from 0 and 1 that no colour is clipped
    whole = torch.cat([once, once.flip(2)], dim=2)  # the same, when it is mirrored
    bent_mean, bent_std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    given = ((whole - bent_mean) / bent_std).expand(20, -1, -1, -1)
    made = augment(given, run("photo", mean=mean, std=std)) * bent_std + bent_mean
    grey = torch.tensor(GREY)[:, None, None]
    middle = float((whole * grey).sum(0).mean())
    factors = []
    for one in made:
        brightness = float((one * grey).sum(0).mean()) / middle
        spread = float((one * grey).sum(0).std() / (whole * grey).sum(0).std())
        saturation = float((one[0] - one[1]).std() / (whole[0] - whole[1]).std()) / spread
        theirs = v2.adjust_brightness(whole, brightness)
        theirs = v2.adjust_contrast(theirs, spread / brightness)
        theirs = v2.adjust_saturation(theirs, saturation)
        torch.testing.assert_close(one, theirs, atol=2e-3, rtol=0)
        factors += [brightness, spread / brightness, saturation]
    assert all(1 - JITTER - 1e-3 < factor < 1 + JITTER + 1e-3 for factor in factors)
    assert max(factors) - min(factors) > JITTER


@pytest.mark.parametrize("channels", [1, 3])
def test_photo_clips_colours_to_the_range_of_pixels(channels: int) -> None:
    torch.manual_seed(1)
    given = torch.randint(2, (COUNT, channels, 16, 24)) * 2.0 - 1  # 0 and 1 with a mean and deviation of 0.5
    made = augment(given, run("photo", mean=(0.5,), std=(0.5,)))
    assert made.shape == given.shape
    assert made.dtype == torch.float32
    assert math.isclose(float(made.min()), -1, abs_tol=1e-6)
    assert math.isclose(float(made.max()), 1, abs_tol=1e-6)


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    moved = torch.zeros_like(image)
    height, width = image.shape[1:]
    rows = slice(max(down, 0), height + min(down, 0)), slice(max(-down, 0), height - max(down, 0))
    columns = slice(max(right, 0), width + min(right, 0)), slice(max(-right, 0), width - max(right, 0))
    moved[:, rows[0], columns[0]] = image[:, rows[1], columns[1]]
    return moved
