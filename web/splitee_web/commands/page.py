# SPDX-License-Identifier: Apache-2.0
"""`splitee page`: the fleet in a browser."""

from __future__ import annotations

import logging

import click

from splitee.cli.command import Command
from splitee.cli.link_options import patient_link_options
from splitee.cli.plain_text import echo
from splitee.cli.settings import settings_file
from splitee.cli.signals import stop_on_signals
from splitee.cli.systemd import notify
from splitee.cli.verbosity import log_options
from splitee.mqtt.options import LinkOptions
from splitee_web.fleet.fleet_site import FleetSite
from splitee_web.listening import ListenOptions, listening_options
from splitee_web.site import serve

PORT = 8080


@click.command(cls=Command)
@settings_file
@log_options(logging.WARNING)
@listening_options(PORT)
@patient_link_options
def page(where: ListenOptions, link: LinkOptions) -> None:
    """Serve a page that shows the fleet: read-only, live, from what `splitee status` reads.

    If the broker or the server is away, the page says so and goes on. It ends with Ctrl-C or SIGTERM.
    """

    def ready(url: str) -> None:
        echo(f"fleet {link.fleet}: {url}")
        notify("READY=1", f"STATUS={url}")

    stop = stop_on_signals()
    site = FleetSite(where, link, stop)
    serve(site.app, where, stop, ready)
    if site.failure is not None:
        raise site.failure
