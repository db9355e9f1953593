# SPDX-License-Identifier: Apache-2.0
"""The processes of one server under torchrun: small messages over its store, states over gloo.

Messages are keys in the store, and ranks poll for them, which takes a tenth of a millisecond: no rank's loop
blocks another's. Only for states does the receiver wait.
"""

from __future__ import annotations

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import msgspec
import torch
from torch import Tensor, distributed
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from splitee.clock import Clock
from splitee.errors import RankLost
from splitee_server.ranks.heartbeats import LOST_AFTER, Heartbeats
from splitee_server.ranks.place import Place
from splitee_server.ranks.shared_memory import OthersMemory, OwnMemory, Written

RANK_TIMEOUT = 600.0  # seconds to wait for a rank, or for its message or state, before it counts as lost
CHECK_EVERY = 5.0  # seconds between two checks for ranks that have failed
FAILED = "failed"
T = TypeVar("T")


class Group:
    """This process and the other ranks of its server."""

    def __init__(self, place: Place, store: Store, clock: Clock = time.monotonic) -> None:
        self.rank = place.rank
        self.size = place.size
        self._store = store
        self._clock = clock
        self._posted: Counter[int] = Counter()  # messages to each rank
        self._received: Counter[int] = Counter()  # messages from each rank
        self.heartbeats = Heartbeats(place.rank, place.size, store, clock)
        self._check_due = 0.0
        self._memory: OwnMemory | None = None  # that others can read
        self._memories = {other: OthersMemory() for other in range(place.size) if other != place.rank}

    @classmethod
    def join(cls, place: Place) -> Group:
        """Meet the other ranks. Raises RankLost: they do not all come."""
        with _bounded("the ranks do not meet"):
            timeout = timedelta(seconds=RANK_TIMEOUT)
            store, rank, size = next(rendezvous("env://", timeout=timeout))
            store = PrefixStore(f"splitee/{meet(store, rank, size)}", store)
            distributed.init_process_group(
                "gloo",
                store=PrefixStore("gloo", store),
                rank=rank,
                world_size=size,
                timeout=timeout,
            )
        group = cls(place, store)
        group.heartbeats.start()
        if place.on_one_machine:
            group.share_memory()
        return group

    def share_memory(self) -> None:
        """From now on read tensors in the sender's memory, if every rank can open every other's."""
        memory, probe = OwnMemory() if hasattr(os, "memfd_create") else None, torch.tensor([self.rank])
        written = msgspec.json.encode(memory and memory.write([probe])[0])
        received = [msgspec.json.decode(one, type=Written | None) for one in self.exchange("memory", written)]
        able = all(self._can_read(other, received[other]) for other in self._memories)
        if all(msgspec.json.decode(one) for one in self.exchange("able", msgspec.json.encode(able))):
            self._memory = memory
        elif memory is not None:
            memory.close()

    def _can_read(self, rank: int, written: Written | None) -> bool:
        if written is None:
            return False
        try:
            [found] = self._memories[rank].read(written, [torch.tensor([0])])
        except OSError:
            return False
        return int(found) == rank

    def others(self) -> range:
        """All ranks but 0."""
        return range(1, self.size)

    # Messages

    def post(self, rank: int, message: bytes) -> None:
        """Post a message to another rank, which polls for it."""
        with _bounded():
            self._store.set(f"{self.rank}>{rank}/{self._posted[rank]}", message)  # type: ignore[arg-type]
        self._posted[rank] += 1

    def new_messages(self, rank: int) -> Iterator[bytes]:
        """Another rank's messages since the last call, in their order. Raises RankLost."""
        self.check_ranks()
        while True:
            key = f"{rank}>{self.rank}/{self._received[rank]}"
            with _bounded():
                if not self._store.check([key]):
                    return
                message = bytes(self._store.get(key))
                self._store.delete_key(key)
            self._received[rank] += 1
            yield message

    def exchange(self, what: str, message: bytes) -> list[bytes]:
        """Each rank's message about `what`, once all have sent theirs. Raises RankLost: one does not."""
        with _bounded(f"{what}: not all ranks have sent theirs"):
            self._store.set(f"{what}/{self.rank}", message)  # type: ignore[arg-type]
            return [bytes(self._store.get(f"{what}/{rank}")) for rank in range(self.size)]

    def fail(self, line: str) -> None:
        """This rank ends; the others cannot go on without it, and end with the same line."""
        with suppress(RuntimeError):  # if the store is gone, all ranks notice that
            if not self._store.check([FAILED]):
                self._store.set(FAILED, f"rank {self.rank}: {line}")

    def leave(self) -> None:
        """As `fail`, for a rank that received a signal to stop."""
        self.fail("it was asked to stop")

    def check_ranks(self) -> None:
        """Check for failed ranks, every CHECK_EVERY seconds. Raises RankLost: one failed, or is silent."""
        if self._clock() < self._check_due:
            return
        self._check_due = self._clock() + CHECK_EVERY
        with _bounded():
            if self._store.check([FAILED]):
                raise RankLost(bytes(self._store.get(FAILED)).decode())
            missing = self.heartbeats.missing()
        if missing is not None:
            raise RankLost(f"rank {missing} has given no sign of life for {LOST_AFTER:.0f} s")

    def wait_for(self, found: Callable[[], T | None], what: str) -> T:
        """Poll `found` until it returns something. Raises RankLost: it does not within RANK_TIMEOUT."""
        until = self._clock() + RANK_TIMEOUT
        while (result := found()) is None:
            self.check_ranks()
            if self._clock() > until:
                raise RankLost(f"{what}: nothing came for {RANK_TIMEOUT:.0f} s")
            time.sleep(0.002)
        return result

    # States

    def send(self, rank: int, data: bytes) -> None:
        """Send a state to a rank that waits for it. Raises RankLost."""
        with _bounded(f"rank {rank} takes no state"):
            distributed.send(torch.tensor([len(data)]), rank)
            distributed.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), rank)

    def receive(self, rank: int) -> bytes:
        """Receive a state of a rank. Raises RankLost."""
        with _bounded(f"rank {rank} sends no state"):
            length = torch.zeros(1, dtype=torch.int64)
            distributed.recv(length, rank)
            data = torch.empty(int(length), dtype=torch.uint8)
            distributed.recv(data, rank)
        return data.numpy().tobytes()

    def send_tensors(self, ranks: Iterable[int], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Send tensors without gaps to ranks that wait for them. Raises RankLost.

        Returns:
            The tensors in the memory that the ranks share, if they share one; from there they can be sent
            again without a copy.
        """
        if self._memory is not None:
            written, places = self._memory.write(tensors)
            where = msgspec.json.encode(written)
            for rank in ranks:
                self.send(rank, where)
            return places
        for rank in ranks:
            with _bounded(f"rank {rank} takes no state"):
                for tensor in tensors:
                    distributed.send(_flat(tensor), rank)
        return tensors

    def receive_tensors(self, rank: int, outlines: Iterable[Tensor]) -> list[Tensor]:
        """Receive a rank's tensors, to be used before anything is sent to it again. Raises RankLost.

        `outlines`: tensors of the same shapes, types and strides.
        """
        if self._memory is not None:
            written = msgspec.json.decode(self.receive(rank), type=Written)
            with _bounded(f"rank {rank} shares no memory"):
                return self._memories[rank].read(written, outlines)
        tensors = [torch.empty_like(outline, device="cpu") for outline in outlines]
        with _bounded(f"rank {rank} sends no state"):
            for tensor in tensors:
                distributed.recv(_flat(tensor), rank)
        return tensors

    def close(self) -> None:
        self.heartbeats.stop()
        if self._memory is not None:
            self._memory.close()
        distributed.destroy_process_group()


def meet(store: Store, rank: int, size: int) -> str:
    """Agree on a name for this meeting of the ranks, which separates their keys from those of earlier ranks.

    torchrun's store outlives the ranks: after a restart it still has what dead ranks wrote, including their
    addresses. Each rank therefore says hello with a new random name, and rank 0 replies to that name.

    Raises:
        RankLost: rank 0 has waited in vain for a rank. RuntimeError: another rank has, for rank 0.
    """
    if rank:
        own = secrets.token_hex(8)
        store.set(f"hello/{rank}", own)
        meeting = bytes(store.get(f"welcome/{own}")).decode()
        store.set(f"{meeting}/{rank}", "here")
        return meeting
    meeting, until, missing = secrets.token_hex(8), time.monotonic() + RANK_TIMEOUT, list(range(1, size))
    while missing:
        if time.monotonic() > until:
            raise RankLost(f"rank {missing[0]} has not come for {RANK_TIMEOUT:.0f} s")
        for other in missing:
            if store.check([f"hello/{other}"]):
                store.set(f"welcome/{bytes(store.get(f'hello/{other}')).decode()}", meeting)
        missing = [other for other in missing if not store.check([f"{meeting}/{other}"])]
        time.sleep(0.02)
    return meeting


def _flat(tensor: Tensor) -> Tensor:
    """Its values (N,), in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


@contextmanager
def _bounded(what: str = "the ranks' store is gone") -> Iterator[None]:
    """Turn torch's errors about a peer that is gone or too slow into a RankLost of one line."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # includes DistError and gloo's errors
        reason = str(error).partition("\n")[0][:200]
        raise RankLost(f"{what} ({reason}): is another rank gone?") from None
