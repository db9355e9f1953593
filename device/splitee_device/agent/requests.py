# SPDX-License-Identifier: Apache-2.0
"""What a device requests from its server: an acknowledgement, its weights, its soft labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor

from splitee.clock import Clock
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.rounds import Assignment, SoftLabelRows, Sync, Weights
from splitee.protocol.topics import Topics
from splitee.training.soft_labels import SoftLabels, SoftLabelsAssembler
from splitee.training.weights import WeightsAssembler

SYNC_AFTER = 15.0  # seconds without a message from the server before the device requests, or requests again

Wait = Callable[[Callable[[], bool], str], None]
"""`Session.wait`: handle events until a condition holds; the text names what is awaited."""


class Requests:
    """Requests one message after another, and repeats each request until the message has come."""

    def __init__(
        self, port: Port, topics: Topics, device: str, instance: int, clock: Clock, wait: Wait
    ) -> None:
        self._port = port
        self._topic = routes.SYNC.topic(topics, device)
        self._instance = instance
        self._clock = clock
        self._wait = wait
        self._weights: WeightsAssembler | None = None  # of the client network that is being fetched
        self._digest = ""  # that the network must have
        self._round = 0  # the round in its messages
        self._awaited: set[str] = set()  # requested tensors that have not come
        self._soft_labels: SoftLabelsAssembler | None = None  # those being fetched
        self._arrived = float("-inf")  # when a part of a reply last came

    def note_arriving(self) -> None:
        """A part of a reply has come."""
        self._arrived = self._clock()

    def sync(self, run: str) -> None:
        """Tell the server that its last message may have been lost."""
        self._publish(Sync(run=run, instance=self._instance))

    def fetch_weights(
        self,
        like: Mapping[str, Tensor],
        assignment: Assignment,
        known: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """Fetch the client network that the server holds for this device, one message at a time.

        Args:
            like: tensors with the names, shapes and types of the network.
            assignment: its digest is that of the weights.
            known: tensors that this device has and that are not sent.
        """
        assert assignment.digest is not None
        return self._fetch(WeightsAssembler(like, known), assignment, assignment.digest, assignment.committed)

    def fetch_initial_weights(self, like: Mapping[str, Tensor], assignment: Assignment) -> dict[str, Tensor]:
        """Fetch the client network that the run began from, offered by `assignment`, message by message."""
        assert assignment.first is not None
        return self._fetch(WeightsAssembler(like), assignment, assignment.first, 0)

    def _fetch(
        self, assembler: WeightsAssembler, assignment: Assignment, digest: str, number: int
    ) -> dict[str, Tensor]:
        self._weights, self._digest, self._round = assembler, digest, number
        try:
            while assembler.missing:
                names = tuple(assembler.next_names())
                self._awaited = set(names)
                self._request(
                    Sync(run=assignment.run, instance=self._instance, weights=names),
                    lambda: not self._awaited,
                    "this device's network from the server",
                )
        finally:
            self._weights = None
        return assembler.tensors

    def fetch_soft_labels(self, assembler: SoftLabelsAssembler) -> SoftLabels:
        """Fetch the soft labels that the server holds for this device, one message at a time."""
        self._soft_labels = assembler
        try:
            while not assembler.is_whole:
                row = assembler.next_row
                self._request(
                    Sync(run=assembler.run, instance=self._instance, soft_labels=row),
                    lambda row=row: assembler.next_row > row,  # type: ignore[misc]
                    "this device's soft labels from the server",
                )
        finally:
            self._soft_labels = None
        return assembler.labels()

    def on_weights(self, message: Weights, assignment: Assignment | None) -> None:
        """Take in tensors of the network that is being fetched; ignore others.

        Args:
            assignment: the server's latest; its attempt changes when the server restarts.

        Raises:
            MalformedMessage: the tensors do not belong to this network, or all are here and do not have the
                announced digest; then all are requested again.
        """
        if self._weights is None or assignment is None:
            return
        current = assignment.run, assignment.attempt, self._round
        if (message.run, message.attempt, message.round) != current:
            return
        self._weights.add(message)
        self._awaited -= message.tensors.keys()
        self._weights.check(self._digest)

    def on_soft_labels(self, message: SoftLabelRows) -> None:
        """Take in the requested rows. Raises MalformedMessage: they cannot be this device's."""
        if self._soft_labels is not None:
            self._soft_labels.add(message)

    def _request(self, sync: Sync, has_come: Callable[[], bool], awaited: str) -> None:
        """Request until the reply has come, but not while it comes: that would make a slow link slower."""
        last = self._arrived = float("-inf")

        def settled() -> bool:
            nonlocal last
            if has_come():
                return True
            if self._clock() - max(last, self._arrived) > SYNC_AFTER:
                self._publish(sync)
                last = self._clock()
            return False

        self._wait(settled, awaited)

    def _publish(self, sync: Sync) -> None:
        self._port.publish(self._topic, sync.encode())
