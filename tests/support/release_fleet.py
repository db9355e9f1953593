# SPDX-License-Identifier: Apache-2.0
"""A server's releases on a fake port and clock; a test publishes the devices' reports."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fakes import FakeClock, FakePort

from splitee.mqtt.events import Message
from splitee.protocol import routes
from splitee.protocol.fields import ReleaseKind, ReleaseState
from splitee.protocol.gate import Gate
from splitee.protocol.inference import (
    ModelOffer,
    ModelReport,
    ReleasePart,
    ReleaseWant,
    ServedModel,
    Serving,
)
from splitee.protocol.release_orders import PlannedRelease
from splitee.protocol.rollouts import DeviceUpdate, Install, Rollout, Rollouts, Update
from splitee.protocol.topics import Topics
from splitee_server.release.plans import Content, RolloutPolicy
from splitee_server.release.releases import ROUTES, Releases
from splitee_server.release.rollout_store import RolloutStore
from splitee_server.release.rollouts import MAX_ELAPSED, SETTLE
from splitee_server.release.wave_sizes import in_wave_order

TOPICS = Topics("fleet")
WAVES = RolloutPolicy(("1", "50%", "100%"), "0", soak=0.0)


class ReleaseFleet:
    """Devices `d0`, `d1`, ...; a restarted server reads the state that the last one has saved."""

    def __init__(self, path: Path, devices: int = 4) -> None:
        self.path = path
        self.devices = [f"d{number}" for number in range(devices)]
        self.now = FakeClock(1_000_000.0)
        self.set_by = 0.0  # seconds by which somebody has set the time of day
        self.gone: set[str] = set()
        self.restart()

    def restart(self) -> None:
        """Kill the server and start it again; the broker keeps its retained messages."""
        retained = {sent.topic: sent.payload for sent in self.port.sent} if hasattr(self, "port") else {}
        self.port = FakePort(FakeClock())
        self.before = retained
        self.store = RolloutStore(self.path / "releases")
        self.releases = Releases(
            self.port,
            TOPICS,
            self.store,
            is_gone=self.gone.__contains__,
            now=lambda: self.now() + self.set_by,
            clock=self.now,
        )
        self.gate = Gate(TOPICS, ROUTES)

    def content(self, data: bytes, devices: list[str] | None = None) -> Content:
        """A release for each device: a head of its own, followed by the same file."""
        path = self.path / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        content = Content("model", f"run {len(data)}")
        content.sizes[path.name], content.paths[path.name] = len(data), path
        for device in self.devices if devices is None else devices:
            head = f"{device}:".encode()
            digest = hashlib.sha256(head + data).hexdigest()
            content.releases.append(PlannedRelease(device, digest, path.name, head, version="new"))
        return content

    def begin(
        self,
        name: str = "a",
        data: bytes = b"model",
        pace: RolloutPolicy = WAVES,
        devices: list[str] | None = None,
    ) -> list[str]:
        """Begin a rollout; returns its devices in the order of the waves."""
        content = self.content(data, devices)
        self.releases.begin(content, name, pace)
        self.tick()
        return in_wave_order(name, [one.device for one in content.releases])

    def tick(self, seconds: float = 1.0) -> None:
        """Advance the clock in steps, for only MAX_ELAPSED seconds count between two ticks of a server."""
        until = self.now() + seconds
        while self.now() < until:
            self.now.advance(min(MAX_ELAPSED, until - self.now()))
            self.releases.rollouts.tick()

    def settle(self) -> None:
        """Advance the clock until a reconnected server has received the retained messages."""
        self.tick(SETTLE)

    def deliver(self, route: routes.Route, device: str, payload: bytes, *, retained: bool = False) -> bool:
        received = self.gate.read(Message(route.topic(TOPICS, device), payload, retained=retained))
        is_accepted = received is not None and self.gate.apply(received, self.releases.handle)
        self.tick()
        return is_accepted

    def wake(self, *devices: str, state: str = "online") -> None:
        for device in devices:
            self.deliver(routes.SERVING, device, Serving(state=state, instance=1).encode())

    def report(
        self,
        device: str,
        state: ReleaseState,
        name: str = "a",
        reason: str = "",
        have: int = 0,
        *,
        time: float = 0.0,
        retained: bool = False,
    ) -> None:
        """Publish a device's report on its release of a rollout. `have`: bytes that it has."""
        release = self.release_of(device, name)
        serves = ServedModel(release, "run", 5, 1.0) if state == "in service" else None
        report = ModelReport(release, state, reason, time, have=have, size=9, serves=serves)
        self.deliver(routes.MODEL_REPORT, device, report.encode(), retained=retained)

    def release_of(self, device: str, name: str = "a") -> str:
        rollout = self.releases.rollouts.find(name)
        assert rollout is not None
        return rollout.releases[device].release

    def request_install(self, device: str, kind: ReleaseKind = "model") -> None:
        self.deliver(routes.INSTALL, device, Install(kind=kind).encode())

    def fetch(self, device: str, offset: int = 0, name: str = "a") -> bytes | None:
        """The bytes of the part at `offset`; None: the server publishes none."""
        topic = routes.MODEL_PART.topic(TOPICS, device)
        before = len(self.port.payloads(topic))
        want = ReleaseWant(release=self.release_of(device, name), offset=offset)
        self.deliver(routes.MODEL_WANT, device, want.encode())
        parts = self.port.payloads(topic)[before:]
        return ReleasePart.decode(parts[0]).data if parts else None

    def retained(self, topic: str) -> bytes:
        """The payload that the broker retains on a topic; empty: none."""
        payloads = self.port.payloads(topic)
        return payloads[-1] if payloads else self.before.get(topic, b"")

    def offer(self, device: str) -> ModelOffer | None:
        payload = self.retained(routes.MODEL_OFFER.topic(TOPICS, device))
        return ModelOffer.decode(payload) if payload else None

    @property
    def offered(self) -> set[str]:
        return {device for device in self.devices if self.offer(device) is not None}

    def rollout(self, name: str = "a") -> Rollout:
        found = Rollouts.decode(self.retained(routes.ROLLOUTS.topic(TOPICS)))
        return next(one for one in found.rollouts if one.rollout == name)

    def update(self, device: str) -> Update:
        return DeviceUpdate.decode(self.retained(routes.DEVICE_UPDATE.topic(TOPICS, device))).model
