# SPDX-License-Identifier: Apache-2.0
"""One rollout of a release, wave by wave: how devices' reports and time change it.

This module uses no clock, disk or broker. The state is in `Record`, which is saved before it is published.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping

import msgspec

from splitee.protocol import rollouts
from splitee.protocol.fields import ReleaseAction, ReleaseKind
from splitee.protocol.inference import ModelOffer, ModelReport, ReleaseReport, SoftwareOffer
from splitee.protocol.release_orders import LATE_AFTER, PlannedRelease, RolloutPlan
from splitee.protocol.rollouts import RolloutState, Update, UpdateState, Wave
from splitee_server.release.wave_sizes import devices_in, in_wave_order, wave_sizes

UNDECIDED: frozenset[UpdateState] = frozenset({"queued", "offered", "downloading", "trying"})
OFFERED: frozenset[UpdateState] = UNDECIDED - {"queued"}
OPEN: frozenset[RolloutState] = frozenset({"running", "paused"})
SHOWN = 3  # failures that a reason names

Predicate = Callable[[str], bool]  # of a device


class Standing(msgspec.Struct, omit_defaults=True):
    """The state of one device in the rollout.

    Attributes:
        back: the device was told to roll back, or did.
        early: it got the offer before its wave.
        old: time of its report on the same release in an earlier rollout, which the broker may send again,
            in seconds since the epoch, by the device's clock; 0: there was none.
        have, size: bytes of a download under way; they alone are not saved.
    """

    state: UpdateState = "queued"
    reason: str = ""
    back: bool = False
    early: bool = False
    old: float = 0.0
    have: int = 0
    size: int = 0


class Record(msgspec.Struct, omit_defaults=True):
    """A rollout as it is saved.

    Attributes:
        plan: SHA-256 of its plan.
        order: number of the rollout; a later one has a greater one.
        waves: devices up to each wave.
        wave: the current one, from 1.
        quiet_since: start of the wave's soak time, in seconds since the epoch; 0: it has not begun.
        late_after: seconds for which a device may delay the next wave.
        devices: in the order of the waves.
    """

    rollout: str
    plan: str
    order: int
    kind: ReleaseKind
    version: str
    created: float
    expires: float
    waves: tuple[int, ...]
    max_failures: int
    soak: float
    devices: dict[str, Standing]
    state: RolloutState = "running"
    reason: str = ""
    wave: int = 1
    quiet_since: float = 0.0
    late_after: float = LATE_AFTER


def new_record(plan: RolloutPlan, digest: str, order: int, now: float) -> Record:
    """A rollout whose first wave begins `now`, by the server's clock. Raises ConfigError: no waves fit."""
    devices = in_wave_order(plan.rollout, (one.device for one in plan.releases))
    waves = wave_sizes(plan.waves, len(devices))
    first, others = devices[: waves[0]], devices[waves[0] :]
    return Record(
        plan.rollout,
        digest,
        order,
        plan.kind,
        plan.version,
        now,
        now + plan.expires,
        waves,
        devices_in(plan.max_failures, len(devices)),
        plan.soak,
        {device: Standing("offered") for device in first} | {device: Standing() for device in others},
        late_after=plan.late_after,
    )


