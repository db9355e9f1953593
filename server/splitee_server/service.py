# SPDX-License-Identifier: Apache-2.0
"""The server process: its loop hands incoming messages to the run and trains on its batches."""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace

from splitee.cli.signals import Stopped
from splitee.cli.systemd import feed_watchdog
from splitee.clock import Clock
from splitee.errors import BrokerRefused, ExitCode, RankLost, Reason, StateError, Unwinding
from splitee.inference.signatures import ReleaseSigner
from splitee.mqtt.events import Connected, Disconnected, Event, Message, Overflow
from splitee.mqtt.port import Port
from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol import routes
from splitee.protocol.fleet import Metrics
from splitee.protocol.gate import EVENTS_AT_ONCE, Gate, Received, Rejection
from splitee.protocol.retained import clear
from splitee.protocol.rollouts import Rollouts
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import Topics
from splitee_server.announcer import Announcer
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.learning.initial.weights import InitialWeights
from splitee_server.members.admission import Admission, Admitted, ClassNamesChanged
from splitee_server.members.device_subscriptions import DeviceSubscriptions
from splitee_server.members.members import Members
from splitee_server.members.quarantine import Quarantine
from splitee_server.members.traffic import FleetTraffic
from splitee_server.monitoring.observer import Observer
from splitee_server.offload.predictions import Predictions
from splitee_server.offload.trunks import CommittedTrunks
from splitee_server.ranks.ranks import ALONE, Ranks
from splitee_server.release import releases
from splitee_server.release.end_of_run import EndOfRun
from splitee_server.release.plans import AT_ONCE, RolloutPolicy
from splitee_server.release.releases import Releases
from splitee_server.release.rollout_store import RolloutStore
from splitee_server.rounds.best_round import BestRound
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.commits import Commits
from splitee_server.rounds.coordinator import Coordinator
from splitee_server.rounds.deadline import Deadline
from splitee_server.rounds.dismissals import DevicesDismissed, Dismissals
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.progress import Progress
from splitee_server.rounds.reception import Reception
from splitee_server.rounds.replies import Replies

log = logging.getLogger(__name__)

MODELS, RELEASES = "models", "releases"  # the folder of exported models, and in it that of releases
IDLE = 0.5  # seconds to wait for an event when there is no batch to work on
IN_QUARANTINE = "too many messages of this device were refused: the server ignores it in this run"


class ServerPort(Port, Protocol):
    """A port that also reports whether its network thread runs."""

    @property
    def alive(self) -> bool:
        """Whether the network thread runs."""


