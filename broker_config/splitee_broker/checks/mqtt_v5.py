# SPDX-License-Identifier: Apache-2.0
"""The broker speaks MQTT v5 with QoS 1, and lets this client in."""

from __future__ import annotations

from contextlib import closing

from splitee.mqtt.link import Link
from splitee.mqtt.refusals import MissingFeature, NoMqtt5
from splitee_broker.checks.base import Check, Result
from splitee_broker.checks.context import CheckContext


def run(context: CheckContext) -> Result:
    """Connects with the link of devices and servers, so that it reports a wrong broker as they do.

    Raises:
        SpliteeError: there is no broker, or it does not let this client in.
    """
    link = context.link
    with closing(Link(link.address, context.client_id("first"), tls=link.tls)) as connection:
        try:
            connection.open(link.connect_timeout)
        except NoMqtt5 as missing_feature:
            return Result("missing", str(missing_feature))
        except MissingFeature:
            pass  # each of these features has its own check
    if getattr(context.connect("qos").properties, "MaximumQoS", 2) < 1:
        return Result("missing", "its Maximum QoS is 0; no message of a fleet does without QoS 1")
    return Result("ok", "it speaks MQTT v5 with QoS 1, and lets this client in")


CHECK = Check("mqtt-v5", run, needed_by_others=True)
