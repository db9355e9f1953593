# SPDX-License-Identifier: Apache-2.0
"""A device's models on disk: the one in service, the one before, and the switch between them.

`releases/ID/` holds each model directory. `current` and `previous` are links to two of them. `samples.npz`
has the device's own images, on which new models are tested. `trust.json` has the requirements for releases,
and `adopted` the release that the owner put into service last. A link is replaced by a rename, so that
readers of `current` see one whole model or the other.
"""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from splitee.cli.systemd import slow_disk
from splitee.durable import unwritable, write_atomically
from splitee.errors import MalformedMessage, ModelError, StateError, StateInUse
from splitee.inference.bundle import Bundle, pack_bundle
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import MANIFEST, ClientManifest, FileName, read_graph, read_manifest
from splitee.protocol.encoding import unpack
from splitee.protocol.inference import ModelOffer, ServedModel
from splitee.samples.storage import RELEASES, SAMPLES, load_region, save_region
from splitee.statistics import mcnemar_p_value
from splitee_device.inference.trial import TrialResult, try_model
from splitee_device.inference.trust import Expected, Trust

CHANCE = 0.025  # the new model is worse if equally good models differ as much with a lower probability

ADOPTED = "adopted"  # the release that its owner put into service last
TRIAL = "trial.json"  # in a release's folder: the result of its trial

log = logging.getLogger(__name__)


class _Trial(msgspec.Struct, frozen=True):
    """A trial and the digest of the images that were used; "": there were none."""

    images: str
    tried: TrialResult


