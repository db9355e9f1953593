"""`splitee device`: train on this device's own pictures, up to its cut."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path

import click
import torch
from msgspec.structs import replace

from splitee.codecs import AUTO
from splitee.durable import StateDirectory
from splitee.errors import NetworkError
from splitee.link import Link
from splitee.link_options import LinkOptions, link_options
from splitee.messages import RunSpec
from splitee.notify import notify
from splitee.settings import setting, settings_file
from splitee.signals import Stopped, stop_on_signals
from splitee.topics import Topics, check_name
from splitee_device.agent import Agent
from splitee_device.auto_cut import AutoCut, CutType
from splitee_device.choice import PREFERENCES, Preference
from splitee_device.codec_choice import AutoCodec
from splitee_device.data import Shard, open_data
from splitee_device.hardware import usable_threads
from splitee_device.session import RunChanged, Session, offline
from splitee_device.sources import open_source
from splitee_device.store import DeviceStore
from splitee_device.trainer import open_trainer

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
@setting("--shard", metavar="K/N", help="Train on part K of N of the data.")
@setting(
    "--holdout",
    type=float,
    default=0.1,
    metavar="SHARE",
    help="Share held out, where the data has no test set.",
)
@setting("--limit", type=int, metavar="COUNT", help="Use at most so many pictures.")
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
@setting("--prefer", type=click.Choice(PREFERENCES), default="fastest", help="What auto chooses.")
@setting(
    "--budget", type=click.FloatRange(min=1), default=60.0, metavar="SECONDS", help="To measure for auto."
)
@setting(
    "--state", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Where the state is kept."
)
@setting("--fresh", is_flag=True, help="Forget the state of another run.")
@setting(
    "--threads",
    type=click.IntRange(min=1),
    metavar="COUNT",
    help="CPU threads; default: the cores it may use.",
)
@setting("--patience", type=float, default=0.0, metavar="SECONDS", help="Give up without a server; 0: never.")
@setting("--stay", is_flag=True, help="Wait for the fleet's next run when one is finished.")
@settings_file
def device(
    device: str,
    link: LinkOptions,
    data: str,
    shard: str | None,
    holdout: float,
    limit: int | None,
    network: str | None,
    cut: int | None,
    prefer: Preference,
    budget: float,
    state: Path,
    fresh: bool,
    threads: int | None,
    patience: float,
    stay: bool,
) -> None:
    """Train on this device's own pictures, up to its cut. Pictures never leave it; features and labels do."""
    check_name(device, "--id")
    part = Shard.parse(shard) if shard else None
    open_source(data)  # what is wrong with the data is said at once, not when a server has come
    threads = threads or usable_threads()
    torch.set_num_threads(threads)
    directory = StateDirectory(state)
    topics, instance = Topics(link.fleet), time.time_ns()
    connection = Link(
        link.address, f"splitee-{link.fleet}-{device}", will=offline(topics, device, instance), tls=link.tls
    )
    stop = stop_on_signals()
    session = Session(connection, topics, device, instance, patience=patience or None, stop=stop.is_set)
    notify(f"STATUS=connecting to {link.address}")
    connection.open(link.connect_timeout)
    notify("READY=1", "STATUS=waiting for a server to open a run")
    try:
        while True:
            spec = session.await_run()
            pictures = open_data(
                data, input_shape=spec.input_shape, shard=part, holdout=holdout, seed=spec.seed, limit=limit
            )
            _check_code(spec, network)
            store = DeviceStore(directory, device, pictures)
            try:
                chosen, capability = cut, None
                if chosen is None:
                    auto = AutoCut(link, device, len(pictures.train), threads, prefer, budget)
                    chosen, capability = auto.choose(spec, directory, session.drain, fresh=fresh)
                store.open(spec, chosen, fresh=fresh)
                log.info(
                    "%s: run %s, %s cut at %d, %d pictures",
                    device,
                    spec.run,
                    spec.network,
                    chosen,
                    len(pictures.train),
                )
                trainer_at = partial(open_trainer, spec, device=device, data=pictures)
                if spec.codec == AUTO:
                    auto_codec = AutoCodec(link, device)
                    codec = auto_codec.choose(spec, chosen, directory.path, trainer_at, fresh=fresh)
                    spec = replace(spec, codec=codec)
                Agent(session, spec, chosen, trainer_at, store, capability).take_part(pictures)
                if not stay:
                    break
                session.wait(lambda: False, "the next run")
            except RunChanged:
                log.info("the server has opened another run")
        log.info("run finished")
    except Stopped:
        log.info("stopped; the state is in %s", state)
    finally:
        notify("STOPPING=1")
        connection.close(offline(topics, device, instance))
        directory.close()


def _check_code(spec: RunSpec, allowed: str | None) -> None:
    """A factory is code of this machine's choice, never of the wire's."""
    if ":" in spec.network and spec.network != allowed:
        raise NetworkError(
            f"the run's network is the factory {spec.network!r}, code that would run here: "
            f"start the device with --network {spec.network} if that is meant"
        )
