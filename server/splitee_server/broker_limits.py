# SPDX-License-Identifier: Apache-2.0
"""What the broker has said of its limits, held against the number of devices: said once, at the start."""

from __future__ import annotations

import logging

from splitee.cli import words
from splitee.mqtt.in_flight import IN_FLIGHT
from splitee.mqtt.link import ENVELOPE, Link
from splitee.protocol.routes import LARGEST_WHOLE

LARGEST = 1 << 20  # bytes of a packet that a link sends where the broker takes it
MANY = 200  # devices from which a broker's descriptors, connections and queues are worth a check

log = logging.getLogger(__name__)


def say_limits(link: Link, devices: int) -> None:
    """Warns where the broker's packets are too small, or its window slows the link down.

    A broker that lacks a feature has been refused before; how many connections it takes, and how much it
    queues, it does not say.
    """
    packet, whole = link.max_packet + ENVELOPE, LARGEST_WHOLE + ENVELOPE
    if packet < whole:
        log.warning(
            "broker %s takes packets of at most %s, and messages that are not sent in parts have up to %s: "
            "raise its limit (Mosquitto: max_packet_size)",
            link.address,
            words.size(packet),
            words.size(whole),
        )
    elif packet < LARGEST:
        log.info(
            "broker %s takes packets of at most %s: batches come in parts", link.address, words.size(packet)
        )
    if link.window < IN_FLIGHT:
        log.info(
            "broker %s lets %d messages be unacknowledged, not %d: slower behind a long way",
            link.address,
            link.window,
            IN_FLIGHT,
        )
    if devices >= MANY:
        log.info(
            "whether broker %s has connections and queues for %s: splitee broker check --devices %d",
            link.address,
            words.devices(devices),
            devices,
        )
