# SPDX-License-Identifier: Apache-2.0
"""Networks of different make train in a fleet; `make test-all-networks` trains each of torchvision's."""

from __future__ import annotations

import pytest
from one_round import train_one_round

# The cheapest of families that are built in different ways: fire modules, shuffled channels, squeeze and
# excitation, branches without their auxiliary outputs, windows of tokens. resnets and MobileNets train in the
# fleets of other tests; of the rest each takes seconds.
FAMILIES = ("squeezenet1_1", "shufflenet_v2_x0_5", "efficientnet_b0", "googlenet", "swin_t")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_in_a_fleet(name: str) -> None:
    train_one_round(name, (3, 32, 32))
