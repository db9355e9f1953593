# SPDX-License-Identifier: Apache-2.0
"""An operator's orders about releases, sent with the server's identity by `splitee release`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from splitee.protocol.encoding import JsonMessage, PackedMessage
from splitee.protocol.fields import (
    LARGEST_RELEASE,
    Count,
    Digest,
    Milliseconds,
    Name,
    NonNegative,
    ReleaseKind,
    Signature,
    Text,
    Version,
)
from splitee.protocol.rollouts import MOST_WAVES

MOST_DEVICES = 10_000  # of a rollout
LARGEST_PLAN = 64 << 20  # bytes
LATE_AFTER = 3600.0  # seconds
LONGEST_HEAD = 1 << 20  # bytes of a bundle before its file

OrderAction = Literal["release", "pause", "resume", "stop", "roll back"]
SHARE = r"^([0-9]{1,7}|(100|[0-9]{1,2}(\.[0-9]{1,3})?)%)\Z"  # a count of devices, or a share of them


class PlannedFile(msgspec.Struct, frozen=True):
    """A file of a plan; the releases of several devices may share it.

    Attributes:
        sha256: SHA-256 of its bytes.
        size: size in bytes.
    """

    sha256: Digest
    size: Annotated[int, Meta(ge=1, le=LARGEST_RELEASE)]


class PlannedRelease(msgspec.Struct, frozen=True, omit_defaults=True):
    """The release for one device: a bundle, which is `head` followed by a file.

    Attributes:
        device: the device.
        release: SHA-256 of the bundle.
        file: SHA-256 of the file.
        head: bytes of the bundle before the file.
        run: run that the model comes from.
        version: version of the release, for people; the signature of software includes it.
        signed_at: `signed_at` of the offer: milliseconds since the epoch, by the signer's clock.
        signature: signature of the offer; "": none.
        back_signature: signature of the offer to roll back, with a `signed_at` one millisecond later.
    """

    device: Name
    release: Digest
    file: Digest
    head: Annotated[bytes, Meta(max_length=LONGEST_HEAD)] = b""
    run: Text = ""
    version: Version = ""
    signed_at: Milliseconds = 0
    signature: Signature = ""
    back_signature: Signature = ""


class RolloutPlan(PackedMessage, frozen=True):
    """A rollout as an operator orders it.

    Attributes:
        rollout: its name.
        kind: kind of release.
        version: version that is released, for people.
        expires: seconds after which the release is offered to no device.
        waves: devices up to and including each wave, as a count or a share of all.
        max_failures: failures above which it stops, as a count or a share of all.
        soak: seconds without a failure between two waves.
        late_after: seconds for which a device that is online and has not decided may delay the next wave.
        files: the files, each once.
        releases: one per device.
    """

    rollout: Name
    kind: ReleaseKind
    expires: Annotated[float, Meta(gt=0, le=315_360_000)]
    files: Annotated[tuple[PlannedFile, ...], Meta(min_length=1, max_length=MOST_DEVICES)]
    releases: Annotated[tuple[PlannedRelease, ...], Meta(min_length=1, max_length=MOST_DEVICES)]
    version: Version = ""
    waves: Annotated[
        tuple[Annotated[str, Meta(pattern=SHARE)], ...], Meta(min_length=1, max_length=MOST_WAVES)
    ] = ("100%",)
    max_failures: Annotated[str, Meta(pattern=SHARE)] = "0"
    soak: NonNegative = 60.0
    late_after: Annotated[float, Meta(gt=0, le=315_360_000)] = LATE_AFTER


class ReleaseOrder(JsonMessage, frozen=True):
    """An operator's order. It may arrive several times, and is carried out once.

    Attributes:
        request: number of the order, which the replies repeat.
        action: what the server is to do.
        rollout: name of the rollout.
        plan: SHA-256 of the `RolloutPlan` for the action `release`; "": none.
        plan_size: bytes of the plan.
    """

    request: Count
    action: OrderAction
    rollout: Annotated[str, Meta(max_length=64)] = ""
    plan: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    plan_size: Annotated[int, Meta(ge=0, le=LARGEST_PLAN)] = 0


class ReleaseUpload(PackedMessage, frozen=True):
    """Bytes of a plan or of one of its files.

    Attributes:
        request: number of the order.
        sha256: SHA-256 of the whole plan or file.
        offset: position of the first byte.
        data: the bytes.
    """

    request: Count
    sha256: Digest
    offset: Annotated[int, Meta(ge=0, le=LARGEST_RELEASE)]
    data: Annotated[bytes, Meta(min_length=1)]


class ReleaseReply(JsonMessage, frozen=True):
    """The server's reply to an order.

    Attributes:
        request: number of the order.
        want: SHA-256 of the plan or file that the server needs; "": none, the order is done or refused.
        offset: bytes of it that the server has.
        code: exit code for the operator's command; 0: the order is carried out.
        message: one line for people.
    """

    request: Count
    want: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    offset: Annotated[int, Meta(ge=0, le=LARGEST_RELEASE)] = 0
    code: Annotated[int, Meta(ge=0, le=255)] = 0
    message: Text = ""
