"""Who may join a run: the rules, and the devices that have said one half of what joining takes."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from splitee.errors import ExitCode, MalformedMessage
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee_server.members.class_names import ClassNames, ClassVote, differences, in_short
from splitee_server.members.members import Member, Members

KNOWN_DEVICES = 100_000  # statuses and profiles that are remembered

log = logging.getLogger(__name__)


class Refusal(Exception):
    """Why a device may not take part, and its exit code. `instance`: the process of it that is meant."""

    def __init__(self, device: str, profile: Profile, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.device = device
        self.code = code
        self.instance = profile.instance


@dataclass(frozen=True)
class Admitted:
    """A device has joined. `is_new`: this process of it was not known."""

    member: Member
    profile: Profile
    is_new: bool


class Admission:
    """Lets a device in once it is online and has sent its profile; retained, that may be of one that is gone.

    As long as the run's class names are not decided, devices that could join wait for the others.

    Attributes:
        last_status: what each device has said last.
        vote: on the class names, where the run does not have them.
    """

    def __init__(
        self, spec: RunSpec, num_layers: int, members: Members, *, devices: int, most_images: int
    ) -> None:
        """`num_layers`: of the run's network; a cut is in 1..num_layers - 1.

        `devices`: that the run waits for. `most_images`: of a device, for training and held out each.
        """
        self._spec = spec
        self._num_layers = num_layers
        self._members = members
        self._most_images = most_images
        self._profiles: dict[str, Profile] = {}  # of devices that have not joined
        self.last_status: dict[str, DeviceStatus] = {}
        self.vote = ClassVote(devices)

    @property
    def conflict(self) -> str:
        """Why devices that are here wait to be let in, for people; empty where none do."""
        return "" if self._members.class_names else self.vote.conflict

    def on_status(self, device: str, status: DeviceStatus) -> list[Admitted | Refusal]:
        """Whom that lets in or shuts out. Raises MalformedMessage: there are too many devices."""
        _check_room(self.last_status, device)
        self.last_status[device] = status
        was_online = device in self._members and self._members[device].online
        self._members.note_status(device, status)
        if was_online and not self._members[device].online:
            log.info("%s is offline", device)
        return self._admit(device)

    def on_profile(self, device: str, profile: Profile) -> list[Admitted | Refusal]:
        """Whom that lets in or shuts out. Raises MalformedMessage: there are too many devices."""
        _check_room(self._profiles, device)
        self._profiles[device] = profile
        return self._admit(device)

    def _admit(self, device: str) -> list[Admitted | Refusal]:
        if not self._is_ready(device):
            return []
        if self._members.class_names:
            return [self._decide(device)]
        profile = self._profiles[device]
        try:
            self._check(device, profile)
        except Refusal as refusal:
            del self._profiles[device]
            return [refusal]
        self._members.class_names = self.vote.cast(device, profile.class_names)
        if not self._members.class_names:
            return []
        return [self._decide(waiting) for waiting in sorted(self._profiles) if self._is_ready(waiting)]

    def _is_ready(self, device: str) -> bool:
        """Whether one process of it has sent its profile, and is online."""
        status, profile = self.last_status.get(device), self._profiles.get(device)
        if status is None or profile is None:
            return False
        return status.state == "online" and status.instance == profile.instance

    def _decide(self, device: str) -> Admitted | Refusal:
        profile = self._profiles.pop(device)
        is_new = device not in self._members or self._members[device].instance != profile.instance
        try:
            self._check(device, profile)
        except Refusal as refusal:
            return refusal
        return Admitted(self._members.admit(device, profile), profile, is_new)

    def _check(self, device: str, profile: Profile) -> None:
        """Raises Refusal."""
        if profile.protocol != PROTOCOL:
            raise Refusal(
                device,
                profile,
                ExitCode.VERSION,
                f"{device} speaks protocol {profile.protocol}, this server {PROTOCOL}: "
                f"install release {profile.version} on both, or the server's on the device",
            )
        most = max(profile.train_samples, profile.held_out_samples)
        if most > self._most_images:
            raise Refusal(
                device,
                profile,
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
                    profile,
                    ExitCode.REJECTED,
                    f"{device} is cut at {cut}; {self._spec.network} can be cut at 1..{self._num_layers - 1}",
                )
        known = self._members.get(device)
        if known is not None and profile.cut not in (known.cut, known.previous_cut):
            raise Refusal(
                device,
                profile,
                ExitCode.REJECTED,
                f"{device} is cut at {profile.cut}, in this run it was cut at {known.cut}: "
                f"keep --cut {known.cut}",
            )

    def _check_classes(self, device: str, profile: Profile) -> None:
        names, fleets = profile.class_names, self._members.class_names
        if fleets and names != fleets:
            raise Refusal(
                device,
                profile,
                ExitCode.REJECTED,
                f"{device} has the classes {in_short(names)}, the fleet {in_short(fleets)}"
                f"{self._who_set(fleets)}: {differences(names, fleets)}; every device needs the same class "
                "folders, empty ones where it has no images",
            )
        if len(names) > self._spec.num_classes:
            raise Refusal(
                device,
                profile,
                ExitCode.REJECTED,
                f"{device} has {len(names)} classes, the run {self._spec.num_classes}: "
                "start the server with another --num-classes",
            )

    def _who_set(self, fleets: ClassNames) -> str:
        """Whose names the fleet's are, for people; empty where devices have not set them since the start."""
        voters = self.vote.voters(fleets)
        return f" (set by {in_short(tuple(voters))[1:-1]})" if voters else ""


def _check_room(known: dict[str, DeviceStatus] | dict[str, Profile], device: str) -> None:
    if device not in known and len(known) >= KNOWN_DEVICES:
        raise MalformedMessage(f"more than {KNOWN_DEVICES} devices")
