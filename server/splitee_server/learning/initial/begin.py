"""How a run begins: its first weights are found, fitted and kept, so that a restart needs no source."""

from __future__ import annotations

import logging

from msgspec.structs import replace

from splitee.errors import StateError
from splitee.networks.split import SplitNetwork, build_for
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.initial.normalization import normalization
from splitee_server.learning.initial.sources import label, read_weights
from splitee_server.learning.initial.weights import SHOWN, Found, InitialWeights, fit
from splitee_server.rounds.checkpoints import Checkpoints

log = logging.getLogger(__name__)


def new_run(
    spec: RunSpec, source: str | None, class_names: tuple[str, ...] = ()
) -> tuple[RunSpec, SplitNetwork, InitialWeights | None]:
    """The specification that follows from a run's settings, its network, and what it begins from.

    Args:
        source: of the weights, as `--weights` names it; None: the seed's.
        class_names: that are given for the run; empty: they come with the weights, or with the devices.

    Raises:
        ConfigError: the weights cannot be had or are another network's, or --normalize does not fit.
        NetworkError: there is no such network, or --freeze is beyond its deepest cut.
    """
    spec = replace(spec, frozen=0 if spec.freeze == "auto" else spec.freeze)
    network = build_for(spec)
    found: Found | None = None
    initial = None
    if source is not None:
        found = read_weights(source, spec)
        initial = fit(found, network, spec, class_names)
        initial.load_into(network)
        spec = replace(spec, weights=f"{label(source)} {initial.digest()[:SHOWN]}")
        log.info("weights: %s, from %s", spec.weights, found.name)
    chosen = normalization(
        spec.normalize or ("weights" if found is not None and found.mean else ""), spec.input_shape[0], found
    )
    return replace(spec, **chosen), network, initial


def open_run(
    spec: RunSpec, source: str | None, checkpoints: Checkpoints, class_names: tuple[str, ...], *, fresh: bool
) -> tuple[RunSpec, SplitNetwork, InitialWeights | None]:
    """The stored run, where these are its settings, with the weights that it began from; else a new one.

    Raises:
        StateError: the directory holds a run with other settings; and what `new_run` raises.
    """
    stored = None if fresh else checkpoints.begun()
    if stored is None or source is None or not stored.weights.startswith(f"{label(source)} "):
        spec, network, initial = new_run(spec, source, class_names)
        kept = initial.encode() if initial is not None else None
        opened = checkpoints.open(spec, fresh=fresh, weights=kept)
    else:
        opened = checkpoints.open(replace(spec, weights=stored.weights), fresh=False)
        network = build_for(opened)
        initial = _stored_weights(checkpoints, opened)
        initial.load_into(network)
    network.freeze(opened.frozen)
    if initial is not None:
        opened = replace(opened, class_names=class_names or opened.class_names or initial.class_names)
    return opened, network, initial


def _stored_weights(checkpoints: Checkpoints, spec: RunSpec) -> InitialWeights:
    data = checkpoints.first_weights()
    initial = InitialWeights.decode(data) if data is not None else None
    if initial is None or not spec.weights.endswith(f" {initial.digest()[:SHOWN]}"):
        raise StateError(
            f"{checkpoints.path}: the weights that run {spec.run} began from are damaged: --fresh starts over"
        )
    return initial
