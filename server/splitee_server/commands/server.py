"""`splitee server`: train the shared trunk from the devices' features."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import click
import msgspec
import torch

from splitee.cli.settings import setting, settings_file
from splitee.cli.signals import Stopped, stop_on_signals
from splitee.durable import StateDirectory
from splitee.errors import ConfigError
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions, link_options
from splitee.networks.split import build_for
from splitee.protocol.codecs import AUTO, CODECS, DEFAULT
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL, Topics
from splitee_server.announcer import claim_fleet, offline
from splitee_server.commands.run_settings import run_settings
from splitee_server.learning.strategies.registry import STRATEGIES, with_setting
from splitee_server.monitoring.options import Monitoring, monitoring_options
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.policy import Policy
from splitee_server.service import Service

log = logging.getLogger(__name__)

DIRECTORY = click.Path(path_type=Path)


@click.command()
@link_options
@setting("--network", default="resnet18", help="A torchvision classifier, or module:factory.")
@setting(
    "--stem",
    type=click.Choice(["imagenet", "small"]),
    default="imagenet",
    help="small: for 32-pixel pictures.",
)
@setting("--num-classes", type=int, default=10)
@setting("--devices", type=click.IntRange(min=1), default=3, help="Devices that must join before round 1.")
@setting("--rounds", type=click.IntRange(min=1), default=5)
@setting("--strategy", type=click.Choice(list(STRATEGIES)), default="sequential")
@setting(
    "--order",
    type=click.Choice(["step", "device"]),
    default="step",
    help=f"Of batches, for {with_setting('order')}.",
)
@setting("--seed", type=click.IntRange(min=0), default=1)
@setting(
    "--state", type=DIRECTORY, required=True, metavar="DIR", help="Where committed rounds and the report go."
)
@setting("--fresh", is_flag=True, help="Start a new run, whatever --state holds.")
@setting("--batch-size", type=int, default=32, help="Samples a batch.")
@setting(
    "--steps", type=int, default=0, help="Batches a device trains in a round; 0: one pass over its data."
)
@run_settings
@setting(
    "--codec",
    type=click.Choice([*CODECS, AUTO]),
    default=DEFAULT,
    help="Of the features on the wire; auto: by each device's CPU and link.",
)
@setting(
    "--release/--no-release",
    default=True,
    help="After the last round, export the models and send each device its own.",
)
@setting("--window", type=int, default=8, help="Batches a device may have unacknowledged.")
@setting("--threshold", type=float, default=0.5, help="Normalised entropy up to which the exit answers.")
@setting(
    "--missing", type=click.Choice(["wait", "skip"]), default="wait", help="Devices late at the deadline."
)
@setting(
    "--quorum", type=click.IntRange(min=1), default=1, help="Devices that a round needs at least (skip)."
)
@setting("--deadline-floor", type=float, default=60.0, help="Seconds that a round may always take (skip).")
@setting(
    "--memory", type=click.IntRange(min=1), default=1024, help="MiB of features that may wait for training."
)
@setting("--threads", type=click.IntRange(min=1), help="CPU threads; default: torch's choice.")
@monitoring_options
@settings_file
def server(
    link: LinkOptions,
    devices: int,
    state: Path,
    fresh: bool,
    missing: Any,
    quorum: int,
    deadline_floor: float,
    memory: int,
    threads: int | None,
    watching: Monitoring,
    **run: Any,
) -> None:
    """Train the shared trunk from the devices' features; ends when all rounds are committed and evaluated."""
    spec = _run_spec(run)
    network = build_for(spec)
    if threads:
        torch.set_num_threads(threads)
    directory = StateDirectory(state)
    store = Checkpoints(directory)
    spec = store.open(spec, fresh=fresh)
    topics, instance = Topics(link.fleet), time.time_ns()
    connection = Link(
        link.address, f"splitee-{link.fleet}-server-{instance}", will=offline(topics, instance), tls=link.tls
    )
    stop = stop_on_signals()
    policy = Policy(devices, min(quorum, devices), missing, deadline_floor, memory << 20)
    with watching.observers(connection, topics, store) as observers:
        connection.open(link.connect_timeout)
        farewell = None
        try:
            claim_fleet(connection, topics, instance)
            farewell = offline(topics, instance)
            log.info("run %s: %s, %s, waiting for %d devices", spec.run, spec.network, spec.strategy, devices)
            Service(
                connection,
                topics,
                spec,
                network,
                store,
                policy,
                instance=instance,
                stop=stop.is_set,
                observers=observers,
            ).run()
        except Stopped:
            log.info("stopped; the last committed round is in %s", state)
        finally:
            connection.close(farewell)
            directory.close()


def _run_spec(settings: dict[str, Any]) -> RunSpec:
    """The run's specification from the flags, checked against its bounds."""
    try:
        run = f"{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 0xFFFF:04x}"
        return msgspec.convert({"protocol": PROTOCOL, "run": run, **settings}, RunSpec)
    except msgspec.ValidationError as error:
        raise ConfigError(f"settings: {error}") from None
