# SPDX-License-Identifier: Apache-2.0
"""Made-up measurements for tests of predicted costs and of the choice of a cut, by simple rules."""

from __future__ import annotations

from collections.abc import Iterable

from splitee.protocol.run_spec import RunSpec
from splitee_device.profiler.cost_model import modelled_memory
from splitee_device.profiler.costs import CutCosts, Description, Measured, StageFacts

MIB = 1 << 20
SPEC = RunSpec(protocol=1, run="profile", network="made-up", num_classes=10, rounds=1, codec="fp16")
# Five stages, so cuts 1 to 4: the first are wide and cheap, the last narrow and expensive.
STAGES = tuple(
    StageFacts(f"stage{n}", (64 >> n, 8, 8), 1000 * 4**n, 1_000_000 * n, 400_000 * n) for n in range(1, 6)
)
DESCRIPTION = Description(stages=STAGES, base_memory=300 * MIB)
REFERENCE = 0.005  # seconds
BEYOND = 10 * MIB  # memory of every cut that the cost model does not count


def true_costs(cut: int) -> CutCosts:
    """A batch takes 1 ms forward and 2 ms backward per million multiply-accumulates of a sample."""
    work = [stage.macs / 1e6 for stage in STAGES[:cut]]
    forward, backward = 0.001 * sum(work), 0.002 * sum(work)
    optimizer = 1e-8 * sum(stage.parameters for stage in STAGES[:cut])
    step = forward + backward + optimizer + 0.0005
    size = 2 * SPEC.batch_size * STAGES[cut - 1].feature_shape[0] * 64
    return CutCosts(
        cut=cut,
        steps=10,
        step=step,
        forward=forward,
        backward=backward,
        optimizer=optimizer,
        spread=step / 100,
        encoding=1e-9 * size,
        cpu=step + 1e-9 * size,
        payload=size,
        memory=modelled_memory(SPEC, DESCRIPTION, cut) + BEYOND,
        code=50 * MIB,
        inference=forward / 32,
        inference_memory=5 * MIB,
        reference=REFERENCE,
        seconds=2.0,
        stage_cpu=tuple((0.001 * each, 0.002 * each) for each in work),
    )


def measured(cuts: Iterable[int], *, available: int | None = None, cores: float = 1.0) -> Measured:
    """The result of a probe that measured these cuts."""
    return Measured(
        spec=SPEC,
        threads=1,
        cores=cores,
        available=available,
        description=DESCRIPTION,
        costs={cut: true_costs(cut) for cut in cuts},
        failed={},
        seconds=10.0,
    )
