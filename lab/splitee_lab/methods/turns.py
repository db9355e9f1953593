# SPDX-License-Identifier: Apache-2.0
"""Whose batch is next if clients train side by side and one trunk learns from all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

from splitee.protocol.fields import Order

Batch = TypeVar("Batch")


def in_turn(rounds: Iterable[Iterator[Batch]], order: Order = "step") -> Iterator[Batch]:
    """The batches of all clients' rounds, each made when its turn comes.

    `step`: one of each client in turn, as long as it has any; `device`: one client's round after the other's.
    """
    if order == "device":
        yield from chain.from_iterable(rounds)
        return
    turns = deque(rounds)
    while turns:
        batches = turns.popleft()
        for batch in islice(batches, 1):
            turns.append(batches)
            yield batch
