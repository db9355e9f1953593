# SPDX-License-Identifier: Apache-2.0
"""Keeps releases, and sends them to the fleet in waves: exchanges messages with devices and viewers.

Every decision is on disk before it is published. Devices retain their own decisions at the broker, so that a
server that was offline learns of them.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from splitee.clock import Clock
from splitee.errors import ConfigError, MalformedMessage, StateError
from splitee.mqtt.port import Port
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol import routes
from splitee.protocol.fields import ReleaseKind
from splitee.protocol.gate import Received
from splitee.protocol.inference import (
    ModelReport,
    ReleasePart,
    ReleaseReport,
    ReleaseWant,
    Serving,
    SoftwareReport,
)
from splitee.protocol.release_orders import MOST_DEVICES, OrderAction, RolloutPlan
from splitee.protocol.rollouts import MOST_ROLLOUTS, DeviceUpdate, Install, RolloutState, Update
from splitee.protocol.rollouts import Rollout as View
from splitee.protocol.rollouts import Rollouts as Overview
from splitee.protocol.topics import Topics
from splitee.token_buckets import TokenBuckets
from splitee_server.release.plans import version_of
from splitee_server.release.rollout import Rollout, in_service, new_record
from splitee_server.release.rollout_store import RolloutStore

LINES = 20  # of the log about one device, at once; then one per minute
PART = 256 << 10  # bytes; devices request lost parts again
CHECK_EVERY = 0.5  # seconds between two updates, from messages and time
SETTLE = 2.0  # seconds after a retained message within which a broker sends the next one
MAX_ELAPSED = 10.0  # at most so many seconds count between two updates
PUBLISH_EVERY = 1.0  # seconds between two messages on a device's download
PUBLISH_FOR = 0.5  # seconds of publishing to devices per update; the rest follows later
KINDS: tuple[ReleaseKind, ...] = ("model", "software")

WANTS: dict[routes.Route, ReleaseKind] = {routes.RELEASES[kind].want: kind for kind in KINDS}
REPORTS: dict[routes.Route, ReleaseKind] = {routes.RELEASES[kind].report: kind for kind in KINDS}
ROUTES = (*WANTS, *REPORTS, routes.SERVING, routes.INSTALL)

AFTER: dict[OrderAction, RolloutState] = {
    "pause": "paused",
    "resume": "running",
    "stop": "stopped",
    "roll back": "rolled back",
}

log = logging.getLogger(__name__)


@dataclass
class _Device:
    """What is known of a device."""

    is_awake: bool = False  # it predicts, and so takes releases
    reports: dict[ReleaseKind, ReleaseReport] = field(default_factory=dict)
    published: DeviceUpdate | None = None
    publish_due: float = 0.0
    sent: Counter[str] = field(default_factory=Counter)  # bytes by release, in the minute from `sent_since`
    sent_since: float = 0.0

    def may_be_sent(self, release: str, count: int, size: int, now: float) -> bool:
        """Whether `count` bytes of a release may be sent: per minute twice its `size`, or 16 parts."""
        if now - self.sent_since > 60:
            self.sent_since = now
            self.sent.clear()
        if self.sent[release] + count > max(2 * size, 16 * PART):
            return False
        self.sent[release] += count
        return True

    def installed(self, kind: ReleaseKind) -> str:
        report = self.reports.get(kind)
        if isinstance(report, SoftwareReport):
            return report.runs
        if isinstance(report, ModelReport) and report.serves is not None:
            return version_of(report.serves.run, report.serves.round)
        return ""


class Rollouts:
    """All rollouts of a fleet; on the caller's thread."""

    def __init__(
        self,
        port: Port,
        topics: Topics,
        store: RolloutStore,
        *,
        is_gone: Callable[[str], bool] = lambda _device: False,
        published: Callable[[Overview], None] = lambda _overview: None,
        now: Clock = time.time,
        clock: Clock = time.monotonic,
    ) -> None:
        """`is_gone`: whether a device gets no offers. `published`: called with each overview for viewers.

        `now`: seconds since the epoch. `clock`: for intervals, which must not depend on the time of day.
        """
        self._port = port
        self._topics = topics
        self._store = store
        self._is_gone = is_gone
        self._published = published
        self._now = now
        self._clock = clock
        self._lines = TokenBuckets(1 / 60, LINES)
        self._rollouts = {rollout.record.rollout: rollout for rollout in store.load()}  # the oldest first
        self._devices: dict[str, _Device] = {}
        self._unsaved: set[str] = set()
        self._touched: dict[str, None] = {}  # devices of which something may have changed, in order
        self._views: dict[str, View] = {}  # of rollouts that are over and have not changed
        self._offered: dict[str, bytes] = {}  # by topic
        self._overview: Overview | None = None
        self._overview_due = 0.0
        self._check_due = 0.0
        self._checked_at = clock()
        self._settling_since = clock()  # since then the broker sends retained messages
        self._log_disk = RateLimiter()
        for rollout in self._rollouts.values():
            self._replace_older(rollout)  # the last process may have been killed before it
        self._touch_all()

    # Orders

    def add(self, plan: RolloutPlan, digest: str, data: bytes) -> Rollout:
        """Begin a rollout of a plan whose files are complete; durable when this returns.

        Devices that are undecided on an earlier one of its kind get this one instead.

        Args:
            digest: SHA-256 of the plan.
            data: bytes of the plan.

        Raises:
            ConfigError: its name is taken, or a wave does not fit.
            StateError: it cannot be written.
        """
        if plan.rollout in self._rollouts:
            raise ConfigError(f"there is a rollout {plan.rollout} already: choose another --name")
        order = max((one.record.order for one in self._rollouts.values()), default=0) + 1
        rollout = Rollout(new_record(plan, digest, order, self._now()), plan)
        for device in rollout.releases:
            if device in self._devices and plan.kind in self._devices[device].reports:
                rollout.take_earlier(device, self._devices[device].reports[plan.kind])
        self._store.add(rollout.record, data)
        self._rollouts[plan.rollout] = rollout
        self._replace_older(rollout)
        self._touch(rollout.record.devices)
        self._check_due = 0.0
        self._forget_old()
        log.info("rollout %s: %s for %d devices", plan.rollout, plan.version, len(plan.releases))
        return rollout

    def _replace_older(self, rollout: Rollout) -> None:
        for other in self._of_kind(rollout.record.kind):
            is_older = other.record.order < rollout.record.order
            if is_older and other.replace_by(rollout.releases, rollout.record.rollout):
                self._mark_unsaved(other)

    def carry_out(self, action: OrderAction, name: str) -> str:
        """Pause, resume, stop or roll back a rollout; returns what was done, for people, when it is durable.

        Raises:
            ConfigError: there is no such rollout, or its state does not allow it.
            StateError: it cannot be written.
        """
        rollout = self._rollouts.get(name)
        if rollout is None:
            there = ", ".join(reversed(self._rollouts)) or "none"
            raise ConfigError(f"there is no rollout {name}; there are: {there}")
        before = rollout.record.state
        if not self._apply(rollout, action) and rollout.record.state != AFTER[action]:
            raise ConfigError(f"rollout {name} is {before}: there is nothing to {action}")
        self._mark_changed(rollout)
        self._check_due = 0.0
        self._store.save(rollout.record)
        return f"rollout {name}: {rollout.record.state}"

    def _apply(self, rollout: Rollout, action: OrderAction) -> bool:
        if action == "pause":
            return rollout.pause()
        if action == "resume":
            return rollout.resume()
        if action == "stop":
            return rollout.stop("by the operator")
        releases, kind = rollout.releases, rollout.record.kind
        return rollout.roll_back(lambda device: self._serves_another(device, kind, releases[device].release))

    def find(self, name: str) -> Rollout | None:
        return self._rollouts.get(name)

    def undecided(self, name: str) -> list[str]:
        """Devices that a rollout still waits for; none once it is stopped."""
        rollout = self._rollouts.get(name)
        if rollout is None or not rollout.is_open:
            return []
        return sorted(device for device in rollout.undecided if not self._is_gone(device))

    def republish(self) -> None:
        """Publish everything again: the broker may have lost it, or devices are back that were gone."""
        self._settling_since = self._clock()
        self._offered.clear()
        self._overview = None
        for device in self._devices.values():
            device.published = None
        self._touch_all()

    # Messages

    def handle(self, received: Received) -> None:
        """Handle messages of devices, and of Home Assistant about them. Raises MalformedMessage."""
        device, message = received.device, received.message
        if isinstance(message, ReleaseWant):
            self._send(device, WANTS[received.route], message)
            return
        if received.envelope.retained:
            self._settling_since = self._clock()
        known = self._known(device)
        if known is None:
            return
        if isinstance(message, ReleaseReport):
            self._on_report(device, known, REPORTS[received.route], message)
        elif isinstance(message, Serving):
            known.is_awake = message.state == "online"
        elif isinstance(message, Install):
            self._on_install(device, message.kind)

    def _known(self, device: str) -> _Device | None:
        if device not in self._devices and len(self._devices) >= MOST_DEVICES:
            return None
        return self._devices.setdefault(device, _Device())

    def _on_report(self, device: str, known: _Device, kind: ReleaseKind, report: ReleaseReport) -> None:
        known.reports[kind] = report
        self._touch([device])
        for rollout in self._of_kind(kind):
            if rollout.take(device, report):
                self._mark_unsaved(rollout)
                why = f": {report.reason}" if report.reason else ""
                if self._lines.take(device, self._clock()):
                    log.info("%s: %s %s %s%s", device, kind, report.release[:12], report.state, why)

    def _on_install(self, device: str, kind: ReleaseKind) -> None:
        for rollout in reversed(self._of_kind(kind)):
            if rollout.install_now(device):
                log.info("%s: %s %s was requested before its wave", device, kind, rollout.record.rollout)
                self._mark_unsaved(rollout)
                self._touch([device])
                return

    def _send(self, device: str, kind: ReleaseKind, want: ReleaseWant) -> None:
        rollout = self._rollout_for(device, kind)
        offer = rollout.offer(device) if rollout is not None and not self._is_gone(device) else None
        if rollout is None or offer is None or offer.action != "install":
            return  # the offer was withdrawn in the meantime
        if want.release != offer.release or want.offset >= offer.size:
            raise MalformedMessage(f"ReleaseWant: {device} requests what is not offered")
        release = rollout.releases[device]
        count = min(PART, self._port.max_packet - 256)
        known = self._known(device)
        of_part = min(count, offer.size - want.offset)
        if known is None or not known.may_be_sent(want.release, of_part, offer.size, self._clock()):
            return
        data = release.head[want.offset : want.offset + count]
        try:
            if len(data) < count:
                offset = max(0, want.offset - len(release.head))
                data += self._store.read(release.file, offset, count - len(data))
        except StateError as error:
            if self._log_disk.due():
                log.error("%s", error)
            return
        part = ReleasePart(release=want.release, offset=want.offset, data=data)
        self._port.publish(routes.RELEASES[kind].part.topic(self._topics, device), part.encode())

    # What is due

    def tick(self, *, at_once: bool = False) -> None:
        """Every CHECK_EVERY seconds: advance the rollouts, save what has changed, then publish it.

        After a connection the broker sends retained messages. Until they have arrived, changes are saved, but
        no rollout advances, and nothing is published.

        Args:
            at_once: also do what could wait: this is the last tick.
        """
        now = self._clock()
        if now < self._check_due and not at_once:
            return
        elapsed = min(now - self._checked_at, MAX_ELAPSED)
        self._check_due, self._checked_at = now + CHECK_EVERY, now
        if not self._port.connected:
            self._settling_since = now
        is_settled = now >= self._settling_since + SETTLE
        if is_settled:
            self._advance(elapsed)
        if at_once:
            now += PUBLISH_EVERY
        if self._save() and (is_settled or at_once) and self._publish_to_devices(now):
            self._publish_overview(now)

    def _advance(self, elapsed: float) -> None:
        """`elapsed`: seconds since the last call."""
        for rollout in self._rollouts.values():
            before = _describe_state(rollout)
            if rollout.advance(self._now(), elapsed, self._is_awake, self._is_gone):
                self._mark_changed(rollout)
                if (standing := _describe_state(rollout)) != before:
                    log.info("rollout %s: %s", rollout.record.rollout, standing)

    def _save(self) -> bool:
        """Save changed records; False: not all could be written, and nothing may be published yet."""
        had = bool(self._unsaved)
        try:
            for name in sorted(self._unsaved):
                self._store.save(self._rollouts[name].record)
                self._unsaved.discard(name)
        except StateError as error:
            if self._log_disk.due():
                log.error("releases wait: %s", error)
            return False
        if had:
            self._store.keep_only(self.files)
        return True

    @property
    def files(self) -> set[str]:
        """Digests of the files that a device may still request."""
        return {digest for rollout in self._rollouts.values() for digest in rollout.files}

    def _publish_to_devices(self, now: float) -> bool:
        """Publish offers and updates that have changed; False: some wait for the next tick."""
        for device in list(self._touched):
            if self._clock() > now + PUBLISH_FOR:
                self._check_due = self._clock() + CHECK_EVERY
                return False
            del self._touched[device]
            known = self._known(device)
            for kind in KINDS:
                self._publish_offer(device, kind)
            if known is not None and not self._publish_update(device, known, now):
                self._touch([device])
        return True

    def _publish_overview(self, now: float) -> None:
        """Publish the overview, after the updates of all devices that it covers."""
        if now < self._overview_due:
            return
        overview = self.overview()
        if overview != self._overview:
            self._overview, self._overview_due = overview, now + PUBLISH_EVERY
            self._port.publish(routes.ROLLOUTS.topic(self._topics), overview.encode(), retain=True)
            self._published(overview)

    def _publish_offer(self, device: str, kind: ReleaseKind) -> None:
        rollout = self._rollout_for(device, kind)
        topic = routes.RELEASES[kind].offer.topic(self._topics, device)
        if self._is_gone(device) or (rollout is None and topic not in self._offered):
            return
        offer = rollout.offer(device) if rollout is not None else None
        payload = b"" if offer is None else offer.encode()
        if self._offered.get(topic) != payload and self._port.publish(topic, payload, retain=True):
            self._offered[topic] = payload

    def _publish_update(self, device: str, known: _Device, now: float) -> bool:
        """False: it must be published later."""
        if self._is_gone(device):
            return True
        update = DeviceUpdate(
            model=self._update(device, known, "model"), software=self._update(device, known, "software")
        )
        if update == known.published or (known.published is None and update == DeviceUpdate()):
            return True
        if (
            now < known.publish_due
            and known.published is not None
            and _states(update) == _states(known.published)
        ):
            return False
        known.published, known.publish_due = update, now + PUBLISH_EVERY
        self._port.publish(routes.DEVICE_UPDATE.topic(self._topics, device), update.encode(), retain=True)
        return True

    def _update(self, device: str, known: _Device, kind: ReleaseKind) -> Update:
        installed = known.installed(kind)
        for rollout in reversed(self._of_kind(kind)):
            if device in rollout.record.devices:
                return rollout.update(device, installed)
        return Update(installed=installed, latest=installed)

    def overview(self) -> Overview:
        """The overview for viewers: open rollouts, then the newest, as many as fit one message."""
        ranked = sorted(self._rollouts.values(), key=lambda one: (not one.is_open, -one.record.order))
        shown = ranked[:MOST_ROLLOUTS]
        while True:
            newest = sorted(shown, key=lambda one: one.record.order, reverse=True)
            overview = Overview(rollouts=tuple(map(self._view, newest)))
            if len(overview.encode()) <= routes.LARGEST_WHOLE or len(shown) <= 1:
                return overview
            shown.pop()

    def _view(self, rollout: Rollout) -> View:
        if rollout.is_open:
            return rollout.view(self._is_awake)
        name = rollout.record.rollout
        if name not in self._views:
            self._views[name] = rollout.view(self._is_awake)
        return self._views[name]

    def _rollout_for(self, device: str, kind: ReleaseKind) -> Rollout | None:
        """The newest rollout that has reached the device, or else the oldest for it; None: there is none."""
        found = None
        for rollout in reversed(self._of_kind(kind)):
            standing = rollout.record.devices.get(device)
            if standing is None:
                continue
            found = rollout
            if standing.state not in ("queued", "expired"):
                return rollout
        return found

    def _of_kind(self, kind: ReleaseKind) -> list[Rollout]:
        return [rollout for rollout in self._rollouts.values() if rollout.record.kind == kind]

    def _is_awake(self, device: str) -> bool:
        return device in self._devices and self._devices[device].is_awake

    def _serves_another(self, device: str, kind: ReleaseKind, release: str) -> bool:
        report = self._devices[device].reports.get(kind) if device in self._devices else None
        return report is not None and in_service(report) not in ("", release)

    def _mark_unsaved(self, rollout: Rollout) -> None:
        """Mark a rollout as changed, to be saved."""
        self._unsaved.add(rollout.record.rollout)
        self._views.pop(rollout.record.rollout, None)

    def _mark_changed(self, rollout: Rollout) -> None:
        """Likewise, if its devices may have changed, too."""
        self._mark_unsaved(rollout)
        self._touch(rollout.record.devices)

    def _touch(self, devices: Iterable[str]) -> None:
        self._touched |= dict.fromkeys(devices)

    def _touch_all(self) -> None:
        self._check_due = 0.0
        for rollout in self._rollouts.values():
            self._touch(rollout.record.devices)
        self._touch(self._devices)

    def _forget_old(self) -> None:
        """Remove the oldest rollouts that are over, if there are more than viewers are shown."""
        over = [rollout for rollout in self._rollouts.values() if not rollout.is_open]
        for rollout in over[: max(0, len(self._rollouts) - MOST_ROLLOUTS)]:
            name = rollout.record.rollout
            self._touch(rollout.record.devices)
            self._store.remove(name)
            del self._rollouts[name]
            self._unsaved.discard(name)
            self._views.pop(name, None)


def _states(update: DeviceUpdate) -> tuple[object, ...]:
    return update.model.state, update.model.latest, update.software.state, update.software.latest


def _describe_state(rollout: Rollout) -> str:
    record = rollout.record
    why = f": {record.reason}" if record.reason else ""
    return f"{record.state}, wave {record.wave} of {len(record.waves)}{why}"
