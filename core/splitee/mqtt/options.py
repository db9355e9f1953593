# SPDX-License-Identifier: Apache-2.0
"""Where a fleet's broker is, and how one is let in; the flags for it are in cli/link_options.py."""

from __future__ import annotations

from dataclasses import dataclass

from splitee.mqtt.address import BrokerAddress, TlsFiles


@dataclass(frozen=True)
class LinkOptions:
    """Where the broker is, how to be let in, and which fleet is meant."""

    address: BrokerAddress
    fleet: str
    connect_timeout: float | None  # seconds; None: try for ever
    tls: TlsFiles | None
