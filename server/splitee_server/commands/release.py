# SPDX-License-Identifier: Apache-2.0
"""`splitee release`: send devices their exported models, and wait for their word."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import click

from splitee.cli.bounds import number
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.plain_text import echo
from splitee.cli.settings import setting, settings_file
from splitee.cli.signals import stop_on_signals
from splitee.cli.verbosity import log_options
from splitee.errors import ConfigError, ModelError, Stalled
from splitee.inference.signatures import ReleaseSigner
from splitee.mqtt.events import Connected, Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.gate import Gate
from splitee.protocol.topics import Topics
from splitee_server.commands.signing_flag import signing_key
from splitee_server.release.offers import ROUTES, Offers

log = logging.getLogger(__name__)


@click.command(cls=Command)
@settings_file
@log_options()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@section(
    "Release",
    setting(
        "--wait",
        type=number(0),
        default=600.0,
        metavar="SECONDS",
        help="How long to wait, in seconds, until the devices have fetched and tried their models.",
    ),
    signing_key,
)
@link_options
def release(models: tuple[Path, ...], link: LinkOptions, wait: float, signing_key: Path | None) -> None:
    """Send MODELS, which `splitee export` wrote for devices, each to its device.

    The device checks what it got, tries it on its own pictures, and switches over only then.
    """
    if not models:
        raise ConfigError("nothing to release: name the model directories that `splitee export` wrote")
    topics = Topics(link.fleet)
    connection = Link(link.address, f"splitee-{link.fleet}-release-{time.time_ns()}", tls=link.tls)
    signer = ReleaseSigner(signing_key) if signing_key is not None else None
    offers, gate = Offers(connection, topics, list(models), signer), Gate(topics, ROUTES)
    stop = stop_on_signals()
    connection.open(link.connect_timeout)
    deadline = time.monotonic() + wait
    try:
        while offers.missing and not stop.is_set():
            if time.monotonic() > deadline:
                raise Stalled(
                    f"no word from {', '.join(offers.missing)} within {wait:.0f} s: is `splitee infer` "
                    "running there? The offer stays, but bytes are sent only while this command runs"
                )
            event = connection.receive(0.5)
            if isinstance(event, Connected):
                offers.offer()
            elif isinstance(event, Message) and (received := gate.read(event)) is not None:
                gate.apply(received, offers.handle)
    finally:
        connection.close()
    refused = {device: report for device, report in offers.reports.items() if report.state != "in service"}
    for device, report in sorted(offers.reports.items()):
        echo(f"{device}: {report.state}{': ' if report.reason else ''}{report.reason}")
    if refused:
        raise ModelError(f"not in service on {', '.join(sorted(refused))}; what was there before still is")
