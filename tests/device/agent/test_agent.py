"""A device's rounds from its side, against a server by script: trained, sent, lost, superseded, moved."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeClock, FakePort, Sent
from msgspec.structs import replace
from scripted_server import DEVICE, TOPICS, PhaseToOpen, ScriptedServer, other_weights

from splitee.cli.signals import Stopped
from splitee.durable import StateDirectory
from splitee.errors import ExitCode, IdInUse, Rejected, Stalled, VersionMismatch
from splitee.networks.split import build_for
from splitee.protocol import routes
from splitee.protocol.fleet import DeviceStatus, ErrorReport, Profile
from splitee.protocol.rounds import Ack, RoundDone
from splitee.protocol.routes import Route
from splitee.protocol.run_spec import RunSpec
from splitee.training.soft_labels import SoftLabels, rows_a_round
from splitee.training.state import weights_digest
from splitee.training.weights import client_model
from splitee_device.agent.agent import Agent
from splitee_device.agent.monitor import CutWish
from splitee_device.agent.session import READ, RunChanged, Session
from splitee_device.data.images import DeviceData, PictureSet
from splitee_device.training.store import DeviceStore
from splitee_device.training.trainer import ClientTrainer

SPEC = RunSpec(
    protocol=1,
    run="run-a",
    network="tiny_networks:tiny",
    num_classes=2,
    rounds=2,
    batch_size=2,
    window=2,
    seed=1,
    client_averaging="none",
)
WHOLE_RUN = (("train", 1), ("evaluate", 1), ("train", 2), ("evaluate", 2), ("finished", 2))
ONE_ROUND = (("train", 1), ("evaluate", 1), ("finished", 1))
MALFORMED = (b"", b"{", b"null", b"\xc1", b"\x80", b"{}", b'{"run":7}', b"\x94\x01\x00\x02\x08", b"\xff" * 64)


class Unmoved:
    """Watches a device that is as it was measured; or wishes for a cut after the first round."""

    def __init__(self, wish: CutWish | None = None) -> None:
        self._wish = wish

    def steps(self, batches: Iterator[Any]) -> Iterator[Any]:
        return batches

    def end_round(self, number: int, cut: int) -> CutWish | None:
        return self._wish if number == 1 else None


class Device:
    """A device's process, its port and its server."""

    def __init__(
        self,
        path: Path,
        spec: RunSpec = SPEC,
        script: tuple[PhaseToOpen, ...] = WHOLE_RUN,
        *,
        train: int = 4,
        held_out: int = 2,
        instance: int = 1,
        wish: CutWish | None = None,
        **session: Any,
    ) -> None:
        self.clock = FakeClock()
        self.port = FakePort(self.clock)
        self.spec = spec
        self.data = DeviceData(some_images(train), some_images(held_out), ("a", "b"), ())
        self.server = ScriptedServer(self.port, spec, script)
        self.session = Session(self.port, TOPICS, DEVICE, instance, clock=self.clock, **session)
        self.directory = StateDirectory(path)
        self.trainers: list[ClientTrainer] = []
        self._wish = wish

    def run(self) -> None:
        """From the run's first word to its end."""
        store = DeviceStore(self.directory, DEVICE, self.data)
        spec = self.session.await_run()
        agent = Agent(self.session, spec, 1, self._trainer_at, store, Unmoved(self._wish), clock=self.clock)
        agent.take_part(self.data)

    def _trainer_at(self, cut: int) -> ClientTrainer:
        self.trainers.append(new_trainer(self.spec, cut, self.data))
        return self.trainers[-1]


def new_trainer(spec: RunSpec, cut: int, data: DeviceData) -> ClientTrainer:
    return ClientTrainer(build_for(spec), cut, spec, DEVICE, data)


def some_images(count: int) -> PictureSet:
    generator = np.random.default_rng(count)
    images = generator.integers(0, 256, (count, *SPEC.input_shape), np.uint8)
    return PictureSet(images, np.arange(count) % 2)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make_device(*args: Any, **settings: Any) -> Device:
        made.append(Device(tmp_path / f"device-{len(made)}", *args, **settings))
        return made[-1]

    yield make_device
    for device in made:
        device.directory.close()


