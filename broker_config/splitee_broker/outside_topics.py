# SPDX-License-Identifier: Apache-2.0
"""Topics outside of the fleet that devices may read: those of sensors, for `splitee infer --on-topic`."""

from __future__ import annotations

from collections.abc import Iterable

from splitee.errors import ConfigError

LONGEST = 200  # characters, as of --on-topic
MOST_TOPICS = 100  # per fleet: the broker compares each message with all of them
DEVICE = "%u"  # stands for the device's name, as in the access list
OWN = "splitee"  # the first level of all topics of fleets

RULES = """
# Topics outside of the fleet (`splitee broker init --device-reads`): devices read, Home Assistant writes.
"""


def check_outside(topics: Iterable[str]) -> tuple[str, ...]:
    """Checks topic filters that devices may read, and returns them; an empty one means none.

    Raises:
        ConfigError: one is not a filter, may match topics of fleets or of the broker, or there are too many.
    """
    found = tuple(dict.fromkeys(topic for topic in topics if topic))
    if len(found) > MOST_TOPICS:
        raise ConfigError(
            f"--device-reads: expected at most {MOST_TOPICS} topics, got {len(found)}; take + or #"
        )
    for topic in found:
        first, *rest = topic.split("/")
        if not (
            len(topic) <= LONGEST
            and topic.isprintable()
            and topic == topic.strip()
            and first not in ("", OWN)
            and not set(first) & set("+#%$")
            and all(_is_level(level) for level in rest[:-1])
            and (not rest or rest[-1] == "#" or _is_level(rest[-1]))
        ):
            raise ConfigError(
                f"--device-reads {topic[:LONGEST]!r}: expected a topic of at most {LONGEST} characters, not "
                f"below {OWN}/ or $SYS/; each level but the first may be + or {DEVICE}, and the last one #"
            )
    return found


def outside_rules(topics: Iterable[str]) -> str:
    """Lines for Mosquitto's access list."""
    read = "".join(f"pattern read {topic}\n" for topic in topics)
    write = "".join(f"topic write {topic.replace(DEVICE, '+')}\n" for topic in topics)
    return f"{RULES}{read}\nuser homeassistant\n{write}" if read else ""


def _is_level(level: str) -> bool:
    return level in ("+", DEVICE) or not set(level) & set("+#%")
