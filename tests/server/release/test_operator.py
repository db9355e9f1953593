# SPDX-License-Identifier: Apache-2.0
"""What an operator's command refuses before it sends an order."""

from __future__ import annotations

from contextlib import closing

import pytest

from splitee.errors import ConfigError
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.link import Link
from splitee.protocol.release_orders import LARGEST_PLAN, ReleaseOrder
from splitee.protocol.topics import Topics
from splitee_server.release.operator import Operator


def test_plan_that_no_server_would_read_is_refused_at_once() -> None:
    """Such as of 6,000 devices whose models have manifests of 12 KB."""
    order = ReleaseOrder(request=1, action="release", rollout="a", plan="0" * 64, plan_size=6000 * 12_300)
    assert order.plan_size > LARGEST_PLAN
    with closing(Link(BrokerAddress("127.0.0.1", 1), "operator")) as link:
        operator = Operator(link, Topics("fleet"), wait=1.0, stop=lambda: False)
        with pytest.raises(ConfigError, match=r"at most 67.1 MB, this one has 73.8 MB: release to some"):
            operator.submit(order, {})
