"""Averaging of client networks after a round: not at all, among equal cuts, or stage by stage with trunks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitee.messages import ClientAveraging
from splitee_device.trainer import ClientTrainer
from splitee_server.aggregation import average_by_name
from splitee_server.strategy import Strategy

CLIENT = "client."  # prefix of a client network's tensors in a trainer's weights


def average_clients(
    how: ClientAveraging,
    trainers: Mapping[str, ClientTrainer],
    strategy: Strategy,
    cuts: Mapping[str, int],
    samples: Mapping[str, int],
) -> int:
    """Average what the devices hold, weighted by their `samples`, and write it back to all holders.

    `same-cut`: client networks and exits over the devices of each cut. `layerwise`: exits likewise, but each
    stage over all its holders, client networks and trunks alike; a shared trunk counts once for each device
    whose batches train the stage there.

    Returns:
        The bytes of the weights that devices send and get for it, as float32.
    """
    if how == "none":
        return 0
    held = {name: trainer.weights() for name, trainer in trainers.items()}
    for cut in set(cuts.values()):
        average({name: held[name] for name in held if cuts[name] == cut}, samples)
    if how == "layerwise":
        average({name: _whole(held[name], strategy.trunk(name).state_dict()) for name in held}, samples)
    return sum(2 * size_of(weights) for weights in held.values())


def average(holders: Mapping[str, Mapping[str, Tensor]], samples: Mapping[str, int]) -> None:
    """Replaces every tensor by its mean over those who hold it, in place; BatchNorm's counters are kept."""
    means = average_by_name(holders, samples)
    with torch.no_grad():
        for tensors in holders.values():
            for name in tensors.keys() & means.keys():
                tensors[name].copy_(means[name])


def size_of(weights: Mapping[str, Tensor]) -> int:
    """Bytes of weights on their way."""
    return sum(tensor.nbytes for tensor in weights.values())


def _whole(client: Mapping[str, Tensor], trunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network as one device's pictures see it: its own stages, and those of its trunk."""
    own = {name.removeprefix(CLIENT): tensor for name, tensor in client.items() if name.startswith(CLIENT)}
    return {**trunk, **own}
