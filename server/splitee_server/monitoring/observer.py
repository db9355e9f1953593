# SPDX-License-Identifier: Apache-2.0
"""The interface of observers: the server tells them what happens, and they change nothing of it."""

from __future__ import annotations

from collections.abc import Callable

from splitee.protocol.fleet import Metrics, Profile
from splitee.protocol.rollouts import Rollouts
from splitee_server.rounds.progress import Progress


class Observer:
    """Does nothing; subclasses override what they need. All runs on the thread that trains: be short."""

    filters: tuple[str, ...] = ()  # topics that it needs

    def start(self) -> None:
        """The link is up, the run not yet open."""

    def on_reconnected(self) -> None:
        """The broker may have lost retained messages."""

    def on_message(self, payload: bytes) -> None:
        """A message has arrived on one of the `filters`."""

    def on_admitted(self, device: str, profile: Profile) -> None:
        """A device has joined, or a new process of it."""

    def on_predicting(self, device: str, profile: Profile | None) -> None:
        """A device predicts, as it reports every few seconds. `profile`: if it waits to join."""

    def on_dismissed(self, device: str) -> None:
        """A device is gone for good; also called for each after a reconnection."""

    def on_evaluated(self, metrics: Metrics) -> None:
        """A round has been committed and evaluated; also called for the last round of a resumed run."""

    def on_rollouts(self, rollouts: Rollouts) -> None:
        """The server's releases, or their progress, have changed; also called at the start."""

    def tick(self, progress: Callable[[], Progress]) -> None:
        """Called between batches and while nothing arrives; `progress` takes time, so call it seldom."""
