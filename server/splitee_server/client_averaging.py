"""Averaging of client networks after a round: not at all, among equal cuts, or stage by stage with trunks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitee.messages import ClientAveraging
from splitee.weights import CLIENT
from splitee_server.aggregation import average_by_name
from splitee_server.strategy import Strategy

Weights = Mapping[str, Tensor]


def average_clients(
    how: ClientAveraging,
    clients: Mapping[str, Weights],
    strategy: Strategy,
    cuts: Mapping[str, int],
    samples: Mapping[str, int],
) -> None:
    """Average what the devices hold, weighted by their `samples`, and write it back to all holders.

    `same-cut`: client networks and exits over the devices of each cut. `layerwise`: exits likewise, but each
    stage over all its holders, client networks and trunks alike; a shared trunk counts once for each device
    whose batches train the stage there.

    Args:
        clients: client networks and exits by device, averaged in place.
    """
    if how == "none":
        return
    for cut in set(cuts.values()):
        average({name: clients[name] for name in clients if cuts[name] == cut}, samples)
    if how == "layerwise":
        whole = {name: _whole(clients[name], strategy.trunk(name).state_dict()) for name in clients}
        strategy.absorb(average(whole, samples))


def average(holders: Mapping[str, Weights], samples: Mapping[str, int]) -> dict[str, Tensor]:
    """Replaces every tensor by its mean over those who hold it, in place; BatchNorm's counters are kept.

    Returns:
        The means.
    """
    means = average_by_name(holders, samples)
    with torch.no_grad():
        for tensors in holders.values():
            for name in tensors.keys() & means.keys():
                tensors[name].copy_(means[name])
    return means


def size_of(weights: Weights) -> int:
    """Bytes of weights on their way."""
    return sum(tensor.nbytes for tensor in weights.values())


def _whole(client: Weights, trunk: Weights) -> dict[str, Tensor]:
    """The network as one device's pictures see it: its own stages, and those of its trunk."""
    own = {name.removeprefix(CLIENT): tensor for name, tensor in client.items() if name.startswith(CLIENT)}
    return {**trunk, **own}
