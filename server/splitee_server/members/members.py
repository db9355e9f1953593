# SPDX-License-Identifier: Apache-2.0
"""The devices of a run as the server knows them; only this module changes them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from splitee.errors import StateError
from splitee.protocol.fields import LARGEST_COUNT
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.rounds import RoundDone
from splitee_server.members.class_names import abbreviate
from splitee_server.rounds.pace import profiled_pace, smoothed

log = logging.getLogger(__name__)


@dataclass
class Totals:
    """Counts, summed over committed rounds."""

    batches: int = 0
    published: int = 0


@dataclass
class Member:
    """One admitted device. The server saves all but `instance`, `online` and the pixel statistics."""

    device: str
    cut: int
    train_samples: int
    held_out_samples: int
    instance: int
    committed: int = 0
    digest: str | None = None  # of the client network that its next round starts from
    trained: str | None = None  # of the client network that it trained in its last round
    next_cut: int = 0  # the cut that it has requested; 0: none
    picked: int = 0  # the last committed round that it was picked for, whether it ended it or not
    pace: float | None = None  # seconds per batch, from its rounds, or else from its profiler
    previous_cut: int = 0  # which a process that missed the change may still report
    pixel_mean: tuple[float, ...] = ()  # per channel of its images, if the run requests it
    pixel_std: tuple[float, ...] = ()
    quarantined: bool = False  # the server ignores it in this run
    totals: Totals = field(default_factory=Totals)
    online: bool = True
    alone_accuracy: float | None = None  # of what it trained by itself, if it reported that

    def durable(self) -> dict[str, Any]:
        """What is kept in the server's state."""
        return {name: getattr(self, name) for name in _DURABLE} | {"totals": asdict(self.totals)}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Member:
        """A member of a stored run; offline until it sends a message."""
        totals = dict(state["totals"])
        totals.pop("bytes", None)  # written by earlier releases
        return cls(**{**state, "totals": Totals(**totals)}, instance=0, online=False)


_DURABLE = [
    one.name for one in fields(Member) if one.name not in ("instance", "online", "pixel_mean", "pixel_std")
]


