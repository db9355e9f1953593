# SPDX-License-Identifier: Apache-2.0
"""Devices that an operator has dismissed as gone for good; the run continues without them.

A phase with such a device starts again from the last commit, as after a restart of the server.
The weights are therefore the same whether or not the server is killed after that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from splitee.errors import ConfigError, ExitCode, MalformedMessage, SpliteeError, Unwinding
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus, Dismissal, Profile
from splitee.protocol.gate import Received, Rejection
from splitee.protocol.retained import retained_topics
from splitee.protocol.rounds import Sync
from splitee.protocol.topics import Topics
from splitee_server.announcer import Announcer
from splitee_server.members.admission import Admission, Admitted, Refusal
from splitee_server.members.members import Members
from splitee_server.release.rollouts import Rollouts
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.coordinator import Coordinator

SHOWN = 20  # devices that a line names
HAS_INSTANCE: dict[routes.Route, type[DeviceStatus] | type[Profile] | type[Sync]] = {  # they name the process
    routes.STATUS: DeviceStatus,
    routes.PROFILE: Profile,
    routes.SYNC: Sync,
}

log = logging.getLogger(__name__)


class DevicesDismissed(Unwinding):
    """The run starts again from its last commit without some devices; until then there are no members."""


class Dismissals:
    """Carries out dismissals, and replies to later messages of dismissed devices."""

    def __init__(
        self,
        topics: Topics,
        members: Members,
        admission: Admission,
        coordinator: Coordinator,
        announcer: Announcer,
        checkpoints: Checkpoints,
        rollouts: Rollouts,
        *,
        clear: Callable[[Iterable[str]], None],
        forget: Callable[[str], None],
        apply_admissions: Callable[[list[Admitted | Refusal]], None],
    ) -> None:
        """Sets what dismissals call.

        Args:
            clear: clears what the broker retains on these topics.
            forget: called for a dismissed device, of which nothing needs to be kept.
            apply_admissions: admits devices, or sends them the reason.
        """
        self._topics = topics
        self._members = members
        self._admission = admission
        self._coordinator = coordinator
        self._announce = announcer
        self._checkpoints = checkpoints
        self._rollouts = rollouts
        self._clear = clear
        self._forget = forget
        self._apply_admissions = apply_admissions

    def clear_again(self) -> None:
        """After a reconnection, clear again what the broker retains of dismissed devices."""
        for device in self._members.dismissed:
            self._forget(device)
            self._clear(retained_topics(self._topics, device))

    def on_dismissal(self, received: Received) -> None:
        """Dismiss devices for an operator, or let them in again.

        Raises:
            DevicesDismissed: the run has to start again.
        """
        request: Dismissal = received.message
        try:
            devices = self._named(request)
            kept = set(self._members.dismissed)
            self._checkpoints.save_dismissed(
                kept.difference(devices) if request.undo else kept.union(devices)
            )
        except SpliteeError as error:
            self._announce.reply(request.request, error.exit_code, str(error))
            return
        if request.undo:
            self._undo_dismissal(request, devices)
        else:
            self._dismiss(request, devices)

    def on_rejected(self, rejection: Rejection) -> None:
        """Reply to a message of a dismissed device with the reason, and clear what is retained of it."""
        envelope = rejection.envelope
        if envelope is None or not envelope.payload:
            return
        if not envelope.retained and (instance := _instance_of(rejection)):
            self._send_reason(rejection.device, instance)
        if rejection.route.retained:
            self._clear([envelope.topic])
        if rejection.route is routes.SERVING:  # it follows each state, which the server does not read
            self._clear([routes.PREDICTED_STATE.topic(self._topics, rejection.device)])

    def _named(self, request: Dismissal) -> list[str]:
        """The devices for which a request changes something. Raises ConfigError: one is not known."""
        dismissed = self._members.dismissed
        known = dismissed if request.undo else (*self._admission.known(), *dismissed)
        unknown = sorted(set(request.devices).difference(known))
        if unknown:
            what = "dismissed" if request.undo else "known"
            names = _listed(sorted(known)) or "none"
            raise ConfigError(f"{_listed(unknown)}: no such device; {what}: {names}; nothing is changed")
        return sorted(device for device in set(request.devices) if (device in dismissed) == request.undo)

    def _dismiss(self, request: Dismissal, devices: list[str]) -> None:
        statuses = self._admission.last_status
        instances = {device: statuses[device].instance for device in devices if device in statuses}
        is_begun = self._coordinator.depends_on(devices)
        self._members.dismiss(devices)
        is_renamed = self._admission.dismiss(devices)
        for device in devices:
            self._announce.forget(device)
            self._forget(device)
            if device in instances:
                self._send_reason(device, instances[device])
            self._clear(retained_topics(self._topics, device))
        message = f"dismissed: {_listed(devices) or 'nobody else'}; {self._coordinator.describe_remaining()}"
        begins_anew = bool(devices) and (is_begun or is_renamed)
        if begins_anew:
            message += f"; {self._coordinator.phase_text} begins anew without {_listed(devices)}"
        self._announce.reply(request.request, ExitCode.OK, message)
        if begins_anew:
            self._members.leave()
            raise DevicesDismissed(message)
        log.warning("%s", message)
        self._apply_admissions(self._admission.admit_waiting())
        self._coordinator.heartbeat(now=True)

    def _undo_dismissal(self, request: Dismissal, devices: list[str]) -> None:
        self._members.undo_dismissal(devices)
        self._admission.wait_for_remaining()
        self._rollouts.republish()
        message = f"let in again: {_listed(devices) or 'nobody'}; {self._coordinator.describe_remaining()}"
        log.warning("%s", message)
        self._announce.reply(request.request, ExitCode.OK, message)
        self._coordinator.heartbeat(now=True)

    def _send_reason(self, device: str, instance: int) -> None:
        """Tell one process of a device why: a later one may be let in again."""
        message = (
            f"{device} was dismissed from fleet {self._topics.fleet}, which goes on without it: "
            f"`splitee dismiss --undo {device}` lets it in again"
        )
        self._announce.error(device, ExitCode.DISMISSED, message, instance=instance, fatal=True)


def _instance_of(rejection: Rejection) -> int:
    """The process that sent a message, if it expects a reply; 0: it does not, or the message is malformed."""
    kind = HAS_INSTANCE.get(rejection.route)
    if kind is None or rejection.envelope is None:
        return 0
    try:
        message = kind.decode(rejection.envelope.payload)
    except MalformedMessage:
        return 0
    is_offline = isinstance(message, DeviceStatus) and message.state == "offline"
    return 0 if is_offline else message.instance


def _listed(devices: Iterable[str]) -> str:
    names = list(devices)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
