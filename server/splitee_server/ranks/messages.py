# SPDX-License-Identifier: Apache-2.0
"""Messages between rank 0 and the others; states are sent separately, as `parcels` packs them."""

from __future__ import annotations

import msgspec

from splitee.errors import Reason
from splitee.protocol.rounds import Participant, RoundOpen
from splitee.protocol.traffic import Traffic
from splitee_server.rounds.phase import DeviceProgress
from splitee_server.rounds.progress import Trained

POLL_EVERY = 0.02  # seconds between two polls for messages
POLL_EVERY_IN_STEP = 0.005  # if ranks wait for each other in each step


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The run is open.

    `client`: client id of rank 0 at the broker. `initial`: the run's initial weights follow, as a state.
    """

    client: str
    initial: bool


class Open(msgspec.Struct, frozen=True, tag=True):
    """A phase begins; `FleetModel.phase_state` follows, then `training_state` for each of `memories`.

    `number`: of this order. `spec`: a RunSpec. `participants`: those of this rank.
    """

    number: int
    spec: bytes
    opened: RoundOpen
    participants: dict[str, Participant]
    memories: tuple[str, ...]


class GoOnWithout(msgspec.Struct, frozen=True, tag=True):
    """The phase goes on without these devices."""

    devices: tuple[str, ...]


class JoinStep(msgspec.Struct, frozen=True, tag=True):
    """All batches of the open step have been worked on: each rank sends what `FleetModel.part_of_step` gives,
    receives what the step has changed, and opens the next one, `step`. `lanes`: the rank's first, and the one
    after its last.
    """

    step: int
    lanes: tuple[int, int]


class Acknowledge(msgspec.Struct, frozen=True, tag=True):
    """Repeat the acknowledgement of a device, which may have missed it, or whose batches may be lost."""

    device: str


class Collect(msgspec.Struct, frozen=True, tag=True):
    """The phase is over: send a state of each of these devices, in this order, then `Collected`."""

    devices: tuple[str, ...]


class End(msgspec.Struct, frozen=True, tag=True):
    """The run is over."""


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The phase of the order with this number is under way."""

    number: int


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Changes since the last message: `standings` by device, `refused` messages by device and reason.

    `duplicates`: batches that arrived twice. `trained`: by this process in total.
    """

    standings: dict[str, DeviceProgress]
    refused: list[tuple[str, Reason, int]]
    duplicates: int
    trained: Trained


class Collected(msgspec.Struct, frozen=True, tag=True):
    """The traffic of the rank's devices in this process, by device."""

    traffic: dict[str, Traffic]


class Gone(msgspec.Struct, frozen=True, tag=True):
    """The rank has received `End`."""


Order = Begin | Open | GoOnWithout | JoinStep | Acknowledge | Collect | End
Report = Opened | Progress | Collected | Gone
orders = msgspec.msgpack.Decoder(Order)
reports = msgspec.msgpack.Decoder(Report)
encode = msgspec.msgpack.Encoder().encode