def steps_sent(device: Device) -> list[tuple[int, str, int]]:
    return [(batch.round, batch.phase, batch.step) for batch in device.server.batches]


def digest_of_round_1(make: Callable[..., Device]) -> str:
    """That a device reaches which nothing disturbs."""
    device = make(script=ONE_ROUND)
    device.server.open_run()
    device.run()
    return device.server.done[0].digest


def test_a_run_is_trained_and_committed_round_by_round(make: Callable[..., Device]) -> None:
    device = make()
    device.server.open_run()
    device.run()
    assert steps_sent(device) == [
        *((1, "train", step) for step in range(2)),
        (1, "evaluate", 0),
        *((2, "train", step) for step in range(2)),
        (2, "evaluate", 0),
    ]
    first, second = device.server.done
    assert (first.round, first.batches, second.round) == (1, 2, 2)
    assert first.digest != second.digest == device.trainers[-1].digest()
    assert first.bytes == sum(len(batch.encode()) for batch in device.server.batches[:2])
    assert all(batch.exit_entropy for batch in device.server.batches if batch.phase == "evaluate")
    assert device.directory.rounds() == [2, 1]
    facts = device.directory.facts()
    assert facts is not None and facts["finished"]
    last = device.server.statuses[-1]
    assert (last.doing, last.round) == ("finished", 2)
    assert (last.batches, last.bytes) == (4, first.bytes + second.bytes)
    assert device.server.syncs == []


def test_a_lost_acknowledgement_is_asked_for_after_15_seconds(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND, train=8)
    device.server.samples = 8
    lost: list[Ack] = []

    def is_lost(route: Route, message: Any) -> bool:
        gone = route is routes.ACK and not device.server.syncs
        lost.extend([message] if gone else [])
        return gone

    device.server.is_lost = is_lost
    device.server.open_run()
    started = device.clock()
    device.run()
    assert len(lost) == SPEC.window  # then the window was full
    assert 15 <= device.clock() - started < 16
    assert len(device.server.syncs) == 1
    assert {step for number, phase, step in steps_sent(device) if phase == "train"} == {0, 1, 2, 3}
    assert len(device.server.done) == 1


