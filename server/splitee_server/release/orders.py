# SPDX-License-Identifier: Apache-2.0
"""Takes an operator's orders: requests the plan and the files that it lacks, then begins a rollout."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

from splitee.cli import words
from splitee.errors import ConfigError, ExitCode, MalformedMessage, ModelError, SpliteeError
from splitee.mqtt.port import Port
from splitee.protocol import routes
from splitee.protocol.gate import Received
from splitee.protocol.release_orders import (
    LARGEST_PLAN,
    PlannedFile,
    ReleaseOrder,
    ReleaseReply,
    ReleaseUpload,
    RolloutPlan,
)
from splitee.protocol.topics import Topics
from splitee_server.release.rollout_store import RolloutStore
from splitee_server.release.rollouts import Rollouts

ROUTES = (routes.RELEASE, routes.RELEASE_UPLOAD)
MOST_OPEN = 4  # orders whose files have not all arrived

log = logging.getLogger(__name__)


@dataclass
class _Order:
    """An order of a release, until all its files have arrived."""

    order: ReleaseOrder
    plan: RolloutPlan | None = None
    data: bytes = b""
    want: PlannedFile | None = None

    @property
    def files(self) -> set[str]:
        """Digests of its files, as far as they are known."""
        return {self.order.plan, *(one.sha256 for one in (self.plan.files if self.plan else ()))}


class Orders:
    """The orders of the server's operators."""

    def __init__(self, port: Port, topics: Topics, store: RolloutStore, rollouts: Rollouts) -> None:
        self._port = port
        self._topic = routes.RELEASED.topic(topics)
        self._store = store
        self._rollouts = rollouts
        self._open: OrderedDict[int, _Order] = OrderedDict()

    def handle(self, received: Received) -> None:
        """Raises MalformedMessage: bytes that were not requested."""
        message = received.message
        request = message.request
        try:
            if isinstance(message, ReleaseUpload):
                self._take(message)
            elif message.action == "release":
                self._begin(message)
            else:
                self._reply(request, self._rollouts.carry_out(message.action, message.rollout))
        except MalformedMessage:
            raise
        except SpliteeError as error:
            self._open.pop(request, None)
            self._reply(request, str(error), error.exit_code)
        self._store.reserved = {digest for one in self._open.values() for digest in one.files}

    def _begin(self, order: ReleaseOrder) -> None:
        if not order.plan or not 0 < order.plan_size <= LARGEST_PLAN:
            raise ConfigError("the order names no plan")
        there = self._rollouts.find(order.rollout)
        if there is not None and there.record.plan == order.plan:
            self._reply(order.request, f"rollout {order.rollout}: {there.record.state}")
            return
        open_order = self._open.setdefault(order.request, _Order(order))
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)
        self._proceed(open_order)

    def _take(self, upload: ReleaseUpload) -> None:
        open_order = self._open.get(upload.request)
        want = open_order.want if open_order is not None else None
        if open_order is None or want is None or upload.sha256 != want.sha256:
            raise MalformedMessage("ReleaseUpload: bytes that no order waits for")
        have = self._store.received(want.sha256)
        if upload.offset != have:
            return  # each reply makes the operator send a part: a second copy must not double all that follow
        if have + len(upload.data) > want.size:
            raise MalformedMessage(f"ReleaseUpload: more than the {want.size} bytes of the file")
        self._store.append(want.sha256, upload.data)
        self._proceed(open_order)

    def _proceed(self, open_order: _Order) -> None:
        order = open_order.order
        before, open_order.want = open_order.want, self._next_missing(open_order)
        want = open_order.want
        if want is not None:
            have = self._store.received(want.sha256)
            if want != before:
                self._store.check_room(want.size - have)
            reply = ReleaseReply(request=order.request, want=want.sha256, offset=have)
            self._port.publish(self._topic, reply.encode())
            return
        assert open_order.plan is not None
        rollout = self._rollouts.add(open_order.plan, order.plan, open_order.data)
        del self._open[order.request]
        count, waves = len(rollout.releases), len(rollout.record.waves)
        how = f"in {waves} waves" if waves > 1 else "at once"
        self._reply(order.request, f"rollout {order.rollout}: {words.devices(count)}, {how}")

    def _next_missing(self, open_order: _Order) -> PlannedFile | None:
        """The next file that is missing: first the plan, then the files that it names."""
        order = open_order.order
        if open_order.plan is None:
            plan = PlannedFile(order.plan, order.plan_size)
            if not self._has(plan):
                return plan
            open_order.data = self._store.read(order.plan, 0, LARGEST_PLAN)
            open_order.plan = _checked(open_order.data, order)
        return next((one for one in open_order.plan.files if not self._has(one)), None)

    def _has(self, file: PlannedFile) -> bool:
        """Whether a file is complete. Raises ModelError: all its bytes have come, and they are wrong."""
        if not self._store.has(file.sha256) and self._store.received(file.sha256) >= file.size:
            self._store.finish(file.sha256)
        return self._store.has(file.sha256)

    def _reply(self, request: int, message: str, code: ExitCode = ExitCode.OK) -> None:
        log.info("an operator's order: %s", message)
        reply = ReleaseReply(request=request, code=int(code), message=message[:1000])
        self._port.publish(self._topic, reply.encode())


def refuse(port: Port, topics: Topics, order: ReleaseOrder) -> None:
    """The reply of a server that keeps no releases."""
    message = "this server keeps no releases: start it with a folder for them (--releases DIR)"
    reply = ReleaseReply(request=order.request, code=int(ExitCode.STATE), message=message)
    port.publish(routes.RELEASED.topic(topics), reply.encode())


def _checked(data: bytes, order: ReleaseOrder) -> RolloutPlan:
    """The plan, if it is consistent and fits its order. Raises ModelError."""
    try:
        plan = RolloutPlan.decode(data)
    except MalformedMessage as error:
        raise ModelError(f"the plan cannot be read: {error}") from None
    files = {one.sha256 for one in plan.files}
    if plan.rollout != order.rollout or len(files) != len(plan.files):
        raise ModelError("the plan is of another rollout, or names a file twice")
    if len({one.device for one in plan.releases}) != len(plan.releases):
        raise ModelError("the plan names a device twice")
    if not all(one.file in files for one in plan.releases):
        raise ModelError("the plan names a release without its file")
    return plan
