# SPDX-License-Identifier: Apache-2.0
"""`splitee serve`: predict a fleet's offloaded images with exported trunks; needs no torch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from splitee.cli.bounds import MOST_THREADS, whole
from splitee.cli.command import Command, section
from splitee.cli.link_options import link_options
from splitee.cli.settings import setting, settings_file
from splitee.cli.signals import stop_on_signals
from splitee.cli.verbosity import log_options
from splitee.clock import Clock
from splitee.errors import BrokerRefused, ConfigError, StateError, Unwinding
from splitee.inference.trunks import TrunkModels
from splitee.mqtt.certificate import own_certificate, warn_before_it_ends
from splitee.mqtt.events import Connected, Disconnected, Event, Message, Overflow
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.mqtt.port import Port
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol import routes
from splitee.protocol.gate import Gate, Received
from splitee.protocol.release_orders import MOST_DEVICES
from splitee.protocol.rollouts import Rollouts
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import Topics
from splitee_server.announcer import Announcer, claim_fleet, offline_status
from splitee_server.monitoring.observer import Observer
from splitee_server.monitoring.options import Discovery, Exporter, discovery_options, metrics_options
from splitee_server.offload.predictions import Predictions
from splitee_server.release import releases as release
from splitee_server.release.orders import refuse
from splitee_server.release.releases import Releases
from splitee_server.release.rollout_store import RolloutStore, open_store

CAPACITY = 4 * MOST_DEVICES  # events: a broker sends the retained messages of a whole fleet at once
RESUBSCRIBE_EVERY = 60.0  # least number of seconds between two requests for all of them again

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
        type=whole(1, MOST_THREADS),
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
@metrics_options
@discovery_options
def serve(
    link: LinkOptions,
    metrics: Exporter,
    discovery: Discovery,
    model: Path,
    threads: int | None,
    releases: Path | None,
) -> None:
    """Predict offloaded images with a finished run's exported trunks; keep and send out releases."""
    trunks = TrunkModels(model, threads=threads)
    with _store(releases, model) as store:
        if store is None and discovery.wanted:
            raise ConfigError("--home-assistant needs --releases DIR: what is announced is recorded there")
        _serve(link, metrics, discovery, trunks, store)


@contextmanager
def _store(releases: Path | None, model: Path) -> Iterator[RolloutStore | None]:
    """Where releases are kept; None: nowhere, as no folder was named, and the default one cannot be used.

    Raises StateError: the folder that was named cannot be used.
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


def _serve(
    link: LinkOptions,
    metrics: Exporter,
    discovery: Discovery,
    trunks: TrunkModels,
    store: RolloutStore | None,
) -> None:
    topics, instance = Topics(link.fleet), time.time_ns()
    connection = Link(
        link.address,
        f"splitee-{link.fleet}-server-{instance}",
        will=offline_status(topics, instance),
        tls=link.tls,
        admits=SenderLimits(topics).admits,
        capacity=CAPACITY,
    )
    certificate = own_certificate(link.tls)
    warn_before_it_ends(certificate)
    stop = stop_on_signals()
    home_assistant = None
    if store is not None:
        home_assistant = discovery.observer(connection, topics, store.path, trunks.manifest.class_names)
    with metrics.figures(certificate) as figures:
        observers = [one for one in (figures, home_assistant) if one is not None]
        connection.open(link.connect_timeout, stop.is_set)
        offline_message = None
        try:
            if stop.is_set():
                return
            claim_fleet(connection, topics, instance)
            offline_message = offline_status(topics, instance)
            log.info("serving run %s, round %d", trunks.run, trunks.round)
            TrunkServer(connection, topics, trunks, store, instance, observers).run(stop.is_set)
            log.info("stopped")
        finally:
            connection.close(offline_message)


class TrunkServer:
    """Replies to requests and carries out releases, on the caller's thread; counts go to `server/status`."""

    def __init__(
        self,
        port: Port,
        topics: Topics,
        trunks: TrunkModels,
        store: RolloutStore | None,
        instance: int,
        observers: Sequence[Observer] = (),
        *,
        clock: Clock = time.monotonic,
    ) -> None:
        """`store`: of releases; None: none are kept."""
        self._port = port
        self._topics = topics
        self._observers = observers
        self._predictions = predictions = Predictions(
            port,
            topics,
            trunks,
            lambda device, action, request: self._gate.guard(routes.INFER, device, action, request),
        )
        self._releases = (
            Releases(port, topics, store, published=self._on_rollouts) if store is not None else None
        )
        of_releases = release.ROUTES if store is not None else (routes.RELEASE,)
        self._gate = Gate(
            topics,
            (routes.INFER, routes.SERVER_CLAIM, *of_releases),
            on_rejected=lambda one: predictions.refuse(one) if one.route is routes.INFER else None,
            passes=(BrokerRefused, Unwinding),
        )
        self._announce = Announcer(port, topics, instance, trunks.run)
        self._has_lost_events = False  # an event was lost
        self._resubscribe = RateLimiter(RESUBSCRIBE_EVERY, clock)
        port.subscribe(*self._gate.filters, *(topic for one in observers for topic in one.filters))
        for observer in observers:
            observer.start()

    def run(self, stop: Callable[[], bool]) -> None:
        """Serve until `stop`."""
        self._heartbeat(now=True)
        while not stop():
            self._dispatch(self._port.receive(0 if self._predictions.waiting else 0.5))
            if self._has_lost_events and self._resubscribe.due():
                self._has_lost_events = False
                self._port.subscribe(*self._gate.filters)  # the broker sends its retained messages again
            self._heartbeat()
            if self._releases is not None:
                self._releases.rollouts.tick()
        self._predictions.reply_to_all()
        if self._releases is not None:
            self._releases.rollouts.tick(at_once=True)
        self._heartbeat(now=True)

    def _dispatch(self, event: Event | None) -> None:
        if event is None:
            self._predictions.reply_to_all()
        elif isinstance(event, Message):
            for observer in self._observers:
                if event.topic in observer.filters:
                    observer.on_message(event.payload)
            if (received := self._gate.read(event)) is not None:
                self._handle(received)
        elif isinstance(event, Connected):
            self._heartbeat(now=True)
            for observer in self._observers:
                observer.on_reconnected()
            if self._releases is not None:
                self._releases.rollouts.republish()
        elif isinstance(event, Disconnected):
            log.warning("connection lost (%s); reconnecting", event.reason)
        elif isinstance(event, Overflow):
            self._has_lost_events = True

    def _handle(self, received: Received) -> None:
        if received.route is routes.SERVER_CLAIM:
            self._heartbeat(now=True)
        elif received.route is routes.INFER:
            self._gate.apply(received, self._predictions.add)
        elif self._releases is not None:
            if self._gate.apply(received, self._releases.handle) and received.route is routes.SERVING:
                self._on_serving(received)
        else:
            refuse(self._port, self._topics, received.message)

    def _on_serving(self, serving: Received) -> None:
        for observer in self._observers if serving.message.state == "online" else ():
            observer.on_predicting(serving.device, None)

    def _on_rollouts(self, rollouts: Rollouts) -> None:
        for observer in self._observers:
            observer.on_rollouts(rollouts)

    def _heartbeat(self, *, now: bool = False) -> None:
        requests, passes = self._predictions.requests, self._predictions.passes
        doing = f"serving: {requests} requests in {passes} passes"
        self._announce.heartbeat(doing, (), self._gate.rejected.total(), now=now)
