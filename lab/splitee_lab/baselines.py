"""What a fleet is compared with: the whole network on all pictures in one place, and on each device alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from splitee.errors import ChildFailed
from splitee.messages import RunSpec
from splitee.network import build_network
from splitee.training import (
    EVALUATION_BATCH,
    epoch_batches,
    learning_rate,
    make_optimizer,
    seed_for,
    set_rate,
    steps_a_round,
)
from splitee_device.data import PictureSet, Shard, batch, open_data

CENTRALIZED = "centralized"
REPORT_EVERY = 8  # steps


class DataSource(msgspec.Struct, frozen=True):
    """Which pictures the fleet's devices have: `spec` and `limit` as `splitee device` takes them."""

    spec: str
    limit: int | None = None


class Baseline(msgspec.Struct, frozen=True):
    """One network to train, on the pictures of all `shards` ("K/N") together, with the fleet's settings."""

    name: str
    run: RunSpec
    data: DataSource
    shards: tuple[str, ...]


@dataclass(frozen=True)
class Progress:
    """Where one baseline stands: `accuracy` (a fraction, on the held-out pictures) when it is done."""

    name: str
    step: int
    steps: int
    loss: float
    accuracy: float | None = None


def baselines_of(run: RunSpec, data: DataSource, shards: dict[str, str]) -> list[Baseline]:
    """Centralized first, for it takes longest, then each device alone. `shards`: by device id."""
    everything = Baseline(CENTRALIZED, run, data, tuple(shards.values()))
    return [everything, *(Baseline(device, run, data, (shard,)) for device, shard in shards.items())]


def train_all(
    baselines: Sequence[Baseline], workers: int, show: Callable[[Progress], None]
) -> dict[str, float]:
    """Held-out accuracy by baseline, trained in `workers` processes at once.

    One thread each: two such processes train more pictures a second on two cores than one with two
    threads, and the result does not depend on the number of cores.

    Raises:
        ChildFailed: a process ended before its result.
    """
    waiting = deque(baselines)
    accuracies: dict[str, float] = {}
    with _Workers(min(workers, len(baselines))) as team:
        while len(accuracies) < len(baselines):
            team.give(waiting)
            for progress in team.receive():
                show(progress)
                if progress.accuracy is not None:
                    accuracies[progress.name] = progress.accuracy
    return accuracies


def train(baseline: Baseline) -> Iterator[Progress]:
    """Trains one baseline in this process, with the seeds, schedule and batch size of the fleet's run."""
    run = baseline.run
    pictures, held_out = _pictures(baseline)
    network = build_network(
        run.network,
        num_classes=run.num_classes,
        input_shape=run.input_shape,
        stem=run.stem,
        seed=run.seed,
    ).module
    optimizer = make_optimizer(network.parameters(), run)
    steps = steps_a_round(run, len(pictures))
    for number in range(1, run.rounds + 1):
        network.train()
        for step, indices in enumerate(epoch_batches(run, baseline.name, number, len(pictures))):
            images, labels = batch(pictures, indices, run.mean, run.std)
            torch.manual_seed(seed_for(run.seed, baseline.name, number, step))
            set_rate(optimizer, learning_rate(run, number, step, steps))
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done = (number - 1) * steps + step + 1
            if done % REPORT_EVERY == 0:
                yield Progress(baseline.name, done, run.rounds * steps, loss.item())
    accuracy = evaluate(network, held_out, run)
    yield Progress(baseline.name, run.rounds * steps, run.rounds * steps, loss.item(), accuracy)


def evaluate(network: nn.Module, pictures: PictureSet, run: RunSpec) -> float:
    """The share of `pictures` that the network gets right."""
    network.eval()
    correct = 0
    for indices in np.array_split(np.arange(len(pictures)), -(-len(pictures) // EVALUATION_BATCH)):
        images, labels = batch(pictures, indices, run.mean, run.std)
        with torch.inference_mode():
            correct += int((network(images).argmax(dim=1) == labels).sum())
    return correct / len(pictures)


def _pictures(baseline: Baseline) -> tuple[PictureSet, PictureSet]:
    """(training, held-out); the devices of one source hold out the same pictures."""
    run, data = baseline.run, baseline.data
    parts = [
        open_data(
            data.spec,
            input_shape=run.input_shape,
            shard=Shard.parse(shard),
            seed=run.seed,
            limit=data.limit,
        )
        for shard in baseline.shards
    ]
    images = np.concatenate([part.train.images for part in parts])
    labels = np.concatenate([part.train.labels for part in parts])
    return PictureSet(images, labels), parts[0].held_out


class _Workers:
    """Processes that train one baseline after the other and send their progress; leaving ends them."""

    def __init__(self, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[Connection, BaseProcess] = {}
        self._busy: dict[Connection, str] = {}
        with _one_thread_and_no_interrupt():
            for _ in range(count):
                self._start()

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_error: object) -> None:
        for connection, process in self._processes.items():
            process.terminate()
            process.join()
            connection.close()

    def give(self, waiting: deque[Baseline]) -> None:
        """Gives every idle process one of what waits."""
        for connection in self._processes:
            if waiting and connection not in self._busy:
                baseline = waiting.popleft()
                self._busy[connection] = baseline.name
                connection.send_bytes(msgspec.json.encode(baseline))

    def receive(self) -> Iterator[Progress]:
        """Waits until at least one process has something to say."""
        ready = wait(list(self._busy))
        for connection in [mine for mine in self._busy if mine in ready]:
            try:
                progress = msgspec.json.decode(connection.recv_bytes(), type=Progress)
            except (EOFError, ConnectionResetError):
                process = self._processes[connection]
                process.join()
                raise ChildFailed(
                    f"the baseline {self._busy[connection]!r} ended with status {process.exitcode} "
                    "before its result; the others are stopped"
                ) from None
            if progress.accuracy is not None:
                del self._busy[connection]
            yield progress

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        self._processes[ours] = process


@contextmanager
def _one_thread_and_no_interrupt() -> Iterator[None]:
    """What a process inherits that is started now: one OpenMP thread, and Ctrl-C left to its parent."""
    threads = os.environ.get("OMP_NUM_THREADS")
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if threads is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def _work(connection: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            baseline = msgspec.json.decode(connection.recv_bytes(), type=Baseline)
        except EOFError:
            return
        for progress in train(baseline):
            connection.send_bytes(msgspec.json.encode(progress))
