# SPDX-License-Identifier: Apache-2.0
"""The broker of a fleet and the credentials for it; the flags are in cli/link_options.py."""

from __future__ import annotations

from dataclasses import dataclass

from splitee.mqtt.address import BrokerAddress, TlsFiles


@dataclass(frozen=True)
class LinkOptions:
    """The broker's address, the credentials, and the name of the fleet."""

    address: BrokerAddress
    fleet: str
    connect_timeout: float | None  # seconds; None: try for ever
    tls: TlsFiles | None
