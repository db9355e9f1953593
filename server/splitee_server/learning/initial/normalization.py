# SPDX-License-Identifier: Apache-2.0
"""Mean and deviation of a run's images, as `--normalize` sets them."""

from __future__ import annotations

from typing import TypedDict

from splitee.errors import ConfigError
from splitee_server.learning.initial.weights import SourceWeights

PLAIN = (0.5,)  # default mean and deviation
WEIGHTS, FLEET = "weights", "fleet"


class Normalization(TypedDict, total=False):
    """Fields of RunSpec; none if they follow from the fleet's images."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalization(text: str, channels: int, found: SourceWeights | None) -> Normalization:
    """The mean and deviation that `text` gives for images with this number of channels.

    Args:
        found: the weights of the run; None: they come from the seed.

    Raises:
        ConfigError: it is no mean and deviation, not one per channel, or the weights do not give theirs.
    """
    if text == FLEET:
        return {}
    if not text:
        return {"mean": PLAIN, "std": PLAIN}
    if text == WEIGHTS:
        if found is None or not found.mean:
            name = "the seed's weights" if found is None else found.name
            raise ConfigError(
                f"--normalize weights: {name} do not say mean and deviation; give them, such as "
                "0.485,0.456,0.406/0.229,0.224,0.225, or fleet"
            )
        mean, std = found.mean, found.std
    else:
        mean, std = _given(text)
    if any(len(values) not in (1, channels) for values in (mean, std)):
        raise ConfigError(f"--normalize {text}: expected one value, or one for each of {channels} channels")
    return {"mean": mean, "std": std}


def _given(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """MEAN,../STD,.. as numbers."""
    try:
        mean, std = (tuple(float(value) for value in part.split(",")) for part in text.split("/"))
    except ValueError:
        mean, std = (), ()
    if (
        not mean
        or not all(0 <= value <= 1 for value in mean)
        or not all(1e-3 <= value <= 10 for value in std)
    ):
        raise ConfigError(
            f"--normalize {text}: expected weights, fleet, or MEAN,../STD,.. of pixels from 0 to 1, such as "
            "0.485,0.456,0.406/0.229,0.224,0.225"
        )
    return mean, std
