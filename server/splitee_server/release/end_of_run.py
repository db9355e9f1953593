# SPDX-License-Identifier: Apache-2.0
"""The end of a run: what it has trained is exported, and each device is handed its model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from splitee.errors import SpliteeError
from splitee.inference.signatures import ReleaseSigner
from splitee.mqtt.port import Port
from splitee.protocol.accuracies import ReleasedThreshold
from splitee.protocol.gate import Received
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_server.release.offers import Offers
from splitee_server.rounds.checkpoints import Committed
from splitee_server.rounds.evaluation import Score

log = logging.getLogger(__name__)


class EndOfRun:
    """Exports on a thread of its own, while the server goes on answering; then offers what came of it."""

    def __init__(
        self,
        port: Port,
        topics: Topics,
        models: Path,
        signer: ReleaseSigner | None = None,
        is_gone: Callable[[str], bool] = lambda _device: False,
    ) -> None:
        """`models`: the folder that the exported models go to. `signer`: of the offers; None: nobody.

        `is_gone`: whether a device is to be offered nothing.
        """
        self._port = port
        self._topics = topics
        self._models = models
        self._signer = signer
        self._is_gone = is_gone
        self._worker = ThreadPoolExecutor(1, "export")
        self._exported: Future[list[Path]] | None = None
        self._offers = Offers(port, topics, [])

    def start(self, spec: RunSpec, committed: Committed, scores: Mapping[str, Score]) -> None:
        """Export the `committed` round; `scores`: of its evaluation, to choose each exit's threshold."""
        from splitee_server.release.exporting import (
            export_run,  # training does without what it needs: 1 s, 40 MB
        )

        self._exported = self._worker.submit(export_run, spec, committed, scores, self._models)

    @property
    def is_exported(self) -> bool:
        return self._exported is not None and self._exported.done()

    def offer(self) -> None:
        """Offer the devices their models. What cannot be exported is said; the run is none the worse."""
        assert self._exported is not None
        self._worker.shutdown()
        try:
            models = self._exported.result()
            self._offers = Offers(self._port, self._topics, models, self._signer, self._is_gone)
        except SpliteeError as error:
            log.error("nothing is released: %s", error)
        else:
            self._offers.offer()

    def again(self) -> None:
        """The broker may have lost the offers; nothing before there are any."""
        self._offers.offer()

    def offer_again(self, devices: Iterable[str]) -> None:
        """Devices that were gone are back: they are offered their models, where there are some by now."""
        for device in devices:
            self._offers.offer(device)

    @property
    def thresholds(self) -> dict[str, ReleasedThreshold]:
        """When the offered models predict by themselves, by device."""
        return self._offers.thresholds

    @property
    def missing(self) -> list[str]:
        """Devices that have not said what became of their model."""
        return self._offers.missing

    def handle(self, received: Received) -> None:
        """What devices say of their models. Raises MalformedMessage."""
        self._offers.handle(received)
