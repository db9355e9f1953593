# SPDX-License-Identifier: Apache-2.0
"""Software that the fleet releases: the `Installer` of this device's own software."""

from __future__ import annotations

import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from splitee import __version__
from splitee.durable import write_atomically
from splitee.errors import ModelError, SoftwareError, StateError
from splitee.inference.signatures import ReleaseKey
from splitee.protocol.fields import Digest, ReleaseAction, ReleaseKind
from splitee.protocol.inference import ReleaseOffer, ReleaseReport, SoftwareOffer, SoftwareReport
from splitee.software.versions import is_newer
from splitee_device.inference.installer import Outcome
from splitee_device.upgrade.installer import SoftwareInstaller
from splitee_device.upgrade.software import TRIAL, TRIED, Software

STATE = "release.json"
BY_HAND = "0" * 64  # stands for software that the owner installed; no release has this digest

log = logging.getLogger(__name__)


class _Requested(msgspec.Struct, frozen=True):
    """A request of the fleet whose outcome this device has not reported yet."""

    release: Digest
    action: ReleaseAction
    name: str  # of the environment


class _State(msgspec.Struct, frozen=True):
    """`signed_at`: milliseconds since the epoch, of the newest signed offer that was taken."""

    signed_at: int = 0
    requested: _Requested | None = None


class ReleasedSoftware:
    """The released software of one device. To try it, the launcher ends this process and starts another."""

    kind: ReleaseKind = "software"

    def __init__(self, software: Software | None, key: ReleaseKey | None) -> None:
        """`software`: the one whose launcher started this process; `key`: the one that signs it.

        If either is None, no software is accepted.
        """
        self._software = software
        self._key = key
        self._has_reported = False
        self._reported: _Requested | None = None

    @classmethod
    def of_this_process(cls, key: ReleaseKey | None) -> ReleasedSoftware:
        return cls(Software.of_this_process(), key)

    @property
    def folder(self) -> Path:
        return self._launched.path

    @property
    def release(self) -> str | None:
        return None if self._software is None else self._software.release()

    @property
    def trying(self) -> str | None:
        if self._software is None or not self._is_under_way(self._software):
            return None
        requested = self._requested()
        return BY_HAND if requested is None else requested.release

    @property
    def newest_signature(self) -> int:
        return 0 if self._software is None else self._read_state().signed_at

    def has_taken(self, offer: ReleaseOffer) -> bool:
        return offer.signed_at <= self.newest_signature

    def check(self, offer: ReleaseOffer) -> None:
        """Raises ModelError: it is not newer, or this process cannot have it tried."""
        assert isinstance(offer, SoftwareOffer)
        if self._key is None:
            raise ModelError(
                "this device accepts no software: it has no software key of the fleet; --software-key names "
                "the software.pub of its bundle"
            )
        with _as_model_errors():
            installed = SoftwareInstaller(self._launched).installed()
        if not is_newer(offer.version, installed):
            raise ModelError(f"splitee {offer.version} is not newer than {installed}, which is in service")

    def install(self, bundle: Path, offer: ReleaseOffer, *, verified: bool) -> Outcome:
        assert isinstance(offer, SoftwareOffer)
        assert self._key is not None
        assert verified
        with _as_model_errors(), self._restored_on_failure(), bundle.open("rb") as file:
            SoftwareInstaller(self._launched).install(
                file,
                self._key,
                version=offer.version,
                before_trial=lambda name: self._note(offer, name),
            )
        return self._trying(offer)

    def roll_back(self, offer: ReleaseOffer, *, verified: bool) -> Outcome:
        before = self._launched.before
        if before is None:
            raise ModelError("there is no software from before it")
        with _as_model_errors(), self._restored_on_failure():
            self._note(offer, before)
            SoftwareInstaller(self._launched).try_next(before)
        return self._trying(offer)

    def outcome(self) -> Outcome | None:
        """The outcome of a request that has come up or has not; at a start, what runs."""
        if self._software is None or self._has_reported or self._is_under_way(self._software):
            return None
        self._has_reported = True
        self._reported = requested = self._requested()
        if requested is None:
            return Outcome(self.release or "", "in service")
        try:
            self._write_state(_State(self.newest_signature))
        except StateError as error:
            log.warning("%s; the outcome of the release is reported again at the next start", error)
        return _outcome(self._software, requested)

    def report(self, report: ReleaseReport, offer: ReleaseOffer | None) -> SoftwareReport:
        version = ""
        if isinstance(offer, SoftwareOffer):
            version = offer.version
        elif report.release and report.release == self.release:
            version = __version__
        elif (
            self._reported is not None
            and report.release == self._reported.release
            and self._reported.action == "install"
        ):
            version = self._reported.name.rpartition("-")[0]
        return SoftwareReport(
            **msgspec.structs.asdict(report),
            version=version,
            runs=__version__,
            machine=platform.machine()[:20],
            python=f"cp3{sys.version_info.minor}",
        )

    @property
    def _launched(self) -> Software:
        """Raises ModelError: no launcher has started this process."""
        if self._software is None:
            raise ModelError(
                "this device runs from an environment of its own: start it by `splitee-start`, as the "
                "service does, or upgrade it by hand"
            )
        return self._software

    def _is_under_way(self, software: Software) -> bool:
        return software.target(TRIAL) is not None or software.target(TRIED) is not None

    def _note(self, offer: ReleaseOffer, name: str) -> None:
        """Durable before the launcher may see it, so that a later process reports the outcome."""
        self._write_state(_State(offer.signed_at, _Requested(offer.release, offer.action, name)))

    @contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        """A request that is not tried after all is forgotten; the same signed offer may come again."""
        kept = self._read_state()
        try:
            yield
        except StateError:
            self._write_state(kept)
            raise

    def _trying(self, offer: ReleaseOffer) -> Outcome:
        self._has_reported = False
        return Outcome(offer.release, "trying")

    def _requested(self) -> _Requested | None:
        """The open request. If it cannot be read, there is none, and no new one is accepted."""
        try:
            return self._read_state().requested
        except ModelError:
            return None

    def _read_state(self) -> _State:
        """Raises ModelError: it cannot be read."""
        path = self._launched.path / STATE
        try:
            return msgspec.json.decode(path.read_bytes(), type=_State)
        except FileNotFoundError:
            return _State()
        except (OSError, msgspec.MsgspecError) as error:
            raise ModelError(f"{path} cannot be read ({error}): remove it") from None

    def _write_state(self, kept: _State) -> None:
        write_atomically(self._launched.path / STATE, msgspec.json.encode(kept))


def _outcome(software: Software, requested: _Requested) -> Outcome:
    came_up = software.in_service == requested.name
    name, reason = software.failure() or ("", "")
    reason = reason if name == requested.name else "it did not come up"
    if requested.action == "install":
        return (
            Outcome(requested.release, "in service")
            if came_up
            else Outcome(requested.release, "rolled back", reason)
        )
    if came_up:
        return Outcome(requested.release, "rolled back", "the server has taken it back")
    return Outcome(requested.release, "in service", f"not rolled back: {reason}")


@contextmanager
def _as_model_errors() -> Iterator[None]:
    """Raises each SoftwareError as a ModelError."""
    try:
        yield
    except SoftwareError as error:
        raise ModelError(str(error)) from None
