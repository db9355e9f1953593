# SPDX-License-Identifier: Apache-2.0
"""This client may write and read below splitee/v1/FLEET/check, where all checks work."""

from __future__ import annotations

from splitee.mqtt.options import LinkOptions
from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext


def run(context: CheckContext) -> Result:
    topic = context.topic("access")
    client = context.connect("access")
    client.subscribe(topic)
    code = client.publish(topic, b"x")
    if code.is_failure:
        return Result("missing", f"{topic}: {code.getName().lower()}; {_hint(context.link)}")
    if client.receive(context.left() / 2) is None:
        return Result(
            "missing", f"{topic}: what is published there does not come back; {_hint(context.link)}"
        )
    return Result("ok", f"this client may write and read {context.topic('#')}")


def _hint(link: LinkOptions) -> str:
    return f"this needs the server's identity (--config server/server.toml) of fleet {link.fleet!r}"


CHECK = Check("access", run, needed_by_others=True)
