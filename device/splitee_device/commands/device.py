"""`splitee device`: train on this device's own images, up to its cut."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import click
import torch

from splitee.cli.bounds import number, whole
from splitee.cli.link_options import link_options
from splitee.cli.settings import setting, settings_file
from splitee.cli.signals import Stopped, stop_on_signals
from splitee.cli.systemd import notify
from splitee.durable import StateDirectory
from splitee.mqtt.certificate import own_certificate, warn_before_it_ends
from splitee.mqtt.link import SESSION_EXPIRY, Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.topics import Topics, check_name
from splitee_device.agent.presence import offline
from splitee_device.agent.session import Session
from splitee_device.data.images import Shard
from splitee_device.data.sources import open_source
from splitee_device.inference.options import serving_options
from splitee_device.machine.hardware import usable_threads
from splitee_device.participate import take_part
from splitee_device.profiler.auto_cut import CutType
from splitee_device.profiler.choice import PREFERENCES
from splitee_device.profiler.drift import ROUNDS
from splitee_device.settings import DeviceSettings

log = logging.getLogger(__name__)


@click.command()
@setting("--id", "device", required=True, metavar="ID", help="This device's name in the fleet.")
@link_options
@setting(
    "--data",
    required=True,
    metavar="SPEC",
    help="DIR with DIR/CLASS/*.jpg, FILE.parquet, torchvision:NAME:ROOT or builtin:fashion-mnist.",
)
@setting(
    "--test",
    metavar="SPEC",
    help="Hold out these images instead of a share of --data: DIR with the same classes, or as --data.",
)
@setting("--shard", metavar="K/N", help="Train on part K of N of the data.")
@setting(
    "--holdout",
    type=float,
    default=0.1,
    metavar="SHARE",
    help="Share held out, where the data has no test set.",
)
@setting("--limit", type=whole(1), metavar="COUNT", help="Use at most so many images.")
@setting(
    "--network",
    metavar="MODULE:FACTORY",
    help="Allow this factory, should the run name it: it is code that runs here.",
)
@setting(
    "--cut",
    type=CutType(),
    default="auto",
    help="Last stage on this device, see `splitee cuts`; auto: what `splitee profile` recommends.",
)
@setting(
    "--lowest-cut",
    type=whole(1),
    metavar="CUT",
    help="Never be cut before this stage, whoever asks: what is sent shows less of an image the later it is. "
    " [default: --cut, or 1 for auto]",
    show_default=False,
)
@setting("--prefer", type=click.Choice(PREFERENCES), default="fastest", help="What auto chooses.")
@setting(
    "--memory",
    type=whole(1),
    metavar="MIB",
    help="What training may take, for auto, and images a quarter of it; default: what the system leaves it.",
)
@setting(
    "--adapt-cut", is_flag=True, help="Ask for another cut when rounds no longer take what was measured."
)
@setting(
    "--adapt-after",
    type=whole(1),
    default=ROUNDS,
    metavar="ROUNDS",
    help="That must depart from it in a row.",
)
@setting("--budget", type=number(1), default=60.0, metavar="SECONDS", help="To measure for auto.")
@setting(
    "--state", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the state is kept."
)
@setting("--fresh", is_flag=True, help="Forget the state of another run.")
@setting(
    "--cache",
    type=whole(0, 1 << 20),
    default=512,
    metavar="MIB",
    help="Of features in --state, where all of this device's stages are frozen; 0: none.",
)
@setting(
    "--threads",
    type=whole(1),
    metavar="COUNT",
    help="CPU threads; default: the cores it may use.",
)
@setting(
    "--workers",
    type=whole(0, 64),
    default=1,
    metavar="COUNT",
    help="Threads that decode images a batch ahead, where they do not fit in memory; 0: none.",
)
@setting(
    "--patience", type=number(0), default=0.0, metavar="SECONDS", help="Give up without a server; 0: never."
)
@serving_options
@setting("--stay", is_flag=True, help="Wait for the fleet's next run when one is finished.")
@setting(
    "--baseline",
    is_flag=True,
    help="Before it joins, train alone for as many rounds, and tell the server that accuracy for comparison.",
)
@settings_file
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
    """Train on this device's own images, up to its cut, then classify images with what was trained.

    Images never leave the device; features and labels do.
    """
    check_name(device, "--id")
    part = Shard.parse(shard) if shard else None
    open_source(data, test)  # what is wrong with the data is said at once, not when a server has come
    threads = threads or usable_threads()
    chosen = DeviceSettings(
        device=device, link=link, data=data, test=test, shard=part, threads=threads, **settings
    )
    chosen.serving.images()  # and so is a folder that is not there
    torch.set_num_threads(threads)
    directory = StateDirectory(state)
    topics, instance = Topics(link.fleet), time.time_ns()
    connection = Link(
        link.address,
        f"splitee-{link.fleet}-{device}",
        session_expiry=SESSION_EXPIRY,
        will=offline(topics, device, instance),
        tls=link.tls,
    )
    warn_before_it_ends(own_certificate(link.tls))
    stop = stop_on_signals()
    session = Session(connection, topics, device, instance, patience=patience or None, stop=stop.is_set)
    notify(f"STATUS=connecting to {link.address}")
    connection.open(link.connect_timeout)
    notify("READY=1", "STATUS=waiting for a server to open a run")
    try:
        take_part(session, topics, directory, chosen)
        log.info("run finished")
    except Stopped:
        log.info("stopped; the state is in %s", state)
    finally:
        notify("STOPPING=1")
        connection.close(offline(topics, device, instance))
        directory.close()
