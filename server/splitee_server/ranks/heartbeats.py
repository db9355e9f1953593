# SPDX-License-Identifier: Apache-2.0
"""Heartbeats: each rank sends them on a thread, also during long work, and checks those of the others."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from splitee.clock import Clock

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

HEARTBEAT_EVERY = 5.0  # seconds between two heartbeats
LOST_AFTER = 60.0  # seconds without one after which a rank, or its machine, counts as gone


class Heartbeats:
    """The heartbeats of all ranks, as counters in their store."""

    def __init__(self, rank: int, size: int, store: Store, clock: Clock) -> None:
        self._rank = rank
        self._store = store
        self._clock = clock
        self._seen: dict[int, tuple[int, float]] = {}  # of the others: the last count, and when it was new
        self._others = [other for other in range(size) if other != rank]
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._send, args=[store.clone()], name="signs", daemon=True)

    def start(self) -> None:
        """Send heartbeats from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join(HEARTBEAT_EVERY)  # it may take longer if the store's machine is gone

    def missing(self) -> int | None:
        """A rank without a heartbeat for LOST_AFTER seconds; to be called every few seconds.

        Raises:
            RuntimeError: the store is gone.
        """
        now = self._clock()
        for rank in self._others:
            sign = self._store.add(f"sign/{rank}", 0)
            last, since = self._seen.get(rank, (-1, now))
            self._seen[rank] = sign, now if sign != last else since
            if now - self._seen[rank][1] > LOST_AFTER:
                return rank
        return None

    def _send(self, store: Store) -> None:
        """`store`: the thread's own connection, because the main thread's may be waiting for a rank."""
        try:
            store.add(f"sign/{self._rank}", 1)
            while not self._is_over.wait(HEARTBEAT_EVERY):
                store.add(f"sign/{self._rank}", 1)
        except RuntimeError:  # the store is gone, which the main thread notices as well
            return