class Rollout:
    """A record, with the plan that it follows."""

    def __init__(self, record: Record, plan: RolloutPlan) -> None:
        self.record = record
        self.releases: Mapping[str, PlannedRelease] = {one.device: one for one in plan.releases}
        self._sizes = {one.sha256: one.size for one in plan.files}
        self._places = {device: place for place, device in enumerate(record.devices)}
        # Seconds for which a device has delayed the next wave, and for which it has been trying the release.
        self._delay: defaultdict[str, float] = defaultdict(float)
        self._tried: defaultdict[str, float] = defaultdict(float)
        self._soaked: float | None = None  # seconds of the soak time that are over; None: not known yet

    @property
    def is_open(self) -> bool:
        return self.record.state in OPEN

    @property
    def undecided(self) -> list[str]:
        """Devices of the waves that have not reported a result."""
        reached = list(self.record.devices.items())[: self.record.waves[-1]]
        return [device for device, standing in reached if standing.state in UNDECIDED]

    @property
    def failures(self) -> list[str]:
        """Devices on which it failed, or that have rolled back by themselves."""
        return [device for device, standing in self.record.devices.items() if _has_failed(standing)]

    @property
    def files(self) -> set[str]:
        """Digests of the files that a device may still request; in an open rollout also after a failure."""
        wanted = ("in service", *OFFERED, *(("queued", "failed", "rolled back") if self.is_open else ()))
        return {
            self.releases[device].file
            for device, standing in self.record.devices.items()
            if standing.state in wanted and not standing.back
        }

    # What devices and operators say

    def take(self, device: str, report: ReleaseReport) -> bool:
        """Handle a device's report; True: it changes what is saved."""
        standing, release = self.record.devices.get(device), self.releases.get(device)
        if standing is None or release is None:
            return False
        before = (standing.state, standing.reason, standing.back)
        if report.release == release.release:
            if not self._is_relevant(standing, report):
                return False
            standing.state, standing.reason = report.state, report.reason
            standing.have, standing.size = report.have, report.size
            if report.state == "in service" and self.record.state == "rolled back":
                standing.back = True
        elif standing.state == "in service" and in_service(report) not in ("", release.release):
            standing.state = "rolled back" if standing.back else "expired"
            standing.reason = "" if standing.back else "another one is in service"
        has_changed = before != (standing.state, standing.reason, standing.back)
        if has_changed and _has_failed(standing):
            self.record.quiet_since = 0.0
        return has_changed

    def _is_relevant(self, standing: Standing, report: ReleaseReport) -> bool:
        """Whether a report on this release is about this rollout."""
        if report.state in OFFERED:  # it may be about an offer that was withdrawn since
            return standing.back or (self.is_open and standing.state != "expired")
        return report.state == "in service" or not report.time or report.time != standing.old

    def take_earlier(self, device: str, report: ReleaseReport) -> None:
        """Handle a report from before the rollout; it counts only if the release is in service."""
        standing, release = self.record.devices[device], self.releases[device].release
        if report.release == release and report.state == "in service":
            self.take(device, report)
        elif report.release == release:
            standing.old = report.time

    def install_now(self, device: str) -> bool:
        """Offer it to a device before its wave; False: there is nothing to offer."""
        standing = self.record.devices.get(device)
        if standing is None or not self.is_open or standing.state != "queued":
            return False
        standing.early, standing.state = True, "offered"
        return True

    def replace_by(self, devices: Iterable[str], newer: str) -> bool:
        """Undecided devices get a newer rollout instead; False: there are none."""
        replaced = [device for device in devices if self._expire(device, f"replaced by {newer}")]
        return bool(replaced)

    def pause(self) -> bool:
        """Offer it to no further device; downloads under way go on. False: it is not running."""
        return self._change_state("running", "paused", "paused")

    def resume(self) -> bool:
        """False: it is not paused."""
        return self._change_state("paused", "running", "")

    def stop(self, reason: str) -> bool:
        """Offer it to no further device, and withdraw it from undecided ones. False: it is over."""
        if not self.is_open:
            return False
        self.record.state, self.record.reason = "stopped", reason
        for standing in self.record.devices.values():
            if standing.state in OFFERED:
                standing.state, standing.have, standing.size = "queued", 0, 0
        return True

    def roll_back(self, has_other_release: Predicate) -> bool:
        """Devices that have it in service roll back; undecided ones keep what they have.

        Args:
            has_other_release: whether a device has another release in service by now.
        """
        record = self.record
        if record.state == "rolled back":
            return False
        record.state, record.reason = "rolled back", "by the operator"
        for device, standing in record.devices.items():
            if standing.state == "in service" and not has_other_release(device):
                standing.back = True
            elif standing.state in OFFERED:  # it may put it into service at any moment
                standing.back = True
                standing.state = "offered"
            else:
                self._expire(device, "taken back before it came")
        return True

    # What time does

    def advance(self, now: float, elapsed: float, is_awake: Predicate, is_gone: Predicate) -> bool:
        """Do what is due now; True: something has changed.

        Args:
            now: seconds since the epoch.
            elapsed: seconds since the last call.
        """
        record = self.record
        if not self.is_open:
            return False
        if now >= record.expires:
            return self._end("expired", "not taken in time")
        self._count_soak(now, elapsed)
        has_changed = self._count_time(elapsed, is_awake, is_gone)
        failures = self.failures
        if len(failures) > record.max_failures:
            return self.stop(self._why_stopped(failures))
        if record.state == "paused":
            return has_changed
        return has_changed | self._offer_wave() | self._next_wave(now, is_awake, is_gone)

    def _count_soak(self, now: float, elapsed: float) -> None:
        """Add to the soak time; for that before a restart, the time of day must be right."""
        if self._soaked is not None:
            self._soaked += elapsed
        elif self.record.quiet_since:
            self._soaked = max(0.0, now - self.record.quiet_since)

    def _count_time(self, elapsed: float, is_awake: Predicate, is_gone: Predicate) -> bool:
        """Add to the time that devices take to decide; True: the time of one is over.

        A device that goes offline during its trial does not count as asleep: the release may have broken it.
        """
        late_after, has_changed = self.record.late_after, False
        for device, standing in self._reached().items():
            if standing.state not in OFFERED or standing.back or is_gone(device):
                continue
            if standing.state == "trying":
                self._tried[device] += elapsed
                if self._tried[device] >= late_after:
                    standing.state, standing.reason = "failed", f"no trial result for {late_after:.0f} s"
                    self.record.quiet_since, has_changed = 0.0, True
            elif is_awake(device):
                has_changed |= self._delay[device] < late_after <= self._delay[device] + elapsed
                self._delay[device] += elapsed
        return has_changed

    def _delays_wave(self, device: str, standing: Standing, is_awake: Predicate) -> bool:
        """Whether the next wave waits for an undecided device."""
        return standing.state == "trying" or (is_awake(device) and not self._is_late(device, standing))

    def _is_late(self, device: str, standing: Standing) -> bool:
        return standing.state in ("offered", "downloading") and self._delay[device] >= self.record.late_after

    def _offer_wave(self) -> bool:
        queued = [standing for standing in self._reached().values() if standing.state == "queued"]
        for standing in queued:
            standing.state = "offered"
        return bool(queued)

    def _next_wave(self, now: float, is_awake: Predicate, is_gone: Predicate) -> bool:
        """Go on once no device delays it, one has it in service, and the soak time is over."""
        record, reached = self.record, self._reached()
        waits = [device for device, one in reached.items() if one.state in UNDECIDED and not is_gone(device)]
        if record.wave == len(record.waves):
            return not waits and self._end("finished", "in no wave", is_gone)
        serves = any(standing.state == "in service" for standing in reached.values())
        is_held = any(self._delays_wave(device, reached[device], is_awake) for device in waits)
        if is_held or (waits and not serves):
            changed, record.quiet_since = bool(record.quiet_since), 0.0
            return changed
        if not serves and not all(map(is_gone, reached)):
            return self.stop(f"none of the {len(reached)} devices up to wave {record.wave} has it in service")
        if record.quiet_since and self._soaked is not None and self._soaked >= record.soak:
            record.wave, record.quiet_since = record.wave + 1, 0.0
            return self._offer_wave() or True
        if not record.quiet_since:
            record.quiet_since, self._soaked = now, 0.0
            return self._next_wave(now, is_awake, is_gone) if not record.soak else True
        return False

    def _reached(self) -> dict[str, Standing]:
        """The devices up to the current wave."""
        count = self.record.waves[self.record.wave - 1]
        return dict(list(self.record.devices.items())[:count])

    def _end(self, state: RolloutState, reason: str, is_spared: Predicate = lambda _device: False) -> bool:
        """`reason`: for undecided devices. `is_spared`: whether a device may take it when it comes back."""
        undecided = [
            device
            for device, standing in self.record.devices.items()
            if standing.state in UNDECIDED and not is_spared(device)
        ]
        is_early = state == "expired" and undecided
        self.record.state = state if is_early or state == "finished" else "finished"
        self.record.reason = f"{len(undecided)} devices have not taken it in time" if is_early else ""
        for device in undecided:
            self._expire(device, reason)
        return True

    def _expire(self, device: str, reason: str) -> bool:
        """False: the device has decided, or is not in the rollout."""
        standing = self.record.devices.get(device)
        if standing is None or standing.state not in UNDECIDED:
            return False
        standing.state, standing.reason = "expired", reason
        standing.have = standing.size = 0
        return True

    def _change_state(self, before: RolloutState, after: RolloutState, reason: str) -> bool:
        if self.record.state != before:
            return False
        self.record.state, self.record.reason = after, reason
        return True

    def _why_stopped(self, failures: list[str]) -> str:
        named = [f"{device}: {self.record.devices[device].reason}" for device in failures[:SHOWN]]
        more = f" and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
        return f"{len(failures)} failed, {self.record.max_failures} may: {'; '.join(named)}{more}"[:1000]

    # What is published

    def offer(self, device: str) -> ModelOffer | SoftwareOffer | None:
        """The offer that the broker is to retain for the device; None: none."""
        standing, release = self.record.devices.get(device), self.releases.get(device)
        if standing is None or release is None:
            return None
        if standing.back:
            is_due = standing.state in ("in service", *OFFERED)
            return self._offer(release, back=True) if is_due else None
        return self._offer(release) if standing.state in ("in service", *OFFERED) else None

    def _offer(self, release: PlannedRelease, *, back: bool = False) -> ModelOffer | SoftwareOffer:
        action: ReleaseAction = "roll back" if back else "install"
        signed_at = release.signed_at + 1 if back and release.signature else release.signed_at
        signature = release.back_signature if back else release.signature
        size = self.size(release)
        if self.record.kind == "model":
            return ModelOffer(
                release=release.release,
                action=action,
                signed_at=signed_at,
                signature=signature,
                size=size,
                run=release.run,
            )
        return SoftwareOffer(
            release=release.release,
            action=action,
            signed_at=signed_at,
            signature=signature,
            size=size,
            version=release.version,
        )

    def size(self, release: PlannedRelease) -> int:
        """Bytes of a bundle."""
        return len(release.head) + self._sizes[release.file]

    def wave_of(self, device: str) -> int:
        """From 1; 0: none reaches the device."""
        place = self._places[device]
        return next((number for number, size in enumerate(self.record.waves, 1) if place < size), 0)

    def update(self, device: str, installed: str) -> Update:
        """The device's state, with the version that it has `installed`."""
        standing, release = self.record.devices[device], self.releases[device]
        never_comes = standing.state == "queued" and not self.is_open
        is_late = self._is_late(device, standing)
        late = f"not decided within {self.record.late_after:.0f} s" if is_late else ""
        return Update(
            installed=installed,
            latest=release.version[:200],
            state="expired" if never_comes else standing.state,
            have=standing.have,
            size=standing.size or (self.size(release) if standing.state in UNDECIDED else 0),
            reason=(standing.reason or late)[:1000],
            rollout=self.record.rollout,
            wave=self.wave_of(device),
        )

    def view(self, is_awake: Predicate) -> rollouts.Rollout:
        record, devices, start = self.record, list(self.record.devices.items()), 0
        waves = []
        for end in record.waves:
            waves.append(self._wave(devices[start:end], is_awake))
            start = end
        return rollouts.Rollout(
            rollout=record.rollout,
            kind=record.kind,
            version=record.version,
            state=record.state,
            created=record.created,
            expires=record.expires,
            max_failures=record.max_failures,
            wave=record.wave,
            waves=tuple(waves),
            reason=record.reason,
        )

    def _wave(self, devices: list[tuple[str, Standing]], is_awake: Predicate) -> Wave:
        undecided = [(device, standing) for device, standing in devices if standing.state in UNDECIDED]
        awake = [(device, one) for device, one in undecided if one.state == "trying" or is_awake(device)]
        return Wave(
            len(devices),
            sum(standing.state == "in service" for _, standing in devices),
            sum(_has_failed(standing) for _, standing in devices),
            len(undecided) - len(awake),
            sum(self._is_late(device, standing) for device, standing in awake),
        )


def in_service(report: ReleaseReport) -> str:
    """The release that a device has in service, by its report; "": it names none."""
    if isinstance(report, ModelReport) and report.serves is not None:
        return report.serves.release
    return report.release if report.state == "in service" else ""


def _has_failed(standing: Standing) -> bool:
    return standing.state == "failed" or (standing.state == "rolled back" and not standing.back)
