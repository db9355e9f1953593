"""Which classes a run tells apart: the operator says so, or more than half of the devices it waits for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec

from splitee.errors import ConfigError
from splitee.protocol import fields

ClassNames = tuple[str, ...]


def read_class_names(path: Path, most: int) -> ClassNames:
    """The names in a file, one a line, in the order of the labels; `most`: of the run.

    Raises:
        ConfigError: it cannot be read, names one twice, or names too few or too many.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        msgspec.convert(names, fields.ClassNames)
    except (OSError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"--classes {path}: expected a class name a line ({error})") from None
    if not 2 <= len(names) <= most or len(set(names)) < len(names):
        raise ConfigError(
            f"--classes {path}: expected 2 to {most} different names (--num-classes {most}), "
            f"found {len(names)} ({len(set(names))} different)"
        )
    return names


class ClassVote:
    """Each device has one vote, which it may change as long as nothing is decided."""

    def __init__(self, devices: int) -> None:
        """`devices`: that the run waits for; more than half of them must agree."""
        self._needed = devices // 2 + 1
        self._votes: dict[str, ClassNames] = {}

    def cast(self, device: str, names: ClassNames) -> ClassNames:
        """The names that have been decided on; empty where none have."""
        self._votes[device] = names
        leading, votes = Counter(self._votes.values()).most_common(1)[0]
        return leading if votes >= self._needed else ()

    def voters(self, names: ClassNames) -> list[str]:
        """The devices whose names these are."""
        return sorted(device for device, theirs in self._votes.items() if theirs == names)

    @property
    def conflict(self) -> str:
        """Whose names differ, for people; empty where nobody's do."""
        lists = Counter(self._votes.values())
        if len(lists) < 2:
            return ""
        whose = {names: next(d for d in sorted(self._votes) if self._votes[d] == names) for names in lists}
        shown = "; ".join(f"{whose[names]} has {in_short(names)}" for names, _ in lists.most_common(3))
        hint = "give each the same class folders, or the server --classes"
        return f"the devices' classes differ ({shown}): {hint}"


def differences(names: ClassNames, fleets: ClassNames) -> str:
    """How a device's names differ from the fleet's, for people."""
    more, missing = set(names) - set(fleets), set(fleets) - set(names)
    found = [f"only it has {in_short(tuple(sorted(more)))}"] if more else []
    found += [f"it lacks {in_short(tuple(sorted(missing)))}"] if missing else []
    return ", ".join(found) or "they are in another order"


def in_short(names: ClassNames) -> str:
    """The first few of them, for people."""
    shown = ", ".join(names[:5])
    return f"[{shown}{', ...' if len(names) > 5 else ''}]"
