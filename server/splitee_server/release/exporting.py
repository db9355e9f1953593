# SPDX-License-Identifier: Apache-2.0
"""Exports what a run has trained as ONNX: a model directory for each device, and one of all trunks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from splitee.cli.accuracy_words import describe_combination, describe_threshold
from splitee.cli.words import images
from splitee.errors import ModelError
from splitee.inference.combination import TRUNK_ALONE, Combination
from splitee.inference.manifest import TrunkManifest, read_manifest
from splitee.protocol.run_spec import RunSpec
from splitee.training.named_trunks import NamedTrunks
from splitee.training.state import output_digest
from splitee_export.calibration import LEAST_IMAGES, Calibration, HeldOut, calibrate
from splitee_export.combination import HeldOutLogits, fit
from splitee_export.models import export_client, export_copy, export_trunks
from splitee_export.states import device_state, server_state
from splitee_server.rounds.checkpoints import Committed
from splitee_server.rounds.evaluation import Predictions, Score

log = logging.getLogger(__name__)

TRUNKS = "trunks"  # the server's model directory; `splitee serve` predicts with it
DEVICES = "devices"  # the folder of the devices' model directories


def export_run(spec: RunSpec, committed: Committed, scores: Mapping[str, Score], models: Path) -> list[Path]:
    """Writes a model directory for each device whose client network the server holds, and one of all trunks.

    Returns:
        Those of the devices.

    Raises:
        ModelError: torch cannot export a network, or a graph does not compute what torch computes.
    """
    folders = {device: models / DEVICES / device for device in sorted(committed.clients)}
    trunks = NamedTrunks.read(vars(committed))
    if not _is_there(models / TRUNKS, spec, committed):
        clients = {device: output_digest(committed.clients[device]) for device in folders}
        calibrations = _calibrations(spec, trunks, clients, scores)
        exported: dict[tuple[int, str], Path] = {}  # averaged networks of one cut are the same
        for device, folder in folders.items():
            cut, weights = trunks.cuts[device], committed.clients[device]
            key = (cut, clients[device])
            if key in exported:
                export_copy(exported[key], device, folder, calibrations[device])
            else:
                state = device_state(spec, committed.round, device, cut, weights)
                export_client(state, None, folder, calibration=calibrations[device])
                exported[key] = folder
        export_trunks(server_state(spec, committed.round, trunks), models / TRUNKS)
        log.info("exported %d devices' models and the trunks to %s", len(folders), models)
    return list(folders.values())


def _is_there(trunks: Path, spec: RunSpec, committed: Committed) -> bool:
    """Whether the export is complete: trunks come last. A restarted server has no scores to repeat it."""
    try:
        manifest = read_manifest(trunks, TrunkManifest)
    except ModelError:
        return False
    return (manifest.run, manifest.round) == (spec.run, committed.round)


def _calibrations(
    spec: RunSpec, trunks: NamedTrunks, clients: Mapping[str, str], scores: Mapping[str, Score]
) -> dict[str, Calibration]:
    """Each device's threshold and combination, from the held-out images of all devices with its networks.

    `clients`: digests of the client networks, by device.
    """
    digests = {name: output_digest(trunk.weights) for name, trunk in trunks.trunks.items()}
    groups: dict[tuple[int, str, str], list[str]] = {}
    for device, client in clients.items():
        key = (trunks.cuts[device], client, digests[trunks.trunk_of[device]])
        groups.setdefault(key, []).append(device)
    found: dict[str, Calibration] = {}
    for (cut, *_), devices in groups.items():
        held_out, combination = _held_out([scores[device] for device in devices if device in scores])
        calibration = calibrate(held_out, spec.threshold, combination)
        _log(cut, devices, calibration, len(held_out))
        found |= dict.fromkeys(devices, calibration)
    return found


def _held_out(scores: list[Score]) -> tuple[HeldOut, Combination]:
    """The held-out images of several devices, and the combination for those that are offloaded.

    If devices hold out the same images, these count once.
    """
    distinct = {_bytes(score.predictions): score for score in scores}
    found = Predictions.join([score.predictions for score in distinct.values()])
    exit_right, trunk_right = found.exit == found.labels, found.trunk == found.labels
    logits = [kept for score in distinct.values() if (kept := score.logits) is not None]
    if len(found) >= LEAST_IMAGES and len(logits) == len(distinct):
        fitted = fit(HeldOutLogits.join(logits))
        if fitted.combination != TRUNK_ALONE:
            return HeldOut(found.uncertainty, exit_right, fitted.right), fitted.combination
    return HeldOut(found.uncertainty, exit_right, trunk_right), TRUNK_ALONE


def _bytes(found: Predictions) -> bytes:
    return b"".join(array.tobytes() for array in vars(found).values())


def _log(cut: int, devices: list[str], calibration: Calibration, count: int) -> None:
    chosen = calibration.chosen
    few = "" if chosen.images else f" ({images(count)} held out; choosing one takes {LEAST_IMAGES})"
    log.info("cut %d (%s): %s%s", cut, ", ".join(devices), describe_threshold(chosen), few)
    if calibration.combination != TRUNK_ALONE:
        log.info("cut %d: offloaded images: %s", cut, describe_combination(calibration.combination))
