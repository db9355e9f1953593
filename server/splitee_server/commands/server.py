# SPDX-License-Identifier: Apache-2.0
"""`splitee server`: train the shared trunk from the devices' features."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from msgspec.structs import asdict

from splitee.cli import words
from splitee.cli.bounds import MOST_THREADS, number, whole
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.pairs import require
from splitee.cli.precision import check_precision
from splitee.cli.run_flags import build_run_spec, run_setting, run_settings
from splitee.cli.settings import renamed, setting, settings_file
from splitee.cli.signals import Stopped, stop_on_signals
from splitee.cli.systemd import notify
from splitee.cli.verbosity import log_options
from splitee.durable import StateDirectory
from splitee.errors import ConfigError, RankLost
from splitee.inference.signatures import ReleaseSigner
from splitee.mqtt.certificate import own_certificate, warn_before_it_ends
from splitee.mqtt.options import LinkOptions
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import Topics
from splitee.samples.fitting import PHOTO_SHAPE
from splitee_server.announcer import claim_fleet, offline_status
from splitee_server.broker_limits import log_broker_limits
from splitee_server.commands.learning_flags import (
    check_strategy_settings,
    check_timed_steps,
    learning_settings,
    strategy_setting,
    threshold_setting,
    weights_setting,
)
from splitee_server.commands.resident_flag import check_resident, resident_setting
from splitee_server.commands.rollout_flags import rollout_policy, waves_setting
from splitee_server.commands.signing_flag import signing_key
from splitee_server.learning.strategies.registry import STRATEGIES
from splitee_server.members.class_names import read_class_names
from splitee_server.monitoring.options import Monitoring, monitoring_options
from splitee_server.ranks.place import brokers_of_ranks, place_in
from splitee_server.release.plans import AT_ONCE
from splitee_server.release.rollout_store import open_store
from splitee_server.rounds.policy import Policy

log = logging.getLogger(__name__)

ROUNDS_TIMES = 2  # with `--steps time:60` a round may take so many times 60 s before a device is late
DIRECTORY = click.Path(path_type=Path)


@click.command(cls=Command)
@settings_file
@log_options()
@section(
    "Run",
    setting(
        "--state",
        type=DIRECTORY,
        required=True,
        metavar="DIR",
        help="Folder for committed rounds and the report.",
    ),
    setting("--fresh", is_flag=True, help="Start a new run, whatever --state holds."),
    run_setting(
        "rounds",
        default=5,
        help="Number of rounds that are trained and committed; may be raised when a run is resumed.",
    ),
    setting(
        "--stop-after",
        type=whole(0),
        default=0,
        metavar="ROUNDS",
        help="Number of evaluated rounds without a better accuracy of the fleet after which the run ends; "
        "0: it goes on.",
    ),
    run_setting("seed", default=1),
    run_setting("release", default=True),
    waves_setting("--release-waves"),
    signing_key,
)
@link_options
@section(
    "Ranks, under torchrun",
    setting(
        "--brokers",
        metavar="URLS",
        help="Brokers of the ranks, in the order of ranks, separated by commas.",
        show_default="all ranks use --broker",
    ),
)
@section(
    "Network and images",
    run_setting("network", default="resnet18", metavar="NAME"),
    run_setting("stem"),
    run_setting("num_classes", default=10),
    setting(
        "--classes",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="File with the class names, one per line.",
        show_default="those of more than half of --devices",
    ),
    run_setting("input_shape", default=PHOTO_SHAPE),
    run_setting("fit"),
    weights_setting,
    threshold_setting,
)
@section(
    "Fleet",
    setting(
        "--devices",
        type=whole(1),
        default=3,
        metavar="COUNT",
        help="Number of devices that must join before round 1, less those that are dismissed.",
    ),
    setting(
        "--missing",
        type=click.Choice(["wait", "skip"]),
        default="wait",
        help="What a round does about devices that are late at its deadline.",
    ),
    setting(
        "--quorum",
        type=whole(1),
        default=1,
        metavar="COUNT",
        help="Least number of devices that a round needs, with --missing skip.",
    ),
    run_settings("sample", "sample_by", "evaluated_by"),
    setting(
        "--deadline-floor",
        type=number(0),
        default=60.0,
        metavar="SECONDS",
        help="Time that a round may always take, in seconds, with --missing skip.",
    ),
    setting(
        "--quarantine-after",
        type=whole(0),
        default=20,
        metavar="MESSAGES",
        help="Number of refused messages after which the server ignores a device; 0: it never does.",
    ),
    setting(
        "--readmit",
        metavar="IDS",
        help="Devices to let back from quarantine, separated by commas; all: each.",
        show_default="none",
    ),
    setting(
        "--most-images",
        type=whole(1),
        default=10_000_000,
        metavar="COUNT",
        help="Largest number of images that a device may report.",
    ),
)
@section(
    "Training",
    run_setting("strategy", type=click.Choice(list(STRATEGIES))),
    strategy_setting("order"),
)
@learning_settings
@section(
    "Resources",
    run_setting("codec"),
    run_setting("window"),
    run_setting("precision", help="Precision that trunks are trained in; bf16: bfloat16, if the CPU has it."),
    setting(
        "--feature-memory",
        type=whole(1),
        default=1024,
        metavar="MIB",
        help="Memory for features that wait for training, in MiB.",
    ),
    renamed("--memory", "--feature-memory", type=whole(1)),
    resident_setting,
    setting(
        "--threads",
        type=whole(1, MOST_THREADS),
        metavar="COUNT",
        help="Number of CPU threads.",
        show_default="torch's choice",
    ),
)
@monitoring_options
def server(
    link: LinkOptions,
    brokers: str | None,
    devices: int,
    stop_after: int,
    state: Path,
    fresh: bool,
    missing: Any,
    quorum: int,
    deadline_floor: float,
    classes: Path | None,
    weights: str | None,
    quarantine_after: int,
    readmit: str | None,
    most_images: int,
    feature_memory: int,
    resident: int,
    threads: int | None,
    signing_key: Path | None,
    release_waves: tuple[str, ...] | None,
    monitoring: Monitoring,
    **run: Any,
) -> None:
    """Train the shared trunk from the devices' features; ends when all rounds are committed and evaluated."""
    _check_quorum(quorum, devices, missing, run["sample"])
    check_strategy_settings([run["strategy"]], run)
    check_resident(resident, [run["strategy"]], run)
    spec = _new_run(run)
    names = read_class_names(classes, spec.num_classes) if classes is not None else ()
    signer = ReleaseSigner(signing_key) if signing_key is not None else None
    place = place_in(spec, devices, resident)
    addresses = brokers_of_ranks(brokers, link.address, place, spec)
    policy = Policy(
        devices,
        quorum,
        missing,
        max(deadline_floor, ROUNDS_TIMES * spec.round_seconds),
        feature_memory << 20,
        quarantine_after=quarantine_after,
        readmit=tuple(name.strip() for name in (readmit or "").split(",") if name.strip()),
        most_images=most_images,
        stop_after=stop_after,
        resident=resident,
    )

    # torch takes seconds to import; a wrong flag is reported before that
    from splitee.training.process import prepare_to_train
    from splitee_server.learning.initial.begin import open_run
    from splitee_server.ranks.begin import lead, leading_port, links_of, rank_group, train
    from splitee_server.rounds.checkpoints import Checkpoints
    from splitee_server.service import MODELS, RELEASES, Service

    prepare_to_train(threads)
    stop = stop_on_signals()
    with rank_group(
        place,
        {
            **asdict(spec),
            "run": "",  # its name comes from the time
            **vars(policy),
            "fleet": link.fleet,
            "brokers": [str(address) for address in addresses],
            "classes": names,
            "weights": weights,
            "threads": threads,
        },
    ) as group:
        if group is not None and group.rank:
            train(group, replace(link, address=addresses[group.rank]), policy, stop)
            return
        with closing(StateDirectory(state)) as directory, open_store(state / MODELS / RELEASES):
            store = Checkpoints(directory)
            spec, network, initial = open_run(spec, weights, store, names, fresh=fresh)
            topics, instance = Topics(link.fleet), time.time_ns()
            limits = SenderLimits(topics)
            client = f"splitee-{link.fleet}-server-{directory.client_token()}"
            connection = leading_port(
                addresses, client, link.tls, topics, limits, policy, will=offline_status(topics, instance)
            )
            ranks = lead(
                group,
                connection,
                topics,
                addresses,
                client,
                initial,
                joint=STRATEGIES[spec.strategy].joint,
            )
            certificate = own_certificate(link.tls)
            warn_before_it_ends(certificate)
            with monitoring.observers(connection, topics, store, certificate) as observers:
                connection.open(link.connect_timeout, stop.is_set)
                for one in links_of(connection):
                    log_broker_limits(one, devices)
                offline_message = None
                try:
                    claim_fleet(connection, topics, instance, brokers=len(links_of(connection)))
                    offline_message = offline_status(topics, instance)
                    _log_ready(spec, devices)
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
                        limits=limits,
                        signer=signer,
                        rollout_policy=AT_ONCE if release_waves is None else rollout_policy(release_waves),
                        initial=initial,
                        ranks=ranks,
                    ).run()
                    ranks.end()
                except (Stopped, RankLost):
                    if not stop.is_set():
                        raise
                    ranks.leave()
                    _log_stopped(store.newest(), state)
                finally:
                    notify("STOPPING=1")
                    connection.close(offline_message)


def _new_run(settings: dict[str, Any]) -> RunSpec:
    spec = build_run_spec(**settings)
    check_precision(spec.precision)
    check_timed_steps(spec)
    return spec


def _check_quorum(quorum: int, devices: int, missing: str, sample: str) -> None:
    if quorum > devices:
        raise ConfigError(f"--quorum {quorum} --devices {devices}: no round could have its quorum")
    require("--missing skip", missing == "skip", "--quorum", "--deadline-floor")
    require("--sample", sample != "all", "--sample-by", "--evaluated-by")
    if sample.isdecimal() and int(sample) < quorum:
        raise ConfigError(f"--sample {sample} --quorum {quorum}: no round could have its quorum")


def _log_ready(spec: RunSpec, devices: int) -> None:
    notify("READY=1", f"STATUS=run {spec.run}")
    wanted = words.devices(devices)
    log.info("run %s: %s, %s, waiting for %s", spec.run, spec.network, spec.strategy, wanted)


def _log_stopped(committed: int, state: Path) -> None:
    last = f"round {committed} is committed" if committed else "no round is committed yet"
    log.info("stopped; %s; the run's state is in %s", last, state)
