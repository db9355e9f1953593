# SPDX-License-Identifier: Apache-2.0
"""Receive Maximum: how many messages to the broker may be unacknowledged."""

from __future__ import annotations

from splitee.mqtt.in_flight import IN_FLIGHT
from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.workbench import Workbench

UNSAID = 65_535  # MQTT v5, 3.2.2.3.3


def run(bench: Workbench) -> Result:
    most = getattr(bench.connect("window").properties, "ReceiveMaximum", UNSAID)
    if most < IN_FLIGHT:
        found = f"{most} messages may be unacknowledged where {IN_FLIGHT} would be: slower behind a long way"
        return Result("limited", found, most, IN_FLIGHT)
    return Result("ok", f"{most:,} messages may be unacknowledged", most, IN_FLIGHT)


CHECK = Check("receive-maximum", run)
