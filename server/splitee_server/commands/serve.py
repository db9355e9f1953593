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
from splitee.errors import BrokerRefused, ConfigError, StateError, Unwinding
from splitee.inference.trunks import TrunkModels
from splitee.mqtt.certificate import own_certificate, warn_before_it_ends
from splitee.mqtt.events import Connected, Disconnected, Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.gate import Gate, Received
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import Topics
from splitee_server.announcer import Announcer, claim_fleet, offline
from splitee_server.monitoring.observer import Observer
from splitee_server.monitoring.options import Discovery, discovery_options
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
@discovery_options
@link_options
def serve(
    link: LinkOptions, model: Path, threads: int | None, releases: Path | None, discovery: Discovery
) -> None:
    """Answer devices that are not sure, from a finished run's exported trunks; keep and send out releases."""
    trunks = TrunkModels(model, threads=threads)
    with _store(releases, model) as store:
        if store is None and discovery.wanted:
            raise ConfigError(
                "--home-assistant: what is announced is remembered beside releases: --releases DIR"
            )
        _serve(link, trunks, store, discovery)


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


def _serve(link: LinkOptions, trunks: TrunkModels, store: RolloutStore | None, discovery: Discovery) -> None:
    topics, instance = Topics(link.fleet), time.time_ns()
    connection = Link(
        link.address,
        f"splitee-{link.fleet}-server-{instance}",
        will=offline(topics, instance),
        tls=link.tls,
        admits=SenderLimits(topics).admits,
    )
    home_assistant: Observer | None = None
    if store is not None:
        class_names = trunks.manifest.class_names
        home_assistant = discovery.observer(connection, topics, store.path, class_names)
    warn_before_it_ends(own_certificate(link.tls))
    stop = stop_on_signals()
    connection.open(link.connect_timeout, stop.is_set)
    farewell = None
    try:
        if stop.is_set():
            return
        claim_fleet(connection, topics, instance)
        farewell = offline(topics, instance)
        log.info("serving run %s, round %d", trunks.run, trunks.round)
        answer_requests(
            connection, topics, trunks, store, instance, stop.is_set, home_assistant or Observer()
        )
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
    home_assistant: Observer,
) -> None:
    """Serves until `stop`; the counts go to `server/status`.

    Args:
        store: of releases, where some are kept.
        home_assistant: is told of devices that predict; an `Observer` that does nothing: nobody is.
    """
    predictions = Predictions(
        port, topics, trunks, lambda device, action: gate.guard(routes.INFER, device, action)
    )
    handlers: dict[routes.Route, Callable[[Received], object]] = {
        routes.INFER: predictions.add,
        routes.SERVER_CLAIM: lambda _claim: beat(now=True),
        routes.RELEASE: lambda order: refuse(port, topics, order.message),
    }
    releases = Releases(port, topics, store) if store is not None else None
    if releases is not None:
        handlers |= dict.fromkeys(release.ROUTES, releases.handle)
    gate = Gate(
        topics,
        handlers,
        on_rejected=lambda one: predictions.refuse(one) if one.route is routes.INFER else None,
        passes=(BrokerRefused, Unwinding),
    )
    announce = Announcer(port, topics, instance, trunks.run)
    port.subscribe(*gate.filters, *home_assistant.filters)
    home_assistant.start()

    def beat(*, now: bool = False) -> None:
        doing = f"serving: {predictions.requests} requests in {predictions.passes} passes"
        announce.beat(doing, (), gate.rejected.total(), now=now)

    def take(message: Message) -> None:
        if message.topic in home_assistant.filters:
            home_assistant.on_message(message.payload)
        received = gate.read(message)
        if received is None or not gate.apply(received, handlers[received.route]):
            return
        if received.route is routes.SERVING and received.message.state == "online":
            home_assistant.on_predicting(received.device, None)

    beat(now=True)
    while not stop():
        event = port.receive(0 if predictions.waiting else 0.5)
        if event is None:
            predictions.answer()
        elif isinstance(event, Message):
            take(event)
        elif isinstance(event, Connected):
            beat(now=True)
            home_assistant.on_reconnected()
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
