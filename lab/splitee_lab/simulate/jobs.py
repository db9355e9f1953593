# SPDX-License-Identifier: Apache-2.0
"""A comparison: methods x seeds on the same images, each a job of its own that is run only once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from splitee.durable import write_atomically
from splitee.errors import DataError, StateError
from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee_device.data.image_sets import ImageSet, joined
from splitee_device.data.images import DeviceData, open_data, spread_evenly
from splitee_device.data.statistics import channel_statistics
from splitee_lab.local.workers import run_in_workers
from splitee_lab.methods.experiment import Experiment, RoundResult
from splitee_lab.methods.names import parse_hostile
from splitee_lab.methods.registry import METHODS, batches_of
from splitee_lab.methods.simulation import SimulatedDevice
from splitee_lab.simulate.partition import Partition, partition_warnings, split_among
from splitee_server.learning.initial.normalization import FLEET
from splitee_server.learning.initial.weights import SourceWeights, fit
from splitee_server.rounds.settling import DeviceReport, settle

DATA_SEED = 0  # which images are held out, and which a limit leaves out, is the same for all seeds
REPORT_EVERY = 0.5  # seconds


class ImageChoice(msgspec.Struct, frozen=True):
    """Which images: `data` as `splitee device` takes it, at most `samples` to train on.

    `test`: another source, all of which is held out instead of a part of `data`; at most `test_samples` are.
    Without `test`, no more are held out than there are to train on.
    """

    data: str
    test: str | None = None
    samples: int | None = None
    test_samples: int | None = None


class Job(msgspec.Struct, frozen=True):
    """One method with one seed, and everything that its result depends on; client i has cuts[i % len(cuts)].

    `hostile`: how many clients, the first ones, are hostile, and how: "1:flip-labels"; empty: none.
    """

    method: str
    run: RunSpec
    images: ImageChoice = msgspec.field(name="pictures")  # its name in stored results
    clients: int
    cuts: tuple[int, ...]
    partition: str
    evaluate_every: int
    place: str = "cpu"
    hostile: str = ""

    @property
    def name(self) -> str:
        return f"{self.method}-seed{self.run.seed}"

    @property
    def title(self) -> str:
        return f"run {self.name}"


class ClientFacts(msgspec.Struct, frozen=True):
    """A client that takes part: its cut, and the numbers of its training images and their classes."""

    cut: int
    samples: int
    classes: int


class JobResult(msgspec.Struct, frozen=True):
    """A finished job, as it is stored. `whole_macs`: what all clients would compute for the whole network."""

    job: Job
    whole_macs: int
    clients: dict[str, ClientFacts]
    rounds: list[RoundResult]
    seconds: float


class JobProgress(msgspec.Struct, frozen=True):
    """The progress of a job; `round_result` when it is done."""

    done: int
    batches: int
    accuracy: float | None = None  # mean over the clients, when last evaluated
    result: JobResult | None = None


@dataclass(frozen=True)
class SharedImages:
    """The images, which all jobs share."""

    train: ImageSet
    held_out: ImageSet
    class_names: tuple[str, ...]


def open_images(choice: ImageChoice, spec: RunSpec) -> SharedImages:
    """Decode the images as the run needs them; a limit keeps the proportions of classes.

    Raises:
        DataError: a source is missing, empty or of one class; or the two have different classes.
    """
    data = open_data(
        choice.data, input_shape=spec.input_shape, fit=spec.fit, seed=DATA_SEED, limit=choice.samples
    )
    held_out = data.held_out.in_memory()
    if choice.test is not None:
        other = open_data(choice.test, input_shape=spec.input_shape, fit=spec.fit, seed=DATA_SEED)
        if other.class_names != data.class_names:
            raise DataError(f"{choice.test}: expected the classes of {choice.data}; they differ")
        held_out = joined([other.train, other.held_out])
    if choice.test_samples is not None and choice.test_samples < len(held_out):
        by_class = np.argsort(held_out.labels, kind="stable")
        kept = np.sort(spread_evenly(by_class, choice.test_samples))
        held_out = ImageSet(held_out.images[kept], held_out.labels[kept])
    return SharedImages(data.train.in_memory(), held_out, data.class_names)


def client_names(count: int) -> list[str]:
    """Names whose order is that of their numbers."""
    width = len(str(count))
    return [f"client-{number:0{width}}" for number in range(1, count + 1)]


def check_partition(jobs: Sequence[Job], images: SharedImages) -> list[str]:
    """A line for each client that a seed leaves without images, or with one class only.

    Raises:
        DataError: there are fewer images than clients, or no client has two images.
    """
    lines = []
    for job in {job.run.seed: job for job in jobs}.values():
        assignment = split_among(
            images.train.labels, job.clients, Partition.parse(job.partition), job.run.seed
        )
        names = client_names(job.clients)
        if max(map(len, assignment)) < 2:
            raise DataError(f"{job.clients} clients have an image each: give more images, or fewer clients")
        found = partition_warnings(
            [images.train.labels[indices] for indices in assignment], names, images.class_names
        )
        lines += [f"seed {job.run.seed}, {job.partition}: {line}" for line in found]
    return lines


def experiment_of(
    job: Job,
    images: SharedImages,
    on_batch: Callable[[], None],
    found: SourceWeights | None = None,
    resident: int = 0,
) -> Experiment:
    """The job's clients with their images; a client with fewer than two is left out.

    Args:
        found: the initial weights of all networks; None: they come from the seed.
        resident: devices' trunks in memory at a time; 0: all.
    """
    train = images.train
    assignment = split_among(train.labels, job.clients, Partition.parse(job.partition), job.run.seed)
    count, kind = parse_hostile(job.hostile)
    devices = {}
    for index, (name, indices) in enumerate(zip(client_names(job.clients), assignment, strict=True)):
        if len(indices) >= 2:
            own = ImageSet(train.images[indices], train.labels[indices])
            data = DeviceData(own, images.held_out, images.class_names, ())
            attack = kind if index < count else ""
            devices[name] = SimulatedDevice(job.cuts[index % len(job.cuts)], data, attack)
    network, spec = build_for(job.run), job.run
    if spec.awaits_fleet:
        reported = [_joined(spec, device) for device in devices.values()]
        spec = settle(spec, network, reported)
    initial = fit(found, network, spec, images.class_names) if found is not None else None
    return Experiment(spec, devices, job.evaluate_every, on_batch, job.place, initial, resident)


def _joined(spec: RunSpec, device: SimulatedDevice) -> DeviceReport:
    own = device.data.train
    if spec.normalize != FLEET:
        return DeviceReport(device.cut, len(own))
    reported = channel_statistics(own)
    return DeviceReport(device.cut, len(own), reported["pixel_mean"], reported["pixel_std"])


def run_job(
    images: SharedImages,
    found: SourceWeights | None,
    resident: int,
    job: Job,
    report: Callable[[JobProgress], None],
) -> None:
    """Run a job; reports its progress a few times per second, and its result at the end."""
    started = reported = time.monotonic()
    done = total = 0
    accuracy = None

    def on_batch() -> None:
        nonlocal done, reported
        done += 1
        if time.monotonic() > reported + REPORT_EVERY:
            report(JobProgress(done, total, accuracy))
            reported = time.monotonic()

    experiment = experiment_of(job, images, on_batch, found, resident)
    total = batches_of(job.method, experiment)
    rounds = []
    for round_result in METHODS[job.method](experiment):
        rounds.append(round_result)
        accuracy = mean_accuracy(round_result) if round_result.accuracies else accuracy
    clients = {
        name: ClientFacts(device.cut, len(device.data.train), len(np.unique(device.data.train.labels)))
        for name, device in experiment.devices.items()
    }
    whole_macs = job.run.rounds * sum(experiment.macs(name, None) for name in clients)
    result = JobResult(job, whole_macs, clients, rounds, time.monotonic() - started)
    report(JobProgress(total, total, accuracy, result))


def mean_accuracy(round_result: RoundResult) -> float:
    """The mean over the clients; of the exits if there is nothing else."""
    found = [
        one.accuracy if one.accuracy is not None else one.exit_accuracy
        for one in round_result.accuracies.values()
    ]
    return float(np.mean([value for value in found if value is not None]))


class JobResultStore:
    """Results of jobs as files, OUT/parts/METHOD-seedN.json."""

    def __init__(self, out: Path) -> None:
        self._folder = out / "parts"

    def save(self, result: JobResult) -> None:
        """Durable when this returns. Raises StateError."""
        self._folder.mkdir(exist_ok=True)
        write_atomically(self._path(result.job), msgspec.json.format(msgspec.json.encode(result), indent=1))

    def load(self, job: Job) -> JobResult | None:
        """The job's result, if it has been run.

        Raises:
            StateError: the stored result has other settings, or is unreadable.
        """
        path = self._path(job)
        try:
            result = msgspec.json.decode(path.read_bytes(), type=JobResult)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise StateError(f"{path} is unreadable ({error}): remove it, and its job is run again") from None
        if result.job != job:
            changed = "; ".join(_differences(result.job, job))
            raise StateError(f"{path} is of other settings ({changed}): name another --out, or remove it")
        return result

    def _path(self, job: Job) -> Path:
        return self._folder / f"{job.name}.json"


def _differences(there: msgspec.Struct, here: msgspec.Struct) -> Iterator[str]:
    for name in here.__struct_fields__:
        before, now = getattr(there, name), getattr(here, name)
        if isinstance(before, msgspec.Struct) and isinstance(now, msgspec.Struct):
            yield from _differences(before, now)
        elif before != now:
            yield f"{name} {before!r} there, {now!r} here"


def run_all(
    jobs: Sequence[Job],
    images: SharedImages,
    store: JobResultStore,
    workers: int,
    show: Callable[[Job, JobProgress], None],
    found: SourceWeights | None = None,
    resident: int = 0,
) -> list[JobResult]:
    """The results of all jobs, in their order; those that are stored are not run again.

    Args:
        found: the initial weights of all networks; None: they come from the seed.
        resident: devices' trunks in memory at a time, per run; results do not depend on it; 0: all.

    Raises:
        ChildFailed: a job failed, or its process ended before its result; finished jobs are stored.
    """
    results = {job.name: result for job in jobs if (result := store.load(job)) is not None}
    missing = [job for job in jobs if job.name not in results]
    if missing:
        with run_in_workers(missing, partial(run_job, images, found, resident), workers) as updates:
            for job, progress in updates:
                if progress.result is not None:
                    store.save(progress.result)
                    results[job.name] = progress.result
                show(job, progress)
    return [results[job.name] for job in jobs]
