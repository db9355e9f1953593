# SPDX-License-Identifier: Apache-2.0
"""Puts released models into service, and rolls them back: the `Installer` of a device's models."""

from __future__ import annotations

from pathlib import Path

import msgspec

from splitee.protocol.fields import ReleaseKind
from splitee.protocol.inference import ModelOffer, ModelReport, ReleaseOffer, ReleaseReport
from splitee_device.inference.installer import Outcome
from splitee_device.inference.model_store import ModelStore


class ModelInstaller:
    """The installer of one device's models."""

    kind: ReleaseKind = "model"

    def __init__(self, store: ModelStore, device: str) -> None:
        self._store = store
        self._device = device

    @property
    def folder(self) -> Path:
        return self._store.path

    @property
    def release(self) -> str | None:
        return self._store.release

    @property
    def trying(self) -> None:
        """A model's trial ends within the call."""
        return None

    @property
    def newest_signature(self) -> int:
        return self._store.trust.read().signed_at

    def has_taken(self, offer: ReleaseOffer) -> bool:
        return self._store.trust.has_taken(offer.release, offer.signed_at)

    def check(self, offer: ReleaseOffer) -> None:
        """Does nothing: a model is checked by its content."""

    def install(self, bundle: Path, offer: ReleaseOffer, *, verified: bool) -> Outcome:
        assert isinstance(offer, ModelOffer)
        signed = offer if verified else None
        return Outcome(self._store.install(bundle.read_bytes(), self._device, signed=signed), "in service")

    def roll_back(self, offer: ReleaseOffer, *, verified: bool) -> Outcome:
        self._store.roll_back()
        if verified:
            self._store.trust.note_signature(offer.signed_at)
        return Outcome(offer.release, "rolled back", "the server has taken it back")

    def outcome(self) -> Outcome | None:
        """None: the service itself reports what it has loaded."""
        return None

    def report(self, report: ReleaseReport, offer: ReleaseOffer | None) -> ModelReport:
        serves = self._store.served()
        run = offer.run if isinstance(offer, ModelOffer) else ""
        if serves is not None and serves.release == report.release:
            run = serves.run
        return ModelReport(**msgspec.structs.asdict(report), run=run[:1000], serves=serves)
