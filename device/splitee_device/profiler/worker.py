"""The profiler's worker process: trains at a cut as the agent does, and says what it took.

    python -m splitee_device.profiler.worker   (requests and replies are lines of JSON, see costs.py)

Each cut is measured in a process forked from this one, which has imported torch and done nothing with it: so
a cut's memory is its own, and where the system kills for want of memory, it kills only the attempt.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import splitee.cli.main  # noqa: F401  # a device's process begins with it, and so without torch's compiler
import splitee_device.agent.agent  # noqa: F401  # what the agent imports is part of what it takes
from splitee.errors import SpliteeError
from splitee.networks.split import build_for
from splitee.networks.zoo import first_line
from splitee.protocol.codecs import encode_tensor
from splitee.protocol.cut_batch import EVALUATION_BATCH
from splitee.protocol.labels import encode_labels
from splitee.protocol.rounds import Features
from splitee.protocol.run_spec import RunSpec
from splitee.training.state import pack_state
from splitee_device.data.images import DeviceData, PictureSet, batch
from splitee_device.machine.memory import MemoryWatch, memory
from splitee_device.profiler.costs import CutCosts, Description, Failed, MeasureCut, Reply, Setup, StageFacts
from splitee_device.profiler.reference import Reference
from splitee_device.training.trainer import ClientTrainer, CutBatch, open_trainer

WARM_UP = 2  # steps that are not timed: the first allocate, and choose kernels
LEAST_STEPS = 5  # to be timed, as long as there is time
BLOCK = 0.5  # seconds of steps that are one sample where a quota makes single steps meaningless
SMALL = 2  # samples that show what a stage saves for its backward pass
INFERENCES = 5
STAGE_STEPS = 3


def main() -> None:
    _offer_to_be_killed(500)
    setup = Setup.decode(sys.stdin.buffer.readline())
    base = memory()["RssAnon"]
    gc.freeze()  # else each fork's garbage collector would touch, and so copy, all that torch has made

    def describe() -> Reply:
        return Reply(description=Description(stages=tuple(describe_stages(setup.spec)), base_memory=base))

    _answer(_in_a_fork(setup, describe))
    for line in iter(sys.stdin.buffer.readline, b""):
        request = MeasureCut.decode(line)
        _answer(_in_a_fork(setup, lambda asked=request: Reply(costs=measure_cut(setup, asked))))  # type: ignore[misc]


def _offer_to_be_killed(score: int) -> None:
    """When memory runs out, the system takes an attempt first, then the worker, never who asked."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score))


def _answer(reply: bytes) -> None:
    sys.stdout.buffer.write(reply + b"\n")
    sys.stdout.buffer.flush()


