# SPDX-License-Identifier: Apache-2.0
"""All that a server does about releases: it keeps them, sends them out, and takes orders about them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from splitee.clock import Clock
from splitee.mqtt.port import Port
from splitee.protocol.gate import Received
from splitee.protocol.rollouts import Rollouts as Overview
from splitee.protocol.topics import Topics
from splitee_server.release import orders, rollouts
from splitee_server.release.orders import Orders
from splitee_server.release.plans import Content, RolloutPolicy
from splitee_server.release.rollout_store import RolloutStore
from splitee_server.release.rollouts import Rollouts

ROUTES = (*rollouts.ROUTES, *orders.ROUTES)


class Releases:
    """The releases of one fleet; on the caller's thread.

    Attributes:
        rollouts: those that are kept.
    """

    def __init__(
        self,
        port: Port,
        topics: Topics,
        store: RolloutStore,
        *,
        is_gone: Callable[[str], bool] = lambda _device: False,
        published: Callable[[Overview], None] = lambda _overview: None,
        now: Clock = time.time,
        clock: Clock = time.monotonic,
    ) -> None:
        """As those of `Rollouts`."""
        self.rollouts = Rollouts(
            port, topics, store, is_gone=is_gone, published=published, now=now, clock=clock
        )
        self._orders = Orders(port, topics, store, self.rollouts)
        self._store = store

    def handle(self, received: Received) -> None:
        """Raises MalformedMessage."""
        (self._orders if received.route in orders.ROUTES else self.rollouts).handle(received)

    def begin(self, content: Content, rollout: str, policy: RolloutPolicy) -> None:
        """Begin a rollout of files on this machine; one that has this name goes on unchanged.

        Raises:
            ConfigError: a wave does not fit.
            StateError: it cannot be written.
        """
        if self.rollouts.find(rollout) is not None:
            return
        plan = content.plan(rollout, policy)
        for digest, path in content.paths.items():
            self._store.take_file(path, digest)
        data = plan.encode()
        self.rollouts.add(plan, hashlib.sha256(data).hexdigest(), data)
