# SPDX-License-Identifier: Apache-2.0
"""Messages of devices after the gate: checked against the run, then applied."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial

from splitee.errors import ExitCode, MalformedMessage
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol import routes
from splitee.protocol.gate import Received
from splitee.protocol.rounds import Sync
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.training.soft_labels import pack_rows
from splitee.training.weights import pack_weights
from splitee_server.announcer import Announcer
from splitee_server.learning.fleet_model import FleetModel
from splitee_server.members.admission import Admission, Admitted, Refusal
from splitee_server.members.members import Members
from splitee_server.members.quarantine import Quarantine
from splitee_server.rounds.coordinator import Coordinator
from splitee_server.rounds.replies import Replies

log = logging.getLogger(__name__)

REFUSALS_EVERY = 600.0  # seconds between log lines on why a device may not take part: it tries for ever
MEMBERS_ONLY = (routes.FEATURES, routes.ROUND_DONE, routes.WEIGHTS)


class Reception:
    """One method per route; each checks the whole message before it changes anything."""

    def __init__(
        self,
        spec: RunSpec,
        model: FleetModel,
        members: Members,
        admission: Admission,
        quarantine: Quarantine,
        coordinator: Coordinator,
        replies: Replies,
        announcer: Announcer,
        *,
        attempt: int,
        admitted: Callable[[Admitted], None],
    ) -> None:
        """`admitted`: called with each device that has joined."""
        self._spec = spec
        self._model = model
        self._members = members
        self._admission = admission
        self._quarantine = quarantine
        self._coordinator = coordinator
        self._replies = replies
        self._announce = announcer
        self._attempt = attempt
        self._admitted = admitted
        self._requests: dict[str, Sync] = {}  # each device's latest, for what is held for it
        self._reported_conflict = ""  # of a conflict
        self._log_refused = defaultdict[str, RateLimiter](partial(RateLimiter, REFUSALS_EVERY))  # by device
        self.handlers: Mapping[Route, Callable[[Received], None]] = {
            routes.STATUS: self._on_status,
            routes.PROFILE: self._on_profile,
            routes.FEATURES: self._on_features,
            routes.ROUND_DONE: self._on_round_done,
            routes.WEIGHTS: self._on_weights,
            routes.SYNC: self._on_sync,
        }

    def check_sender(self, route: Route, device: str) -> None:
        """Raises MalformedMessage: messages of this route are not accepted from this device."""
        if self._members.is_dismissed(device):
            raise MalformedMessage("from a device that was dismissed", "dismissed")
        self._quarantine.check(device)
        if route in MEMBERS_ONLY and device not in self._members:
            raise MalformedMessage("from a device that has not joined", "unknown")

    def _on_status(self, received: Received) -> None:
        self._on_admissions(received.device, self._admission.on_status(received.device, received.message))

    def _on_profile(self, received: Received) -> None:
        self._on_admissions(received.device, self._admission.on_profile(received.device, received.message))

    def _on_admissions(self, device: str, found: list[Admitted | Refusal]) -> None:
        """`device`: the one whose message admits or refuses them."""
        conflict = self._admission.conflict
        if conflict and conflict != self._reported_conflict:
            log.warning("%s", conflict)
            self._announce.error(device, ExitCode.REJECTED, conflict)
        self._reported_conflict = conflict
        self.apply_admissions(found)

    def apply_admissions(self, found: list[Admitted | Refusal]) -> None:
        """Admit devices, and send the reason to those that may not take part."""
        for one in found:
            if isinstance(one, Refusal):
                if self._log_refused[one.device].due():
                    log.warning("refused: %s", one)
                self._announce.error(one.device, one.code, str(one), instance=one.instance, fatal=True)
                continue
            member = one.member
            if one.is_new:
                log.info("%s joined: cut %d, %d images", member.device, member.cut, member.train_samples)
            self._coordinator.join(member, is_new=one.is_new)
            self._admitted(one)

    def _on_features(self, received: Received) -> None:
        """A batch; one of an older attempt is dropped: the device will read of the new attempt."""
        device, phase = received.device, self._coordinator.phase
        if self._coordinator.is_remote(device):  # since this was sent
            return
        cut = self._members[device].cut
        taken = self._coordinator.work.accept(phase, device, cut, received.message)
        if taken == "duplicate":
            self._coordinator.commits.note_duplicates(1)
            self._replies.acknowledge(phase, device)
        elif taken == "gap":
            self._replies.request_again(phase, device)  # those in between are lost: batches come in order

    def _on_weights(self, received: Received) -> None:
        """Tensors of a client network, or its statistics, before its device's round-done."""
        self._check_run(received.message.run)
        self._coordinator.phase.add_weights(received.device, received.message)

    def _on_round_done(self, received: Received) -> None:
        device, message, phase = received.device, received.message, self._coordinator.phase
        self._check_run(message.run)
        if phase.is_current(message.round, message.attempt, message.phase) and device in phase:
            steps = phase.participants[device].steps
            if message.batches > steps:
                raise MalformedMessage(f"RoundDone: {message.batches} batches; the round has {steps}")
            if not phase.note_done(device, message) or phase.lacks_before(device, steps):
                self._replies.request_again(phase, device)
        elif message.round <= self._coordinator.commits.round:
            self._replies.assign(device)  # it has missed the commit

    def _on_sync(self, received: Received) -> None:
        """A device requests the server's position, or what the server holds for it."""
        device, message = received.device, received.message
        if device not in self._members:
            return
        if message.weights or message.soft_labels is not None:
            self._requests[device] = message
        else:
            self._replies.reply_to_sync(self._coordinator.phase, device)

    def deliver(self, guard: Callable[[str, Callable[[], None]], bool]) -> None:
        """Send devices what they have requested: a device waits for one reply before its next request.

        The reply may be of megabytes. If a device has sent several requests since the last call, only the
        latest gets one: it would otherwise delay all others.

        Args:
            guard: runs an action for a device.
        """
        requests, self._requests = self._requests, {}
        for device, message in requests.items():
            guard(device, partial(self._deliver, device, message))

    def _deliver(self, device: str, message: Sync) -> None:
        run, committed = self._spec.run, self._coordinator.commits.round
        if tensors := self._model.tensors(device, message.weights):
            number = committed if self._model.holds(device) else 0
            weights = pack_weights(run, number, self._attempt, tensors)
            self._announce.deliver(device, routes.HELD_WEIGHTS, weights)
        labels = self._model.soft_labels(device)
        if message.soft_labels is not None and labels is not None:
            rows = pack_rows(run, self._attempt, labels, message.soft_labels)
            self._announce.deliver(device, routes.SOFT_LABELS, rows)

    def _check_run(self, run: str) -> None:
        if run != self._spec.run:
            raise MalformedMessage(f"of run {run!r}, this is {self._spec.run!r}", "foreign")
