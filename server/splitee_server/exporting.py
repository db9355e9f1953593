"""What a run has trained, as ONNX: a model directory for each device, and one of all trunks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitee.errors import ModelError
from splitee.manifest import TrunkManifest, read_manifest
from splitee.messages import RunSpec
from splitee_export.calibration import HeldOut, choose, curve
from splitee_export.models import export_client, export_trunks
from splitee_export.states import device_state, server_state
from splitee_server.evaluation import Score
from splitee_server.store import Committed

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
    if not _is_there(models / TRUNKS, spec, committed):
        for device, folder in folders.items():
            _export_device(spec, committed, device, scores.get(device), folder)
        export_trunks(server_state(spec, committed.round, committed.strategy), models / TRUNKS)
        log.info("exported %d devices' models and the trunks to %s", len(folders), models)
    return list(folders.values())


def _is_there(trunks: Path, spec: RunSpec, committed: Committed) -> bool:
    """The trunks are written last: a server that is started again has no scores to do it anew."""
    try:
        manifest = read_manifest(trunks, TrunkManifest)
    except ModelError:
        return False
    return (manifest.run, manifest.round) == (spec.run, committed.round)


def _export_device(spec: RunSpec, committed: Committed, device: str, score: Score | None, out: Path) -> None:
    chosen: dict[str, Any] = {}
    if score is not None and score.samples:
        points = curve(HeldOut(*score.held_out()))
        chosen["calibration"] = points
        chosen["threshold"] = choose(points, max_drop=MAX_DROP, max_offload=None).threshold
    cut, weights = committed.strategy["cuts"][device], committed.clients[device]
    export_client(device_state(spec, committed.round, device, cut, weights), None, out, **chosen)
