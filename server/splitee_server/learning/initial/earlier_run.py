# SPDX-License-Identifier: Apache-2.0
"""Weights from the last commit of an earlier run: the whole network, and the exits of its cuts."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec

from splitee.durable import StateDirectory
from splitee.errors import ConfigError, StateError
from splitee.protocol.run_spec import RunSpec
from splitee.training.named_trunks import NamedTrunks
from splitee.training.weights import CLIENT, EXIT
from splitee_server.learning.initial.weights import SourceWeights, Weights
from splitee_server.rounds.checkpoints import Checkpoints, Committed
from splitee_server.rounds.seasons import seasons_up_to


def read_run(path: Path, spec: RunSpec) -> SourceWeights:
    """The weights in a server's state directory, for a run with the settings `spec`.

    The network is that of a device with the deepest cut, the first by name: its client network, and the
    trunk that continues it.

    Raises:
        ConfigError: it is no server's state, of another network, or holds no client networks.
        StateError: another process uses it, or its files are damaged.
    """
    if not (path / "run.json").is_file():
        raise ConfigError(f"--weights run:{path}: this is no server's state: it has no run.json")
    with closing(StateDirectory(path)) as directory:
        committed = Checkpoints(directory).load()
        facts = directory.facts() or {}
    if committed is None:
        raise ConfigError(f"--weights run:{path}: it holds no committed round")
    try:
        earlier = msgspec.convert(facts, RunSpec)
        found = _whole(committed)
    except (msgspec.ValidationError, LookupError, TypeError, AttributeError) as error:
        raise StateError(f"--weights run:{path}: no server's state of this release ({error})") from None
    if (earlier.network, earlier.stem) != (spec.network, spec.stem):
        raise ConfigError(
            f"--weights run:{path}: it trained {earlier.network} (stem {earlier.stem}), "
            f"this run {spec.network} (stem {spec.stem})"
        )
    if found is None:
        raise ConfigError(
            f"--weights run:{path}: it holds no client networks: devices send them with "
            "--client-averaging or --release"
        )
    tensors, exits = found
    names = committed.class_names if earlier.num_classes == spec.num_classes else ()
    seasons = seasons_up_to(path, earlier.run, committed.round)
    return SourceWeights(f"run {earlier.run}", tensors, exits, names, earlier.mean, earlier.std, seasons)


def _whole(committed: Committed) -> tuple[Weights, dict[int, Weights]] | None:
    """The network's tensors, and exits by cut; None: no client network is there."""
    trunks = NamedTrunks.read(vars(committed))
    devices = sorted(committed.clients, key=lambda device: (-trunks.cuts[device], device))
    if not devices:
        return None
    exits: dict[int, Weights] = {}
    for device in devices:
        exits.setdefault(trunks.cuts[device], _without_prefix(committed.clients[device], EXIT))
    client = _without_prefix(committed.clients[devices[0]], CLIENT)
    return {**trunks.trunks[trunks.trunk_of[devices[0]]].weights, **client}, exits


def _without_prefix(tensors: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
