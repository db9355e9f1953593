# SPDX-License-Identifier: Apache-2.0
"""`splitee serve`: answer a fleet's devices from exported trunks; needs no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from splitee.cli.bounds import whole
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.settings import setting, settings_file
from splitee.cli.signals import stop_on_signals
from splitee.cli.verbosity import log_options
from splitee.errors import BrokerRefused, StateError, Unwinding
from splitee.inference.trunks import TrunkModels
from splitee.mqtt.certificate import own_certificate, warn_before_it_ends
from splitee.mqtt.events import Connected, Disconnected, Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.gate import Gate
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import Topics
from splitee_server.announcer import Announcer, claim_fleet, offline
from splitee_server.offload.predictions import Predictions
from splitee_server.release import releases as release
from splitee_server.release.orders import refuse
from splitee_server.release.releases import Releases
from splitee_server.release.rollout_store import RolloutStore, open_store

log = logging.getLogger(__name__)


@click.command(cls=Command)
@settings_file
@log_options()
@section(
    "Model",
    setting(
        "--model",
        type=click.Path(path_type=Path),
        required=True,
        metavar="DIR",
        help="What `splitee export` wrote for the server.",
    ),
    setting(
        "--threads",
        type=whole(1),
        metavar="COUNT",
        help="Number of CPU threads.",
        show_default="all cores but one",
    ),
    setting(
        "--releases",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Folder in which releases are kept until all devices have them.",
        show_default="releases, beside the folder of --model",
    ),
)
@link_options
def serve(link: LinkOptions, model: Path, threads: int | None, releases: Path | None) -> None:
    """Predict offloaded images with a finished run's exported trunks; keep and send out releases."""
    trunks = TrunkModels(model, threads=threads)
    with _store(releases, model) as store:
        _serve(link, trunks, store)


@contextmanager
def _store(releases: Path | None, model: Path) -> Iterator[RolloutStore | None]:
    """Where releases are kept; None: nowhere, as nobody named a folder, and that beside the model is none.

    Raises StateError: the folder that was named cannot be worked on.
    """
    with ExitStack() as stack:
        store = None
        try:
            store = stack.enter_context(open_store(releases or model.parent / "releases"))
        except StateError as error:
            if releases is not None:
                raise
            log.warning("this server keeps no releases: %s (--releases DIR)", error)
        yield store


def _serve(link: LinkOptions, trunks: TrunkModels, store: RolloutStore | None) -> None:
    topics, instance = Topics(link.fleet), time.time_ns()
    connection = Link(
        link.address,
        f"splitee-{link.fleet}-server-{instance}",
        will=offline(topics, instance),
        tls=link.tls,
        admits=SenderLimits(topics).admits,
    )
    warn_before_it_ends(own_certificate(link.tls))
    stop = stop_on_signals()
    connection.open(link.connect_timeout)
    farewell = None
    try:
        claim_fleet(connection, topics, instance)
        farewell = offline(topics, instance)
        log.info("serving run %s, round %d", trunks.run, trunks.round)
        answer_requests(connection, topics, trunks, store, instance, stop.is_set)
        log.info("stopped")
    finally:
        connection.close(farewell)


def answer_requests(
    port: Port,
    topics: Topics,
    trunks: TrunkModels,
    store: RolloutStore | None,
    instance: int,
    stop: Callable[[], bool],
) -> None:
    """Serves until `stop`; the counts go to `server/status`. `store`: of releases, where some are kept."""
    predictions = Predictions(
        port, topics, trunks, lambda device, action: gate.guard(routes.INFER, device, action)
    )
    releases = Releases(port, topics, store) if store is not None else None
    gate = Gate(
        topics,
        (routes.INFER, routes.SERVER_CLAIM, *(release.ROUTES if releases is not None else (routes.RELEASE,))),
        on_rejected=lambda one: predictions.refuse(one) if one.route is routes.INFER else None,
        passes=(BrokerRefused, Unwinding),
    )
    announce = Announcer(port, topics, instance, trunks.run)
    port.subscribe(*gate.filters)

    def beat(*, now: bool = False) -> None:
        doing = f"serving: {predictions.requests} requests in {predictions.passes} passes"
        announce.beat(doing, (), gate.rejected.total(), now=now)

    beat(now=True)
    while not stop():
        event = port.receive(0 if predictions.waiting else 0.5)
        if event is None:
            predictions.answer()
        elif isinstance(event, Message) and (received := gate.read(event)) is not None:
            if received.route is routes.SERVER_CLAIM:
                beat(now=True)
            elif received.route is routes.INFER:
                gate.apply(received, predictions.add)
            elif releases is not None:
                gate.apply(received, releases.handle)
            else:
                refuse(port, topics, received.message)
        elif isinstance(event, Connected):
            beat(now=True)
            if releases is not None:
                releases.rollouts.again()
        elif isinstance(event, Disconnected):
            log.warning("connection lost (%s); reconnecting", event.reason)
        beat()
        if releases is not None:
            releases.rollouts.tick()
    predictions.answer()
    if releases is not None:
        releases.rollouts.tick(at_once=True)
    beat(now=True)
