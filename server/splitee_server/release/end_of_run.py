# SPDX-License-Identifier: Apache-2.0
"""The end of a run: its models are exported, and go to the devices as a rollout."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from splitee.errors import SpliteeError
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.inference.signatures import ReleaseSigner
from splitee.protocol.accuracies import ReleasedThreshold
from splitee.protocol.run_spec import RunSpec
from splitee_server.release import plans
from splitee_server.release.plans import AT_ONCE, RolloutPolicy
from splitee_server.release.releases import Releases
from splitee_server.rounds.checkpoints import Committed
from splitee_server.rounds.evaluation import Score

log = logging.getLogger(__name__)


class EndOfRun:
    """Exports models on a thread of its own, while the server goes on; then releases them."""

    def __init__(
        self,
        releases: Releases,
        fleet: str,
        models: Path,
        signer: ReleaseSigner | None = None,
        rollout_policy: RolloutPolicy = AT_ONCE,
    ) -> None:
        """`models`: the folder for exported models. `signer`: of the offers; None: they are not signed."""
        self._releases = releases
        self._fleet = fleet
        self._models = models
        self._signer = signer
        self._rollout_policy = rollout_policy
        self._worker = ThreadPoolExecutor(1, "export")
        self._exported: Future[list[Path]] | None = None
        self._rollout = ""
        self.thresholds: dict[str, ReleasedThreshold] = {}  # of the released models, by device

    def start(self, spec: RunSpec, committed: Committed, scores: Mapping[str, Score]) -> None:
        """Export the `committed` round; `scores`: of its evaluation, to choose each exit's threshold."""
        from splitee_server.release.exporting import (
            export_run,  # takes 1 s and 40 MB, which training does not need
        )

        self._rollout = plans.rollout_name(f"{spec.run}-{committed.round}")
        self._exported = self._worker.submit(export_run, spec, committed, scores, self._models)

    @property
    def is_exported(self) -> bool:
        return self._exported is not None and self._exported.done()

    def offer(self) -> None:
        """Offer the devices their models. A failed export is logged, and does not fail the run."""
        assert self._exported is not None
        self._worker.shutdown()
        try:
            paths = self._exported.result()
            if paths:
                self._releases.begin(
                    plans.models(paths, self._fleet, self._signer), self._rollout, self._rollout_policy
                )
            for path in paths:
                manifest = read_manifest(path, ClientManifest)
                self.thresholds[manifest.device] = manifest.released
        except SpliteeError as error:
            log.error("nothing is released: %s", error)

    @property
    def missing(self) -> list[str]:
        """Devices that have not reported the result of their model."""
        return self._releases.rollouts.undecided(self._rollout)