class Members:
    """The devices that have been admitted, by their names."""

    def __init__(self, class_names: tuple[str, ...] = (), dismissed: Iterable[str] = ()) -> None:
        """`class_names`: of the run, where they are known from the start.

        `dismissed`: devices that the run goes on without; they need not have been members.
        """
        self._by_name: dict[str, Member] = {}
        self._dismissed = set(dismissed)
        self._listed: dict[str, list[Member]] = {}  # by what they have in common, until that changes
        self.class_names = class_names

    def __contains__(self, device: str) -> bool:
        return device in self._by_name

    def __getitem__(self, device: str) -> Member:
        return self._by_name[device]

    def get(self, device: str) -> Member | None:
        return self._by_name.get(device)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._list("all", lambda: [member for _, member in sorted(self._by_name.items())]))

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def dismissed(self) -> tuple[str, ...]:
        """The devices, members or not, that an operator has said are gone."""
        return tuple(sorted(self._dismissed))

    def is_dismissed(self, device: str) -> bool:
        return device in self._dismissed

    def remaining(self) -> list[Member]:
        """All but those that were dismissed."""
        return self._list("remaining", lambda: [one for one in self if one.device not in self._dismissed])

    def expected(self, devices: int) -> int:
        """The number of devices that a run starts with, without those that were dismissed; at least one."""
        return max(devices - len(self._dismissed), 1)

    def active(self) -> list[Member]:
        """All but those in quarantine, and those that were dismissed."""
        return self._list("active", lambda: [one for one in self.remaining() if not one.quarantined])

    def online(self) -> list[Member]:
        """The active ones that are online."""
        return self._list("online", lambda: [one for one in self.active() if one.online])

    def is_online(self, device: str) -> bool:
        """Whether it is a member, and online as far as is known."""
        return device in self._by_name and self._by_name[device].online

    def quarantined(self) -> tuple[str, ...]:
        return tuple(member.device for member in self.remaining() if member.quarantined)

    def cuts(self) -> dict[str, int]:
        return {member.device: member.cut for member in self}

    def digests(self) -> dict[str, str]:
        """Of the active devices' client networks, by device."""
        return {member.device: member.digest for member in self.active() if member.digest}

    def state(self) -> list[dict[str, Any]]:
        return [member.durable() for member in self]

    def load(self, states: list[dict[str, Any]], class_names: tuple[str, ...]) -> None:
        """Load the stored members; those in quarantine stay there.

        Raises:
            StateError: the run has other class names than the stored one.
        """
        if self.class_names and class_names and self.class_names != class_names:
            raise StateError(
                f"--classes: the run in --state has the classes {abbreviate(class_names)}, not "
                f"{abbreviate(self.class_names)}: leave --classes out, or --fresh starts over"
            )
        self.class_names = class_names or self.class_names
        for state in states:
            member = Member.restored(state)
            known = self._by_name.get(member.device)
            member.quarantined |= known is not None and known.quarantined
            self._by_name[member.device] = member
        self._listed.clear()

    def admit(self, device: str, profile: Profile) -> Member:
        """The member for `device`, new or known, as its `profile` says; `Admission` has checked that."""
        member = self._by_name.get(device)
        if member is None:
            member = self._by_name[device] = Member(
                device, profile.cut, profile.train_samples, profile.held_out_samples, profile.instance
            )
        member.train_samples, member.held_out_samples = profile.train_samples, profile.held_out_samples
        member.pixel_mean, member.pixel_std = profile.pixel_mean, profile.pixel_std
        if profile.cut == member.cut:
            member.next_cut = profile.next_cut if profile.next_cut != member.cut else 0
        if member.pace is None:
            member.pace = profiled_pace(profile)
        if profile.alone_accuracy is not None:
            member.alone_accuracy = profile.alone_accuracy
        member.instance, member.online = profile.instance, True
        self._listed.clear()
        return member

    def note_status(self, device: str, status: DeviceStatus) -> None:
        """Note whether a device is online; the status of an earlier process of it is ignored."""
        member = self._by_name.get(device)
        if member is not None and status.instance >= member.instance:
            self._set_online(member, status.state == "online")

    def quarantine(self, device: str) -> None:
        """Ignore the device, until `readmit`."""
        self._by_name[device].quarantined = True
        self._listed.clear()

    def readmit(self, devices: Iterable[str]) -> None:
        """Let devices back from quarantine, or "all" of them; unknown ones are ignored."""
        names = set(devices)
        for member in self:
            if member.quarantined and names & {member.device, "all"}:
                member.quarantined = False
                self._listed.clear()
                log.info("%s is let back from quarantine", member.device)

    def dismiss(self, devices: Iterable[str]) -> None:
        """Mark devices as gone, until `undo_dismissal`; what they have trained is kept."""
        for device in devices:
            self._dismissed.add(device)
            if device in self._by_name:
                self._by_name[device].online = False
        self._listed.clear()

    def undo_dismissal(self, devices: Iterable[str]) -> None:
        """Undo the dismissal of devices."""
        self._dismissed.difference_update(devices)
        self._listed.clear()

    def leave(self) -> None:
        """Remove all members but those in quarantine."""
        self._by_name = {member.device: member for member in self.remaining() if member.quarantined}
        self._listed.clear()

    def absent(self, devices: Iterable[str]) -> None:
        """Mark devices that did not come as offline, until they send a message."""
        for device in devices:
            self._set_online(self._by_name[device], False)

    def note_picked(self, devices: Iterable[str], number: int) -> None:
        """Round `number`, which is about to be committed, began with these devices."""
        for device in devices:
            if device in self._by_name:
                self._by_name[device].picked = number

    def end_round(self, done: RoundDone, device: str, trained: int, pace: float) -> None:
        """A device has taken part in a round.

        Args:
            trained: number of its batches that the trunk was trained on.
            pace: its seconds per batch.
        """
        member = self._by_name[device]
        member.committed, member.digest, member.trained = done.round, done.digest, done.digest
        member.pace = smoothed(member.pace, pace)
        totals = member.totals
        totals.batches += trained
        totals.published = min(totals.published + done.batches, LARGEST_COUNT)

    def move(self, device: str, cut: int) -> None:
        """Give a device its new cut."""
        member = self._by_name[device]
        member.previous_cut, member.cut, member.next_cut = member.cut, cut, 0

    def start_from(self, device: str, committed: int, digest: str) -> None:
        """The server holds a client network for the device, from which its next round starts."""
        member = self._by_name[device]
        member.committed, member.digest = committed, digest

    def _set_online(self, member: Member, online: bool) -> None:
        if member.online != online:
            member.online = online
            self._listed.clear()

    def _list(self, what: str, find: Callable[[], list[Member]]) -> list[Member]:
        """A cached list: it is needed with every event and changes seldom. Callers must not change it."""
        if what not in self._listed:
            self._listed[what] = find()
        return self._listed[what]
