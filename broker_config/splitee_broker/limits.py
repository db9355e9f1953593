# SPDX-License-Identifier: Apache-2.0
"""The broker's limits by the number of its devices: what a fleet takes, with room, and no more.

Mosquitto knows limits of the whole broker and of each client, none of an account: one member may have as many
clients as the whole fleet.
"""

from __future__ import annotations

MIB = 1 << 20

DEVICES = 2000  # unless it is said how many
MOST_DEVICES = 10_000  # whose connections the unit's LimitNOFILE lets in
CLIENTS = 5  # of a device at most: training, predictions, questions, and two while it measures its link
OTHERS = 100  # the server, viewers, Home Assistant, health checks
STRANGERS = 4096  # connections that have not shown a certificate; Mosquitto ends each after 90 s
MOST_MESSAGES = 32_000  # in one client's queue: what 2,000 devices may have on the way
MESSAGES = 16  # of a device that wait for the server: a window of 16 MiB in parts of 1 MiB


def limits(devices: int) -> dict[str, int]:
    """The settings of mosquitto.conf that follow from the number of devices."""
    return {
        "max_connections": CLIENTS * devices + OTHERS + STRANGERS,
        "max_queued_messages": min(max(MESSAGES * devices, 1000), MOST_MESSAGES),
        "max_queued_bytes": min(max(devices, 64), 512) * MIB,
    }
