# SPDX-License-Identifier: Apache-2.0
"""What rank 0 tells the others, and they it; states follow apart, as `parcels` packs them."""

from __future__ import annotations

import msgspec

from splitee.errors import Reason
from splitee.protocol.rounds import Participant, RoundOpen
from splitee.protocol.traffic import Traffic
from splitee_server.rounds.phase import Standing
from splitee_server.rounds.progress import Trained

LOOK = 0.02  # seconds between two looks for messages
LOOK_IN_STEP = 0.005  # where ranks wait for each other in each step


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The run is open.

    `client`: id of rank 0 at the broker. `initial`: the weights that the run begins from
    follow, as a state.
    """

    client: str
    initial: bool


class Open(msgspec.Struct, frozen=True, tag=True):
    """A phase begins; what `FleetModel.lend` gives follows, then `lend_memory` of each of `memories`.

    `number`: of this order. `spec`: a RunSpec. `participants`: those that are the rank's.
    """

    number: int
    spec: bytes
    opened: RoundOpen
    participants: dict[str, Participant]
    memories: tuple[str, ...]


class GoOnWithout(msgspec.Struct, frozen=True, tag=True):
    """Devices take no part in the phase any longer."""

    devices: tuple[str, ...]


class JoinStep(msgspec.Struct, frozen=True, tag=True):
    """All batches of the open step have been worked on: each rank sends what `FleetModel.part_of_step` gives,
    receives what the step has changed, and opens the next one, `step`. `lanes`: the rank's first, and the one
    behind its last.
    """

    step: int
    lanes: tuple[int, int]


class Acknowledge(msgspec.Struct, frozen=True, tag=True):
    """A device has not heard the last acknowledgement, or what it has sent may be lost: say it again."""

    device: str


class Collect(msgspec.Struct, frozen=True, tag=True):
    """The phase is over: a state of each of these devices is to follow, in this order, and `Collected`."""

    devices: tuple[str, ...]


class End(msgspec.Struct, frozen=True, tag=True):
    """The run is over."""


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The phase of the order with this number is under way."""

    number: int


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What has changed since the last word: by device; `refused`: messages by device and reason.

    `duplicates`: batches that came twice. `trained`: by this process in all.
    """

    standings: dict[str, Standing]
    refused: list[tuple[str, Reason, int]]
    duplicates: int
    trained: Trained


class Collected(msgspec.Struct, frozen=True, tag=True):
    """What has travelled to and from the rank's devices in this process, by device."""

    traffic: dict[str, Traffic]


class Gone(msgspec.Struct, frozen=True, tag=True):
    """The rank has heard of the end."""


Order = Begin | Open | GoOnWithout | JoinStep | Acknowledge | Collect | End
Word = Opened | Progress | Collected | Gone
orders = msgspec.msgpack.Decoder(Order)
words = msgspec.msgpack.Decoder(Word)
encode = msgspec.msgpack.Encoder().encode
