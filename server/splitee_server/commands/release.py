# SPDX-License-Identifier: Apache-2.0
"""`splitee release`: have the server release models or software to the fleet, and follow the result."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from splitee.cli import words
from splitee.cli.bounds import number
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.plain_text import echo, plain
from splitee.cli.settings import setting, settings_file, switch
from splitee.cli.signals import stop_on_signals
from splitee.cli.verbosity import log_options
from splitee.errors import ConfigError, Stalled
from splitee.inference.signatures import ReleaseSigner
from splitee.mqtt.events import Event, Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol import routes
from splitee.protocol.gate import Gate
from splitee.protocol.inference import SoftwareReport
from splitee.protocol.release_orders import MOST_DEVICES, OrderAction, ReleaseOrder
from splitee.protocol.rollouts import Rollout
from splitee.protocol.topics import Topics, check_name
from splitee_server.commands.rollout_flags import LONGEST, Span, rollout_policy, waves_setting
from splitee_server.commands.signing_flag import signing_key
from splitee_server.release import plans
from splitee_server.release.local_rollouts import LocalRollouts
from splitee_server.release.operator import NoServer, Operator, Source
from splitee_server.release.plans import Content, RolloutPolicy
from splitee_server.release.recipients import choose
from splitee_server.release.rollout_store import RolloutStore
from splitee_server.release.watching import Watch, listed, wait_for

Receive = Callable[[float], Event | None]

LISTEN = 2.0  # seconds in which a broker sends its retained messages
RETAINED = 4 * MOST_DEVICES  # events: retained messages of a whole fleet
ALL = "all"
GOES_ON = "the server goes on with it, as `splitee release --list` shows"
OFFER_STAYS = (
    "is `splitee infer` running there? The offer stays, but bytes are sent only while this command runs"
)

log = logging.getLogger(__name__)


@click.command(cls=Command)
@settings_file
@log_options(logging.WARNING)
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
@section(
    "Release",
    waves_setting(),
    setting(
        "--max-failures",
        metavar="COUNT",
        help="Devices on which it may fail, as a count or a share of all; with more, the release stops by "
        "itself.",
        show_default="0 with --waves, else 100%",
    ),
    setting(
        "--soak",
        type=number(0),
        default=60.0,
        metavar="SECONDS",
        help="Time without a failure between two waves, in seconds.",
    ),
    setting(
        "--late-after",
        type=Span(),
        default="1h",
        metavar="SPAN",
        help="How long the next wave waits for a device that is online and undecided: 20m, 3h.",
    ),
    setting(
        "--expires",
        type=Span(),
        default="30d",
        metavar="SPAN",
        help=f"How long it is offered to devices that sleep: 12h, 30d; up to {LONGEST // 86_400}d.",
    ),
    switch("--name", metavar="NAME", help="Name of the release.", show_default="release- and the time"),
    setting(
        "--devices",
        default=ALL,
        metavar="IDS",
        help="Devices that software is for, separated by commas; a model names its own device.",
        show_default="all that can install it, and run nothing newer",
    ),
    signing_key,
    switch("--detach", is_flag=True, help="End as soon as the server has all files."),
    setting(
        "--wait",
        type=number(0),
        default=600.0,
        metavar="SECONDS",
        help="How long to wait, in seconds, until the devices have fetched and tried it.",
    ),
)
@section(
    "Releases under way",
    switch("--list", "lists", is_flag=True, help="Show the releases that the server keeps."),
    switch("--pause", metavar="NAME", help="Offer it to no further device; downloads under way go on."),
    switch("--resume", metavar="NAME", help="Resume one that was paused."),
    switch("--stop", metavar="NAME", help="Withdraw it from all devices that do not have it in service."),
    switch("--roll-back", metavar="NAME", help="Have every device that has it return to its previous one."),
)
@link_options
def release(
    models: tuple[Path, ...],
    link: LinkOptions,
    waves: tuple[str, ...] | None,
    max_failures: str | None,
    soak: float,
    late_after: float,
    expires: float,
    name: str | None,
    devices: str,
    signing_key: Path | None,
    detach: bool,
    wait: float,
    lists: bool,
    pause: str | None,
    resume: str | None,
    stop: str | None,
    roll_back: str | None,
) -> None:
    """Release MODELS, which `splitee export` wrote for devices, each to its device; or a file of software.

    The server keeps the release and offers it to the devices wave by wave, also to those that sleep now. A
    device checks and tries what it receives before it switches to it. If no server runs, this command does
    the server's work while it runs.
    """
    orders: dict[OrderAction, str | None] = {
        "pause": pause,
        "resume": resume,
        "stop": stop,
        "roll back": roll_back,
    }
    action, rollout = _order(bool(models), lists, orders)
    policy = rollout_policy(waves, max_failures, soak, expires, late_after)
    signer = ReleaseSigner(signing_key) if signing_key is not None else None
    topics = Topics(link.fleet)
    stopped = stop_on_signals()
    client = f"splitee-{link.fleet}-release-{time.time_ns()}"
    with closing(Link(link.address, client, tls=link.tls, capacity=RETAINED)) as connection:
        if lists:
            connection.open(link.connect_timeout)
            _list(connection, topics)
        elif action != "release":
            connection.open(link.connect_timeout)
            order = ReleaseOrder(request=time.time_ns(), action=action, rollout=rollout)
            try:
                echo(Operator(connection, topics, wait=wait, stop=stopped.is_set).submit(order, {}))
            except NoServer:
                raise Stalled(
                    f"no server runs for fleet {link.fleet!r} at {link.address}: start `splitee serve` first"
                ) from None
        else:
            rollout = check_name(name or f"release-{datetime.now(UTC):%Y%m%d-%H%M%S}", "--name")
            content = None if _is_software(models) else plans.models(models, link.fleet, signer)
            connection.open(link.connect_timeout)
            if content is None:
                recipients = _recipients(connection, topics, models[0], devices)
                content = plans.software(models[0], recipients, link.fleet, signer)
            _release(connection, topics, content, rollout, policy, wait, stopped.is_set, detach=detach)


def _order(has_models: bool, lists: bool, orders: dict[OrderAction, str | None]) -> tuple[OrderAction, str]:
    """The action, and its rollout. Raises ConfigError: no action is given, or several."""
    named = [(action, name) for action, name in orders.items() if name is not None]
    if has_models + lists + len(named) > 1:
        raise ConfigError("give MODELS, --list, --pause, --resume, --stop or --roll-back: one of them")
    if not has_models and not lists and not named:
        raise ConfigError("nothing to release: name the model directories that `splitee export` wrote")
    return named[0] if named else ("release", "")


def _is_software(models: tuple[Path, ...]) -> bool:
    """Raises ConfigError: a file of software is named with something else."""
    is_file = [path.is_file() for path in models]
    if any(is_file) and len(models) > 1:
        raise ConfigError("release one file of software, or directories of models")
    return any(is_file)


def _recipients(connection: Link, topics: Topics, software: Path, wanted: str) -> tuple[str, ...]:
    """Devices that a file of software is for: of those that are named, or of all that the broker knows."""
    manifest = plans.software_manifest(software)
    named = [] if wanted == ALL else [check_name(one.strip(), "--devices") for one in wanted.split(",")]
    chosen = choose(manifest, _known(connection, topics), named)
    if chosen.others:
        log.warning(
            "splitee %s is for %s and Python %s; left out are %s",
            manifest.version,
            manifest.machine,
            manifest.python,
            listed([f"{device} ({why})" for device, why in chosen.others.items()]),
        )
    return chosen.devices


def _known(connection: Link, topics: Topics) -> dict[str, SoftwareReport | None]:
    """All devices of which the broker retains a message, with their reports on their software."""
    gate = Gate(
        topics, (routes.STATUS, routes.SERVING, routes.SOFTWARE_REPORT), accepts_cleared=True, log_first=0
    )
    connection.subscribe(*gate.filters)
    found: dict[str, SoftwareReport | None] = {}
    until = time.monotonic() + LISTEN
    while (left := until - time.monotonic()) > 0:
        event = connection.receive(left)
        received = gate.read(event) if isinstance(event, Message) else None
        if received is None or received.message is None:
            continue
        if received.device not in found:
            until = time.monotonic() + LISTEN  # a large fleet takes its time
        before = found.setdefault(received.device, None)
        found[received.device] = received.message if isinstance(received.message, SoftwareReport) else before
    return found


def _release(
    connection: Link,
    topics: Topics,
    content: Content,
    rollout: str,
    policy: RolloutPolicy,
    wait: float,
    stopped: Callable[[], bool],
    *,
    detach: bool,
) -> None:
    """Raises ModelError: it is not in service on all devices."""
    plan = content.plan(rollout, policy)
    if plan.waves[-1] != "100%" and plan.waves[-1] != str(len(plan.releases)):
        log.warning("the last of --waves is %s: the other devices never get it", plan.waves[-1])
    data = plan.encode()
    digest = hashlib.sha256(data).hexdigest()
    order = ReleaseOrder(
        request=time.time_ns(), action="release", rollout=rollout, plan=digest, plan_size=len(data)
    )
    with ExitStack() as stack:
        progress = stack.enter_context(_progress())
        task = progress.add_task("sent to the server", total=len(data) + sum(content.sizes.values()))
        operator = Operator(connection, topics, wait=wait, stop=stopped)
        files: dict[str, Source] = {digest: data, **content.paths}
        receive: Receive = connection.receive
        hint = GOES_ON
        try:
            echo(operator.submit(order, files, lambda count: progress.advance(task, count)))
        except NoServer:
            if detach:
                raise Stalled("no server runs that could keep the release: leave out --detach") from None
            log.warning("no server runs: devices get their bytes only while this command does")
            receive, hint = _release_locally(connection, topics, content, rollout, policy, stack), OFFER_STAYS
        if detach:
            return
        watch = Watch(connection, topics, rollout)
        progress.update(task, description="have decided", total=len(plan.releases), completed=0)

        def show(seen: Watch) -> None:
            progress.update(task, completed=seen.decided)

        wait_for(watch, receive, show, wait=wait, stop=stopped, hint=hint)
    for line in watch.lines():
        echo(line)
    watch.check()


def _release_locally(
    connection: Link, topics: Topics, content: Content, rollout: str, policy: RolloutPolicy, stack: ExitStack
) -> Receive:
    """Do the server's work until `stack` is closed; returns what receives events meanwhile."""
    store = RolloutStore(Path(stack.enter_context(tempfile.TemporaryDirectory())))
    here = LocalRollouts(connection, topics, store)
    stack.callback(here.close)
    here.releases.begin(content, rollout, policy)
    return here.receive


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _list(connection: Link, topics: Topics) -> None:
    """The releases that the server keeps. Raises Stalled: no server replies."""
    watch = Watch(connection, topics, "")
    until = time.monotonic() + LISTEN
    while watch.all is None and (left := until - time.monotonic()) > 0:
        event = connection.receive(left)
        if isinstance(event, Message):
            watch.take(event)
    if watch.all is None:
        raise Stalled(
            f"no server has reported releases of fleet {topics.fleet!r}: start `splitee serve` first"
        )
    for one in watch.all:
        for line in _lines(one):
            echo(line)
    if not watch.all:
        echo("the server keeps no release")


def _lines(rollout: Rollout) -> list[str]:
    why = f": {plain(rollout.reason)}" if rollout.reason else ""
    named = f"{rollout.rollout} ({rollout.kind}, {plain(rollout.version)})"
    lines = [f"{named}: {rollout.state}, wave {rollout.wave} of {len(rollout.waves)}{why}"]
    for place, wave in enumerate(rollout.waves, 1):
        lines.append(
            f"  wave {place}: {words.devices(wave.devices)}, {wave.in_service} in service, "
            f"{wave.failed} failed, {wave.asleep} asleep, {wave.late} late"
        )
    return lines
