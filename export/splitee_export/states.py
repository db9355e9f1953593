# SPDX-License-Identifier: Apache-2.0
"""Reads the state directories of devices and servers: networks with their committed weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor, nn

from splitee.durable import StateDirectory
from splitee.errors import StateError
from splitee.networks.exits import ExitHead
from splitee.networks.split import SplitNetwork, build_for
from splitee.networks.zoo import check_factory, first_line
from splitee.protocol.run_spec import RunSpec
from splitee.training.commit_files import CommitFiles
from splitee.training.history import course, read_history
from splitee.training.named_trunks import NamedTrunks
from splitee.training.state import output_digest
from splitee.training.weights import client_model
from splitee_export.round_names import BEST, LAST


@dataclass(frozen=True)
class DeviceState:
    """A device's committed client network and exit."""

    device: str
    spec: RunSpec
    round: int
    cut: int
    network: SplitNetwork
    client: nn.Module
    exit: ExitHead


@dataclass(frozen=True)
class ServerState:
    """A server's committed trunks by device; devices that share a trunk have the same module."""

    spec: RunSpec
    round: int
    network: SplitNetwork
    cuts: dict[str, int]
    trunks: dict[str, nn.Module]

    @cached_property
    def first_user(self) -> dict[str, str]:
        """By device: the first device, by name, that has the same trunk."""
        first: dict[int, str] = {}
        return {name: first.setdefault(id(trunk), name) for name, trunk in sorted(self.trunks.items())}


def read_state(path: Path, network: str | None = None, wanted: str = LAST) -> DeviceState | ServerState:
    """Reads a complete round from a state directory, which may be untrusted.

    Args:
        network: `module:factory` that may be called if it is the state's network.
        wanted: LAST: the newest; BEST: the one that the run releases, for a server's state; or a number.

    Raises:
        NetworkError: the state's network is another factory.
        StateError: it is not a state directory, lacks that round, is in use, or is of another release.
    """
    facts = _facts(path)
    directory = StateDirectory(path)
    try:
        rounds = [number for number in directory.rounds() if number]  # 0: the state from which a run began
        if not facts.get("finished", True) and len(rounds) > 1:
            rounds = rounds[1:]  # the last round of a stopped device may not be committed
        number, state = _load(directory, _select_rounds(path, facts, rounds, wanted))
    finally:
        directory.close()
    spec = _spec(path, facts)
    check_factory(spec.network, network, whose=f"{path}: its", command="run this again")
    try:
        if "cut" in facts:
            return _device(facts, spec, number, state)
        return _server(spec, state)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise _not_of_this_release(path, error) from None


def _spec(path: Path, facts: dict[str, Any]) -> RunSpec:
    try:
        return msgspec.convert(facts["spec"] if "cut" in facts else facts, RunSpec)
    except (KeyError, msgspec.ValidationError) as error:
        raise _not_of_this_release(path, error) from None


def _not_of_this_release(path: Path, error: Exception) -> StateError:
    return StateError(f"{path}: its state is not of this release ({first_line(error)}): train again")


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads((path / "run.json").read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StateError(f"{path} is no state of a device or a server: run.json: {reason}") from None
    if not isinstance(facts, dict):
        raise StateError(f"{path} is no state of a device or a server: run.json holds no object")
    return facts


def _select_rounds(path: Path, facts: dict[str, Any], rounds: list[int], wanted: str) -> list[int]:
    """The suitable `rounds`, the newest first. Raises StateError: there are none."""
    if wanted == LAST:
        return rounds
    if wanted == BEST:
        if "cut" in facts:
            raise StateError(f"{path}: only a server's state says which round is the best: give a number")
        best = course(read_history(path), max(rounds, default=0)).best
        if best is None:
            raise StateError(f"{path}: no round was evaluated on held-out images: give --round last")
        wanted = str(best.round)
    if int(wanted) not in rounds:
        kept = ", ".join(map(str, sorted(rounds))) or "none"
        raise StateError(f"{path} does not hold round {wanted}: it keeps {kept}")
    return [int(wanted)]


def _load(directory: StateDirectory, rounds: list[int]) -> tuple[int, dict[str, Any]]:
    """The first of `rounds` whose file is complete."""
    files = CommitFiles(directory)
    for number in rounds:
        state = files.load(number)
        if state is not None:
            return number, state
    raise StateError(f"{directory.path} holds no whole round: train until the first commit")


def _build(spec: RunSpec) -> SplitNetwork:
    network = build_for(spec)
    network.module.eval()
    return network


def _device(facts: dict[str, Any], spec: RunSpec, number: int, state: dict[str, Any]) -> DeviceState:
    return device_state(spec, number, str(facts["device"]), int(facts["cut"]), state["model"])


def device_state(
    spec: RunSpec, number: int, device: str, cut: int, weights: Mapping[str, Tensor]
) -> DeviceState:
    """A device's client network and exit with their `weights` of round `number`."""
    network = _build(spec)
    model = client_model(network, cut, spec)
    model.load_state_dict(weights)
    model.eval()
    head = model["exit"]
    assert isinstance(head, ExitHead)
    return DeviceState(device, spec, number, cut, network, model["client"], head)


def _server(spec: RunSpec, state: dict[str, Any]) -> ServerState:
    spec = msgspec.structs.replace(spec, class_names=tuple(state["class_names"]))
    return server_state(spec, int(state["round"]), NamedTrunks.read(state))


def server_state(spec: RunSpec, number: int, named: NamedTrunks) -> ServerState:
    """A server's trunks as of round `number`, with one module for all that have the same weights.

    Modules use the given tensors directly, so tensors that share memory still share it.
    """
    network = _build(spec)
    modules: dict[tuple[int, str], nn.Module] = {}  # after averaging, all trunks of one cut are the same
    by_name = {}
    for name, trunk in named.trunks.items():
        stages = network.stage_keys(trunk.cut + 1, network.num_layers)
        weights = {key: trunk.weights[key] for key in stages}
        content = trunk.cut, output_digest(weights)
        if content not in modules:
            modules[content] = copy.deepcopy(network.trunk(trunk.cut)).eval()
            modules[content].load_state_dict(weights, assign=True)
        by_name[name] = modules[content]
    trunks = {device: by_name[name] for device, name in named.trunk_of.items()}
    return ServerState(spec, number, network, named.cuts, trunks)
