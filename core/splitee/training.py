"""What every trainer of a fleet shares: seeds, learning rate, optimizer, digests of weights."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from splitee.messages import RunSpec

EVALUATION_BATCH = 64  # held-out samples that are forwarded, and sent, at once
FINAL_RATE = 0.02  # of the highest learning rate, at the end of the cosine
FIRST_RATE = 0.1  # of it, in the first batch of the warm-up
MISSING_SHARE = 1e-3
COUNTER = "num_batches_tracked"  # of BatchNorm: each holder's own, not averaged, without use in answering


def seed_for(*parts: str | int) -> int:
    """A seed in 0..2^63-1 that depends on every part, such as (seed, device, round)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def learning_rate(
    spec: RunSpec, round_number: int, step: int, steps: int, *, highest: float | None = None
) -> float:
    """Linear warm-up, then half a cosine over the run (Loshchilov & Hutter 2017, arXiv 1608.03983), or level.

    Args:
        round_number: from 1.
        step: from 0, of `steps` in this round.
        highest: the run's learning rate, if it is not given.
    """
    progress = (round_number - 1 + step / max(steps, 1)) / spec.rounds
    rate = spec.learning_rate if highest is None else highest
    if progress < spec.warm_up:
        rate *= min(1.0, FIRST_RATE + progress / spec.warm_up)
    if spec.schedule == "constant":
        return rate
    cosine = (1 + math.cos(math.pi * min(progress, 1.0))) / 2
    return rate * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


def make_optimizer(parameters: Iterable[nn.Parameter], spec: RunSpec) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW; parameters that a batch does not reach are left as they are."""
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters,
            lr=spec.learning_rate,
            betas=(spec.momentum, 0.999),
            weight_decay=spec.weight_decay,
        )
    return torch.optim.SGD(
        parameters,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        nesterov=spec.momentum > 0,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def precision_at(place: torch.device) -> torch.autocast:
    """Mixed precision on a GPU; a CPU computes in float32, so that its results stay the same everywhere."""
    return torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda")


def class_offsets(spec: RunSpec, labels: npt.NDArray[np.int64]) -> Tensor:
    """What a device's loss adds to its logits: (num_classes,), zeros where the run does not ask for it.

    The logarithm of the shares that the classes have in its `labels`: then the logits need not learn how
    often a class is met here (balanced softmax, Ren et al. 2020, arXiv 2007.10740), and average better with
    those of other devices. MISSING_SHARE keeps it finite for classes that the device does not have.
    """
    if not spec.balanced_loss:
        return torch.zeros(spec.num_classes)
    shares = np.bincount(labels, minlength=spec.num_classes) / len(labels)
    return torch.from_numpy(np.log(shares + MISSING_SHARE)).float()


def steps_a_round(spec: RunSpec, samples: int) -> int:
    """Batches a device trains in a round: what the run asks for, or one pass without the incomplete batch."""
    return spec.steps or max(1, samples // spec.batch_size)


def evaluation_steps(held_out: int) -> int:
    """Batches that so many held-out samples make."""
    return -(-held_out // EVALUATION_BATCH)


def epoch_batches(
    spec: RunSpec, device: str, round_number: int, samples: int, steps: int | None = None
) -> Iterable[np.ndarray]:
    """The indices of each batch of a round, in an order that (seed, device, round) fixes.

    Args:
        steps: batches, where they are not as many as `steps_a_round` says.
    """
    generator = np.random.default_rng(seed_for(spec.seed, device, round_number))
    size = min(spec.batch_size, samples)
    order = np.empty(0, dtype=np.int64)
    for _ in range(steps_a_round(spec, samples) if steps is None else steps):
        if len(order) < size:
            order = np.concatenate([order, generator.permutation(samples)])
        yield order[:size]
        order = order[size:]


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of `weights`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.numpy().data)
    return digest.hexdigest()


def answers_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the `weights` that decide a network's answers: all but BatchNorm's counters."""
    return weights_digest({name: tensor for name, tensor in weights.items() if not name.endswith(COUNTER)})


def fleet_digest(trunk: Mapping[str, Tensor], clients: Mapping[str, str]) -> str:
    """SHA-256 over the trunk's digest and those of the clients, in the order of the devices' names."""
    lines = [weights_digest(trunk), *(f"{device} {clients[device]}" for device in sorted(clients))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def pack_state(state: Mapping[str, Any]) -> bytes:
    """Tensors and plain values as bytes, for a state file."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def unpack_state(data: bytes) -> dict[str, Any]:
    """What `pack_state` made; nothing but tensors and plain values is ever unpickled."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
    return state
