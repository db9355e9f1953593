# SPDX-License-Identifier: Apache-2.0
"""How new software shows the launcher that it has come up: it works, and the broker accepts it."""

from __future__ import annotations

import logging
import os
import time

from splitee import __version__
from splitee.clock import Clock
from splitee.mqtt.address import BrokerAddress
from splitee_device.upgrade.software import RUNS, TRIED, Software

STEADY = 5.0  # seconds that the connection must hold before software counts as having come up

log = logging.getLogger(__name__)


class Health:
    """The health of this process. The working loop calls `tick`; a thread could outlive that loop."""

    def __init__(
        self, address: BrokerAddress, software: Software | None, clock: Clock = time.monotonic
    ) -> None:
        """`software`: the one whose launcher started this process; None: nobody waits for its health."""
        self._broker = address.host, address.port
        self._software = software
        self._clock = clock
        self._since: float | None = None

    @classmethod
    def of_this_process(cls, address: BrokerAddress) -> Health:
        return cls(address, Software.of_this_process())

    def tick(self, connected: bool) -> None:
        """Reports once that this process is healthy, when its connection has held for a while.

        If that cannot be written, as on a full disk, it is tried again while the trial lasts.
        """
        if self._software is None:
            return
        if not connected:
            self._since = None
        elif self._since is None:
            self._since = self._clock()
        elif self._clock() - self._since >= STEADY:
            self._since = None
            if self._confirm(self._software):
                self._software = None

    def _confirm(self, software: Software) -> bool:
        """Whether everything is written, or what is not does not matter to a trial."""
        is_trial = software.target(TRIED) == os.environ.get(RUNS, "")
        try:
            if is_trial:
                software.accept_trial()
                software.prune_if_idle()
                log.info("splitee %s has come up, and is in service", __version__)
                is_trial = False
            software.note_broker(*self._broker)
        except OSError as error:
            log.warning("%s: %s: cannot record that this software has come up", software.path, error.strerror)
        return not is_trial
