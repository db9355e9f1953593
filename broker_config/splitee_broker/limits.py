# SPDX-License-Identifier: Apache-2.0
"""The broker's limits for a number of devices: what a fleet needs, with some reserve, and no more.

Mosquitto has limits for the whole broker and for each client, but none for an account: one member may have as
many clients as the whole fleet.
"""

from __future__ import annotations

MIB = 1 << 20

DEVICES = 2000  # the default number
MOST_DEVICES = 10_000  # limited by LimitNOFILE of the unit
CLIENTS = 5  # per device at most: training, predictions, offload, and two while it measures its link
OTHER_CLIENTS = 100  # the server, viewers, Home Assistant, health checks
UNAUTHENTICATED = 4096  # connections that have not shown a certificate; Mosquitto ends each after 90 s
MOST_MESSAGES = 32_000  # in one client's queue: those that 2,000 devices may have under way
MESSAGES = 16  # per device that wait for the server: a window of 16 MiB in parts of 1 MiB


def limits(devices: int) -> dict[str, int]:
    """The settings of mosquitto.conf that follow from the number of devices."""
    return {
        "max_connections": CLIENTS * devices + OTHER_CLIENTS + UNAUTHENTICATED,
        "max_queued_messages": min(max(MESSAGES * devices, 1000), MOST_MESSAGES),
        "max_queued_bytes": min(max(devices, 64), 512) * MIB,
    }
