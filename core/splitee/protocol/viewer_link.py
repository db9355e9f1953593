# SPDX-License-Identifier: Apache-2.0
"""The link of a program that shows a whole fleet."""

from __future__ import annotations

import os
import secrets
from functools import partial

from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.routes import latest_key
from splitee.protocol.topics import Topics

MOST_QUEUED = 1 << 16  # messages that may wait: of 10,000 devices six each
MOST_QUEUED_BYTES = 64 << 20


def viewer_link(options: LinkOptions, program: str, *, read_delay: float = 0.0) -> Link:
    """A link in which only the latest message of each topic waits, so that a slow reader loses none.

    `program`: a part of the client id. `read_delay`: as for `Link`.
    """
    return Link(
        options.address,
        f"splitee-{program}-{os.getpid()}-{secrets.token_hex(4)}",
        tls=options.tls,
        capacity=MOST_QUEUED,
        capacity_bytes=MOST_QUEUED_BYTES,
        key=partial(latest_key, Topics(options.fleet)),
        read_delay=read_delay,
    )
