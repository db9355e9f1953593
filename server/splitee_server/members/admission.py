# SPDX-License-Identifier: Apache-2.0
"""Which devices may join a run, and the devices whose status or profile is still missing."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from splitee.errors import ExitCode, MalformedMessage, Unwinding
from splitee.mqtt.rate_limiter import RateLimiter
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_server.members.class_names import ClassNames, ClassVote, abbreviate, differences
from splitee_server.members.members import Member, Members

KNOWN_DEVICES = 100_000  # statuses and profiles that are remembered

log = logging.getLogger(__name__)


class Refusal(Exception):
    """Why a device may not take part, and its exit code. `instance`: of the device's refused process."""

    def __init__(self, device: str, instance: int, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.device = device
        self.code = code
        self.instance = instance


@dataclass(frozen=True)
class Admitted:
    """A device has joined. `is_new`: the server did not know this process of it."""

    member: Member
    profile: Profile
    is_new: bool


class ClassNamesChanged(Unwinding):
    """The devices have voted for other class names than the fleet's: all members leave, the run restarts.

    Attributes:
        device: the one whose vote decided.
        found: the devices that are now admitted or refused.
    """

    def __init__(self, device: str, message: str, found: list[Admitted | Refusal]) -> None:
        super().__init__(message)
        self.device = device
        self.found = found


class Admission:
    """Admits a device once it is online and has sent its profile.

    A profile alone does not suffice: the broker may retain that of a device that is gone. While the run's
    class names are undecided, devices that could join wait for the others. Before the first commit devices
    may decide on other names.

    Attributes:
        last_status: the last status of each device.
        vote: on the class names, if the run does not have them.
    """

    def __init__(
        self,
        spec: RunSpec,
        num_layers: int,
        members: Members,
        *,
        devices: int,
        most_images: int,
        committed: Callable[[], int] = lambda: 0,
    ) -> None:
        """`num_layers`: of the run's network; a cut is in 1..num_layers - 1.

        `devices`: number that the run waits for. `most_images`: of a device, for training and held out each.
        `committed`: the run's last committed round; 0 before the first.
        """
        self._spec = spec
        self._num_layers = num_layers
        self._members = members
        self._most_images = most_images
        self._committed = committed
        self._are_given = bool(members.class_names)  # by the operator, or by the run's initial weights
        self._devices = devices
        self._profiles: dict[str, Profile] = {}  # of devices that have not joined
        self._joined: dict[str, Profile] = {}  # of those that have
        self.last_status: dict[str, DeviceStatus] = {}
        self.vote = ClassVote(members.expected(devices))
        self._log_offline = defaultdict[str, RateLimiter](RateLimiter)  # by device

    @property
    def conflict(self) -> str:
        """Why devices wait to be admitted, for people; empty if none do."""
        return "" if self._members.class_names else self.vote.conflict

    def on_status(self, device: str, status: DeviceStatus) -> list[Admitted | Refusal]:
        """The devices that this status admits or refuses.

        Raises:
            MalformedMessage: there are too many devices.
            ClassNamesChanged: the devices have now voted for other class names.
        """
        _check_room(self.last_status, device)
        self.last_status[device] = status
        was_online = device in self._members and self._members[device].online
        self._members.note_status(device, status)
        if was_online and not self._members[device].online and self._log_offline[device].due():
            log.info("%s is offline", device)
        return self._admit(device)

    def on_profile(self, device: str, profile: Profile) -> list[Admitted | Refusal]:
        """The devices that this profile admits or refuses.

        Raises:
            MalformedMessage: there are too many devices.
            ClassNamesChanged: the devices have now voted for other class names.
        """
        _check_room(self._profiles, device)
        self._profiles[device] = profile
        return self._admit(device)

    def known(self) -> list[str]:
        """The devices that have joined or sent a status or profile, without those that were dismissed."""
        members = (member.device for member in self._members.remaining())
        return sorted({*self.last_status, *self._profiles, *members})

    def waiting_profile(self, device: str) -> Profile | None:
        """The profile of a device that has not joined; None: it has joined, or has sent none."""
        return self._profiles.get(device)

    def dismiss(self, devices: Iterable[str]) -> bool:
        """Discard the statuses, profiles and votes of these devices.

        Returns:
            Whether that changes the fleet's class names.
        """
        for device in devices:
            for said in (self.last_status, self._profiles, self._joined):
                said.pop(device, None)
            self.vote.withdraw(device)
        before = self._members.class_names
        self.wait_for_remaining()
        if self._may_vote:
            self._members.class_names = self.vote.count()
        return bool(before) and self._members.class_names != before

    def wait_for_remaining(self) -> None:
        """From now on, more than half of the devices that were not dismissed decide on class names."""
        self.vote.devices = max(self._members.expected(self._devices), min(self._devices, len(self.vote)))

    def admit_again(self) -> list[Admitted | Refusal]:
        """The run restarts from its last commit: admit or refuse all devices that had joined or wait."""
        self._profiles, self._joined = {**self._joined, **self._profiles}, {}
        return self.admit_waiting()

    def admit_waiting(self) -> list[Admitted | Refusal]:
        """Admit or refuse the devices that wait, by the run's present state."""
        return [found for device in sorted(self._profiles) for found in self._admit(device)]

    def _admit(self, device: str) -> list[Admitted | Refusal]:
        if not self._is_ready(device):
            return []
        profile = self._profiles[device]
        try:
            self._check(device, profile)
        except Refusal as refusal:
            del self._profiles[device]
            return [refusal]
        before = self._members.class_names
        if self._may_vote:
            self._members.class_names = self.vote.cast(device, profile.class_names, profile.empty_classes)
        if self._members.class_names == before:
            return [self._decide(device)] if before else []
        left = self._disband(before)
        found = [self._decide(waiting) for waiting in sorted(self._profiles) if self._is_ready(waiting)]
        if before:
            raise ClassNamesChanged(device, self._describe_change(before, left), [*left, *found])
        return found

    @property
    def _may_vote(self) -> bool:
        return not self._are_given and not self._committed()

    def _disband(self, before: ClassNames) -> list[Refusal]:
        """Remove all members; the refusals of those that still have the previous names."""
        voters = self.vote.voters(before)
        refusals = [
            self._other_classes(member.device, member.instance, before)
            for member in self._members.active()
            if member.device in voters
        ]
        self._members.leave()
        self._joined.clear()
        return refusals

    def _describe_change(self, before: ClassNames, left: list[Refusal]) -> str:
        """Says that the fleet's class names have changed, for people."""
        names = self._members.class_names
        voters = tuple(self.vote.voters(names))
        leave = f", without {abbreviate(tuple(refusal.device for refusal in left))[1:-1]}" if left else ""
        return (
            f"the fleet's class names are {abbreviate(names)} from now on, before {abbreviate(before)}: "
            f"{len(voters)} of the {self.vote.devices} devices have voted for them "
            f"({abbreviate(voters)[1:-1]}); the run begins anew{leave}"
        )

    def _is_ready(self, device: str) -> bool:
        """Whether one and the same process of it is online and has sent its profile for this run.

        The broker may still retain a device's profile for an earlier run.
        """
        status, profile = self.last_status.get(device), self._profiles.get(device)
        if status is None or profile is None or profile.run not in ("", self._spec.run):
            return False
        return status.state == "online" and status.instance == profile.instance

    def _decide(self, device: str) -> Admitted | Refusal:
        profile = self._profiles.pop(device)
        is_new = device not in self._members or self._members[device].instance != profile.instance
        if profile.class_names != self._members.class_names:
            return self._other_classes(device, profile.instance, profile.class_names)
        self._joined[device] = profile
        return Admitted(self._members.admit(device, profile), profile, is_new)

    def _check(self, device: str, profile: Profile) -> None:
        """Raises Refusal."""
        if profile.protocol != PROTOCOL:
            raise Refusal(
                device,
                profile.instance,
                ExitCode.VERSION,
                f"{device} speaks protocol {profile.protocol}, this server {PROTOCOL}: "
                f"install release {profile.version} on both, or the server's on the device",
            )
        most = max(profile.train_samples, profile.held_out_samples)
        if most > self._most_images:
            raise Refusal(
                device,
                profile.instance,
                ExitCode.REJECTED,
                f"{device} says that it has {most} images; at most {self._most_images} are taken: "
                "give it fewer (--limit), or the server more --most-images",
            )
        self._check_cut(device, profile)
        self._check_classes(device, profile)

    def _check_cut(self, device: str, profile: Profile) -> None:
        for cut in (profile.cut, profile.next_cut or profile.cut):
            if not 1 <= cut < self._num_layers:
                raise Refusal(
                    device,
                    profile.instance,
                    ExitCode.REJECTED,
                    f"{device} is cut at {cut}; {self._spec.network} can be cut at 1..{self._num_layers - 1}",
                )
        known = self._members.get(device)
        if known is not None and profile.cut not in (known.cut, known.previous_cut):
            raise Refusal(
                device,
                profile.instance,
                ExitCode.REJECTED,
                f"{device} is cut at {profile.cut}, in this run it was cut at {known.cut}: "
                f"keep --cut {known.cut}",
            )

    def _check_classes(self, device: str, profile: Profile) -> None:
        """Raises Refusal: it has more classes than the run."""
        names = profile.class_names
        if len(names) <= self._spec.num_classes:
            return
        fleets = self._members.class_names
        if fleets and device not in self.vote.voters(fleets):
            raise self._other_classes(device, profile.instance, names)
        raise Refusal(
            device,
            profile.instance,
            ExitCode.REJECTED,
            f"{device} has {len(names)} classes, the run {self._spec.num_classes}: "
            "start the server with another --num-classes",
        )

    def _other_classes(self, device: str, instance: int, names: ClassNames) -> Refusal:
        """The refusal of a device whose class names differ from the fleet's."""
        fleets = self._members.class_names
        if self.vote.could_have(device, fleets):
            return Refusal(
                device,
                instance,
                ExitCode.REJECTED,
                f"{device} has the classes {abbreviate(names)}, the fleet {abbreviate(fleets)}"
                f"{self._set_by(fleets)}: start it again, and its empty class folders count, too",
            )
        return Refusal(
            device,
            instance,
            ExitCode.REJECTED,
            f"{device} has the classes {abbreviate(names)}, the fleet {abbreviate(fleets)}"
            f"{self._set_by(fleets)}: {differences(names, fleets)}; every device needs the same class "
            f"folders, empty ones where it has no images: correct them on {device} and start it again. "
            f"If the fleet's names are the wrong ones, {self._describe_fix()}",
        )

    def _describe_fix(self) -> str:
        """How to correct wrong class names of the fleet, for people."""
        if self._may_vote:
            return (
                "correct the other devices, then start it again: until round 1 is committed, the fleet's "
                f"names are those that more than half of the {self.vote.devices} devices last started with"
            )
        if self._are_given:
            return "start the server anew with --fresh and the right names in --classes FILE"
        return "start the server anew with --fresh, or with --fresh and --classes FILE"

    def _set_by(self, fleets: ClassNames) -> str:
        """The devices that set the fleet's names, for people; empty if none has since the server's start."""
        voters = self.vote.voters(fleets)
        return f" (set by {abbreviate(tuple(voters))[1:-1]})" if voters else ""


def _check_room(known: dict[str, DeviceStatus] | dict[str, Profile], device: str) -> None:
    if device not in known and len(known) >= KNOWN_DEVICES:
        raise MalformedMessage(f"more than {KNOWN_DEVICES} devices")
