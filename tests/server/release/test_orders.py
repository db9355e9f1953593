# SPDX-License-Identifier: Apache-2.0
"""Orders of an operator, on a fake port: what is asked for, what is refused, and what nobody asked for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import pytest
from release_fleet import TOPICS, WAVES, ReleaseFleet

from splitee.errors import ExitCode
from splitee.protocol import routes
from splitee.protocol.release_orders import ReleaseAnswer, ReleaseOrder, ReleaseUpload, RolloutPlan
from splitee_server.release import rollout_store
from splitee_server.release.plans import Content


class Operator:
    """Gives one order, part by part; `cut` bytes at a time."""

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

    def say(self) -> ReleaseAnswer:
        self.fleet.hear(routes.RELEASE, "", self.order.encode())
        return self.answer

    @property
    def answer(self) -> ReleaseAnswer:
        return ReleaseAnswer.decode(self.fleet.port.payloads(routes.RELEASED.topic(TOPICS))[-1])

    def upload(self, sha256: str, offset: int, data: bytes) -> bool:
        self.sent.append((sha256, offset))
        upload = ReleaseUpload(request=7, sha256=sha256, offset=offset, data=data)
        return self.fleet.hear(routes.RELEASE_UPLOAD, "", upload.encode())

    def go_on(self, parts: int = 1000) -> ReleaseAnswer:
        """Sends what is wanted, at most so many parts."""
        answer = self.answer
        while answer.want and parts:
            data = self.files[answer.want][answer.offset : answer.offset + self.cut]
            assert self.upload(answer.want, answer.offset, data)
            answer, parts = self.answer, parts - 1
        return answer


@pytest.fixture
def fleet(tmp_path: Path) -> ReleaseFleet:
    return ReleaseFleet(tmp_path)


def test_only_what_the_server_lacks_is_sent_and_once(fleet: ReleaseFleet) -> None:
    operator = Operator(fleet, fleet.content(b"model" * 100))
    operator.say()
    assert operator.go_on() == ReleaseAnswer(request=7, message="rollout a: 4 devices, in 3 waves")
    assert len(operator.sent) == 2, "the plan, and one file for four devices"
    assert operator.say().message == "rollout a: running"  # its answer may have been lost
    another = Operator(fleet, fleet.content(b"model" * 100), "b")
    another.say()
    assert another.go_on().message == "rollout b: 4 devices, in 3 waves"
    assert len(another.sent) == 1
    assert fleet.fetch("d1", name="b") is None or fleet.update("d1").rollout == "b"


@pytest.mark.parametrize("parts", [0, 1, 3, 7])
def test_an_upload_goes_on_after_a_kill(fleet: ReleaseFleet, parts: int) -> None:
    operator = Operator(fleet, fleet.content(bytes(range(256)) * 10), cut=500)
    operator.say()
    operator.go_on(parts)
    fleet.restart()
    operator.say()
    assert operator.go_on().message == "rollout a: 4 devices, in 3 waves"
    of_model = [offset for digest, offset in operator.sent if digest != operator.order.plan]
    assert of_model == sorted(set(of_model))


@pytest.mark.parametrize("of_plan", [True, False])
def test_an_upload_goes_on_after_a_kill_at_its_last_byte(fleet: ReleaseFleet, of_plan: bool) -> None:
    """All bytes are here, and nobody has looked yet whether they are the right ones."""
    operator = Operator(fleet, fleet.content(b"model"))
    operator.say()
    operator.go_on(0 if of_plan else 1)
    want = operator.answer.want
    fleet.store.append(want, operator.files[want])
    fleet.restart()
    operator.say()
    assert operator.go_on().message == "rollout a: 4 devices, in 3 waves"
    assert want not in [digest for digest, _ in operator.sent]


def test_a_plan_without_its_record_is_cleared_away(fleet: ReleaseFleet) -> None:
    fleet.begin("v1.0")
    (fleet.store.path / "v1.1.plan").write_bytes(b"of a server that was killed before the record was written")
    fleet.restart()
    assert [path.name for path in fleet.store.path.glob("*.plan")] == ["v1.0.plan"]


def test_what_an_order_has_brought_is_kept_while_other_rollouts_change(fleet: ReleaseFleet) -> None:
    first, *_ = fleet.begin("a", b"first")
    operator = Operator(fleet, fleet.content(b"second"), "b")
    operator.say()
    operator.go_on(1)
    fleet.says(first, "in service")
    operator.go_on()
    assert len(operator.sent) == 2


def test_a_part_that_comes_twice_or_too_early_changes_nothing(fleet: ReleaseFleet) -> None:
    operator = Operator(fleet, fleet.content(b"model" * 100), cut=300)
    want = operator.say()
    data = operator.files[want.want]
    operator.upload(want.want, 0, data[:300])
    operator.upload(want.want, 0, data[:300])
    operator.upload(want.want, 400, data[400:])
    assert operator.answer.offset == 300
    assert operator.go_on().message


def test_what_nobody_asked_for_is_rejected(fleet: ReleaseFleet) -> None:
    operator = Operator(fleet, fleet.content(b"model"))
    assert not operator.upload("0" * 64, 0, b"x")
    want = operator.say()
    assert not operator.upload("0" * 64, 0, b"x")
    assert not operator.upload(want.want, 0, operator.files[want.want] + b"x")
    assert not fleet.hear(routes.RELEASE, "", b'{"request":1,"action":"erase"}')
    assert not fleet.hear(routes.RELEASE, "", b"")
    assert not fleet.hear(routes.RELEASE_UPLOAD, "", b"\xc1")
    assert operator.go_on().message == "rollout a: 4 devices, in 3 waves"


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"waves": ("9",)}, ExitCode.CONFIG, "there are only 4 devices"),
        ({"waves": ("2", "1")}, ExitCode.CONFIG, "wave 1 names nobody"),
        ({"rollout": "other"}, ExitCode.MODEL, "of another rollout"),
        ({"files": 2}, ExitCode.MODEL, "names a file twice"),
        ({"releases": 2}, ExitCode.MODEL, "names a device twice"),
        ({"releases": "lost"}, ExitCode.MODEL, "without its file"),
    ],
)
def test_a_plan_that_does_not_agree_is_refused_in_a_line(
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
    answer = operator.go_on()
    assert (answer.code, reason in answer.message) == (code, True), answer
    assert fleet.releases.rollouts.find("a") is None


def test_bytes_that_are_not_those_of_their_digest_are_dropped(fleet: ReleaseFleet) -> None:
    operator = Operator(fleet, fleet.content(b"model"))
    want = operator.say()
    operator.upload(want.want, 0, bytes(len(operator.files[want.want])))
    assert (operator.answer.code, "is something else" in operator.answer.message) == (ExitCode.MODEL, True)
    assert list(fleet.store.path.glob("files/*")) == []


def test_a_full_disk_is_said_before_anything_is_sent(
    fleet: ReleaseFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollout_store, "MARGIN", 1 << 62)
    answer = Operator(fleet, fleet.content(b"model")).say()
    assert (answer.code, "has no room for" in answer.message) == (ExitCode.STATE, True)


def test_a_name_that_is_taken_is_refused(fleet: ReleaseFleet) -> None:
    fleet.begin("a", b"first")
    operator = Operator(fleet, fleet.content(b"second"))
    operator.say()
    assert operator.go_on().message == "there is a rollout a already: choose another --name"
    order = ReleaseOrder(request=9, action="stop", rollout="nobody")
    fleet.hear(routes.RELEASE, "", order.encode())
    assert operator.answer.message == "there is no rollout nobody; there are: a"
