# SPDX-License-Identifier: Apache-2.0
"""`splitee device`: train on this device's own images, up to its cut."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any, get_args

import click

from splitee.cli.bounds import MOST_THREADS, number, whole
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.pairs import given_as_flag, require
from splitee.cli.precision import WantedPrecision, check_precision
from splitee.cli.settings import setting, settings_file
from splitee.cli.signals import Stopped, stop_on_signals
from splitee.cli.systemd import notify
from splitee.cli.verbosity import log_options
from splitee.durable import StateDirectory
from splitee.errors import ConfigError
from splitee.mqtt.certificate import own_certificate, warn_before_it_ends
from splitee.mqtt.link import SESSION_EXPIRY, Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.topics import Topics, check_name
from splitee_device.agent.presence import offline
from splitee_device.data.images import Shard
from splitee_device.data.sources import open_source
from splitee_device.inference.agreement_options import agreement_options, require_images
from splitee_device.inference.options import serving_options
from splitee_device.machine.hardware import usable_threads
from splitee_device.profiler.auto_cut import CutType
from splitee_device.profiler.choice import PREFERENCES
from splitee_device.profiler.drift import ROUNDS
from splitee_device.settings import DeviceSettings
from splitee_device.upgrade.health import Health
from splitee_device.upgrade.software import Software

log = logging.getLogger(__name__)


@click.command(cls=Command)
@settings_file
@log_options()
@section(
    "Device",
    setting("--id", "device", required=True, metavar="ID", help="Name of this device in the fleet."),
    setting(
        "--state",
        type=click.Path(path_type=Path),
        required=True,
        metavar="DIR",
        help="Folder in which the device keeps its state.",
    ),
    setting("--fresh", is_flag=True, help="Forget the state of another run."),
    setting("--stay", is_flag=True, help="Wait for the fleet's next run when one is finished."),
    setting(
        "--patience",
        type=number(0),
        default=0.0,
        metavar="SECONDS",
        help="How long to wait for a server, in seconds, before giving up; 0: for ever.",
    ),
    setting(
        "--threads",
        type=whole(1, MOST_THREADS),
        metavar="COUNT",
        help="Number of CPU threads.",
        show_default="the cores it may use",
    ),
    setting(
        "--precision",
        type=click.Choice(get_args(WantedPrecision)),
        default="fp32",
        help="Precision that this device computes in; auto: bf16 if the CPU has it and it is measured to be "
        "faster.",
    ),
)
@link_options
@section(
    "Images",
    setting(
        "--data",
        required=True,
        metavar="SPEC",
        help="Images to train on: DIR with DIR/CLASS/*.jpg, FILE.parquet, torchvision:NAME:ROOT or "
        "builtin:fashion-mnist.",
    ),
    setting(
        "--test",
        metavar="SPEC",
        help="Images to hold out, written as for --data and of the same classes.",
        show_default="a share of --data",
    ),
    setting(
        "--holdout",
        type=number(0, 1, above=True, below=True),
        default=0.1,
        metavar="SHARE",
        help="Share of the images that is held out, if the data has no test set.",
    ),
    setting("--shard", metavar="K/N", help="Train on part K of N of the data.", show_default="all of it"),
    setting(
        "--limit",
        type=whole(1),
        metavar="COUNT",
        help="Largest number of images to use.",
        show_default="all",
    ),
    setting(
        "--workers",
        type=whole(0, 64),
        default=1,
        metavar="COUNT",
        help="Number of threads that decode images a batch ahead, if they do not fit in memory; 0: none.",
    ),
)
@section(
    "Training",
    setting(
        "--cut",
        type=CutType(),
        default="auto",
        metavar="CUT",
        help="Last stage on this device, as `splitee cuts` numbers them; auto: what `splitee profile` "
        "recommends.",
    ),
    setting(
        "--lowest-cut",
        type=whole(1),
        metavar="CUT",
        help="Lowest cut that this device accepts: features at deeper cuts show less of an image.",
        show_default="--cut, or 1 for auto",
    ),
    setting(
        "--adapt-cut", is_flag=True, help="Request another cut when rounds no longer take the measured time."
    ),
    setting(
        "--adapt-after",
        type=whole(1),
        default=ROUNDS,
        metavar="ROUNDS",
        help="Number of consecutive rounds that must differ from the measurement before that is reported.",
    ),
    setting(
        "--prefer",
        type=click.Choice(PREFERENCES),
        default="fastest",
        help="Which of the possible cuts --cut auto takes.",
    ),
    setting(
        "--budget",
        type=number(1),
        default=60.0,
        metavar="SECONDS",
        help="Time to measure for --cut auto, in seconds.",
    ),
    setting(
        "--memory",
        type=whole(1),
        metavar="MIB",
        help="Memory that training may use, in MiB, a quarter of it for images.",
        show_default="what is available",
    ),
    setting(
        "--cache",
        type=whole(0, 1 << 20),
        default=512,
        metavar="MIB",
        help="Space for features in --state, in MiB, if all of this device's stages are frozen; 0: none.",
    ),
    setting(
        "--network",
        metavar="MODULE:FACTORY",
        help="Factory that may build the run's network: its code runs here.",
        show_default="none",
    ),
    setting(
        "--baseline",
        is_flag=True,
        help="Before joining, train alone for the same number of rounds, and report that accuracy.",
    ),
)
@serving_options
@agreement_options
def device(
    device: str,
    link: LinkOptions,
    data: str,
    test: str | None,
    shard: str | None,
    state: Path,
    threads: int | None,
    patience: float,
    **settings: Any,
) -> None:
    """Train on this device's own images, up to its cut, then classify images with the trained model.

    Images never leave the device; features, labels and the weights of its network do.
    """
    check_name(device, "--id")
    threads = threads or usable_threads()
    chosen = DeviceSettings(
        device=device,
        link=link,
        data=data,
        test=test,
        shard=Shard.parse(shard) if shard else None,
        threads=threads,
        **settings,
    )
    check_precision(chosen.precision)
    require("--cut auto or --adapt-cut", chosen.cut is None or chosen.adapt_cut, "--prefer", "--budget")
    if test is not None and given_as_flag("holdout"):
        raise ConfigError("--holdout is a share of --data, and --test is held out instead: give one of them")
    open_source(data, test)  # report bad data at once, not when a server has come
    topics, instance = Topics(link.fleet), time.time_ns()
    require_images(chosen.serving.capture.is_given)
    chosen.serving.capture.open(topics, device)  # likewise for a missing folder
    chosen.agreement.latest_image(chosen.serving.capture.watch)

    # torch takes seconds to import; a wrong flag is reported before that
    from splitee.training.process import prepare_to_train
    from splitee_device.agent.session import Session
    from splitee_device.participate import take_part

    prepare_to_train(threads)
    directory = StateDirectory(state)
    connection = Link(
        link.address,
        f"splitee-{link.fleet}-{device}",
        session_expiry=SESSION_EXPIRY,
        will=offline(topics, device, instance),
        tls=link.tls,
    )
    warn_before_it_ends(own_certificate(link.tls))
    stop = stop_on_signals()
    health = Health.of_this_process(link.address)

    def is_stopped() -> bool:
        health.tick(connection.connected)
        return stop.is_set()

    session = Session(connection, topics, device, instance, patience=patience or None, stop=is_stopped)
    notify(f"STATUS=connecting to {link.address}")
    connection.open(link.connect_timeout, stop.is_set)
    notify("READY=1", "STATUS=waiting for a server to open a run")
    try:
        if stop.is_set():
            raise Stopped
        take_part(session, topics, directory, chosen)
        log.info("run finished")
    except Stopped:
        log.info("stopped; the state is in %s", state)
    finally:
        if Software.of_this_process() is None:  # otherwise the launcher decides what happens next
            notify("STOPPING=1")
        connection.close(offline(topics, device, instance))
        directory.close()