class ModelStore:
    """The models of one device."""

    def __init__(self, path: Path, expected: Expected | None = None) -> None:
        """`expected`: what a device that has trained knows about its model.

        Raises StateError: it cannot be written.
        """
        self.path = path
        self.trust = Trust(path, expected)
        try:
            (path / RELEASES).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(f"model directory {path}: {error.strerror}; choose another --models") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the folder for the service of this process; `splitee rollback` and `trust` work meanwhile.

        Raises StateInUse: the service of another process uses it.
        """
        folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateInUse(
                    f"model directory {self.path} is in use by another process; stop it first"
                ) from None
            except OSError as error:  # on some network drives folders have no locks
                log.warning("model directory %s cannot be locked: %s", self.path, error.strerror)
            yield
        finally:
            os.close(folder)

    @property
    def current(self) -> Path:
        """The model directory in service; it may not exist yet."""
        return self.path / "current"

    @property
    def release(self) -> str | None:
        """The id of the release in service."""
        return self._target("current")

    def served(self) -> ServedModel | None:
        """The model in service, and since when; None: there is none, or its manifest is damaged."""
        release, link = self.release, self.current
        try:
            manifest = read_manifest(link, ClientManifest)
            since = link.lstat().st_mtime
        except (ModelError, OSError):
            return None
        return None if release is None else ServedModel(release, manifest.run, manifest.round, since)

    def adopt(self, directory: Path) -> str:
        """Puts an exported model into service at its owner's request, and keeps its samples and region.

        From then on, releases must match its structure. The model that was adopted last is not adopted again,
        so that later releases stay in service, however often the device starts.

        Returns:
            The release in service.

        Raises:
            ModelError: the model is not sound.
        """
        self.keep_samples(directory / SAMPLES)
        save_region(self.path, load_region(directory))
        if (serves := self.release) is not None and self._has_adopted(directory) and self._is_intact():
            return serves
        device, bundle = read_manifest(directory, ClientManifest).device, pack_bundle(directory)
        release = self._install(bundle, device, by_owner=True)
        write_atomically(self.path / ADOPTED, release.encode())
        return release

    def keep_samples(self, samples: Path) -> None:
        """Tests new models on these images from now on, if the file exists. Raises StateError."""
        kept = self.path / SAMPLES
        if samples.exists() and not (kept.exists() and filecmp.cmp(samples, kept, shallow=False)):
            write_atomically(kept, samples.read_bytes())

    def _has_adopted(self, directory: Path) -> bool:
        """Whether this exported model is the one that was adopted last.

        It compares manifests, which have the graph's digest, or the bundle's digest if the release is gone.
        """
        try:
            adopted = (self.path / ADOPTED).read_text(errors="replace")
        except OSError:
            return False
        if not re.fullmatch("[0-9a-f]{64}", adopted):
            return False
        kept, named = self.path / RELEASES / adopted / MANIFEST, directory / MANIFEST
        if kept.exists() and named.exists():
            return filecmp.cmp(kept, named, shallow=False)
        return hashlib.sha256(pack_bundle(directory)).hexdigest() == adopted

    def _is_intact(self) -> bool:
        """Whether the files of the model in service are those that were delivered."""
        try:
            manifest = read_manifest(self.current, ClientManifest)
            read_graph(self.current, manifest.file, manifest.sha256)
        except ModelError:
            return False
        return True

    def install(self, bundle: bytes, device: str, *, signed: ModelOffer | None = None) -> str:
        """Checks and tests a released bundle, and puts it into service; returns its release.

        Args:
            signed: the offer, if the fleet has signed it.

        Raises ModelError: it is damaged, of another device, run or network than it should be, differs from
        what is pinned, does not load, or predicts worse than the model in service, which then stays.
        """
        if signed is not None and self.trust.has_taken(signed.release, signed.signed_at):
            raise ModelError("the delivered model is refused: a newer signed release was accepted before it")
        return self._install(bundle, device, signed=signed)

    def _install(
        self, bundle: bytes, device: str, *, signed: ModelOffer | None = None, by_owner: bool = False
    ) -> str:
        release = hashlib.sha256(bundle).hexdigest()
        folder = self.path / RELEASES / release
        if self.release == release and self._is_intact():
            if signed is not None:
                self.trust.note_signature(signed.signed_at)
            return release
        try:
            manifest = self._unpack(bundle, folder)
            _check_address(manifest, device, signed.run if signed else None)
            if not by_owner:
                self._pin_in_service()
                self.trust.check_model(manifest)
            tried = self._try(folder, manifest.file)
            assert tried.structure is not None
            if not by_owner:
                self.trust.check_graph(manifest, tried.structure)
            self._compare(manifest, tried)
        except ModelError as error:
            if release != self._target("previous"):
                shutil.rmtree(folder, ignore_errors=True)
            raise ModelError(f"the delivered model is refused: {error}") from None
        self.trust.pin(manifest, tried.structure, signed)
        before = self.release
        if before not in (None, release):
            self._point("previous", before)
        self._point("current", release)
        self.trust.finish()
        self._prune()
        log.info("model %s is in service", release[:12])
        return release

    def roll_back(self) -> str:
        """Puts the previous model into service; returns its release. Raises ModelError: there is none."""
        before, now = self._target("previous"), self._target("current")
        if before is None or not (self.path / RELEASES / before / MANIFEST).exists():
            raise ModelError(f"{self.path} keeps no model from before the one in service")
        self.trust.finish()
        self._point("current", before)
        if now is not None:
            self._point("previous", now)
        log.warning("model %s is in service again", before[:12])
        return before

    def load(self, threads: int | None = None) -> ClientModel:
        """Loads the model in service. If it does not load, the previous one is put back and loaded.

        Raises ModelError: neither loads. If its files are damaged, no model is in service any more.
        """
        try:
            return ClientModel(self.current, threads=threads)
        except ModelError as error:
            log.warning("%s", error)
        try:
            if self._target("previous") is not None:
                self.roll_back()
            return ClientModel(self.current, threads=threads)
        except ModelError:
            if not self._is_intact():
                if (lost := self.release) is not None:
                    self.trust.expect_again(lost)
                self.current.unlink(missing_ok=True)
            raise

    def _unpack(self, bundle: bytes, folder: Path) -> ClientManifest:
        try:
            files = unpack(bundle, Bundle)
            manifest = msgspec.json.decode(files.manifest, type=ClientManifest)
            name = msgspec.convert(manifest.file, FileName)
        except (MalformedMessage, msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ModelError(str(error)) from None
        folder.mkdir(exist_ok=True)
        write_atomically(folder / name, files.graph)
        write_atomically(folder / MANIFEST, files.manifest)
        return manifest

    def _try(self, folder: Path, file: str) -> TrialResult:
        """The trial of a model; it is not repeated on the same images."""
        samples = self.path / SAMPLES
        images = hashlib.sha256(samples.read_bytes()).hexdigest() if samples.exists() else ""
        kept = folder / TRIAL
        with suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError):
            known = msgspec.json.decode(kept.read_bytes(), type=_Trial)
            if known.images == images:
                return known.tried
        tried = try_model(folder, file, samples)
        write_atomically(kept, msgspec.json.encode(_Trial(images, tried)))
        return tried

    def _in_service(self) -> TrialResult | None:
        """The trial of the model in service; None: there is none, or it is no longer sound."""
        if not self._is_intact():
            return None
        try:
            return self._try(self.current, read_manifest(self.current, ClientManifest).file)
        except ModelError:
            return None

    def _pin_in_service(self) -> None:
        """Pins a model that its owner put into service before there were pins."""
        if self.trust.is_new and (tried := self._in_service()) is not None:
            assert tried.structure is not None
            self.trust.pin(read_manifest(self.current, ClientManifest), tried.structure)

    def _compare(self, manifest: ClientManifest, tried: TrialResult) -> None:
        """Raises ModelError: it is worse than the model in service, on the images that both were tested on.

        A model with another number of classes is not compared, because it numbers the classes differently.

        It must be worse beyond chance: by McNemar's exact test of the images that only one of the two gets
        right.
        """
        serves = self._in_service()
        count = min(len(tried.hits), len(serves.hits)) if serves is not None else 0
        if serves is None or not count or self._has_other_classes(manifest):
            return
        both = list(zip(serves.hits[:count], tried.hits[:count], strict=True))
        losses, gains = both.count((True, False)), both.count((False, True))
        chance = mcnemar_p_value(losses, gains)
        if chance < CHANCE:
            found, before = (sum(hits[:count]) / count for hits in (tried.hits, serves.hits))
            raise ModelError(
                f"on {count} of this device's own images it is right in {found:.1%}, the one in service in "
                f"{before:.1%}: {losses} are lost and {gains} gained, which equally good models show with a "
                f"chance of {chance:.2g}"
            )

    def _has_other_classes(self, manifest: ClientManifest) -> bool:
        """Whether it has another number of classes than the model in service."""
        serves = read_manifest(self.current, ClientManifest)
        return len(manifest.class_names) != len(serves.class_names)

    def _target(self, link: str) -> str | None:
        try:
            return (self.path / link).readlink().name
        except OSError:
            return None

    def _point(self, link: str, release: str) -> None:
        temporary = self.path / f".{link}.new"
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(Path(RELEASES) / release, target_is_directory=True)
            temporary.replace(self.path / link)
            folder = os.open(self.path, os.O_RDONLY)
            try:
                with slow_disk():
                    os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise unwritable(self.path / link, error) from None

    def _prune(self) -> None:
        kept = {self._target("current"), self._target("previous")}
        for folder in (self.path / RELEASES).iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def _check_address(manifest: ClientManifest, device: str, run: str | None) -> None:
    """Raises ModelError: the model is not for this device, or not of the run that was signed."""
    if manifest.device != device:
        raise ModelError(f"it is of {manifest.device}, not {device}")
    if run is not None and manifest.run != run:
        raise ModelError(f"it is of run {manifest.run}, the signature of run {run}")