class Service:
    """One fleet's server in one run. The link's thread only enqueues; all else runs on the caller's."""

    def __init__(
        self,
        port: ServerPort,
        topics: Topics,
        spec: RunSpec,
        network: SplitNetwork,
        checkpoints: Checkpoints,
        policy: Policy,
        *,
        instance: int,
        stop: Callable[[], bool],
        observers: Sequence[Observer] = (),
        limits: SenderLimits | None = None,
        signer: ReleaseSigner | None = None,
        rollout_policy: RolloutPolicy = AT_ONCE,
        initial: InitialWeights | None = None,
        ranks: Ranks = ALONE,
        clock: Clock = time.monotonic,
    ) -> None:
        """`limits`: on the messages that the port admits. `ranks`: the other processes of this server.

        `signer`: signs the models that are released at the end of the run; None: they are not signed.
        `rollout_policy`: of it. `initial`: the initial weights of `network`, which devices also need; None:
        they come from the seed.
        """
        self._port = port
        self._topics = topics
        self._spec = spec
        self._initial = initial
        self._ranks = ranks
        self._checkpoints = checkpoints
        self._policy = policy
        self._attempt = instance
        self._stop = stop
        self._observers = tuple(observers)
        self._limits = limits or SenderLimits(topics)
        self._clock = clock
        self._cleared: Counter[str] = Counter()  # by topic: empty messages of its own to come
        self._readmit = policy.readmit
        self._best = BestRound(checkpoints, policy.stop_after)
        self._deadline = Deadline(policy, clock)
        self._traffic = port.meter = FleetTraffic(topics, spec.run, checkpoints.traffic(), ranks.traffic_of)
        self._members = members = Members(spec.class_names, checkpoints.dismissed())
        self._admission = Admission(
            spec,
            network.num_layers,
            members,
            devices=policy.devices,
            most_images=policy.most_images,
            committed=lambda: self._coordinator.commits.round,
        )
        self._quarantine = Quarantine(members, policy.quarantine_after)
        self._predictions = Predictions(
            port,
            topics,
            CommittedTrunks(spec, checkpoints),
            lambda device, action, request: self.gate.guard(routes.INFER, device, action, request),
        )
        models = checkpoints.path / MODELS
        self._releases = Releases(
            port,
            topics,
            RolloutStore(models / RELEASES),
            is_gone=members.is_dismissed,
            published=self._on_rollouts,
            clock=clock,
        )
        self._release = EndOfRun(self._releases, topics.fleet, models, signer, rollout_policy)
        self._begin(network)
        self.gate = Gate(
            topics,
            self._handlers,
            admit=self._check_sender,
            on_rejected=self._on_rejected,
            on_part=self._on_part,
            passes=(StateError, BrokerRefused, RankLost, Unwinding),
        )
        self._routes = [
            route
            for route in self._handlers
            if not (ranks.subscribes_by_device and route is routes.FEATURES)  # ranks subscribe by device
        ]
        self._subscriptions = DeviceSubscriptions(
            port, topics, self._routes, lambda: [member.device for member in members.active()], clock
        )

    def _begin(self, network: SplitNetwork) -> None:
        """Set up the run from its last commit, for the current attempt.

        `network`: has the run's initial weights.
        """
        spec, members, policy = self._spec, self._members, self._policy
        model = FleetModel(spec, network, self._initial)
        for member in members:  # those in quarantine stay
            model.join(member.device, member.cut, member.train_samples)
        self._announce = announcer = Announcer(
            self._port, self._topics, self._attempt, spec.run, clock=self._clock
        )
        replies = Replies(model, members, announcer, self._ranks)
        self._coordinator = Coordinator(
            spec,
            model,
            members,
            announcer,
            replies,
            Commits(spec, model, members, announcer, replies, self._checkpoints, self._clock, self._readmit),
            self._checkpoints,
            policy,
            self._release,
            self._best,
            self._deadline,
            self._traffic,
            attempt=self._attempt,
            rejected=self._rejected,
            guard=self._guard(routes.FEATURES),
            conflict=lambda: self._admission.conflict,
            evaluated=self._on_evaluated,
            ranks=self._ranks,
            clock=self._clock,
        )
        self._reception = Reception(
            spec,
            model,
            members,
            self._admission,
            self._quarantine,
            self._coordinator,
            replies,
            announcer,
            attempt=self._attempt,
            admitted=self._on_admitted,
        )
        self._readmit = ()  # once
        self._dismissals = Dismissals(
            self._topics,
            members,
            self._admission,
            self._coordinator,
            announcer,
            self._checkpoints,
            self._releases.rollouts,
            clear=self._clear,
            forget=self._on_dismissed,
            apply_admissions=self._reception.apply_admissions,
        )
        self._handlers: dict[routes.Route, Callable[[Received], None]] = {
            **self._reception.handlers,
            routes.SERVER_CLAIM: lambda _claim: self._coordinator.heartbeat(now=True),
            routes.DISMISS: self._dismissals.on_dismissal,
            routes.INFER: self._predictions.add,
            **dict.fromkeys(releases.ROUTES, self._releases.handle),
            routes.SERVING: self._on_serving,
        }

    def run(self) -> dict[str, Any]:
        """Serve until the run is finished; returns the report.

        Raises:
            Stopped: the process received a signal to stop; the last committed round is safe.
        """
        observed = (topic for observer in self._observers for topic in observer.filters)
        filters = (route.topic(self._topics) for route in self._routes)
        self._port.subscribe(*sorted(filters), *observed)
        for observer in self._observers:
            observer.start()
        self._dismissals.clear_again()
        self._coordinator.resume()
        if self._members.dismissed:
            log.info(
                "dismissed: %s; %s",
                ", ".join(self._members.dismissed),
                self._coordinator.describe_remaining(),
            )
        while (changed := self._serve()) is not None:
            log.warning("%s", changed)
            self._restart()
            if isinstance(changed, ClassNamesChanged):
                self.gate.guard(
                    routes.PROFILE, changed.device, partial(self._reception.apply_admissions, changed.found)
                )
            else:
                self._reception.apply_admissions(self._admission.admit_again())
        self._releases.rollouts.tick(at_once=True)
        return self._coordinator.report()

    def _serve(self) -> ClassNamesChanged | DevicesDismissed | None:
        """Serve until the run is finished (None), or must restart from its last commit (the reason)."""
        if (seasons := self._checkpoints.seasons()) is not None:
            self._announce.overview(routes.SEASONS, seasons)
        try:
            for phase in self._coordinator.phases():
                while not phase.is_over():
                    self._tick()
                    self._handle_events()
                    self._reception.deliver(self._guard(routes.SYNC))
                    if not self._coordinator.work_one() and not phase.is_over():
                        self._handle_event(min(IDLE, self._ranks.idle))
                        self._reception.deliver(self._guard(routes.SYNC))
                    self._coordinator.tick()
        except (ClassNamesChanged, DevicesDismissed) as changed:
            return changed.with_traceback(None)  # a traceback would keep the models in memory
        return None

    def _restart(self) -> None:
        """Start a new attempt at the run, from its last commit or from its initial weights and settings.

        What the server knows of devices is kept: statuses, votes, quarantine, counts of refused messages.
        """
        del self._coordinator, self._reception, self._dismissals, self._handlers
        gc.collect()  # a small server has no room for the models of both attempts
        settled = self._checkpoints.begun()
        assert settled is not None
        self._spec = replace(settled, class_names=self._spec.class_names)
        network = build_for(self._spec)
        if self._initial is not None:
            self._initial.load_into(network)
        self._attempt += 1
        self._begin(network)
        self._coordinator.resume()

    def _handle_events(self) -> None:
        """Handle the events that have arrived, at most EVENTS_AT_ONCE."""
        for _ in range(EVENTS_AT_ONCE):
            if not self._handle_event(0):
                return

    def _tick(self) -> None:
        """Do what is due between two batches, whether a message has arrived or not."""
        if self._port.alive:
            feed_watchdog()
        if self._stop():
            raise Stopped
        for observer in self._observers:
            observer.tick(self._progress)
        self._releases.rollouts.tick()
        for device, count in self._limits.take_refused().items():
            self._on_flood(device, count)
        for (device, reason), count in self._ranks.take_refused().items():
            self.gate.rejected[device, reason] += count
            self._note(device, reason, count)
        self._subscriptions.tick()

    def _handle_event(self, timeout: float) -> bool:
        """Handle one event, after waiting at most `timeout` seconds; False: none came."""
        event = self._port.receive(timeout)
        if event is None:
            self._predictions.reply_to_all()
            return False
        self._dispatch(event)
        return True

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, Connected):
            self._coordinator.republish_all()
            self._releases.rollouts.republish()
            self._dismissals.clear_again()
            for observer in self._observers:
                observer.on_reconnected()
        elif isinstance(event, Disconnected):
            log.warning("connection lost (%s); reconnecting", event.reason)
        elif isinstance(event, Overflow):
            self._coordinator.request_again()
        elif isinstance(event, Message):
            if not event.payload and event.topic in self._cleared:
                self._cleared -= Counter([event.topic])  # this server cleared the topic itself
                return
            for observer in self._observers:
                if event.topic in observer.filters:
                    observer.on_message(event.payload)
            received = self.gate.read(event)
            if received is not None:
                self.gate.apply(received, self._handlers[received.route])

    def _check_sender(self, route: routes.Route, device: str) -> None:
        """Raises MalformedMessage: the server takes no messages of this route from this device."""
        self._reception.check_sender(route, device)

    def _guard(self, route: routes.Route) -> Callable[[str, Callable[[], None]], bool]:
        """A guard for later work on queued messages of a route: an error counts against their device."""
        return lambda device, action: self.gate.guard(route, device, action)

    def _on_rejected(self, rejection: Rejection) -> None:
        """Tell the device why: always for a request, a few times for other messages."""
        route, device, reason = rejection.route, rejection.device, rejection.error.reason
        if reason == "retained":
            self._clear([route.topic(self._topics, device)])
        if reason == "dismissed":
            self._dismissals.on_rejected(rejection)
        if reason == "quarantined" or route.sender != "device":
            return
        if route is routes.INFER:
            self._predictions.refuse(rejection)
        elif rejection.is_logged and reason != "dismissed":
            self._announce.error(device, ExitCode.REJECTED, f"{route.leaf}: {rejection.error}")
        self._note(device, reason)

    def _on_part(self, route: routes.Route, device: str) -> None:
        if route in (routes.FEATURES, routes.WEIGHTS):
            self._coordinator.note_arriving(device)

    def _clear(self, topics: Iterable[str]) -> None:
        """Clear retained messages. From topics that it reads, this server will receive an empty message."""
        published = clear(self._port, topics)
        self._cleared.update(topic for topic in published if self._reads(topic))

    def _reads(self, topic: str) -> bool:
        found = routes.find_route(self._topics, topic)
        return found is not None and found[0] in self._handlers

    def _on_flood(self, device: str, count: int) -> None:
        """A device exceeded the limits on its messages: `count` of them were dropped unread."""
        self.gate.rejected[device, "flood"] += count
        self._note(device, "flood", count)
        self._subscriptions.shut_out(device)

    def _note(self, device: str, reason: Reason, times: int = 1) -> None:
        if self._quarantine.note(device, reason, times):
            self._admission.vote.withdraw(device)
            self._announce.error(device, ExitCode.REJECTED, IN_QUARANTINE)
            self._coordinator.exclude(device)

    def _on_admitted(self, admitted: Admitted) -> None:
        device = admitted.member.device
        if admitted.is_new:
            self.gate.forget_parts(device)
        for observer in self._observers:
            observer.on_admitted(device, admitted.profile)

    def _on_serving(self, received: Received) -> None:
        self._releases.handle(received)
        if received.message.state == "online":
            for observer in self._observers:
                observer.on_predicting(received.device, self._admission.waiting_profile(received.device))

    def _on_dismissed(self, device: str) -> None:
        self.gate.forget_parts(device)
        for observer in self._observers:
            observer.on_dismissed(device)

    def _on_evaluated(self, metrics: Metrics) -> None:
        for observer in self._observers:
            observer.on_evaluated(metrics)

    def _on_rollouts(self, rollouts: Rollouts) -> None:
        for observer in self._observers:
            observer.on_rollouts(rollouts)

    def _rejected(self) -> int:
        return self.gate.rejected.total()

    def _progress(self) -> Progress:
        run, statuses = self._coordinator.progress(), self._admission.last_status
        devices = (snapshot.device for snapshot in run.devices)
        moved = self._traffic.moved()
        return Progress(
            fleet=self._topics.fleet,
            run=run,
            statuses={device: statuses[device] for device in devices if device in statuses},
            rejected=dict(self.gate.rejected),
            quarantined=self._members.quarantined(),
            received=moved.up.payload,
            sent=moved.down.payload,
            connected=self._port.connected,
        )
