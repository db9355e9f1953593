# SPDX-License-Identifier: Apache-2.0
"""Who puts one kind of release into service on this device, once `Delivery` has fetched it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from splitee.protocol.fields import ReleaseKind, ReleaseState
from splitee.protocol.inference import ReleaseOffer, ReleaseReport


@dataclass(frozen=True)
class Outcome:
    """What has become of a release; "": of none, it only says what is in service."""

    release: str
    state: ReleaseState
    reason: str = ""


class Installer(Protocol):
    """Of one kind of release. All of it is called on the thread of the service.

    Where something raises ModelError, the release has failed, with its line as the reason, and what was in
    service still is.
    """

    @property
    def kind(self) -> ReleaseKind: ...

    @property
    def folder(self) -> Path:
        """Where releases lie while they are fetched, as `SHA256.incoming`."""

    @property
    def release(self) -> str | None:
        """SHA-256 of the bundle that is in service; None: there is none, or it came from elsewhere."""

    @property
    def trying(self) -> str | None:
        """SHA-256 of the bundle that is on trial beyond a call, or from which one goes back; None: none is.

        No other offer is followed meanwhile.
        """

    @property
    def newest_signature(self) -> int:
        """Milliseconds since the epoch: of the newest signed offer that was taken; 0: there was none.

        Raises ModelError: it cannot be read, and then nothing is taken.
        """

    def check(self, offer: ReleaseOffer) -> None:
        """Raises ModelError: it cannot be taken, whatever its bytes are. Before the first of them."""

    def install(self, bundle: Path, offer: ReleaseOffer, *, verified: bool) -> Outcome:
        """Puts a bundle of the offer's digest into service; the file is the caller's.

        Args:
            verified: the offer is signed by the fleet, and its `signed_at` the newest from now on.

        Returns:
            "in service"; or "trying", where a later process has to say how it went.

        Raises ModelError: it is not put into service.
        """

    def roll_back(self, offer: ReleaseOffer, *, verified: bool) -> Outcome:
        """Puts what was before the offer's release, which is in service, into service again.

        Raises ModelError: there is nothing from before; the release stays in service.
        """

    def outcome(self) -> Outcome | None:
        """What is to be reported by itself: of a trial that has ended, or of a start; each is told once."""

    def report(self, said: ReleaseReport, offer: ReleaseOffer | None) -> ReleaseReport:
        """`said` as this kind reports it, with what is in service now. `offer`: of the release, if known."""
