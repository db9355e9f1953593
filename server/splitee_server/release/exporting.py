"""What a run has trained, as ONNX: a model directory for each device, and one of all trunks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitee.errors import ModelError
from splitee.inference.manifest import TrunkManifest, read_manifest
from splitee.protocol.run_spec import RunSpec
from splitee.training.named_trunks import NamedTrunks
from splitee.training.state import answers_digest
from splitee_export.calibration import HeldOut, choose, curve
from splitee_export.models import export_client, export_same, export_trunks
from splitee_export.states import device_state, server_state
from splitee_server.rounds.checkpoints import Committed
from splitee_server.rounds.evaluation import Score

log = logging.getLogger(__name__)

MAX_DROP = 0.01  # of accuracy, against asking the trunk about every picture: chooses the threshold
TRUNKS = "trunks"  # the server's model directory; `splitee serve` answers from it
DEVICES = "devices"  # the folder of the devices' model directories


def export_run(spec: RunSpec, committed: Committed, scores: Mapping[str, Score], models: Path) -> list[Path]:
    """Writes a model directory for each device whose client network the server holds, and one of all trunks.

    Returns:
        Those of the devices.

    Raises:
        ModelError: torch cannot export a network, or a graph does not answer as torch does.
    """
    folders = {device: models / DEVICES / device for device in sorted(committed.clients)}
    trunks = NamedTrunks.read(vars(committed))
    if not _is_there(models / TRUNKS, spec, committed):
        exported: dict[tuple[int, str], Path] = {}  # averaged networks of one cut are the same
        for device, folder in folders.items():
            cut, weights = trunks.cuts[device], committed.clients[device]
            key, chosen = (cut, answers_digest(weights)), _calibration(spec, scores.get(device))
            if key in exported:
                export_same(exported[key], device, folder, **chosen)
            else:
                state = device_state(spec, committed.round, device, cut, weights)
                export_client(state, None, folder, **chosen)
                exported[key] = folder
        export_trunks(server_state(spec, committed.round, trunks), models / TRUNKS)
        log.info("exported %d devices' models and the trunks to %s", len(folders), models)
    return list(folders.values())


def _is_there(trunks: Path, spec: RunSpec, committed: Committed) -> bool:
    """The trunks are written last: a server that is started again has no scores to do it anew."""
    try:
        manifest = read_manifest(trunks, TrunkManifest)
    except ModelError:
        return False
    return (manifest.run, manifest.round) == (spec.run, committed.round)


def _calibration(spec: RunSpec, score: Score | None) -> dict[str, Any]:
    """When the device answers by itself: as the run says where it has not been scored."""
    if score is None or not score.samples:
        return {"calibration": (), "threshold": spec.threshold}
    points = curve(HeldOut(*score.held_out()))
    return {
        "calibration": points,
        "threshold": choose(points, max_drop=MAX_DROP, max_offload=None).threshold,
    }
