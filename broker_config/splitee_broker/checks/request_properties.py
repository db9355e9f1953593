# SPDX-License-Identifier: Apache-2.0
"""A message's response topic and correlation data reach its reader."""

from __future__ import annotations

from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext

CORRELATION = bytes(range(16))


def run(context: CheckContext) -> Result:
    topic, response = context.topic("request"), context.topic("response")
    client = context.connect("request")
    client.subscribe(topic)
    client.publish(topic, b"x", ResponseTopic=response, CorrelationData=CORRELATION)
    message = client.next_message()
    came = {
        "response topic": getattr(message.properties, "ResponseTopic", None) == response,
        "correlation data": getattr(message.properties, "CorrelationData", None) == CORRELATION,
    }
    lost = [name for name, is_there in came.items() if not is_there]
    if lost:
        return Result("missing", f"it loses {' and '.join(lost)}: no device gets a prediction of the server")
    return Result("ok", "response topic and correlation data come as they were sent")


CHECK = Check("request-properties", run)
