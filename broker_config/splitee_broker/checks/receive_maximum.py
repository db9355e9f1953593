# SPDX-License-Identifier: Apache-2.0
"""Receive Maximum: how many messages to the broker may be unacknowledged."""

from __future__ import annotations

from splitee.mqtt.in_flight import IN_FLIGHT
from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext

DEFAULT_MAXIMUM = 65_535  # MQTT v5, 3.2.2.3.3


def run(context: CheckContext) -> Result:
    most = getattr(context.connect("window").properties, "ReceiveMaximum", DEFAULT_MAXIMUM)
    if most < IN_FLIGHT:
        found = f"{most} messages may be unacknowledged where {IN_FLIGHT} would be: slower behind a long way"
        return Result("limited", found, most, IN_FLIGHT)
    return Result("ok", f"{most:,} messages may be unacknowledged", most, IN_FLIGHT)


CHECK = Check("receive-maximum", run)