def _in_a_fork(setup: Setup, work: Callable[[], Reply]) -> bytes:
    """The encoded reply of `work`, done in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run(setup, work, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        reply = pipe.read()
    _, status = os.waitpid(child, 0)
    if reply:
        return reply
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return Reply(failed=Failed(message="ran out of memory", killed=True)).encode()
    return Reply(failed=Failed(message=f"ended with status {code}", defect=True)).encode()


def _run(setup: Setup, work: Callable[[], Reply], writing: int) -> None:
    """The forked process's life: one reply, and no way back into the worker's loop."""
    code = 1
    _offer_to_be_killed(1000)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a network of the user's own may print
    try:  # whatever happens, this process does not go on as its parent
        torch.set_num_threads(setup.threads)
        try:
            reply = work()
        except SpliteeError as error:
            reply = Reply(failed=Failed(message=str(error)))
        except (MemoryError, RuntimeError) as error:
            short = isinstance(error, MemoryError) or "allocate memory" in str(error)
            reply = Reply(failed=Failed(message=first_line(error), killed=short))
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(reply.encode())
        code = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(code)


def describe_stages(spec: RunSpec) -> Iterator[StageFacts]:
    """All stages, and what each keeps for its backward pass, seen on a batch of SMALL samples."""
    network = build_for(spec)
    features = torch.zeros(SMALL, *spec.input_shape)
    kept = [features]
    network.module.train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.module.parameters()}
    seen = {*parameters, features.untyped_storage().data_ptr()}
    for stage in network.stages:
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                sizes.append(storage.nbytes())
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            features = network.stage(stage.index)(features)
        kept.append(features)  # no address is used twice
        yield StageFacts(stage.name, stage.feature_shape, stage.parameters, stage.macs, sum(sizes) // SMALL)


def measure_cut(setup: Setup, asked: MeasureCut) -> CutCosts:
    """Train at the cut as the agent does it: its weights, its window of payloads, its state in bytes."""
    started = time.perf_counter()
    before = memory()["RssAnon"]
    spec = setup.spec
    data = _pictures(spec)
    watch = MemoryWatch()
    with watch:
        trainer = open_trainer(spec, asked.cut, "profile", data)
        inference = _infer(trainer, data, spec)
    inference_memory = watch.peak - before
    initial = copy.deepcopy(trainer.state())  # the agent keeps it to start a run anew
    times = Times(bursty=setup.bursty)
    _train(trainer, spec, asked, times, started, watch)
    with watch:
        pack_state(trainer.state())
        for _ in trainer.evaluate():
            pass
    at_peak, code = watch.peak - before, memory()["RssFile"]
    del initial
    typical = fmean if setup.bursty else median
    step, encoding = times.typical()
    samples = times.in_blocks(BLOCK) if setup.bursty else times.steps
    return CutCosts(
        cut=asked.cut,
        steps=len(times.steps),
        step=step,
        forward=typical(times.forward),
        backward=typical(times.backward),
        optimizer=typical(times.optimizer),
        spread=median(abs(sample - median(samples)) for sample in samples),
        encoding=encoding,
        cpu=typical(times.cpu),
        payload=times.payload,
        memory=at_peak,
        code=code,
        inference=inference,
        inference_memory=inference_memory,
        stage_cpu=tuple(_stage_cpu(asked.cut, trainer.exit, data, spec)) if asked.stages else (),
        reference=times.reference,
        seconds=time.perf_counter() - started,
    )


class Times:
    """Seconds of every step, and of its parts."""

    def __init__(self, *, bursty: bool) -> None:
        """`bursty`: a CPU quota makes the process wait now and then."""
        self.bursty = bursty
        self.stretch = 1.0  # seconds that a CPU second took, over all
        self.reference = 0.0  # that ran between the steps
        self.steps: list[float] = []
        self.forward: list[float] = []
        self.backward: list[float] = []
        self.optimizer: list[float] = []
        self.encode: list[float] = []
        self.step_cpu: list[float] = []  # of all threads
        self.cpu: list[float] = []  # with encoding
        self.payload = 0

    def typical(self) -> tuple[float, float]:
        """A step and its encoding. Where a quota makes the process wait, each has its share by CPU time:
        the wait itself comes at whichever system call is next."""
        if not self.bursty:
            return median(self.steps), median(self.encode)
        step = self.stretch * fmean(self.step_cpu)
        return step, self.stretch * fmean(self.cpu) - step

    def in_blocks(self, length: float) -> list[float]:
        """The mean step of each run of steps that takes `length` seconds."""
        means: list[float] = []
        block: list[float] = []
        for step in self.steps:
            block.append(step)
            if sum(block) >= length:
                means.append(fmean(block))
                block = []
        return means or [fmean(self.steps)]


class StepClock:
    """Marks where one step's forward, backward and optimizer begin and end, from hooks of torch's own."""

    def __init__(self, trainer: ClientTrainer) -> None:
        self._marks: dict[str, float] = {}
        trainer.client.register_forward_pre_hook(lambda *_: self._mark("begin"))
        trainer.exit.register_forward_hook(self._on_logits)
        trainer.optimizer.register_step_pre_hook(lambda *_: self._mark("gradients"))
        trainer.optimizer.register_step_post_hook(lambda *_: self._mark("end"))

    def note(self, times: Times) -> None:
        """Add the step that has just ended."""
        marks = [self._marks[name] for name in ("begin", "logits", "gradients", "end")]
        forward, backward, optimizer = (later - earlier for earlier, later in pairwise(marks))
        times.forward.append(forward)
        times.backward.append(backward)
        times.optimizer.append(optimizer)

    def _mark(self, name: str) -> None:
        self._marks[name] = time.perf_counter()

    def _on_logits(self, _exit: nn.Module, _inputs: object, logits: Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(lambda _gradient: self._mark("logits"))  # type: ignore[no-untyped-call]


def _train(
    trainer: ClientTrainer, spec: RunSpec, asked: MeasureCut, times: Times, started: float, watch: MemoryWatch
) -> None:
    """Steps as the agent does them, with the last payloads kept as its window keeps them."""
    clock = StepClock(trainer)
    window: deque[bytes] = deque(maxlen=spec.window)
    batches = trainer.round(1)
    with watch:  # which would disturb the steps that are timed
        for _ in range(WARM_UP):
            window.append(_encode(spec, next(batches)))
            if time.perf_counter() - started >= asked.most:
                break
    reference = Reference()  # only now: its memory is not training's
    timed_from = time.perf_counter()
    while True:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        features = next(batches)
        trained, cpu_trained = time.perf_counter(), time.process_time()
        window.append(_encode(spec, features))
        ended, cpu = time.perf_counter(), time.process_time()
        times.steps.append(trained - begun)
        times.encode.append(ended - trained)
        times.step_cpu.append(cpu_trained - cpu_begun)
        times.cpu.append(cpu - cpu_begun)
        clock.note(times)
        reference.keep_up(sum(times.cpu))
        enough = ended - timed_from >= asked.seconds and len(times.steps) >= LEAST_STEPS
        if enough or ended - started >= asked.most:
            break
    times.stretch = (time.perf_counter() - timed_from) / (sum(times.cpu) + reference.cpu)
    times.reference = reference.seconds(bursty=times.bursty)
    times.payload = len(window[-1])


def _encode(spec: RunSpec, features: CutBatch) -> bytes:
    return Features(
        run=spec.run,
        round=1,
        attempt=1,
        phase="train",
        step=0,
        features=encode_tensor(spec.codec, features.features),
        labels=encode_labels(features.labels, spec.num_classes),
    ).encode()


def _infer(trainer: ClientTrainer, data: DeviceData, spec: RunSpec) -> float:
    """Seconds to classify one picture by the exit."""
    trainer.client.eval()
    trainer.exit.eval()
    picture, _ = batch(data.held_out, np.arange(1), spec.mean, spec.std)
    seconds = []
    for _ in range(INFERENCES):
        begun = time.perf_counter()
        with torch.inference_mode():
            trainer.exit(trainer.client(picture))
        seconds.append(time.perf_counter() - begun)
    return median(seconds)


def _stage_cpu(
    cut: int, exit_head: nn.Module, data: DeviceData, spec: RunSpec
) -> Iterator[tuple[float, float]]:
    """CPU seconds of forward and backward of each stage: how a step's time divides among the stages.

    The gradient reaches the boundary between two stages when the backward pass of all behind it is done.
    """
    network = build_for(spec)
    stages = [network.stage(index).train() for index in range(1, cut + 1)]
    forwards: list[list[float]] = []
    backwards: list[list[float]] = []
    for _ in range(STAGE_STEPS):
        pictures, labels = batch(data.train, np.arange(spec.batch_size), spec.mean, spec.std)
        arrived: dict[int, float] = {}
        ends = [time.process_time()]
        features = pictures
        for place, stage in enumerate(stages, start=1):
            features = stage(features)
            features.register_hook(partial(_note_arrival, arrived, place))
            ends.append(time.process_time())
        F.cross_entropy(exit_head(features), labels).backward()  # type: ignore[no-untyped-call]
        arrived[0] = time.process_time()
        forwards.append([later - earlier for earlier, later in pairwise(ends)])
        backwards.append([arrived[place - 1] - arrived[place] for place in range(1, len(stages) + 1)])
    for forward, backward in zip(zip(*forwards, strict=True), zip(*backwards, strict=True), strict=True):
        yield median(forward), median(backward)


def _note_arrival(arrived: dict[int, float], place: int, _gradient: Tensor) -> None:
    arrived[place] = time.process_time()


def _pictures(spec: RunSpec) -> DeviceData:
    """Noise: what training costs does not depend on what is in the pictures."""
    generator = np.random.default_rng(0)

    def some(count: int) -> PictureSet:
        images = generator.integers(0, 256, (count, *spec.input_shape), np.uint8)
        return PictureSet(images, np.arange(count) % spec.num_classes)

    return DeviceData(some(spec.batch_size), some(EVALUATION_BATCH), ("a", "b"), ())


if __name__ == "__main__":
    main()
