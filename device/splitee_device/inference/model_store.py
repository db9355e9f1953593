"""A device's models on disk: the one in service, the one before, and the switch between them.

`releases/ID/` holds each model directory, `current` and `previous` are links to two of them, and
`samples.npz` has the device's own images, on which a new model is tried. A link is replaced by a rename:
whoever opens `current` sees one whole model or the other.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np

from splitee.durable import unwritable, write_atomically
from splitee.errors import MalformedMessage, ModelError, StateError
from splitee.inference.bundle import Bundle, pack_bundle
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import MANIFEST, ClientManifest, FileName, read_manifest
from splitee.protocol.encoding import unpack
from splitee.samples.kept import SAMPLES, Samples

MAX_DROP = 0.05  # of the exit's accuracy on the stored samples, below the model in service


TRIED = 256  # stored samples that a new model is tried on


BATCH = 32


log = logging.getLogger(__name__)


class ModelStore:
    """The models of one device."""

    def __init__(self, path: Path) -> None:
        """Raises StateError: it cannot be written."""
        self.path = path
        try:
            (path / "releases").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"model directory {path}: {error.strerror}; choose another --models") from None

    @property
    def current(self) -> Path:
        """The model directory in service; it may not exist yet."""
        return self.path / "current"

    @property
    def release(self) -> str | None:
        """The id of the release in service."""
        return self._target("current")

    def adopt(self, directory: Path) -> str:
        """Puts an exported model into service, and keeps its samples. Raises ModelError: it is not sound."""
        samples = directory / SAMPLES
        if samples.exists():
            write_atomically(self.path / SAMPLES, samples.read_bytes())
        bundle = pack_bundle(directory)
        return self.install(bundle, read_manifest(directory, ClientManifest).device)

    def install(self, bundle: bytes, device: str) -> str:
        """Checks and tries a bundle, and puts it into service; returns its release.

        Raises ModelError: it is damaged, of another device, does not load, or predicts worse than the model
        in service, which then stays.
        """
        release = hashlib.sha256(bundle).hexdigest()
        folder = self.path / "releases" / release
        if self.release == release:
            return release
        try:
            self._unpack(bundle, folder)
            self._try(folder, device)
        except ModelError:
            if release != self._target("previous"):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        before = self.release
        if before is not None:
            self._point("previous", before)
        self._point("current", release)
        self._prune()
        log.info("model %s is in service", release[:12])
        return release

    def roll_back(self) -> str:
        """Puts the model before into service again; returns its release. Raises ModelError: there is none."""
        before, now = self._target("previous"), self._target("current")
        if before is None or not (self.path / "releases" / before / MANIFEST).exists():
            raise ModelError(f"{self.path} keeps no model from before the one in service")
        self._point("current", before)
        if now is not None:
            self._point("previous", now)
        log.warning("model %s is in service again", before[:12])
        return before

    def load(self, threads: int | None = None) -> ClientModel:
        """The model in service; when it does not load, the one before is put back and loaded.

        Raises ModelError: neither loads.
        """
        try:
            return ClientModel(self.current, threads=threads)
        except ModelError as error:
            if self._target("previous") is None:
                raise
            log.warning("%s", error)
        self.roll_back()
        return ClientModel(self.current, threads=threads)

    def _unpack(self, bundle: bytes, folder: Path) -> None:
        try:
            files = unpack(bundle, Bundle)
            manifest = msgspec.json.decode(files.manifest, type=ClientManifest)
            name = msgspec.convert(manifest.file, FileName)
        except (MalformedMessage, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ModelError(f"the delivered model is refused: {error}") from None
        folder.mkdir(exist_ok=True)
        write_atomically(folder / name, files.graph)
        write_atomically(folder / MANIFEST, files.manifest)

    def _try(self, folder: Path, device: str) -> None:
        model = ClientModel(folder)
        if model.manifest.device != device:
            raise ModelError(
                f"the delivered model is refused: it is of {model.manifest.device}, not {device}"
            )
        samples = self._samples(model)
        found = _accuracy(model, samples)
        if found is None:
            raise ModelError(
                "the delivered model is refused: its predictions for this device's images are not finite"
            )
        before = self._accuracy_now(samples)
        if before is not None and found < before - MAX_DROP:
            raise ModelError(
                f"the delivered model is refused: on this device's own images it is right in {found:.1%}, "
                f"the one in service in {before:.1%}"
            )

    def _accuracy_now(self, samples: Samples) -> float | None:
        """Of the model in service; None: there is none, or it does not load."""
        try:
            return _accuracy(ClientModel(self.current), samples)
        except ModelError:
            return None

    def _samples(self, model: ClientModel) -> Samples:
        """The device's own; where it keeps none, noise without a class that is right."""
        if (self.path / SAMPLES).exists():
            return Samples.read(self.path)
        shape = (BATCH, *model.manifest.input_shape)
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return Samples(noise, np.full(BATCH, -1), noise)

    def _target(self, link: str) -> str | None:
        try:
            return (self.path / link).readlink().name
        except OSError:
            return None

    def _point(self, link: str, release: str) -> None:
        temporary = self.path / f".{link}.new"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(Path("releases") / release, target_is_directory=True)
            temporary.replace(self.path / link)
            folder = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise unwritable(self.path / link, error) from None

    def _prune(self) -> None:
        kept = {self._target("current"), self._target("previous")}
        for folder in (self.path / "releases").iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def _accuracy(model: ClientModel, samples: Samples) -> float | None:
    """Of the exit; None: it gives values that are not finite, or does not take these images."""
    if samples.held_out.shape[1:] != tuple(model.manifest.input_shape):
        return None
    right = 0
    count = min(TRIED, len(samples.labels))
    for start in range(0, count, BATCH):
        end = min(start + BATCH, count)
        features, logits = model(samples.held_out[start:end])
        if not (np.isfinite(features).all() and np.isfinite(logits).all()):
            return None
        right += int((logits.argmax(axis=1) == samples.labels[start:end]).sum())
    return right / max(count, 1)
