# SPDX-License-Identifier: Apache-2.0
"""The container's health: exit status 0 while this fleet's server says that it is online.

It finds the broker as the server does, by the SPLITEE_* variables.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing

import click

from splitee.cli.link_options import link_options
from splitee.commands.status import receive_retained
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.routes import SERVER_STATUS
from splitee.protocol.topics import Topics

SILENT = 60.0  # seconds without a word of the server; it speaks every 5


@click.command()
@link_options
def healthcheck(link: LinkOptions) -> None:
    """Read the last status of the server that the broker retains."""
    view = FleetView(link.fleet)
    with closing(
        Link(link.address, f"splitee-health-{os.getpid()}-{time.time_ns()}", tls=link.tls)
    ) as connection:
        connection.subscribe(SERVER_STATUS.topic(Topics(link.fleet)))
        connection.open(10.0)
        receive_retained(connection, view)
    server = view.snapshot().server
    if server is None or server.state != "online" or time.time() - server.time > SILENT:
        sys.exit("the server is not online")


healthcheck()
