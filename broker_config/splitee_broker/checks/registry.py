# SPDX-License-Identifier: Apache-2.0
"""All checks, in the order in which they run, and how they are run."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from splitee.mqtt.options import LinkOptions
from splitee_broker.checks import (
    access,
    connections,
    delivery,
    kept_session,
    last_will,
    message_expiry,
    mqtt_v5,
    packet_size,
    queue_depth,
    receive_maximum,
    request_properties,
    retained_messages,
    speed,
    takeover,
    wildcards,
)
from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.client import ConnectionLost
from splitee_broker.checks.context import CheckContext

CHECKS: tuple[Check, ...] = tuple(
    module.CHECK
    for module in (
        mqtt_v5,
        access,
        delivery,
        retained_messages,
        message_expiry,
        wildcards,
        request_properties,
        packet_size,
        receive_maximum,
        kept_session,
        last_will,
        takeover,
        queue_depth,
        speed,
        connections,
    )
)
"""The last one opens more descriptors than `select` can handle for the clients of the others."""


@dataclass(frozen=True)
class Finding:
    """The result of one check, and its duration in seconds."""

    check: str
    result: Result
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {"check": self.check, **asdict(self.result), "seconds": round(self.seconds, 3)}


def run_checks(
    link: LinkOptions, devices: int, progress: Callable[[str], None] = lambda _words: None
) -> Iterator[Finding]:
    """Yields each finding when its check ends.

    Raises:
        SpliteeError: there is no broker, or it does not let this client in.
    """
    token = secrets.token_hex(4)
    for check in CHECKS:
        progress(check.name)
        started = time.monotonic()
        report = partial(_report, progress, check.name)
        with CheckContext(link, devices, token, check.limit(devices), report) as context:
            try:
                result = check.run(context)
            except ConnectionLost as lost:
                result = Result("missing", str(lost))
        yield Finding(check.name, result, time.monotonic() - started)
        if check.needed_by_others and result.verdict == "missing":
            return


def _report(progress: Callable[[str], None], check: str, words: str) -> None:
    progress(f"{check}: {words}")
