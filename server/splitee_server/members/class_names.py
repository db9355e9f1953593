# SPDX-License-Identifier: Apache-2.0
"""The class names of a run: set by the operator, or by more than half of the devices it waits for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from splitee.errors import ConfigError
from splitee.protocol import fields
from splitee.validation_errors import format_error

ClassNames = tuple[str, ...]

CANDIDATES = 16  # lists of names with the most votes, which are compared if none has a majority
MOST_CHANGES = 10  # of a device's vote that count: more could restart the run for ever


def read_class_names(path: Path, most: int) -> ClassNames:
    """The names in a file, one per line, in the order of the labels; `most`: the run's number of classes.

    Raises:
        ConfigError: it cannot be read, names one twice, or names too few or too many.
    """
    try:
        names = tuple(
            line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()
        )
        msgspec.convert(names, fields.ClassNames)
    except (OSError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"--classes {path}: expected a class name a line ({format_error(error)})") from None
    if not 2 <= len(names) <= most or len(set(names)) < len(names):
        raise ConfigError(
            f"--classes {path}: expected 2 to {most} different names (--num-classes {most}), "
            f"found {len(names)} ({len(set(names))} different)"
        )
    return names


class ClassVote:
    """One vote per device, which it may change. A decision holds until a larger majority decides otherwise.

    Attributes:
        devices: number that the run waits for.
        decided: the names that more than half of them have agreed on; empty: they have not yet.
    """

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.decided: ClassNames = ()
        self._votes: dict[str, ClassNames] = {}
        self._empty: dict[str, ClassNames] = {}  # names of a device's empty class folders
        self._changes: Counter[str] = Counter()

    def cast(self, device: str, names: ClassNames, empty: ClassNames = ()) -> ClassNames:
        """Take a vote; returns the decided names, empty if there are none.

        Other names replace decided ones if they have the votes of more than half of the devices, and more
        votes than the decided ones still have. Only MOST_CHANGES changes of a device's vote count.

        Args:
            empty: names that the device has no images of, and could have as well.
        """
        before = self._votes.get(device), self._empty.get(device)
        if (names, empty) == before or self._changes[device] >= MOST_CHANGES:
            return self.decided
        self._changes[device] += before != (None, None)
        self._votes[device], self._empty[device] = names, empty
        return self.count()

    def count(self) -> ClassNames:
        """The names that the present votes decide on; empty if there are none.

        If no names have a majority, a device also counts for all names that it could have.
        """
        counts = Counter(self._votes.values())
        leading = counts.most_common(CANDIDATES)
        if leading and not self._is_majority(leading[0][1]):
            counts = Counter({names: self._supporters(names) for names, _ in leading})
            counts[self.decided] = self._supporters(self.decided)
            leading = counts.most_common(1)
        for names, votes in leading[:1]:
            if self._is_majority(votes) and votes > counts[self.decided]:
                self.decided = names
        return self.decided

    def could_have(self, device: str, names: ClassNames) -> bool:
        """Whether a device would have these names after a restart: its own and those of empty folders."""
        own = set(self._votes.get(device, ()))
        return bool(own) and own < set(names) <= own.union(self._empty[device])

    def withdraw(self, device: str) -> None:
        """Discard the device's vote; a decision stays."""
        self._votes.pop(device, None)
        self._empty.pop(device, None)

    def voters(self, names: ClassNames) -> list[str]:
        """The devices whose names these are."""
        return sorted(device for device, voted in self._votes.items() if voted == names)

    def _is_majority(self, votes: int) -> bool:
        return 2 * votes > self.devices

    def _supporters(self, names: ClassNames) -> int:
        """How many devices have these names, or could have them beside their own."""
        return sum(
            own == names or (bool(self._empty[device]) and self.could_have(device, names))
            for device, own in self._votes.items()
        )

    def __len__(self) -> int:
        """The number of votes."""
        return len(self._votes)

    @property
    def conflict(self) -> str:
        """Whose names differ, for people; empty if all agree."""
        lists = Counter(self._votes.values())
        if len(lists) < 2:
            return ""
        whose = {names: next(d for d in sorted(self._votes) if self._votes[d] == names) for names in lists}
        shown = "; ".join(f"{whose[names]} has {abbreviate(names)}" for names, _ in lists.most_common(3))
        hint = "give each the same class folders, or the server --classes"
        return f"the devices' classes differ ({shown}): {hint}"


def differences(names: ClassNames, fleets: ClassNames) -> str:
    """How a device's names differ from the fleet's, for people."""
    more, missing = set(names) - set(fleets), set(fleets) - set(names)
    found = [f"only it has {abbreviate(tuple(sorted(more)))}"] if more else []
    found += [f"it lacks {abbreviate(tuple(sorted(missing)))}"] if missing else []
    return ", ".join(found) or "they are in another order"


def abbreviate(names: ClassNames) -> str:
    """The first few of them, for people."""
    shown = ", ".join(names[:5])
    return f"[{shown}{', ...' if len(names) > 5 else ''}]"
