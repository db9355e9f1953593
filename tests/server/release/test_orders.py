# SPDX-License-Identifier: Apache-2.0
"""Orders of an operator, on a fake port: uploads that are requested, refused or rejected."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from release_fleet import TOPICS, WAVES, ReleaseFleet

from splitee.errors import ExitCode
from splitee.protocol import routes
from splitee.protocol.release_orders import ReleaseOrder, ReleaseReply, ReleaseUpload, RolloutPlan
from splitee_server.release import rollout_store
from splitee_server.release.plans import Content
from splitee_server.release.wave_sizes import in_wave_order


class Operator:
    """Sends one order in parts of at most `cut` bytes."""

    def __init__(self, fleet: ReleaseFleet, content: Content, name: str = "a", cut: int = 1 << 20) -> None:
        self.fleet = fleet
        self.cut = cut
        self.sent: list[tuple[str, int]] = []
        self.have(content.plan(name, WAVES), {key: path.read_bytes() for key, path in content.paths.items()})

    def have(self, plan: RolloutPlan, files: dict[str, bytes]) -> None:
        data = plan.encode()
        digest = hashlib.sha256(data).hexdigest()
        self.files = {digest: data, **files}
        self.order = ReleaseOrder(
            request=7, action="release", rollout=plan.rollout, plan=digest, plan_size=len(data)
        )

    def say(self) -> ReleaseReply:
        self.fleet.deliver(routes.RELEASE, "", self.order.encode())
        return self.reply

    @property
    def reply(self) -> ReleaseReply:
        return ReleaseReply.decode(self.fleet.port.payloads(routes.RELEASED.topic(TOPICS))[-1])

    def upload(self, sha256: str, offset: int, data: bytes) -> bool:
        self.sent.append((sha256, offset))
        upload = ReleaseUpload(request=7, sha256=sha256, offset=offset, data=data)
        return self.fleet.deliver(routes.RELEASE_UPLOAD, "", upload.encode())

    def go_on(self, parts: int = 1000) -> ReleaseReply:
        """Sends the data that the server requests, at most `parts` parts."""
        reply = self.reply
        while reply.want and parts:
            data = self.files[reply.want][reply.offset : reply.offset + self.cut]
            assert self.upload(reply.want, reply.offset, data)
            reply, parts = self.reply, parts - 1
        return reply


@pytest.fixture
def fleet(tmp_path: Path) -> ReleaseFleet:
    return ReleaseFleet(tmp_path)


def test_upload_contains_only_missing_files_and_each_once(fleet: ReleaseFleet) -> None:
    operator = Operator(fleet, fleet.content(b"model" * 100))
    operator.say()
    assert operator.go_on() == ReleaseReply(request=7, message="rollout a: 4 devices, in 3 waves")
    assert len(operator.sent) == 2, "the plan, and one file for four devices"
    assert operator.say().message == "rollout a: running"  # its reply may have been lost
    another = Operator(fleet, fleet.content(b"model" * 100), "b")
    another.say()
    assert another.go_on().message == "rollout b: 4 devices, in 3 waves"
    assert len(another.sent) == 1
    first, *_ = in_wave_order("b", fleet.devices)
    assert fleet.update(first).rollout == "b"
    assert fleet.fetch(first, name="b") == f"{first}:".encode() + b"model" * 100


@pytest.mark.parametrize("parts", [0, 1, 3, 7])
def test_upload_resumes_after_a_server_kill(fleet: ReleaseFleet, parts: int) -> None:
    operator = Operator(fleet, fleet.content(bytes(range(256)) * 10), cut=500)
    operator.say()
    operator.go_on(parts)
    fleet.restart()
    operator.say()
    assert operator.go_on().message == "rollout a: 4 devices, in 3 waves"
    of_model = [offset for digest, offset in operator.sent if digest != operator.order.plan]
    assert of_model == sorted(set(of_model))


@pytest.mark.parametrize("of_plan", [True, False])
def test_upload_resumes_after_a_server_kill_at_its_last_byte(fleet: ReleaseFleet, of_plan: bool) -> None:
    """All bytes are stored, but the server has not compared them with their digest yet."""
    operator = Operator(fleet, fleet.content(b"model"))
    operator.say()
    operator.go_on(0 if of_plan else 1)
    want = operator.reply.want
    fleet.store.append(want, operator.files[want])
    fleet.restart()
    operator.say()
    assert operator.go_on().message == "rollout a: 4 devices, in 3 waves"
    assert want not in [digest for digest, _ in operator.sent]


def test_plan_without_a_record_is_deleted_at_start(fleet: ReleaseFleet) -> None:
    fleet.begin("v1.0")
    (fleet.store.path / "v1.1.plan").write_bytes(b"of a server that was killed before the record was written")
    fleet.restart()
    assert [path.name for path in fleet.store.path.glob("*.plan")] == ["v1.0.plan"]


def test_uploaded_plan_is_kept_while_other_rollouts_change(fleet: ReleaseFleet) -> None:
    first, *_ = fleet.begin("a", b"first")
    operator = Operator(fleet, fleet.content(b"second"), "b")
    operator.say()
    operator.go_on(1)
    fleet.report(first, "in service")
    operator.go_on()
    assert len(operator.sent) == 2


def test_duplicate_or_early_upload_part_is_ignored(fleet: ReleaseFleet) -> None:
    operator = Operator(fleet, fleet.content(b"model" * 100), cut=300)
    want = operator.say()
    data = operator.files[want.want]
    operator.upload(want.want, 0, data[:300])
    operator.upload(want.want, 0, data[:300])
    operator.upload(want.want, 400, data[400:])
    assert operator.reply.offset == 300
    assert operator.go_on().message


def test_repeated_order_does_not_double_the_parts_that_follow(fleet: ReleaseFleet) -> None:
    """The operator of a slow link repeats its order, and sends a part for each reply."""
    operator = Operator(fleet, fleet.content(b"model" * 100), cut=50)
    operator.say()
    replies = [operator.reply, operator.say()]
    while replies:
        reply = replies.pop(0)
        before = len(fleet.port.payloads(routes.RELEASED.topic(TOPICS)))
        data = operator.files[reply.want][reply.offset : reply.offset + operator.cut]
        operator.upload(reply.want, reply.offset, data)
        came = fleet.port.payloads(routes.RELEASED.topic(TOPICS))[before:]
        replies += [more for more in map(ReleaseReply.decode, came) if more.want]
    assert operator.reply.message == "rollout a: 4 devices, in 3 waves"
    assert len(operator.sent) == len(set(operator.sent)) + 1


def test_unrequested_uploads_and_malformed_orders_are_rejected(fleet: ReleaseFleet) -> None:
    operator = Operator(fleet, fleet.content(b"model"))
    assert not operator.upload("0" * 64, 0, b"x")
    want = operator.say()
    assert not operator.upload("0" * 64, 0, b"x")
    assert not operator.upload(want.want, 0, operator.files[want.want] + b"x")
    assert not fleet.deliver(routes.RELEASE, "", b'{"request":1,"action":"erase"}')
    assert not fleet.deliver(routes.RELEASE, "", b"")
    assert not fleet.deliver(routes.RELEASE_UPLOAD, "", b"\xc1")
    assert operator.go_on().message == "rollout a: 4 devices, in 3 waves"


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"waves": ("9",)}, ExitCode.CONFIG, "there are only 4 devices"),
        ({"waves": ("2", "1")}, ExitCode.CONFIG, "wave 1 names no device"),
        ({"rollout": "other"}, ExitCode.MODEL, "of another rollout"),
        ({"files": 2}, ExitCode.MODEL, "names a file twice"),
        ({"releases": 2}, ExitCode.MODEL, "names a device twice"),
        ({"releases": "lost"}, ExitCode.MODEL, "without its file"),
    ],
)
def test_inconsistent_plan_is_refused_with_its_reason(
    fleet: ReleaseFleet, change: dict[str, object], code: ExitCode, reason: str
) -> None:
    content = fleet.content(b"model")
    plan, named = content.plan("a", WAVES), dict(change)
    if named.get("files") == 2:
        named["files"] = plan.files * 2
    if named.get("releases") == 2:
        named["releases"] = plan.releases * 2
    elif named.get("releases") == "lost":
        named["releases"] = (msgspec.structs.replace(plan.releases[0], file="0" * 64),)
    operator = Operator(fleet, content)
    operator.have(msgspec.structs.replace(plan, **named), {plan.files[0].sha256: b"model"})
    operator.order = msgspec.structs.replace(operator.order, rollout="a")
    operator.say()
    reply = operator.go_on()
    assert (reply.code, reason in reply.message) == (code, True), reply
    assert fleet.releases.rollouts.find("a") is None


def test_upload_that_does_not_match_its_digest_is_refused_and_deleted(fleet: ReleaseFleet) -> None:
    operator = Operator(fleet, fleet.content(b"model"))
    want = operator.say()
    operator.upload(want.want, 0, bytes(len(operator.files[want.want])))
    assert (operator.reply.code, "is something else" in operator.reply.message) == (ExitCode.MODEL, True)
    assert list(fleet.store.path.glob("files/*")) == []


def test_full_disk_is_reported_before_the_upload(
    fleet: ReleaseFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_store, "MARGIN", 1 << 62)
    reply = Operator(fleet, fleet.content(b"model")).say()
    assert (reply.code, "has no room for" in reply.message) == (ExitCode.STATE, True)


def test_order_with_a_taken_or_unknown_rollout_name_is_refused(fleet: ReleaseFleet) -> None:
    fleet.begin("a", b"first")
    operator = Operator(fleet, fleet.content(b"second"))
    operator.say()
    assert operator.go_on().message == "there is a rollout a already: choose another --name"
    order = ReleaseOrder(request=9, action="stop", rollout="nobody")
    fleet.deliver(routes.RELEASE, "", order.encode())
    assert operator.reply.message == "there is no rollout nobody; there are: a"
