# SPDX-License-Identifier: Apache-2.0
"""All methods that can be simulated, by name: the fleet's strategies, and what they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from splitee.training.epochs import steps_per_round
from splitee_lab.methods.alone_exit import alone_exit
from splitee_lab.methods.baselines import CENTRALIZED
from splitee_lab.methods.cse_fsl import cse_fsl
from splitee_lab.methods.experiment import Accuracy, Experiment, RoundResult
from splitee_lab.methods.fedavg import fedavg
from splitee_lab.methods.fsl_sage import fsl_sage
from splitee_lab.methods.simulation import Simulation
from splitee_lab.methods.splitfed import splitfed
from splitee_lab.methods.whole import alone, centralized
from splitee_server.learning.strategies import registry
from splitee_server.rounds.sampling import picks

Method = Callable[[Experiment], Iterator[RoundResult]]


def fleet(experiment: Experiment) -> Iterator[RoundResult]:
    """The fleet's own method, by the strategy of its run."""
    simulation = Simulation(
        experiment.spec,
        experiment.devices,
        experiment.evaluate_every,
        experiment.on_batch,
        experiment.place,
        initial=experiment.initial,
        resident=experiment.resident,
    )
    for done in simulation.rounds():
        found = {name: Accuracy.of(shares) for name, shares in done.accuracies.items()}
        macs = sum(map(experiment.fleet_macs, done.devices))
        yield RoundResult.of(done.round, found, done.traffic, macs)


STRATEGIES: dict[str, Method] = dict.fromkeys(registry.STRATEGIES, fleet)
BASELINES: dict[str, Method] = {
    CENTRALIZED: centralized,
    "alone": alone,
    "alone-exit": alone_exit,
    "fedavg": fedavg,
    "splitfed": splitfed,
    "cse-fsl": cse_fsl,
    "fsl-sage": fsl_sage,
}
METHODS = STRATEGIES | BASELINES


def batches_of(method: str, experiment: Experiment) -> int:
    """How often the method will call `on_batch`."""
    of, rounds = experiment.samples, experiment.spec.rounds
    if method == CENTRALIZED:
        return rounds * steps_per_round(experiment.centralized_spec, sum(of.values()))
    if method in STRATEGIES:
        return sum(experiment.batches(of[name]) for picked in picks(experiment.spec, of) for name in picked)
    return rounds * sum(map(experiment.batches, of.values()))
