# SPDX-License-Identifier: Apache-2.0
"""What the server does for people who watch: a watcher is told what happens, and changes nothing of it."""

from __future__ import annotations

from collections.abc import Callable

from splitee.protocol.fleet import Metrics, Profile
from splitee.protocol.rollouts import Rollouts
from splitee_server.rounds.progress import Progress


class Observer:
    """Does nothing; each kind takes up what it needs. All is called on the thread that trains: be short."""

    filters: tuple[str, ...] = ()  # topics that it wants to hear

    def start(self) -> None:
        """The link is up, the run not yet open."""

    def on_reconnected(self) -> None:
        """The broker may have lost what was retained."""

    def on_message(self, payload: bytes) -> None:
        """Something was said on one of the `filters`."""

    def on_admitted(self, device: str, profile: Profile) -> None:
        """A device has joined, or a new process of it."""

    def on_predicting(self, device: str, profile: Profile | None) -> None:
        """A device predicts, as it says every few seconds. `profile`: of one that has asked to join."""

    def on_dismissed(self, device: str) -> None:
        """A device is gone for good; also told of each when the link is up again."""

    def on_evaluated(self, metrics: Metrics) -> None:
        """A round has been committed and evaluated; also told of the last one of a run that is resumed."""

    def on_rollouts(self, rollouts: Rollouts) -> None:
        """The releases that the server keeps, or how far they have come, have changed; also at the start."""

    def tick(self, progress: Callable[[], Progress]) -> None:
        """Called between batches and while nothing comes; `progress` costs something, so ask seldom."""
