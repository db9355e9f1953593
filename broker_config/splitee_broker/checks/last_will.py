# SPDX-License-Identifier: Apache-2.0
"""The last will is published, and retained, when a connection breaks, so that others learn of it."""

from __future__ import annotations

import time

from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext


def run(context: CheckContext) -> Result:
    topic = context.retained("will")
    reader = context.connect("reader")
    reader.subscribe(topic)
    dying = context.connect("dying", will=(topic, b"offline"))
    dying.drop_connection()
    broken = time.monotonic()
    if reader.receive(context.left() / 2) is None:
        return Result("missing", "none is published when a connection breaks: absent members seem present")
    seconds = time.monotonic() - broken
    late = context.connect("late")
    late.subscribe(topic)
    message = late.receive(context.left() / 2)
    if message is None or not message.retain:
        return Result("missing", "it is published but not retained: later subscribers do not learn of it")
    return Result("ok", f"published and retained {1000 * seconds:.0f} ms after a connection broke", seconds)


CHECK = Check("last-will", run)
