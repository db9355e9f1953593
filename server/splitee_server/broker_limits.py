# SPDX-License-Identifier: Apache-2.0
"""Compares the broker's stated limits with what the run needs, and logs the result once at the start."""

from __future__ import annotations

import logging

from splitee.cli import words
from splitee.mqtt.in_flight import IN_FLIGHT
from splitee.mqtt.link import ENVELOPE, Link
from splitee.protocol.routes import LARGEST_WHOLE

LARGEST = 1 << 20  # bytes of the largest packet that a link sends if the broker allows it
MANY = 200  # from this number of devices, a broker's descriptors, connections and queues need a check

log = logging.getLogger(__name__)


def log_broker_limits(link: Link, devices: int) -> None:
    """Log if the broker's packets are too small, or its window slows the link down.

    A broker that lacks a feature was refused before. A broker does not state how many connections it
    accepts, or how much it queues.
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
            "broker %s allows %d unacknowledged messages, not %d: slower if the round trip is long",
            link.address,
            link.window,
            IN_FLIGHT,
        )
    if devices >= MANY:
        log.info(
            "to test whether broker %s has connections and queues for %s: splitee broker check --devices %d",
            link.address,
            words.devices(devices),
            devices,
        )
