# SPDX-License-Identifier: Apache-2.0
"""Networks of different families train in a fleet; `make test-all-networks` trains all of torchvision's."""

from __future__ import annotations

import pytest
from one_round import train_one_round

# The cheapest networks of families with different architectures: fire modules, shuffled channels, squeeze and
# excitation, branches without their auxiliary outputs, windows of tokens. ResNets and MobileNets train in the
# fleets of other tests; each of the remaining networks takes seconds.
FAMILIES = ("squeezenet1_1", "shufflenet_v2_x0_5", "efficientnet_b0", "googlenet", "swin_t")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_network_trains_one_round_in_a_fleet(name: str) -> None:
    train_one_round(name, (3, 32, 32))
