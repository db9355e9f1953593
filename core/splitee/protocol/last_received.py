# SPDX-License-Identifier: Apache-2.0
"""The last message of one device on each of its topics, and its offers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from splitee.mqtt.events import Message
from splitee.protocol.fleet import DeviceStatus, Profile
from splitee.protocol.inference import ModelOffer, ModelReport, PredictedState, Serving
from splitee.protocol.model_views import ModelInService

MOST_CUTS = 200  # of a profile whose costs are kept: there may be thousands of profiles in memory


@dataclass(frozen=True)
class LastReceived:
    """The last message of one device on each topic; None: there was none, or it was cleared."""

    status: DeviceStatus | None = None
    profile: Profile | None = None
    serving: Serving | None = None
    report: ModelReport | None = None
    offer: ModelOffer | None = None
    predicted_state: PredictedState | None = None
    seen: float = 0.0

    def with_status(self, status: DeviceStatus | None, envelope: Message, now: float) -> LastReceived:
        if status is None:
            return replace(self, status=None, seen=0.0)
        seen = sent_at(status.time, envelope, now)
        if status.state == "offline" and self.status is not None:
            # A last will says only that the device is offline; its earlier fields still hold.
            status = msgspec.structs.replace(self.status, state="offline")
        return replace(self, status=status, seen=seen)

    def with_serving(self, serving: Serving | None, envelope: Message, now: float) -> LastReceived:
        if serving is None:
            return replace(self, serving=None)
        return replace(self, serving=serving, seen=max(self.seen, sent_at(serving.time, envelope, now)))

    def with_predicted_state(
        self, state: PredictedState | None, envelope: Message, now: float
    ) -> LastReceived:
        """Add a predicted state, with its times converted to this machine's clock."""
        if state is None:
            return replace(self, predicted_state=None)
        time = sent_at(state.time, envelope, now)
        since = max(time - max(state.time - state.since, 0.0), 0.0)
        return replace(self, predicted_state=msgspec.structs.replace(state, time=time, since=since))

    def with_profile(self, profile: Profile | None) -> LastReceived:
        """Add a profile without its class names, which are not needed here and may take a megabyte."""
        if profile is None:
            return replace(self, profile=None)
        capability = profile.capability
        if capability is not None:
            capability = msgspec.structs.replace(capability, cuts=capability.cuts[:MOST_CUTS])
        shown = msgspec.structs.replace(profile, class_names=(), empty_classes=(), capability=capability)
        return replace(self, profile=shown)

    @property
    def has_published(self) -> bool:
        """Whether the device itself has published anything; an offer does not count."""
        return any((self.status, self.profile, self.serving, self.report, self.predicted_state))

    @property
    def is_online(self) -> bool:
        return self.is_serving or (self.status is not None and self.status.state == "online")

    @property
    def is_serving(self) -> bool:
        return self.serving is not None and self.serving.state == "online"

    @property
    def doing(self) -> str:
        """The device's activity; a device that only serves has no status, or one of an ended process."""
        status = self.status
        if self.is_serving and (status is None or status.state == "offline"):
            return "serving"
        return status.doing if status is not None else ""

    @property
    def model(self) -> ModelInService | None:
        offer, report = self.offer, self.report
        if offer is not None and (report is None or report.release != offer.release):
            serves = report.serves if report is not None else None
            return ModelInService(offer.release, "offered", run=offer.run, serves=serves)
        if report is None:
            return None
        serves = report.serves
        found = ModelInService(
            report.release, report.state, report.reason, report.run, 0, report.time or None, serves
        )
        if serves is None or serves.release != report.release:
            return found
        return replace(found, run=serves.run, round=serves.round, since=serves.since)


def sent_at(time: float, envelope: Message, now: float) -> float:
    """When a message was sent, by this machine's clock; the sender's clock may be wrong by years."""
    if not envelope.retained:
        return now
    return min(time, now) if envelope.age is None else now - envelope.age
