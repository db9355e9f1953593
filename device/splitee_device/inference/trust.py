# SPDX-License-Identifier: Apache-2.0
"""What a device requires of releases: the network of its owner's first one, and a newer signature.

Over the air only weights may change. The first release that is accepted pins the network, its input and its
classes, and for each cut the structure of the graph. Only a device that has itself trained other classes,
from its owner's class folders, accepts them; then the graphs are pinned again. `trust.json` beside the models
has it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec.structs import replace

from splitee.durable import write_atomically
from splitee.errors import ModelError, StateError
from splitee.inference.manifest import ClientManifest
from splitee.inference.structure import Structure
from splitee.protocol.fields import Count, Digest, Milliseconds, Positive, Text
from splitee.protocol.inference import ModelOffer

FILE = "trust.json"
HINT = "if that is meant, `splitee trust --forget` on the device lets the next release set what is trusted"


class Graphs(msgspec.Struct, frozen=True, omit_defaults=True):
    """Pinned digests of one cut's structure. "": there was no such graph."""

    layers: Digest
    fp32: str = ""
    int8: str = ""


class Trusted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is pinned.

    Attributes:
        network: name of the network; "": nothing is pinned.
        classes: their number.
        input_shape: of an image.
        graphs: by cut.
        signed_at: of the newest signed release that was accepted, milliseconds since the epoch; 0: none.
        unfinished: this release, while it is being put into service or after its files were damaged: it may
            come again.
    """

    network: Text = ""
    classes: Count = 0
    input_shape: Annotated[tuple[Positive, ...], msgspec.Meta(max_length=5)] = ()
    graphs: dict[int, Graphs] = {}
    signed_at: Milliseconds = 0
    unfinished: str = ""


@dataclass(frozen=True)
class Expected:
    """What a device that has trained knows about the model that it is to receive.

    Attributes:
        cuts: those that it had.
        class_names: of its own images; empty: unknown.
    """

    network: str
    input_shape: tuple[int, ...]
    cuts: frozenset[int] = field(default_factory=frozenset)
    class_names: tuple[str, ...] = ()


class Trust:
    """The pins of one device's models. They are read from the file each time."""

    def __init__(self, folder: Path, expected: Expected | None = None) -> None:
        """`expected`: None for a device that has not trained."""
        self._path = folder / FILE
        self._expected = expected

    @property
    def is_new(self) -> bool:
        """Whether nothing has ever been pinned or forgotten here."""
        return not self._path.exists()

    def read(self) -> Trusted:
        """Raises ModelError: the file is damaged; then nothing is trusted."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Trusted)
        except FileNotFoundError:
            return Trusted()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ModelError(f"{self._path} cannot be read ({error}): no release is taken; {HINT}") from None

    def forget(self) -> None:
        """The next release sets the requirements, whatever is in service."""
        self._write(Trusted())

    def check_model(self, manifest: ClientManifest) -> None:
        """Raises ModelError: the release is of another network, has other classes, or has a cut that this
        device never had.
        """
        pinned, expected = self.read(), self._expected
        offered = manifest.network, tuple(manifest.input_shape)
        if expected is not None and (offered != (expected.network, expected.input_shape)):
            raise ModelError(
                f"it is {_describe(*offered)}, this device has trained {_describe(*_of(expected))}"
            )
        classes = pinned.classes
        if expected is not None and manifest.class_names == expected.class_names:
            classes = len(expected.class_names)
        if pinned.network and (*offered, len(manifest.class_names)) != (*_of(pinned), classes):
            raise ModelError(
                f"it is {_describe(*offered)} and {len(manifest.class_names)} classes, this device's model "
                f"{_describe(*_of(pinned))} and {pinned.classes}; {HINT}"
            )
        if expected is None:
            is_known = not pinned.network or manifest.cut in pinned.graphs
        else:
            is_known = manifest.cut in expected.cuts
        if not is_known:
            raise ModelError(f"it is cut at {manifest.cut}, where this device was never cut; {HINT}")

    def check_graph(self, manifest: ClientManifest, structure: Structure) -> None:
        """Raises ModelError: the graph differs from the pinned one in more than its weights."""
        known, cut = self.read(), manifest.cut
        pinned = known.graphs.get(cut)
        if pinned is None or known.classes != len(manifest.class_names):
            return
        exact = pinned.int8 if structure.is_int8 else pinned.fp32
        if structure.layers != pinned.layers or exact not in ("", structure.exact):
            raise ModelError(
                f"its graph differs in more than weights from this device's at cut {cut}; {HINT}"
            )

    def has_taken(self, release: str, signed_at: int) -> bool:
        """Whether a release with this signature, or a newer one, was accepted and put into service."""
        known = self.read()
        if signed_at == known.signed_at and release == known.unfinished:
            return False
        return signed_at <= known.signed_at

    def pin(self, manifest: ClientManifest, structure: Structure, signed: ModelOffer | None = None) -> None:
        """From now on releases must match this one. It replaces the pins of the same cut and kind.

        Args:
            signed: its offer, if the fleet has signed it: no older one is accepted any more, even if a kill
                comes before it is in service. `finish` follows once it is.
        """
        known, network = self.read(), (manifest.network, tuple(manifest.input_shape))
        if (*network, len(manifest.class_names)) != (*_of(known), known.classes):
            known = Trusted(signed_at=known.signed_at)
        before = known.graphs.get(manifest.cut)
        if before is None or before.layers != structure.layers:
            before = Graphs(structure.layers)
        exact = {"int8" if structure.is_int8 else "fp32": structure.exact}
        self._write(
            replace(
                known,
                network=network[0],
                classes=len(manifest.class_names),
                input_shape=network[1],
                graphs={**known.graphs, manifest.cut: replace(before, **exact)},
                signed_at=known.signed_at if signed is None else signed.signed_at,
                unfinished="" if signed is None else signed.release,
            )
        )

    def expect_again(self, release: str) -> None:
        """`release` is lost: its offer may bring it again, if it has the newest signature.

        If the file cannot be read or written, it may not.
        """
        with suppress(ModelError, StateError):
            if (known := self.read()).signed_at:
                self._write(replace(known, unfinished=release))

    def finish(self) -> None:
        """The release of the newest signature is in service, or was: it may not come again.

        If the file cannot be written, it may once it is no longer in service.
        """
        with suppress(ModelError, StateError):
            if (known := self.read()).unfinished:
                self._write(replace(known, unfinished=""))

    def note_signature(self, signed_at: int) -> None:
        """From now on no release is accepted that was signed before this one."""
        self._write(replace(self.read(), signed_at=signed_at, unfinished=""))

    def _write(self, trusted: Trusted) -> None:
        write_atomically(self._path, msgspec.json.format(msgspec.json.encode(trusted), indent=1))


def _of(known: Trusted | Expected) -> tuple[str, tuple[int, ...]]:
    return known.network, known.input_shape


def _describe(network: str, shape: tuple[int, ...]) -> str:
    return f"{network} for {'x'.join(map(str, shape))}"
