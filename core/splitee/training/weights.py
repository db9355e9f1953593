# SPDX-License-Identifier: Apache-2.0
"""Transfer of client networks between a device and the server: tensors by name, checked against a cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from splitee.errors import ConfigError, MalformedMessage
from splitee.networks.split import SplitNetwork
from splitee.protocol.codecs import LARGEST, EncodedTensor, decode_tensor, encode_tensor
from splitee.protocol.encoding import MAX_PACKED
from splitee.protocol.fields import Phase
from splitee.protocol.rounds import Weights
from splitee.protocol.run_spec import RunSpec
from splitee.training.batchnorm_statistics import VARIANCE
from splitee.training.seeds import seed_for
from splitee.training.state import COUNTER, first_not_finite, weights_digest

CLIENT = "client."  # prefix of a client network's tensors
EXIT = "exit."  # prefix of its exit's
EXITS = "exits."  # prefix of those at shallower cuts; the cut follows, and a dot
MESSAGE_BYTES = 4 << 20  # bytes of tensors that share a message
CODEC = "fp32"  # exact to the bit


def client_model(network: SplitNetwork, cut: int, spec: RunSpec) -> nn.ModuleDict:
    """What a device with this cut trains, newly initialised with the run's seed.

    `client`: stages 1..cut of `network`, whose layers it shares; `exit`: the device's own; `exits`: those at
    shallower cuts, by cut, if the run has such.
    """
    heads = {at: network.exit_head(at, seed=seed_for(spec.seed, "exit", at)) for at in exit_cuts(spec, cut)}
    model = nn.ModuleDict({"client": network.client(cut), "exit": heads.pop(cut)})
    if heads:
        model["exits"] = nn.ModuleDict({str(at): head for at, head in heads.items()})
    return model


def exit_cuts(spec: RunSpec, cut: int) -> list[int]:
    """The cuts at which a device with this cut trains an exit, in ascending order; its own is the last.

    None of them lies in frozen stages, whose features may come from a cache.
    """
    return [*(at for at in sorted(set(spec.exit_cuts)) if spec.frozen < at < cut), cut]


def deeper_cuts(spec: RunSpec, cut: int) -> list[int]:
    """The fleet's cuts at which a trunk entered at `cut` learns through an exit too, in ascending order."""
    if not spec.deep_supervision:
        return []
    return [at for at in sorted(set(spec.exit_cuts)) if at > max(cut, spec.frozen)]


def exits_by_cut(weights: Mapping[str, Tensor], cut: int) -> dict[str, Tensor]:
    """A device's exits, including its own, under names with their cuts, the same on every device."""
    return {
        exit_name(name, cut): tensor for name, tensor in weights.items() if name.startswith((EXIT, EXITS))
    }


def exit_name(name: str, cut: int) -> str:
    """The name that a tensor of an exit has among all exits, on a device with this cut."""
    return f"{EXITS}{cut}.{name.removeprefix(EXIT)}" if name.startswith(EXIT) else name


def pack_weights(
    run: str, round_number: int, attempt: int, tensors: Mapping[str, Tensor], phase: Phase = "train"
) -> Iterator[bytes]:
    """`tensors` as Weights messages, in the order of their names and exact to the bit.

    Raises:
        ConfigError: one is larger than a message may be.
        Diverged: one holds a value that is not finite, or out of bounds.
    """
    for names in group_by_message({name: tensor.nbytes for name, tensor in tensors.items()}):
        encoded = {
            name: encode_tensor(
                CODEC, np.atleast_1d(tensors[name].detach().cpu().float().numpy()), _largest(name)
            )
            for name in names
        }
        yield Weights(run=run, round=round_number, attempt=attempt, tensors=encoded, phase=phase).encode()


def check_messages(tensors: Mapping[str, Tensor]) -> None:
    """Raises ConfigError: one of `tensors` is larger than a message may be."""
    list(group_by_message({name: tensor.nbytes for name, tensor in tensors.items()}))


def group_by_message(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in order, grouped so that the tensors of each group fit in MESSAGE_BYTES.

    Raises:
        ConfigError: a tensor is larger than a message may be.
    """
    group: list[str] = []
    size = 0
    for name in sorted(sizes):
        if sizes[name] > MAX_PACKED // 2:
            raise ConfigError(
                f"{name} takes {sizes[name] >> 20} MiB, more than a message may: choose a cut below it, or "
                "start the server with --client-averaging none --no-release"
            )
        if group and size + sizes[name] > MESSAGE_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += sizes[name]
    if group:
        yield group


class WeightsAssembler:
    """One client network while its messages come in."""

    def __init__(
        self, like: Mapping[str, Tensor], known: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        """An empty assembler.

        Args:
            like: tensors with the expected names, shapes and types.
            known: those of them that both ends have, and that are not sent: of frozen stages.
        """
        self._like = like
        self._known = known
        self.tensors: dict[str, Tensor] = dict(known)

    @property
    def missing(self) -> list[str]:
        return sorted(self._like.keys() - self.tensors.keys())

    def add(self, message: Weights) -> None:
        """Take in all tensors of a message, or none.

        Raises:
            MalformedMessage: one does not belong to this network.
        """
        decoded = {name: self._decode(name, encoded) for name, encoded in message.tensors.items()}
        self.tensors.update(decoded)

    def next_names(self) -> list[str]:
        """What to request next: as many missing tensors as fit a message."""
        return next(group_by_message({name: self._like[name].nbytes for name in self.missing}), [])

    def check(self, digest: str) -> None:
        """Raises MalformedMessage, and starts again: the tensors do not have the announced digest."""
        if not self.missing and (found := weights_digest(self.tensors)) != digest:
            self.tensors = dict(self._known)
            raise MalformedMessage(f"Weights: their SHA-256 is {found[:12]}, expected {digest[:12]}")

    def _decode(self, name: str, encoded: EncodedTensor) -> Tensor:
        like = self._like.get(name)
        if like is None:
            raise MalformedMessage(f"Weights: {name[:80]!r} is not in this device's network")
        if name in self._known:
            raise MalformedMessage(f"Weights: {name[:80]!r} is frozen, and does not travel")
        shape = tuple(like.shape) or (1,)
        if tuple(encoded.shape) != shape:
            raise MalformedMessage(f"Weights: {name} has shape {tuple(encoded.shape)}, expected {shape}")
        if encoded.codec != CODEC:
            raise MalformedMessage(f"Weights: {name} is encoded as {encoded.codec!r}, expected {CODEC}")
        array = decode_tensor(encoded, shape[1:], _largest(name))
        if name.endswith((VARIANCE, COUNTER)) and array.min() < 0:
            raise MalformedMessage(f"Weights: {name} holds negative values")
        return torch.tensor(array).reshape(like.shape).to(like.dtype)


def _largest(name: str) -> float:
    """Largest magnitude of values on the wire: of weights and means; of variances; of counted batches."""
    if name.endswith(VARIANCE):
        return LARGEST**2
    return float(1 << 24) if name.endswith(COUNTER) else LARGEST


def first_out_of_bounds(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor with a value that is not finite, or that no message may carry; or None."""
    if (name := first_not_finite(tensors)) is not None:
        return name
    return next((name for name, tensor in tensors.items() if _is_out_of_bounds(name, tensor)), None)


def _is_out_of_bounds(name: str, tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return False
    return bool(tensor.abs().max() > _largest(name) or (name.endswith(VARIANCE) and tensor.min() < 0))


def select(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Those of `names` that exist, as many as fit a message."""
    existing = {name: tensors[name].nbytes for name in names if name in tensors}
    return {name: tensors[name] for name in next(group_by_message(existing), [])}
