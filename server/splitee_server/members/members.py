"""The devices of a run as the server knows them, and who may join."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from splitee.errors import ExitCode
from splitee.networks.split import SplitNetwork
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.rounds import Participant, RoundDone
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import PROTOCOL
from splitee.training.epochs import evaluation_steps


@dataclass
class Totals:
    """What counts, summed over committed rounds."""

    batches: int = 0
    published: int = 0
    bytes: int = 0


@dataclass
class Member:
    """One admitted device. What is `committed`, its digest and its totals outlive the server process."""

    device: str
    cut: int
    train_samples: int
    held_out_samples: int
    instance: int
    committed: int = 0
    digest: str | None = None  # of the client network that its next round starts from
    trained: str | None = None  # of what it has trained in its last round
    next_cut: int = 0  # that it has asked for; 0: it stays
    previous_cut: int = 0  # that a process may still speak of, if it has missed its move
    totals: Totals = field(default_factory=Totals)
    online: bool = True
    heard: float = field(default_factory=time.monotonic)

    def end_round(self, done: RoundDone, trained: int) -> None:
        """It has taken part in a round with so many batches that the trunk was trained on."""
        self.committed, self.digest, self.trained = done.round, done.digest, done.digest
        self.totals.batches += trained
        self.totals.published += done.batches
        self.totals.bytes += done.bytes

    def in_evaluation(self) -> Participant:
        """Its part when the committed round is evaluated."""
        steps = evaluation_steps(self.held_out_samples)
        return Participant(self.cut, steps, self.committed, self.held_out_samples)

    def move(self, cut: int) -> None:
        """It is cut elsewhere, as it has asked."""
        self.previous_cut, self.cut, self.next_cut = self.cut, cut, 0

    def durable(self) -> dict[str, Any]:
        """What is kept in the server's state."""
        return {
            "device": self.device,
            "cut": self.cut,
            "train_samples": self.train_samples,
            "held_out_samples": self.held_out_samples,
            "committed": self.committed,
            "digest": self.digest,
            "trained": self.trained,
            "next_cut": self.next_cut,
            "previous_cut": self.previous_cut,
            "totals": asdict(self.totals),
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Member:
        """A member of a stored run; offline until it is heard of."""
        return cls(**{**state, "totals": Totals(**state["totals"])}, instance=0, online=False)


class Refusal(Exception):
    """Why a device may not take part, and its exit code."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Members:
    """Admits devices, and remembers them."""

    def __init__(self, spec: RunSpec, network: SplitNetwork) -> None:
        self._spec = spec
        self._network = network
        self._by_name: dict[str, Member] = {}
        self.class_names: tuple[str, ...] = spec.class_names

    def __contains__(self, device: str) -> bool:
        return device in self._by_name

    def __getitem__(self, device: str) -> Member:
        return self._by_name[device]

    def __iter__(self) -> Any:
        return iter(sorted(self._by_name.values(), key=lambda member: member.device))

    def __len__(self) -> int:
        return len(self._by_name)

    def online(self) -> list[Member]:
        return [member for member in self if member.online]

    def digests(self, committed: int | None = None) -> dict[str, str]:
        """Of the client networks, by device; only where the last commit is `committed`, if it is given."""
        return {
            member.device: member.digest
            for member in self
            if member.digest and committed in (None, member.committed)
        }

    def restore(self, states: list[dict[str, Any]]) -> None:
        for state in states:
            member = Member.restored(state)
            self._by_name[member.device] = member

    def admit(self, device: str, profile: Profile) -> Member:
        """The member for `device`, new or known.

        Raises:
            Refusal: it does not fit the run.
        """
        self._check(device, profile)
        if not self.class_names:
            self.class_names = profile.class_names
        member = self._by_name.get(device)
        if member is None:
            member = self._by_name[device] = Member(
                device, profile.cut, profile.train_samples, profile.held_out_samples, profile.instance
            )
        member.train_samples, member.held_out_samples = profile.train_samples, profile.held_out_samples
        if profile.cut == member.cut:
            member.next_cut = profile.next_cut if profile.next_cut != member.cut else 0
        member.instance, member.online, member.heard = profile.instance, True, time.monotonic()
        return member

    def note_status(self, device: str, status: DeviceStatus) -> None:
        """A device came, went, or is alive."""
        member = self._by_name.get(device)
        if member is not None and status.instance >= member.instance:
            member.online = status.state == "online"
            member.heard = time.monotonic()

    def _check(self, device: str, profile: Profile) -> None:
        if profile.protocol != PROTOCOL:
            raise Refusal(
                ExitCode.VERSION,
                f"{device} speaks protocol {profile.protocol}, this server {PROTOCOL}: "
                f"install release {profile.version} on both, or the server's on the device",
            )
        for cut in (profile.cut, profile.next_cut or profile.cut):
            if not 1 <= cut < self._network.num_layers:
                raise Refusal(
                    ExitCode.REJECTED,
                    f"{device} is cut at {cut}; {self._network.name} can be cut at "
                    f"1..{self._network.num_layers - 1}",
                )
        if len(profile.class_names) > self._spec.num_classes:
            raise Refusal(
                ExitCode.REJECTED,
                f"{device} has {len(profile.class_names)} classes, the run {self._spec.num_classes}: "
                "start the server with another --num-classes",
            )
        if self.class_names and profile.class_names != self.class_names:
            raise Refusal(
                ExitCode.REJECTED,
                f"{device} has the classes {_short(profile.class_names)}, "
                f"the fleet {_short(self.class_names)}: every device needs the same class folders",
            )
        known = self._by_name.get(device)
        if known is not None and profile.cut not in (known.cut, known.previous_cut):
            raise Refusal(
                ExitCode.REJECTED,
                f"{device} is cut at {profile.cut}, in this run it was cut at {known.cut}: "
                f"keep --cut {known.cut}",
            )


def _short(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"[{shown}{', ...' if len(names) > 5 else ''}]"
