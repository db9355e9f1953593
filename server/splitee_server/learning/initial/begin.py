# SPDX-License-Identifier: Apache-2.0
"""How a run begins: its initial weights are loaded, fitted and saved, so that a restart needs no source."""

from __future__ import annotations

import logging

from msgspec.structs import replace

from splitee.errors import StateError
from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.seasons import bounded
from splitee.training.state import weights_digest
from splitee_server.learning.initial.normalization import WEIGHTS, normalization
from splitee_server.learning.initial.sources import label, read_weights
from splitee_server.learning.initial.weights import SHOWN, InitialWeights, SourceWeights, fit
from splitee_server.rounds.checkpoints import Checkpoints

log = logging.getLogger(__name__)


def with_weights(spec: RunSpec, source: str | None) -> tuple[RunSpec, SourceWeights | None]:
    """The specification that follows from a run's settings, and its initial weights.

    Args:
        source: of the weights, as `--weights` names it; None: the seed.

    Raises:
        ConfigError: the weights cannot be loaded, or --normalize does not fit.
        NetworkError: torchvision has no such network.
    """
    found = None
    if source is not None:
        found = read_weights(source, spec)
        digest = weights_digest(found.tensors)
        spec = replace(spec, weights=f"{label(source)} {digest[:SHOWN]}")
        log.info("weights: %s, from %s", spec.weights, found.name)
        if not found.mean and not spec.normalize:
            log.info("weights: %s does not give its images' mean and deviation: see --normalize", found.name)
    text = spec.normalize or (WEIGHTS if found is not None and found.mean else "")
    chosen = normalization(text, spec.input_shape[0], found)
    return replace(spec, frozen=0 if spec.freeze == "auto" else spec.freeze, **chosen), found


def open_run(
    spec: RunSpec, source: str | None, checkpoints: Checkpoints, class_names: tuple[str, ...], *, fresh: bool
) -> tuple[RunSpec, SplitNetwork, InitialWeights | None]:
    """The stored run with its initial weights, if these are its settings; otherwise a new one.

    Raises:
        StateError: the directory holds a run with other settings, or its weights are damaged.
        ConfigError: a new run's weights cannot be loaded or are another network's, or --normalize does not
            fit.
        NetworkError: there is no such network, or --freeze is beyond its deepest cut.
    """
    stored = None if fresh else checkpoints.begun()
    if stored is not None and source is not None and stored.weights.startswith(f"{label(source)} "):
        opened = checkpoints.open(replace(spec, weights=stored.weights), fresh=False)
        network = build_for(opened)
        initial: InitialWeights | None = _stored_weights(checkpoints, opened)
    else:
        spec, found = with_weights(spec, source)
        network = build_for(spec)
        initial = fit(found, network, spec, class_names) if found is not None else None
        kept = initial.encode() if initial is not None else None
        seasons = bounded(spec.run, found.seasons) if found is not None and found.seasons else None
        opened = checkpoints.open(spec, fresh=fresh, weights=kept, seasons=seasons)
        network.freeze(opened.frozen)
    names = class_names or opened.class_names
    if initial is not None:
        initial.load_into(network)
        names = names or initial.class_names
    return replace(opened, class_names=names), network, initial


def _stored_weights(checkpoints: Checkpoints, spec: RunSpec) -> InitialWeights:
    data = checkpoints.first_weights()
    if data is None:
        raise StateError(
            f"{checkpoints.path}: the initial weights of run {spec.run} are damaged: --fresh starts over"
        )
    return InitialWeights.decode(data)
