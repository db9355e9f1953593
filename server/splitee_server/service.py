"""The server process: takes the link's events to the coordinator, and lets devices in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from splitee.cli.signals import Stopped
from splitee.errors import ExitCode, MalformedMessage
from splitee.mqtt.events import Connected, Disconnected, Message
from splitee.mqtt.link import Link
from splitee.networks.split import SplitNetwork
from splitee.protocol.fleet import DeviceStatus, Metrics, Profile, ServerClaim
from splitee.protocol.rounds import Sync
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_server.announcer import Announcer
from splitee_server.learning.strategies.base import make_strategy
from splitee_server.members.members import Members, Refusal
from splitee_server.members.reception import Reception
from splitee_server.monitoring.observer import Observer
from splitee_server.offload.predictions import Predictions
from splitee_server.offload.trunks import CommittedTrunks
from splitee_server.release.end_of_run import EndOfRun
from splitee_server.release.offers import WORDS
from splitee_server.rounds.checkpoints import Checkpoints
from splitee_server.rounds.coordinator import Coordinator
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.progress import Progress

log = logging.getLogger(__name__)

LEAVES = ("status", "profile", "features", "round-done", "weights", "sync", "infer")
KNOWN_DEVICES = 100_000  # statuses and profiles that are remembered


class Service:
    """One fleet's server in one run. The link's thread only enqueues; all else runs on the caller's."""

    def __init__(
        self,
        link: Link,
        topics: Topics,
        spec: RunSpec,
        network: SplitNetwork,
        store: Checkpoints,
        policy: Policy,
        *,
        instance: int,
        stop: Callable[[], bool],
        watchers: Sequence[Observer] = (),
    ) -> None:
        self._link = link
        self._topics = topics
        self._network = network
        self._stop = stop
        self._instance = instance
        self._watchers = tuple(watchers)
        self._received = 0  # bytes
        self._announce = Announcer(link, topics, instance, spec.run)
        self._serving = Predictions(link, topics, CommittedTrunks(spec, store))
        self._members = Members(spec, network)
        self._reception = Reception(spec)
        self._statuses: dict[str, DeviceStatus] = {}
        self._profiles: dict[str, Profile] = {}  # of devices that have not been heard of as online
        self._release = EndOfRun(link, topics, store.path / "models")
        self._coordinator = Coordinator(
            spec,
            network,
            make_strategy(network, spec),
            self._members,
            self._announce,
            store,
            policy,
            self._release,
            attempt=instance,
            pump=self._pump,
            rejected=self._rejected,
            evaluated=self._evaluated,
        )
        self._handlers: dict[str, Callable[[str, bytes], None]] = {
            "status": self._on_status,
            "profile": self._on_profile,
            "features": self._on_features,
            "round-done": self._on_round_done,
            "weights": self._on_weights,
            "sync": self._on_sync,
        }

    def run(self) -> dict[str, Any]:
        """Serve until the run is finished; returns the report.

        Raises:
            Stopped: the process was asked to stop; the last committed round is safe.
        """
        watched = (topic for watcher in self._watchers for topic in watcher.filters)
        self._link.subscribe(*(self._topics.all_devices(leaf) for leaf in LEAVES), *watched)
        for watcher in self._watchers:
            watcher.start()
        return self._coordinator.run()

    def _pump(self, timeout: float) -> bool:
        if self._stop():
            raise Stopped
        for watcher in self._watchers:
            watcher.tick(self._progress)
        event = self._link.receive(timeout)
        if event is None:
            self._serving.answer()
            return False
        if isinstance(event, Connected):
            self._coordinator.on_reconnected()
            for watcher in self._watchers:
                watcher.on_reconnected()
        elif isinstance(event, Disconnected):
            log.warning("connection lost (%s); reconnecting", event.reason)
        elif isinstance(event, Message):
            self._receive(event)
        return True

    def _receive(self, message: Message) -> None:
        self._received += len(message.payload)
        for watcher in self._watchers:
            if message.topic in watcher.filters:
                watcher.on_message(message.payload)
        if message.topic == self._topics.server_claim:
            self._on_claim(message.payload)
            return
        found = self._topics.parse_device(message.topic)
        if found is not None and found[1] == "infer":
            self._serving.add(found[0], message)
            return
        if found is None:
            return
        device, leaf = found
        try:
            if leaf in WORDS:
                self._release.handle(message)
            elif leaf in self._handlers:
                self._handlers[leaf](device, message.payload)
        except MalformedMessage as error:
            if self._reception.reject(device, leaf, error):
                self._announce.error(device, ExitCode.REJECTED, f"{leaf}: {error}")

    def _rejected(self) -> int:
        return self._reception.rejected.total() + self._serving.rejected

    def _evaluated(self, metrics: Metrics) -> None:
        for watcher in self._watchers:
            watcher.on_evaluated(metrics)

    def _progress(self) -> Progress:
        run = self._coordinator.progress()
        devices = (standing.device for standing in run.devices)
        return Progress(
            fleet=self._topics.fleet,
            run=run,
            statuses={device: self._statuses[device] for device in devices if device in self._statuses},
            rejected=self._rejected(),
            received=self._received,
            sent=self._link.bytes_published,
            connected=self._link.connected,
        )

    def _on_claim(self, payload: bytes) -> None:
        try:
            ServerClaim.decode(payload)
        except MalformedMessage as error:
            self._reception.reject("server", "claim", error)
        else:
            self._coordinator.on_claim()

    def _on_status(self, device: str, payload: bytes) -> None:
        status = DeviceStatus.decode(payload)
        if device not in self._statuses and len(self._statuses) >= KNOWN_DEVICES:
            raise MalformedMessage(f"more than {KNOWN_DEVICES} devices")
        self._statuses[device] = status
        before = device in self._members and self._members[device].online
        self._members.note_status(device, status)
        self._admit_when_online(device)
        if before and not self._members[device].online:
            log.info("%s is offline", device)

    def _on_profile(self, device: str, payload: bytes) -> None:
        profile = Profile.decode(payload)
        if device not in self._profiles and len(self._profiles) >= KNOWN_DEVICES:
            raise MalformedMessage(f"more than {KNOWN_DEVICES} devices")
        self._profiles[device] = profile
        self._admit_when_online(device)

    def _admit_when_online(self, device: str) -> None:
        """A retained profile may be of a device that is gone: only one that is online joins."""
        status, profile = self._statuses.get(device), self._profiles.get(device)
        if (
            status is None
            or profile is None
            or status.state != "online"
            or status.instance != profile.instance
        ):
            return
        del self._profiles[device]
        known = device in self._members and self._members[device].instance == profile.instance
        try:
            member = self._members.admit(device, profile)
        except Refusal as refusal:
            log.warning("refused: %s", refusal)
            self._announce.error(device, refusal.code, str(refusal), instance=profile.instance, fatal=True)
            return
        if not known:
            self._reception.forget_parts(device)
            log.info("%s joined: cut %d, %d pictures", device, member.cut, member.train_samples)
        self._coordinator.on_admitted(member)
        for watcher in self._watchers:
            watcher.on_admitted(device, profile)

    def _on_features(self, device: str, payload: bytes) -> None:
        if device not in self._members:
            raise MalformedMessage("from a device that has not joined")
        whole = self._reception.join(device, payload)
        if whole is None:
            return
        member = self._members[device]
        shape = self._network.stages[member.cut - 1].feature_shape
        self._coordinator.on_features(device, *self._reception.features(whole, member, shape))

    def _on_round_done(self, device: str, payload: bytes) -> None:
        if device not in self._members:
            raise MalformedMessage("from a device that has not joined")
        self._coordinator.on_round_done(device, self._reception.round_done(payload))

    def _on_weights(self, device: str, payload: bytes) -> None:
        if device not in self._members:
            raise MalformedMessage("from a device that has not joined")
        whole = self._reception.join(device, payload)
        if whole is not None:
            self._coordinator.on_weights(device, self._reception.weights(whole))

    def _on_sync(self, device: str, payload: bytes) -> None:
        message = Sync.decode(payload)
        if device not in self._members:
            return
        if message.weights or message.soft_labels is not None:
            self._coordinator.on_wish(device, message)
        else:
            self._coordinator.on_sync(device)
