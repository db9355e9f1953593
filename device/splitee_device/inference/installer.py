# SPDX-License-Identifier: Apache-2.0
"""The interface that puts one kind of release into service on this device, after `Delivery` fetched it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splitee.protocol.fields import ReleaseKind, ReleaseState
from splitee.protocol.inference import ReleaseOffer, ReleaseReport


@dataclass(frozen=True)
class Outcome:
    """The outcome of a release. An empty `release` only reports what is in service."""

    release: str
    state: ReleaseState
    reason: str = ""


class Installer(Protocol):
    """Installs one kind of release. All methods are called on the thread of the service.

    If one raises ModelError, the release has failed, with the error's line as the reason, and what was in
    service stays in service.
    """

    @property
    def kind(self) -> ReleaseKind: ...

    @property
    def folder(self) -> Path:
        """The folder in which releases are stored while they are fetched, as `SHA256.incoming`."""

    @property
    def release(self) -> str | None:
        """SHA-256 of the bundle in service; None: there is none, or it came from elsewhere."""

    @property
    def trying(self) -> str | None:
        """SHA-256 of the bundle under a trial that outlasts a call, or being rolled back; None: there is
        none.

        Meanwhile no other offer is followed.
        """

    @property
    def newest_signature(self) -> int:
        """Milliseconds since the epoch: of the newest signed offer that was accepted; 0: there was none.

        Raises ModelError: it cannot be read; then nothing is accepted.
        """

    def has_taken(self, offer: ReleaseOffer) -> bool:
        """Whether an offer with this signature has been in service here. Raises ModelError, as above."""

    def check(self, offer: ReleaseOffer) -> None:
        """Called before the fetch. Raises ModelError: the offer cannot be accepted, whatever its bytes."""

    def install(self, bundle: Path, offer: ReleaseOffer, *, verified: bool) -> Outcome:
        """Puts a bundle with the offer's digest into service; the caller keeps the file.

        Args:
            verified: the fleet has signed the offer; its `signed_at` is the newest from now on.

        Returns:
            "in service", or "trying" if a later process must report the outcome.

        Raises ModelError: it is not put into service.
        """

    def roll_back(self, offer: ReleaseOffer, *, verified: bool) -> Outcome:
        """Puts what was in service before the offer's release, the current one, into service again.

        Raises ModelError: there is nothing from before; the release stays in service.
        """

    def outcome(self) -> Outcome | None:
        """The next outcome to report: of a trial that has ended, or of a start. Each is returned once."""

    def report(self, report: ReleaseReport, offer: ReleaseOffer | None) -> ReleaseReport:
        """`report` in this kind's form, with what is now in service. `offer`: of the release, if known."""
