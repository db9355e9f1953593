# SPDX-License-Identifier: Apache-2.0
"""The names of all topics: `splitee/v1/FLEET/...`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from splitee.errors import ConfigError

PROTOCOL = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def check_name(value: str, what: str) -> str:
    """A fleet's or device's name as topics, file names and certificates all allow it.

    Raises:
        ConfigError: with the rule, when `value` breaks it.
    """
    if not NAME.fullmatch(value):
        raise ConfigError(
            f"{what} {value!r}: expected 1 to 64 letters, digits, '_', '.' or '-', first a letter or digit"
        )
    return value


def discovery_name(name: str) -> str:
    """`name` in the characters that Home Assistant's discovery allows; no two names give the same."""
    return re.sub(r"[._]", lambda mark: f"_{ord(mark[0]):x}", name)


@dataclass(frozen=True)
class Topics:
    """The topics of one fleet."""

    fleet: str

    def __post_init__(self) -> None:
        check_name(self.fleet, "fleet")

    @property
    def base(self) -> str:
        return f"splitee/v{PROTOCOL}/{self.fleet}"

    @property
    def run(self) -> str:
        return f"{self.base}/run"

    @property
    def round(self) -> str:
        return f"{self.base}/round"

    @property
    def commit(self) -> str:
        return f"{self.base}/commit"

    @property
    def metrics(self) -> str:
        return f"{self.base}/metrics"

    @property
    def server_status(self) -> str:
        return f"{self.base}/server/status"

    @property
    def server_claim(self) -> str:
        return f"{self.base}/server/claim"

    def check(self, token: str) -> str:
        """The topic below which `splitee broker check` works; no message of a fleet travels there."""
        return f"{self.base}/check/{token}"

    def device(self, device: str, leaf: str) -> str:
        """`leaf`: status, profile, features, round-done, infer, weights, inbox/plan, inbox/ack, ..."""
        return f"{self.base}/devices/{device}/{leaf}"

    def trigger(self, device: str) -> str:
        """Any message on this topic makes a device take images: see `--on-topic own`."""
        return self.device(device, "inbox/trigger")

    def all_devices(self, leaf: str) -> str:
        """The subscription filter for one leaf of every device."""
        return self.device("+", leaf)

    def discovery(self, prefix: str, device: str) -> str:
        """The topic of a device's discovery message for Home Assistant, with its discovery prefix."""
        return f"{prefix}/device/splitee_{discovery_name(self.fleet)}/{discovery_name(device)}/config"

    def parse_device(self, topic: str) -> tuple[str, str] | None:
        """(device, leaf) of a device's topic in this fleet, else None."""
        prefix = f"{self.base}/devices/"
        if not topic.startswith(prefix):
            return None
        device, _, leaf = topic[len(prefix) :].partition("/")
        return (device, leaf) if leaf and NAME.fullmatch(device) else None
