# SPDX-License-Identifier: Apache-2.0
"""`splitee broker check`: tests whether a broker has what a fleet needs."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import click
from rich.console import Console
from rich.text import Text

from splitee.cli import words
from splitee.cli.bounds import whole
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.plain_text import echo_json, plain_cell
from splitee.cli.settings import settings_file, switch
from splitee.cli.verbosity import is_quiet, log_options
from splitee.errors import BrokerRefused, ConfigError
from splitee.mqtt.options import LinkOptions
from splitee_broker.checks.registry import CHECKS, Finding, run_checks

DEVICES = 100
MOST_DEVICES = 100_000
STYLES = {"ok": "green", "limited": "yellow", "missing": "bold red", "unknown": "yellow"}
NAMES = max(len(check.name) for check in CHECKS)
VERDICTS = max(map(len, STYLES))


@click.command("check", cls=Command)
@settings_file
@log_options(logging.WARNING)
@section(
    "Check",
    switch(
        "--devices",
        type=whole(1, MOST_DEVICES),
        metavar="COUNT",
        default=DEVICES,
        show_default=True,
        help="Number of devices that the broker is to serve: so many connections are opened.",
    ),
    switch("--json", "as_json", is_flag=True, help="Print the results as JSON."),
)
@link_options
def check_broker(link: LinkOptions, devices: int, as_json: bool) -> None:
    """Test whether a broker has the features that a fleet needs, and name those that are missing.

    It needs the server's identity (--config server/server.toml) and less than a minute with 100 devices, and
    leaves nothing on the broker. A fleet that is training goes on.
    """
    console = Console(stderr=as_json)
    findings = []
    status = console.status("")
    with nullcontext() if is_quiet() else status:
        for finding in run_checks(link, devices, lambda said: status.update(plain_cell(said))):
            findings.append(finding)
            if not as_json:
                console.print(line(finding), soft_wrap=True)
    if as_json:
        found = [finding.as_dict() for finding in findings]
        echo_json({"broker": str(link.address), "fleet": link.fleet, "devices": devices, "checks": found})
    _raise_for_verdicts(link, devices, findings)


def line(finding: Finding) -> Text:
    """One finding, as a line for the user."""
    verdict = finding.result.verdict
    return Text.assemble(
        (f"{verdict:{VERDICTS}}", STYLES[verdict]),
        f"  {finding.check:{NAMES}}  ",
        plain_cell(finding.result.found),
    )


def _raise_for_verdicts(link: LinkOptions, devices: int, findings: list[Finding]) -> None:
    """Raises BrokerRefused: a feature is missing; ConfigError: a check could not be made."""

    def names(verdict: str) -> str:
        return ", ".join(each.check for each in findings if each.result.verdict == verdict)

    if missing := names("missing"):
        raise BrokerRefused(f"broker {link.address} lacks, for {words.devices(devices)}: {missing}")
    if unknown := names("unknown"):
        raise ConfigError(f"--devices {devices}: this machine could not try {unknown}")
