# SPDX-License-Identifier: Apache-2.0
"""The prediction for an offloaded image, from the logits of both exit and trunk."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

LARGEST_WEIGHT = 100.0
Weight = Annotated[float, Meta(ge=0, le=LARGEST_WEIGHT)]


class Combination(msgspec.Struct, frozen=True):
    """A weighted sum of both logits, so that probabilities are a product of powers of both.

    This is a logarithmic opinion pool (Heskes, Selecting weighting factors in logarithmic opinion pools,
    1997). Each weight is also the inverse of a temperature.

    Attributes:
        exit: weight of the exit's logits.
        trunk: weight of the trunk's logits.
    """

    exit: Weight
    trunk: Weight

    def __call__(
        self, exit_logits: npt.NDArray[np.float32], trunk_logits: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """(N, classes) each -> (N, classes)."""
        return (self.exit * exit_logits + self.trunk * trunk_logits).astype(np.float32)


TRUNK_ALONE = Combination(0.0, 1.0)
