# SPDX-License-Identifier: Apache-2.0
"""Every route of a fleet: which message travels on which topic, who sends it, and who reads it.

Dispatch, the fleet view, the test of the broker's access list and the fuzzers all use this table.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from splitee.mqtt.events import Message
from splitee.protocol.encoding import MAX_PACKED, JsonMessage, PackedMessage
from splitee.protocol.fields import Phase, Purpose, ReleaseKind
from splitee.protocol.fleet import (
    DeviceFigures,
    DeviceStatus,
    Dismissal,
    DismissalReply,
    ErrorReport,
    Metrics,
    Profile,
    ServerClaim,
    ServerStatus,
)
from splitee.protocol.inference import (
    InferReply,
    InferRequest,
    ModelOffer,
    ModelReport,
    PredictedState,
    PredictionReport,
    ReleasePart,
    ReleaseWant,
    Serving,
    SoftwareOffer,
    SoftwareReport,
)
from splitee.protocol.overview import DeviceHistory, FleetConfusion, History, NetworkStages, Timing
from splitee.protocol.release_orders import ReleaseOrder, ReleaseReply, ReleaseUpload
from splitee.protocol.rollouts import DeviceUpdate, Install, Rollouts
from splitee.protocol.rounds import (
    Ack,
    Assignment,
    Commit,
    Features,
    Participation,
    RoundDone,
    RoundOpen,
    SoftLabelRows,
    Sync,
    Weights,
)
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.seasons import Seasons
from splitee.protocol.topics import Topics

Party = Literal["device", "server", "viewer", "homeassistant"]
DEVICES = "devices/+/"
MAX_REQUEST = 64 << 20  # bytes of an InferRequest
LONGEST_TOPIC = 300  # characters; with the longest names of fleet and device a route's has fewer
LARGEST_WHOLE = (
    32 << 10
)  # bytes of the largest message without parts: server/status with 300 ids of 64 characters


@dataclass(frozen=True)
class Route:
    """One topic below `splitee/v1/FLEET`; `+` stands for the device.

    Args:
        readers: who may read it at the broker; viewers and Home Assistant only watch.
        parts: a message may travel in numbered parts.
        limit: bytes of the largest message, after its parts are joined.
        purpose: purpose of its bytes; for batches and statistics see `purpose_in`.
    """

    path: str
    message: type[JsonMessage] | type[PackedMessage]
    sender: Party
    readers: tuple[Party, ...]
    retained: bool = False
    parts: bool = False
    limit: int = MAX_PACKED
    purpose: Purpose = "protocol"

    @property
    def leaf(self) -> str:
        """The path below the device; of a topic that is no device's, the whole path."""
        return self.path.removeprefix(DEVICES)

    @property
    def of_device(self) -> bool:
        return self.path.startswith(DEVICES)

    def purpose_in(self, phase: Phase) -> Purpose:
        """The purpose of this route's bytes during `phase`."""
        if self.message is Features:
            return _OF_BATCHES[phase]
        if self.message is Weights and self.sender == "device" and phase == "statistics":
            return "statistics"
        return self.purpose

    def topic(self, topics: Topics, device: str = "+") -> str:
        """The topic of a device, or the filter for all devices; of other routes their only topic."""
        return topics.device(device, self.leaf) if self.of_device else f"{topics.base}/{self.path}"


_OF_BATCHES: Mapping[Phase, Purpose] = {
    "train": "training",
    "statistics": "statistics",
    "evaluate": "evaluation",
}
DEVICES_AND_VIEWERS: tuple[Party, ...] = ("device", "viewer")
VIEWERS: tuple[Party, ...] = ("viewer",)
RUN = Route("run", RunSpec, "server", DEVICES_AND_VIEWERS, retained=True)
ROUND = Route("round", RoundOpen, "server", DEVICES_AND_VIEWERS, retained=True)
COMMIT = Route("commit", Commit, "server", DEVICES_AND_VIEWERS, retained=True)
METRICS = Route("metrics", Metrics, "server", DEVICES_AND_VIEWERS, retained=True)
SEASONS = Route("seasons", Seasons, "server", ("viewer",), retained=True)
SERVER_STATUS = Route(
    "server/status", ServerStatus, "server", ("server", *DEVICES_AND_VIEWERS), retained=True
)
SERVER_CLAIM = Route("server/claim", ServerClaim, "server", ("server",))
DISMISS = Route("server/dismiss", Dismissal, "server", ("server",))  # an operator, with the server's identity
DISMISSED = Route("server/dismissed", DismissalReply, "server", ("server",))
RELEASE = Route("server/release", ReleaseOrder, "server", ("server",))  # likewise
RELEASE_UPLOAD = Route("server/release-upload", ReleaseUpload, "server", ("server",), purpose="models")
RELEASED = Route("server/released", ReleaseReply, "server", ("server",))

TIMING = Route("server/timing", Timing, "server", VIEWERS, retained=True)
NETWORK = Route("server/network", NetworkStages, "server", VIEWERS, retained=True)
HISTORY = Route("server/history", History, "server", VIEWERS, retained=True)
CONFUSION = Route("server/confusion", FleetConfusion, "server", VIEWERS, retained=True)

