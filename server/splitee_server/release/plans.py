# SPDX-License-Identifier: Apache-2.0
"""Makes the plan of a rollout, and lists its files, from exported models or a file of software."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from splitee.errors import ConfigError, ModelError, SoftwareError
from splitee.inference.bundle import bundle_head
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.inference.signatures import ReleaseSigner
from splitee.protocol.fields import LARGEST_RELEASE, ReleaseKind
from splitee.protocol.inference import ModelOffer, SoftwareOffer
from splitee.protocol.release_orders import LATE_AFTER, MOST_DEVICES, PlannedFile, PlannedRelease, RolloutPlan
from splitee.protocol.topics import NAME
from splitee.software.wheelhouse import SoftwareManifest, unverified_manifest
from splitee_server.release.wave_sizes import wave_sizes


@dataclass(frozen=True)
class RolloutPolicy:
    """How a rollout goes through the fleet.

    Attributes:
        waves: devices up to each wave, as counts or shares.
        max_failures: above which it stops, as a count or a share.
        soak: seconds without a failure between two waves.
        expires: seconds after which nobody is offered it any more.
        late_after: seconds for which a device that is online and undecided may delay the next wave.
    """

    waves: tuple[str, ...] = ("100%",)
    max_failures: str = "0"
    soak: float = 60.0
    expires: float = 30 * 86400.0
    late_after: float = LATE_AFTER


AT_ONCE = RolloutPolicy(max_failures="100%", soak=0.0)  # to all devices; failures of some do not stop it


@dataclass
class Content:
    """What is released: each device's bundle, and the paths of the bundles' files."""

    kind: ReleaseKind
    version: str
    releases: list[PlannedRelease] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)

    def plan(self, rollout: str, policy: RolloutPolicy) -> RolloutPlan:
        """Raises ConfigError: a wave does not fit the devices, or there are too many of them."""
        if len(self.releases) > MOST_DEVICES:
            raise ConfigError(
                f"a release goes to at most {MOST_DEVICES} devices, and these are {len(self.releases)}: "
                "release it to some of them at a time"
            )
        wave_sizes(policy.waves, len(self.releases))
        return RolloutPlan(
            rollout=rollout,
            kind=self.kind,
            version=self.version[:200],
            expires=policy.expires,
            waves=policy.waves,
            max_failures=policy.max_failures,
            soak=policy.soak,
            late_after=policy.late_after,
            files=tuple(PlannedFile(digest, size) for digest, size in self.sizes.items()),
            releases=tuple(self.releases),
        )


def models(paths: Sequence[Path], fleet: str, signer: ReleaseSigner | None) -> Content:
    """Exported model directories, each for its device. Raises ModelError: one is missing or damaged."""
    content = Content("model", "")
    versions, devices = [], set()
    for path in paths:
        manifest = read_manifest(path, ClientManifest)
        head, graph = bundle_head(path, manifest)
        digest = manifest.sha256[manifest.file]
        release = PlannedRelease(
            manifest.device,
            hashlib.sha256(head + graph).hexdigest(),
            digest,
            head,
            manifest.run,
            version_of(manifest.run, manifest.round),
        )
        if release.device in devices:
            raise ModelError(f"{path}: there is a second model for {release.device}; name one a device")
        devices.add(release.device)
        if signer is not None:
            release = _signed(
                release, ModelOffer(release=release.release, size=1, run=release.run), signer, fleet
            )
        content.releases.append(release)
        content.sizes[digest], content.paths[digest] = len(graph), path / manifest.file
        versions.append(release.version)
    content.version = versions[0] if len(set(versions)) == 1 else "models of several rounds"
    return content


def software(path: Path, devices: Sequence[str], fleet: str, signer: ReleaseSigner | None) -> Content:
    """A file of software, the same for all devices.

    Raises:
        ConfigError: there is no signer, or no device.
        ModelError: it cannot be read, or is too large.
        SoftwareError: it is no file of software, or damaged.
    """
    if signer is None:
        raise ConfigError(f"{path}: devices take software only signed: name --signing-key")
    if not devices:
        raise ConfigError(f"{path}: there is no device that it is for; name some by --devices ID,ID")
    version = software_manifest(path).version
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    if not 0 < size <= LARGEST_RELEASE:
        raise ModelError(f"{path}: {size} bytes; a release has from 1 to {LARGEST_RELEASE}")
    content = Content("software", version, sizes={digest: size}, paths={digest: path})
    for device in devices:
        release = PlannedRelease(device, digest, digest, version=version)
        offer = SoftwareOffer(release=digest, size=size, version=version)
        content.releases.append(_signed(release, offer, signer, fleet))
    return content


def software_manifest(path: Path) -> SoftwareManifest:
    """The manifest in a file of software, unverified: devices check its signature.

    Raises:
        ModelError: it cannot be read.
        SoftwareError: it is no file of software, or damaged.
    """
    try:
        with path.open("rb") as file:
            return unverified_manifest(file)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from None
    except SoftwareError as error:
        raise SoftwareError(f"{path}: {error}") from None


def version_of(run: str, number: int) -> str:
    """A model's version, for people."""
    return f"{run} round {number}"[:200]


def rollout_name(text: str) -> str:
    """A name for a rollout from any text."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:64].lstrip("_.-")
    return name if NAME.fullmatch(name) else "release"


def _signed(
    release: PlannedRelease, offer: ModelOffer | SoftwareOffer, signer: ReleaseSigner, fleet: str
) -> PlannedRelease:
    """The release with the signatures of its offer and of its roll-back: who signs one allows the other.

    The roll-back is dated a millisecond later, so it undoes this release, and none that is signed after it.
    """
    there = signer.sign(offer, fleet, release.device)
    back = signer.sign(
        msgspec.structs.replace(offer, action="roll back"), fleet, release.device, at=there.signed_at + 1
    )
    return msgspec.structs.replace(
        release, signed_at=there.signed_at, signature=there.signature, back_signature=back.signature
    )