def test_what_the_server_has_lost_is_sent_again(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    sent_once: list[Sent] = []
    take = device.server.handle

    def lose_the_first_batches(sent: Sent) -> None:
        if sent.topic.endswith("/features") and len(sent_once) < 2:
            sent_once.append(sent)
        else:
            take(sent)

    device.port.on_sent = lose_the_first_batches
    device.server.open_run()
    device.run()
    assert [batch.encode() for batch in device.server.batches[:2]] == [sent.payload for sent in sent_once]
    assert len(device.server.syncs) == 1


def test_a_lost_round_done_is_said_again(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    device.server.participant = {"weights": True}
    device.server.on_done = lambda _done: device.server.commit() if len(device.server.done) > 1 else None
    device.server.open_run()
    device.run()
    first, again = device.server.done
    assert first == again
    assert len(device.server.syncs) == 1
    assert device.server.tensors[0] == device.server.tensors[1]  # the weights that belong to it, too


def test_a_round_that_is_opened_anew_is_trained_anew(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    """Before its round-done: the batches of the attempt before do not count."""
    caplog.set_level(logging.INFO)
    device = make(script=ONE_ROUND)

    def restart_instead_of_an_ack(route: Route, message: Any) -> bool:
        if route is routes.ACK and message.attempt == 7:
            device.server.begin_anew()
            return True
        return False

    device.server.is_lost = restart_instead_of_an_ack
    device.server.open_run()
    device.run()
    assert "round 1: the server has moved on" in caplog.messages
    assert [(batch.attempt, batch.step) for batch in device.server.batches if batch.phase == "train"] == [
        (7, 0),
        (8, 0),
        (8, 1),
    ]
    assert [done.digest for done in device.server.done] == [digest_of_round_1(make)]


def test_after_round_done_the_next_phase_does_not_supersede(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND[:1])
    server = device.server

    def open_the_next_phase_before_the_commit_is_heard(done: RoundDone) -> None:
        server.committed, server.digest, server.trained = 1, done.digest, done.digest
        server.open("evaluate", 1)
        server.script.extend(ONE_ROUND[2:])
        server.assign(5.0)

    server.on_done = open_the_next_phase_before_the_commit_is_heard
    server.open_run()
    started = device.clock()
    device.run()
    assert [phase for _, phase, _ in steps_sent(device)] == ["train", "train", "evaluate"]
    assert len(server.done) == 1
    assert device.clock() - started == 5.0


def test_after_round_done_a_new_attempt_supersedes(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    server = device.server
    server.on_done = lambda done: server.begin_anew() if done.attempt == 7 else server.commit()
    server.open_run()
    device.run()
    first, again = server.done
    assert (first.attempt, again.attempt) == (7, 8)
    assert first.digest == again.digest == digest_of_round_1(make)


def test_a_round_that_counts_without_the_device_is_not_kept(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    device = make(script=(("train", 1), ("train", 2), ("finished", 2)))
    server = device.server
    server.on_done = lambda done: server.commit(without=done.round == 1)
    server.open_run()
    device.run()
    assert "round 1: the server has moved on" in caplog.messages
    trainer = new_trainer(SPEC, 1, device.data)
    for _ in trainer.round(2):
        pass
    assert server.done[1].digest == trainer.digest()  # round 2 began where round 1 did


@pytest.mark.parametrize("train", [4, 8])
def test_a_device_with_other_images_sends_the_batches_that_the_server_expects(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture, train: int
) -> None:
    """It was started again with more images, or fewer, while a round of 6 was under way."""
    device = make(script=ONE_ROUND, train=train, held_out=100)
    device.server.samples, device.server.held_out = 6, 40
    device.server.open_run()
    device.run()
    assert steps_sent(device) == [(1, "train", 0), (1, "train", 1), (1, "train", 2), (1, "evaluate", 0)]
    assert (
        f"round 1 began when this device had 6 images; with {train} it goes on for the same 3 batches"
        in caplog.messages
    )


def test_a_process_that_starts_anew_sends_only_what_the_server_has_not(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    server = device.server

    def go_on_where_the_last_process_ended(_profile: Profile) -> None:
        server.open_next()
        server.next_step = 1
        server.acknowledge(resend=True)
        server.assign()

    server.on_profile = go_on_where_the_last_process_ended
    server.open_run()
    device.run()
    assert steps_sent(device) == [(1, "train", 1), (1, "evaluate", 0)]
    assert server.done[0].digest == digest_of_round_1(make)


def test_a_device_moves_to_another_cut_with_the_weights_that_the_server_holds(
    make: Callable[..., Device],
) -> None:
    device = make(wish=CutWish(2, "cut 2: faster"))
    server = device.server
    moved = other_weights(client_model(build_for(SPEC), 2, SPEC).state_dict())

    def move(done: RoundDone) -> None:
        if done.round == 1:
            server.cut, server.held = 2, moved
            server.committed, server.trained, server.digest = 1, done.digest, weights_digest(moved)
            server.assign()
            server.open_next()
        else:
            server.held = None
            server.commit()

    server.on_done = move
    server.open_run()
    device.run()
    cuts = [(profile.cut, profile.next_cut) for profile in server.profiles]
    assert cuts == [(1, 0), (1, 2), (2, 0)]
    assert [sync.weights for sync in server.syncs] == [tuple(sorted(moved))]
    trainer = new_trainer(SPEC, 2, device.data)
    trainer.adopt(moved)
    for _ in trainer.round(2):
        pass
    assert server.done[1].digest == trainer.digest()
    facts = device.directory.facts()
    assert facts is not None and facts["cut"] == 2


def test_soft_labels_are_fetched_and_learnt_from(make: Callable[..., Device]) -> None:
    spec = replace(SPEC, soft_labels=1.0)
    device = make(spec, script=(("train", 2), ("finished", 2)))
    rows = rows_a_round(spec, 4)
    probabilities = np.full((rows, 2), 0.5, np.float16)
    device.server.soft_labels = SoftLabels(1, torch.from_numpy(probabilities))
    device.server.participant = {"soft_labels": 1}
    device.server.open_run()
    device.run()
    assert [sync.soft_labels for sync in device.server.syncs] == [0]
    trainer = new_trainer(spec, 1, device.data)
    for _ in trainer.round(2, device.server.soft_labels):
        pass
    assert device.server.done[0].digest == trainer.digest()


def test_averaged_weights_are_sent_with_round_done_and_fetched_again(make: Callable[..., Device]) -> None:
    device = make(replace(SPEC, client_averaging="layerwise"), script=ONE_ROUND)
    server = device.server
    server.participant = {"weights": True}
    average = other_weights(client_model(build_for(SPEC), 1, SPEC).state_dict())

    def average_and_commit(done: RoundDone) -> None:
        server.participant = {}
        server.held, server.committed, server.trained = average, 1, done.digest
        server.digest = weights_digest(average)
        server.assign()
        server.open_next()

    server.on_done = average_and_commit
    server.open_run()
    device.run()
    sent = {name for message in server.tensors for name in message.tensors}
    assert sent == set(average)
    assert device.trainers[0].digest() == weights_digest(average)
    batches, weights = server.batches[:2], server.tensors
    assert server.done[0].bytes == sum(len(message.encode()) for message in (*batches, *weights))


@pytest.mark.parametrize(
    ("code", "error"), [(ExitCode.REJECTED, Rejected), (ExitCode.VERSION, VersionMismatch)]
)
def test_a_refused_join(make: Callable[..., Device], code: ExitCode, error: type[Exception]) -> None:
    device = make()

    def refuse(profile: Profile) -> None:
        for instance, fatal, said in ((profile.instance + 1, True, "another"), (0, False, "only a word")):
            report = ErrorReport(code=int(code), message=said, fatal=fatal, instance=instance)
            device.server.send(routes.ERROR, report)
        report = ErrorReport(code=int(code), message="other classes", fatal=True, instance=profile.instance)
        device.server.send(routes.ERROR, report)

    device.server.on_profile = refuse
    device.server.open_run()
    with pytest.raises(error, match="other classes"):
        device.run()


def when(device: Device, doing: str, then: Callable[[], object]) -> None:
    """Call `then` once, when the device first says that it does so."""
    take, is_called = device.port.on_sent, False

    def on_sent(sent: Sent) -> None:
        nonlocal is_called
        take(sent)
        if sent.topic.endswith("/status") and DeviceStatus.decode(sent.payload).doing == doing:
            is_called, was_called = True, is_called
            if not was_called:
                then()

    device.port.on_sent = on_sent


@pytest.mark.parametrize("doing", ["waiting", "training", "evaluating"])
def test_a_twin_that_started_later_ends_this_process(make: Callable[..., Device], doing: str) -> None:
    device = make()

    def speak_as_this_device() -> None:
        for instance in (0, 2):
            device.server.send(routes.STATUS, DeviceStatus(state="online", instance=instance))

    when(device, doing, speak_as_this_device)
    device.server.open_run()
    with pytest.raises(IdInUse, match="another process has started with the id 'pi-1'"):
        device.run()


@pytest.mark.parametrize("doing", ["waiting", "training", "evaluating"])
def test_another_run_ends_this_one(make: Callable[..., Device], doing: str) -> None:
    device = make()
    when(device, doing, lambda: device.server.send(routes.RUN, replace(SPEC, run="run-b")))
    device.server.open_run()
    with pytest.raises(RunChanged):
        device.run()
    assert device.session.await_run().run == "run-b"


def test_the_same_run_said_again_changes_nothing(make: Callable[..., Device]) -> None:
    device = make(script=ONE_ROUND)
    when(device, "training", lambda: device.server.send(routes.RUN, replace(SPEC, class_names=("a", "b"))))
    device.server.open_run()
    device.run()
    assert len(device.server.done) == 1


def test_a_server_of_another_protocol(make: Callable[..., Device]) -> None:
    device = make()
    device.server.send(routes.RUN, replace(SPEC, protocol=2))
    with pytest.raises(VersionMismatch, match="the server speaks protocol 2, this device 1"):
        device.run()


@pytest.mark.parametrize("doing", ["training", "evaluating"])
def test_patience_ends_when_the_server_falls_silent(make: Callable[..., Device], doing: str) -> None:
    device = make(patience=60)
    silent = False

    def fall_silent() -> None:
        nonlocal silent
        silent = True

    when(device, doing, fall_silent)
    device.server.is_lost = lambda _route, _message: silent
    device.server.open_run()
    with pytest.raises(Stalled, match=r"waited 60 s for .*: is this fleet's server running\?"):
        device.run()
    assert len(device.server.syncs) == 4  # after 15, 30, 45 and 60 seconds


def test_a_process_that_is_asked_to_stop_stops_between_two_batches(make: Callable[..., Device]) -> None:
    made: list[Device] = []
    device = make(stop=lambda: len(made[0].server.batches) == 1)
    made.append(device)
    device.server.open_run()
    with pytest.raises(Stopped):
        device.run()
    assert steps_sent(device) == [(1, "train", 0)]


def test_what_is_malformed_is_counted_and_changes_nothing_in_any_phase(
    make: Callable[..., Device], caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = make()
    undisturbed.server.open_run()
    undisturbed.run()

    device = make()

    shouts = 0

    def shout() -> None:
        """All that is malformed, on every route that the device reads."""
        nonlocal shouts
        shouts += 1
        for route in READ:
            for payload in MALFORMED:
                device.port.deliver(route.topic(TOPICS, DEVICE), payload)

    shout()
    for doing in ("waiting", "training", "evaluating", "finished"):
        when(device, doing, shout)

    def shout_and_take_in(profile: Profile) -> None:
        shout()
        device.server.take_in(profile)

    def shout_and_commit(_done: RoundDone) -> None:
        shout()
        device.server.commit()

    device.server.on_profile, device.server.on_done = shout_and_take_in, shout_and_commit
    device.server.open_run()
    device.run()
    device.session.drain()
    device.session.presence.say("finished", 3)
    assert device.server.statuses[-1].rejected == shouts * len(READ) * len(MALFORMED)
    assert [lost(sent) for sent in device.port.sent[:-1]] == [lost(sent) for sent in undisturbed.port.sent]
    lines = [line for line in caplog.messages if "rejected" in line]
    assert len([line for line in lines if "/pi-1/status rejected" in line]) == 10  # its own status
    assert len(lines) == 20


def test_each_message_of_the_server_cut_short_changes_nothing(make: Callable[..., Device]) -> None:
    undisturbed = make()
    undisturbed.server.open_run()
    undisturbed.run()

    device = make()
    damaged: set[str] = set()
    deliver = device.port.later

    def with_a_damaged_copy(seconds: float, topic: str, payload: bytes, **properties: Any) -> None:
        deliver(seconds, topic, payload[:-1])
        damaged.add(topic)
        deliver(seconds, topic, payload, **properties)

    device.port.later = with_a_damaged_copy  # type: ignore[method-assign]
    device.server.open_run()
    device.run()
    assert len(damaged) == 7
    assert [lost(sent) for sent in device.port.sent] == [lost(sent) for sent in undisturbed.port.sent]


def lost(sent: Sent) -> Sent:
    """A publication without what differs from run to run: what was rejected, and the time of day."""
    if not sent.topic.endswith("/status"):
        return sent
    status = DeviceStatus.decode(sent.payload)
    return sent._replace(payload=replace(status, rejected=0, time=0.0, temperature=None).encode())
