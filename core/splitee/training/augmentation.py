"""Augmentation of training pictures: mirrored and shifted, as chance will have it for each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from splitee.protocol.fields import Augmentation

SHIFT = 8  # a picture is shifted by at most an eighth of its height and width


def augment(pictures: Tensor, how: Augmentation) -> Tensor:
    """Pictures (B, C, H, W), left and right exchanged in half of them; `flip-crop`: also shifted.

    What a shift brings in is zero. Draws from torch's global generator, which trainers seed for every batch.
    """
    if how == "none":
        return pictures
    flipped = torch.rand(len(pictures)) < 0.5
    pictures = torch.where(flipped[:, None, None, None].to(pictures.device), pictures.flip(3), pictures)
    return _shift(pictures) if how == "flip-crop" else pictures


def _shift(pictures: Tensor) -> Tensor:
    count, _, height, width = pictures.shape
    down, right = height // SHIFT, width // SHIFT
    padded = F.pad(pictures, (right, right, down, down))
    tops = torch.randint(2 * down + 1, (count,)).tolist()
    lefts = torch.randint(2 * right + 1, (count,)).tolist()
    return torch.stack(
        [
            one[:, top : top + height, left : left + width]
            for one, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )
