# SPDX-License-Identifier: Apache-2.0
"""Averages each tensor over all devices that hold it: of trunks, layer by layer, and of client networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from splitee.protocol.fields import ClientAveraging, Weighting
from splitee.training.batchnorm_statistics import pooled, unpooled
from splitee.training.state import COUNTER
from splitee.training.weights import CLIENT, EXIT, EXITS, exits_by_cut
from splitee_server.learning.means import FEWEST, Rule
from splitee_server.learning.strategies.base import Strategy

MEAN = Rule()


def average_by_name(
    holders: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float], rule: Rule = MEAN
) -> dict[str, Tensor]:
    """The average of every tensor over its holders: stage l over {i : l_i < l}.

    BatchNorm's running mean and variance are averaged like weights; its batch counter is left out.

    Args:
        holders: for each device, its trunk's tensors by name.
        weights: for each of these devices, its weight, such as its number of samples; 0: it does not count.
        rule: how they are averaged.

    Returns:
        Tensors by name, in float64 while they are summed, of the holders' type at the end.
    """
    names = sorted({name for tensors in holders.values() for name in tensors if not name.endswith(COUNTER)})
    means: dict[str, Tensor] = {}
    for name in names:
        having = [device for device in sorted(holders) if name in holders[device] and weights[device] > 0]
        if having:
            tensors = {device: holders[device][name] for device in having}
            means[name] = rule.combine(tensors, weights).to(tensors[having[0]].dtype)
    return means


def average_statistics(
    found: Mapping[str, Mapping[str, Tensor]], weights: Mapping[str, float], rule: Rule = MEAN
) -> dict[str, Tensor]:
    """BatchNorm's means and variances over the values that all devices have seen, in float64, by name.

    Args:
        found: means and variances by device.
        weights, rule: as in `average_by_name`.
    """
    return unpooled(average_by_name({device: pooled(own) for device, own in found.items()}, weights, rule))


def weigh(samples: Mapping[str, int], how: Weighting) -> dict[str, int]:
    """Each device's weight in an average: its samples, or the same for all that have any."""
    return {device: count if how == "samples" else min(count, 1) for device, count in samples.items()}


Weights = Mapping[str, Tensor]


def average_clients(
    how: ClientAveraging,
    clients: Mapping[str, Weights],
    strategy: Strategy,
    cuts: Mapping[str, int],
    weights: Mapping[str, float],
    rule: Rule = MEAN,
    apart: Collection[int] = (),
) -> dict[str, Tensor]:
    """Average what the devices hold, weighted by their `weights`, and write it back to all holders.

    `same-cut`: client networks and exits over the devices of each cut. `layerwise`: each exit over all that
    train it, and each stage over all its holders, client networks and trunks alike; a shared trunk counts
    once for each device whose batches train the stage there. With `trimmed` and `median`, tensors that are
    averaged over a cut stay unchanged if fewer than three devices have that cut.

    Args:
        clients: client networks and exits by device, averaged in place.
        apart: cuts without an average over their devices.

    Returns:
        With `layerwise` the averages, by the names of the network and of `exits_by_cut`.
    """
    if how == "none":
        return {}
    means: dict[str, Tensor] = {}
    for cut in set(cuts.values()).difference(apart):
        means |= exits_by_cut(average(_with_cut(cut, how, clients, cuts, weights, rule), weights, rule), cut)
    if how != "layerwise":
        return {}
    means |= average(_shared_exits(clients, cuts, weights, rule, apart), weights, rule)
    whole = {name: _whole(clients[name], strategy.trained(name)) for name in clients}
    stages = average(whole, weights, rule)
    strategy.absorb(stages)
    return means | stages


def _with_cut(
    cut: int,
    how: ClientAveraging,
    clients: Mapping[str, Weights],
    cuts: Mapping[str, int],
    weights: Mapping[str, float],
    rule: Rule,
) -> dict[str, Weights]:
    """The tensors to average over the devices of a cut; none if they are too few for a robust rule.

    With a robust rule and `layerwise` these are only the exits. If client networks were averaged over a cut
    first, a hostile one would be in several of the values from which the rule chooses those of its stages.
    """
    mates = {name: clients[name] for name in clients if cuts[name] == cut}
    if rule.average == "mean":
        return mates
    if sum(weights[name] > 0 for name in mates) < FEWEST:
        return {}
    if how == "same-cut":
        return mates
    return {
        device: {name: tensor for name, tensor in tensors.items() if name.startswith(EXIT)}
        for device, tensors in mates.items()
    }


def _shared_exits(
    clients: Mapping[str, Weights],
    cuts: Mapping[str, int],
    weights: Mapping[str, float],
    rule: Rule,
    apart: Collection[int],
) -> dict[str, Weights]:
    """By device, the exits that devices of several cuts train; none if each trains only its own."""
    if not any(name.startswith(EXITS) for tensors in clients.values() for name in tensors):
        return {}
    held = {device: exits_by_cut(tensors, cuts[device]) for device, tensors in clients.items()}
    holder_counts = Counter(name for device in held if weights[device] > 0 for name in held[device])
    fewest = 1 if rule.average == "mean" else FEWEST
    alone = tuple(f"{EXITS}{cut}." for cut in apart)
    return {
        device: {
            name: tensor
            for name, tensor in exits.items()
            if holder_counts[name] >= fewest and not name.startswith(alone)
        }
        for device, exits in held.items()
    }


def average(
    holders: Mapping[str, Weights], weights: Mapping[str, float], rule: Rule = MEAN
) -> dict[str, Tensor]:
    """Replace every tensor by its average over its holders, in place; BatchNorm's counters are kept.

    Returns:
        The averages.
    """
    means = average_by_name(holders, weights, rule)
    with torch.no_grad():
        for tensors in holders.values():
            for name in tensors.keys() & means.keys():
                tensors[name].copy_(means[name])
    return means


def size_of(weights: Weights) -> int:
    """Bytes of weights when they are sent."""
    return sum(tensor.nbytes for tensor in weights.values())


def _whole(client: Weights, trunk: Weights) -> dict[str, Tensor]:
    """The whole network for one device's images: its own stages, and those of its trunk."""
    own = {name.removeprefix(CLIENT): tensor for name, tensor in client.items() if name.startswith(CLIENT)}
    return {**trunk, **own}
