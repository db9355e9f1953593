# SPDX-License-Identifier: Apache-2.0
"""The profiler's worker process: trains at a cut as the agent does, and reports the costs.

    python -m splitee_device.profiler.worker   (requests and replies are lines of JSON, see costs.py)

Each cut is measured in a process forked from this one, which has imported torch and done nothing with it. So
a cut's memory is its own, and if the system kills a process for lack of memory, it kills only the attempt.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
import torch.fx.experimental.symbolic_shapes  # measuring a network loads it: once here, not for each cut

import splitee.cli.main  # a device's process begins with it, and so without torch's compiler
import splitee.mqtt.link  # noqa: F401
import splitee_device.agent.agent  # its imports count as part of its memory; so do link and monitor
import splitee_device.profiler.drift  # noqa: F401
from splitee.errors import SpliteeError
from splitee.networks.zoo import first_line
from splitee.protocol.cut_batch import EVALUATION_BATCH, CutBatch
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.training.process import prepare_to_train
from splitee.training.state import state_writer
from splitee_device.data.batches import batch
from splitee_device.data.image_sets import ImageSet
from splitee_device.data.images import DeviceData
from splitee_device.machine.memory import MemoryWatch, memory
from splitee_device.profiler.costs import CutCosts, Description, Failed, MeasureCut, Reply, Setup
from splitee_device.profiler.reference import Reference
from splitee_device.profiler.stages import describe_stages, stage_cpu
from splitee_device.profiler.step_times import StepClock, Times
from splitee_device.training.trainer import ClientTrainer, open_trainer

WARM_UP = 2  # steps that are not timed: the first allocate, and choose kernels
LEAST_STEPS = 5  # least number of timed steps, if there is time
BLOCK = 0.5  # seconds of steps that form one sample if a quota makes single steps meaningless
INFERENCES = 5


def main() -> None:
    _set_oom_score(500)
    setup = Setup.decode(sys.stdin.buffer.readline())
    base = memory()["RssAnon"]
    gc.freeze()  # otherwise each fork's garbage collector would touch, and so copy, all that torch has made

    def describe() -> Reply:
        return Reply(description=Description(stages=tuple(describe_stages(setup.spec)), base_memory=base))

    _send(_in_a_fork(setup, describe))
    for line in iter(sys.stdin.buffer.readline, b""):
        request = MeasureCut.decode(line)
        _send(_in_a_fork(setup, lambda request=request: Reply(costs=measure_cut(setup, request))))  # type: ignore[misc]


def _set_oom_score(score: int) -> None:
    """When memory runs out, the system kills an attempt first, then the worker, never the requester."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score))


def _send(reply: bytes) -> None:
    sys.stdout.buffer.write(reply + b"\n")
    sys.stdout.buffer.flush()


def _in_a_fork(setup: Setup, work: Callable[[], Reply]) -> bytes:
    """The encoded reply of `work`, done in a forked process."""
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
    """The forked process: it sends one reply, and never returns to the worker's loop."""
    code = 1
    _set_oom_score(1000)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a network of the user's own may print
    try:  # in any case, this process must not continue as its parent
        prepare_to_train(setup.threads)
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


def measure_cut(setup: Setup, request: MeasureCut) -> CutCosts:
    """Train at the cut as the agent does: with its weights, its window of payloads, its state in bytes."""
    started = time.perf_counter()
    before = memory()["RssAnon"]
    spec = setup.spec
    data = _noise(spec)
    watch = MemoryWatch()
    with watch:
        trainer = open_trainer(spec, request.cut, "profile", data)
        inference = _infer(trainer, data, spec)
    inference_memory = watch.peak - before
    initial = copy.deepcopy(trainer.state())  # the agent keeps it, to start a run again
    times = Times(bursty=setup.bursty)
    _train(trainer, spec, request, times, started, watch)
    with watch:
        with Path(os.devnull).open("wb") as nothing:
            state_writer(trainer.state())(nothing)
        for _ in trainer.evaluate():
            pass
    at_peak, code = watch.peak - before, memory()["RssFile"]
    del initial
    typical = fmean if setup.bursty else median
    step, encoding = times.typical()
    samples = times.in_blocks(BLOCK) if setup.bursty else times.steps
    return CutCosts(
        cut=request.cut,
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
        stage_cpu=tuple(stage_cpu(request.cut, trainer.exit, data.train, spec)) if request.stages else (),
        reference=times.reference,
        seconds=time.perf_counter() - started,
    )


def _train(
    trainer: ClientTrainer,
    spec: RunSpec,
    request: MeasureCut,
    times: Times,
    started: float,
    watch: MemoryWatch,
) -> None:
    """Steps as the agent does them, with the last payloads kept as in its window."""
    clock = StepClock(trainer)
    window: deque[bytes] = deque(maxlen=spec.window)
    batches = trainer.round(1)
    with watch:  # which would disturb the timed steps
        for _ in range(WARM_UP):
            window.append(_encode(spec, next(batches)))
            if time.perf_counter() - started >= request.most:
                break
    reference = Reference()  # only now, because its memory is not training's
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
        enough = ended - timed_from >= request.seconds and len(times.steps) >= LEAST_STEPS
        if enough or ended - started >= request.most:
            break
    times.stretch = (time.perf_counter() - timed_from) / (sum(times.cpu) + reference.cpu)
    times.reference = reference.seconds(bursty=times.bursty)
    times.payload = len(window[-1])


def _encode(spec: RunSpec, batch: CutBatch) -> bytes:
    opened = RoundOpen(run=spec.run, round=1, attempt=1, phase="train")
    return batch.message(spec, opened, "train", step=0).encode()


def _infer(trainer: ClientTrainer, data: DeviceData, spec: RunSpec) -> float:
    """Seconds to classify one image with the exit."""
    trainer.client.eval()
    trainer.exit.eval()
    image, _ = batch(data.held_out, np.arange(1), spec.mean, spec.std)
    seconds = []
    for _ in range(INFERENCES):
        begun = time.perf_counter()
        with torch.inference_mode():
            trainer.exit(trainer.client(image))
        seconds.append(time.perf_counter() - begun)
    return median(seconds)


def _noise(spec: RunSpec) -> DeviceData:
    """Training and held-out images of noise: the cost of training does not depend on their content."""
    generator = np.random.default_rng(0)

    def some(count: int) -> ImageSet:
        images = generator.integers(0, 256, (count, *spec.input_shape), np.uint8)
        return ImageSet(images, np.arange(count) % spec.num_classes)

    return DeviceData(some(spec.batch_size), some(EVALUATION_BATCH), ("a", "b"), ())


if __name__ == "__main__":
    main()
