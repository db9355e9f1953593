# SPDX-License-Identifier: Apache-2.0
"""`splitee plan`: the cuts with which the rounds of all devices would end together, from their profiles."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from splitee.cli.bounds import whole
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.plain_text import echo_json, plain_cell
from splitee.cli.settings import setting, settings_file, switch
from splitee.cli.verbosity import log_options
from splitee.cli.words import three_digits
from splitee.commands.status import receive_retained
from splitee.errors import ConfigError
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.fleet_view import FleetSnapshot, FleetView
from splitee_server.planning import Candidate, Planned, candidates, plan_fleet

log = logging.getLogger(__name__)


@click.command(cls=Command)
@settings_file
@log_options(logging.WARNING)
@section(
    "Plan",
    setting(
        "--steps",
        type=whole(0),
        default=0,
        metavar="COUNT",
        help="Number of batches in a round; 0: the run's, or one pass over each device's images.",
    ),
    switch("--json", "as_json", is_flag=True, help="Print JSON."),
)
@link_options
def plan(link: LinkOptions, steps: int, as_json: bool) -> None:
    """Show the cuts with which all devices' rounds would end together.

    Reads the profiles that devices have published (`splitee device --cut auto`). The device whose fastest cut
    takes longest sets the fleet's time. Every other device takes the deepest cut that is within this time,
    which leaves the server the least to train.
    """
    view = FleetView(link.fleet)
    identity = f"splitee-plan-{os.getpid()}-{secrets.token_hex(4)}"
    with closing(Link(link.address, identity, tls=link.tls)) as connection:
        connection.subscribe(*view.filters)
        connection.open(link.connect_timeout)
        receive_retained(connection, view)
    snapshot = view.snapshot()
    by_device = _candidates(snapshot, steps)
    if not by_device:
        raise ConfigError(
            f"no device of fleet {link.fleet!r} at {link.address} has published a profile: "
            "start devices with --cut auto, or run `splitee profile` on them"
        )
    planned = plan_fleet(by_device)
    if as_json:
        echo_json([asdict(row) for row in planned])
    else:
        Console().print(_table(planned, snapshot.run.frozen if snapshot.run else 0))


def _candidates(snapshot: FleetSnapshot, steps: int) -> dict[str, list[Candidate]]:
    run = snapshot.run
    window = run.window if run else 8
    found = {}
    for device in snapshot.devices:
        if device.capability is None or not device.train_samples:
            continue
        own = device.train_samples // max(device.capability.batch_size, 1)
        count = steps or (run.steps if run else 0) or max(1, own)
        found[device.id] = candidates(device.capability, count, window)
    return found


def _table(planned: Sequence[Planned], frozen: int) -> Table:
    fitting = [row for row in planned if row.cut is not None]
    slowest = max((row.seconds for row in fitting if row.seconds is not None), default=0.0)
    table = Table(box=None, header_style="bold", pad_edge=False)
    untrained = f"; stages 1..{frozen} are frozen" if frozen else ""
    table.title = f"The fleet's round: {three_digits(slowest)} s{untrained}"
    table.title_justify = "left"
    for heading in ("device", "cut", "round s", "idle", "why"):
        table.add_column(heading, justify="left" if heading in ("device", "why") else "right")
    for row in planned:
        idle = "" if row.seconds is None else f"{1 - row.seconds / slowest if slowest else 0:.0%}"
        seconds = "" if row.seconds is None else three_digits(row.seconds)
        cut = "-" if row.cut is None else str(row.cut)
        table.add_row(*map(plain_cell, (row.device, cut, seconds, idle, row.reason)))
    return table