STATUS = Route(
    "devices/+/status",
    DeviceStatus,
    "device",
    ("server", "device", "viewer", "homeassistant"),
    retained=True,
)
PROFILE = Route("devices/+/profile", Profile, "device", ("server", "viewer"), retained=True)
FIGURES = Route("devices/+/metrics", DeviceFigures, "server", ("viewer", "homeassistant"), retained=True)
DEVICE_HISTORY = Route("devices/+/history", DeviceHistory, "server", VIEWERS, retained=True)
FEATURES = Route("devices/+/features", Features, "device", ("server",), parts=True, purpose="training")
ROUND_DONE = Route("devices/+/round-done", RoundDone, "device", ("server",))
WEIGHTS = Route("devices/+/weights", Weights, "device", ("server",), parts=True, purpose="client_networks")
SYNC = Route("devices/+/sync", Sync, "device", ("server",))
INFER = Route(
    "devices/+/infer",
    InferRequest,
    "device",
    ("server",),
    parts=True,
    limit=MAX_REQUEST,
    purpose="offload",
)
PREDICTIONS = Route("devices/+/predictions", PredictionReport, "device", ("server", "homeassistant"))
MODEL_WANT = Route("devices/+/model-want", ReleaseWant, "device", ("server",))
MODEL_REPORT = Route("devices/+/model", ModelReport, "device", ("server", "viewer"), retained=True)
SOFTWARE_WANT = Route("devices/+/software-want", ReleaseWant, "device", ("server",))
SOFTWARE_REPORT = Route("devices/+/software", SoftwareReport, "device", ("server",), retained=True)
SERVING = Route("devices/+/serving", Serving, "device", ("server", "viewer", "homeassistant"), retained=True)
PREDICTED_STATE = Route(
    "devices/+/state", PredictedState, "device", ("viewer", "homeassistant"), retained=True
)
ROLLOUTS = Route("rollouts", Rollouts, "server", VIEWERS, retained=True)
DEVICE_UPDATE = Route("devices/+/update", DeviceUpdate, "server", ("viewer", "homeassistant"), retained=True)
INSTALL = Route("devices/+/install", Install, "homeassistant", ("server",))

ASSIGNMENT = Route("devices/+/inbox/plan", Assignment, "server", ("device",), retained=True)
PARTICIPATION = Route(
    "devices/+/inbox/participation", Participation, "server", ("device", "viewer"), retained=True
)
ACK = Route("devices/+/inbox/ack", Ack, "server", ("device",))
ERROR = Route("devices/+/inbox/error", ErrorReport, "server", ("device",))
HELD_WEIGHTS = Route(
    "devices/+/inbox/weights", Weights, "server", ("device",), parts=True, purpose="client_networks"
)
SOFT_LABELS = Route(
    "devices/+/inbox/soft-labels", SoftLabelRows, "server", ("device",), parts=True, purpose="soft_labels"
)
MODEL_OFFER = Route("devices/+/inbox/model", ModelOffer, "server", DEVICES_AND_VIEWERS, retained=True)
MODEL_PART = Route("devices/+/inbox/model-part", ReleasePart, "server", ("device",), purpose="models")
SOFTWARE_OFFER = Route("devices/+/inbox/software", SoftwareOffer, "server", ("device",), retained=True)
SOFTWARE_PART = Route("devices/+/inbox/software-part", ReleasePart, "server", ("device",), purpose="models")
INFER_REPLY = Route(
    "devices/+/inbox/answer", InferReply, "server", ("device",), parts=True, purpose="offload"
)


@dataclass(frozen=True)
class ReleaseRoutes:
    """The routes by which one kind of release reaches a device."""

    offer: Route
    want: Route
    part: Route
    report: Route


RELEASES: Mapping[ReleaseKind, ReleaseRoutes] = {
    "model": ReleaseRoutes(MODEL_OFFER, MODEL_WANT, MODEL_PART, MODEL_REPORT),
    "software": ReleaseRoutes(SOFTWARE_OFFER, SOFTWARE_WANT, SOFTWARE_PART, SOFTWARE_REPORT),
}
ROUTES: tuple[Route, ...] = tuple(value for value in globals().values() if isinstance(value, Route))
_BY_LEAF = {route.leaf: route for route in ROUTES if route.of_device}
_BY_PATH = {route.path: route for route in ROUTES if not route.of_device}


def find_route(topics: Topics, topic: str) -> tuple[Route, str] | None:
    """The route of a topic and its device, or "" if it is no device's; None: not a topic of this fleet."""
    return _find_route(topics, topic) if len(topic) <= LONGEST_TOPIC else None


@lru_cache(maxsize=1 << 14)  # each message is looked up several times; anyone may write topics
def _find_route(topics: Topics, topic: str) -> tuple[Route, str] | None:
    of_device = topics.parse_device(topic)
    if of_device is not None:
        device, leaf = of_device
        return (_BY_LEAF[leaf], device) if leaf in _BY_LEAF else None
    route = _BY_PATH.get(topic.removeprefix(f"{topics.base}/"))
    return None if route is None else (route, "")


def latest_key(topics: Topics, message: Message) -> Hashable | None:
    """The key by which a message replaces earlier ones that still wait: see `EventQueue`.

    On a retained topic only the latest message counts, and a repeated request adds nothing.
    """
    found = find_route(topics, message.topic)
    if found is None:
        return None
    route = found[0]
    if route.message is Sync:
        return message.topic, message.payload
    return message.topic if route.retained else None
