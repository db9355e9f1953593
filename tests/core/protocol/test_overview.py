# SPDX-License-Identifier: Apache-2.0
"""Messages for the viewers of a fleet, combined into a snapshot of it."""

from __future__ import annotations

import io

import pytest
from msgspec.structs import replace
from rich.console import Console

from splitee.commands.status import render
from splitee.errors import MalformedMessage
from splitee.mqtt.events import Message
from splitee.protocol.accuracies import MOST_CONFUSED_BY_DEVICE, ConfusionMatrix
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fields import LARGEST_COUNT
from splitee.protocol.fleet import (
    DeviceFigures,
    DeviceMetrics,
    DeviceStatus,
    Metrics,
    Profile,
    RoundSeconds,
    ServerStatus,
)
from splitee.protocol.fleet_view import (
    DeviceView,
    FleetSnapshot,
    FleetView,
)
from splitee.protocol.inference import LastPrediction, ModelOffer, ModelReport, ServedModel, Serving
from splitee.protocol.model_views import ModelInService, ReleaseView
from splitee.protocol.overview import (
    MOST_CURVES,
    MOST_POINTS,
    Baselines,
    DeviceHistory,
    DevicePoint,
    FleetConfusion,
    History,
    HistoryPoint,
    NetworkStage,
    NetworkStages,
    Timing,
    WaitedFor,
)
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Traffic

NOW = 1_800_000_000.0
TOPICS = Topics("lab")
RUN = RunSpec(protocol=1, run="r1", network="resnet18", num_classes=10, rounds=5)
ROUND = RoundOpen(run="r1", round=2, attempt=7, phase="train", participants=1)
TIMING = Timing(
    run="r1",
    round=2,
    attempt=7,
    phase="train",
    opened=NOW - 30,
    waiting=(WaitedFor("pi-1", NOW - 20),),
    estimate=NOW + 600,
)
STAGES = (NetworkStage("conv1", (64, 16, 16), 1728), NetworkStage("layer1.0", (64, 16, 16), 73984))
POINTS = (HistoryPoint(round=1, time=NOW - 40, seconds=20.0, exit=0.4, trunk=0.6, adaptive=0.5),)
MATRIX = ConfusionMatrix(classes=(0, 3), counts=((5, 1), (2, 4)))
SPENT = RoundSeconds(training=8.0, waiting=4.0, evaluation=2.0, aggregation=0.5, commit=0.25)
METRICS = Metrics(
    run="r1", round=1, rounds=5, seconds=20.0, batches_trained=62, duplicates_dropped=0, time=NOW, spent=SPENT
)
FIGURES = DeviceFigures(
    run="r1",
    round=1,
    figures=DeviceMetrics(cut=2, stage="layer1.0", train_samples=10),
    confusion=MATRIX,
)
CURVE = (DevicePoint(round=1, exit=0.4, trunk=0.6, adaptive=0.5),)
STATUS = DeviceStatus(
    state="online", instance=1, doing="training", temperature=61.5, memory=300 << 20, memory_limit=512 << 20
)
PROFILE = Profile(
    protocol=1, instance=1, version="0.2", cut=2, class_names=(), train_samples=10, held_out_samples=4
)
SERVING = Serving(
    state="online",
    instance=3,
    time=NOW - 2,
    per_minute=12.0,
    latency=31.5,
    offloaded_share=0.25,
    fallback_share=0.0,
    dropped=3,
    last=(LastPrediction("cat", 0.9, "exit", NOW - 3),),
)
OLD, NEW = "a" * 64, "b" * 64
SERVED = ServedModel(release=OLD, run="r0", round=9, since=NOW - 5000)


def device(leaf: str, name: str = "pi-1") -> str:
    return TOPICS.device(name, leaf)


RETAINED: dict[str, JsonMessage] = {
    TOPICS.run: RUN,
    TOPICS.round: ROUND,
    TOPICS.metrics: METRICS,
    f"{TOPICS.base}/server/timing": TIMING,
    f"{TOPICS.base}/server/network": NetworkStages(run="r1", stages=STAGES),
    f"{TOPICS.base}/server/history": History(run="r1", points=POINTS, baselines=Baselines(majority=0.2)),
    f"{TOPICS.base}/server/confusion": FleetConfusion(run="r1", round=1, confusion=MATRIX),
    device("metrics"): FIGURES,
    device("history"): DeviceHistory(run="r1", points=CURVE),
    device("status"): STATUS,
    device("profile"): PROFILE,
    device("serving"): SERVING,
    device("model"): ModelReport(release=OLD, state="in service", run="r0", time=NOW, serves=SERVED),
}


def snapshot_of(*messages: dict[str, JsonMessage]) -> FleetSnapshot:
    view = FleetView("lab")
    for topic, message in [each for some in messages for each in some.items()]:
        view.take(Message(topic, message.encode(), retained=True), NOW)
    return view.snapshot()


def device_of(*messages: dict[str, JsonMessage]) -> DeviceView:
    (found,) = snapshot_of(*messages).devices
    return found


def test_snapshot_holds_the_servers_messages_about_a_run() -> None:
    snapshot = snapshot_of(RETAINED)
    assert (snapshot.opened, snapshot.estimate, snapshot.waiting) == (NOW - 30, NOW + 600, TIMING.waiting)
    assert (snapshot.network_stages, snapshot.history) == (STAGES, POINTS)
    assert (snapshot.baselines, snapshot.seconds) == (Baselines(majority=0.2), SPENT)
    assert (snapshot.confusion, snapshot.malformed) == (MATRIX, 0)


def test_device_view_combines_the_messages_of_a_device() -> None:
    found = device_of(RETAINED)
    assert (found.version, found.temperature, found.memory, found.memory_limit) == (
        "0.2",
        61.5,
        300 << 20,
        512 << 20,
    )
    assert (found.waiting_since, found.confusion, found.history) == (NOW - 20, MATRIX, CURVE)
    assert found.serving == SERVING
    assert found.model == ModelInService(OLD, "in service", "", "r0", 9, NOW - 5000, SERVED)


def test_status_command_shows_the_snapshot_in_100_columns() -> None:
    server = ServerStatus(state="online", instance=7, run="r1", waiting_for=("pi-1", "pi-2"))
    traffic = Traffic(up=ByPurpose(training=1_234_000_000), down=ByPurpose(models=2_300_000))
    status = replace(STATUS, traffic=traffic, bytes=1_234_000_000, step=123, steps=140, loss=1.234, round=12)
    snapshot = snapshot_of(RETAINED, {TOPICS.server_status: server, device("status"): status})
    console = Console(file=io.StringIO(), width=100)
    console.print(render(snapshot, NOW))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "ends in about 10 min" in shown
    assert "waits for pi-1 (20 s), pi-2" in shown
    row, *facts = [line for line in shown.splitlines() if line.startswith("pi-1")]
    assert row.split()[-2:] == ["59", "62"]  # per cent of its memory, degrees
    assert f"model {OLD[:12]} of run r0, round 9: in service; 12 images a minute; 31.5 ms each" in facts[-1]
    assert "25.0 % offloaded" in shown and "3 images dropped" in shown
    assert "\u2026" not in shown, "nothing is cut off"


def test_snapshot_drops_the_data_of_an_earlier_run() -> None:
    snapshot = snapshot_of(RETAINED, {TOPICS.run: replace(RUN, run="r2")})
    assert snapshot.opened is snapshot.estimate is snapshot.baselines is snapshot.seconds is None
    assert snapshot.network_stages == snapshot.history == snapshot.waiting == ()
    (found,) = snapshot.devices
    assert (found.waiting_since, found.confusion, found.history) == (None, None, ())


@pytest.mark.parametrize("changed", [{"round": 3}, {"attempt": 8}, {"phase": "evaluate"}])
def test_snapshot_drops_the_timing_of_another_phase(changed: dict[str, object]) -> None:
    snapshot = snapshot_of(RETAINED, {TOPICS.round: replace(ROUND, **changed)})
    assert (snapshot.opened, snapshot.estimate, snapshot.waiting) == (None, None, ())


def test_confusion_of_another_round_than_the_metrics_is_not_shown() -> None:
    snapshot = snapshot_of(RETAINED, {TOPICS.metrics: replace(METRICS, round=2)})
    assert snapshot.confusion is None
    assert snapshot.devices[0].confusion is None


def test_device_that_only_serves_is_online_until_serving_ends() -> None:
    only = {device("serving"): SERVING}
    found = device_of(only)
    assert (found.online, found.doing, found.seen) == (True, "serving", NOW - 2)
    ended = device_of(only, {device("serving"): Serving(state="offline", instance=3)})
    assert (ended.online, ended.doing, ended.serving) == (False, "", None)


def test_device_is_shown_as_serving_after_its_training_has_ended() -> None:
    ended = {device("status"): replace(STATUS, state="offline")}
    found = device_of(RETAINED, ended)
    assert (found.online, found.doing, found.memory) == (True, "serving", 300 << 20)


def test_failed_release_leaves_the_previous_model_in_service() -> None:
    report = ModelReport(release=NEW, state="failed", reason="torn", run="r1", time=NOW - 9, serves=SERVED)
    found = device_of(RETAINED, {device("model"): report})
    assert found.model == ModelInService(NEW, "failed", "torn", "r1", 0, NOW - 9, SERVED)


def test_offer_is_shown_until_the_device_reports_on_it() -> None:
    offer = {device("inbox/model"): ModelOffer(release=NEW, size=1, run="r1")}
    found = device_of(RETAINED, offer)
    assert found.model == ModelInService(NEW, "offered", run="r1", serves=SERVED)
    taken = {device("model"): ModelReport(release=NEW, state="in service", serves=None)}
    model = device_of(RETAINED, offer, taken).model
    assert model is not None
    assert model.state == "in service"
    assert snapshot_of(offer).devices == ()  # an offer does not create a device


def test_releases_are_counted_by_state() -> None:
    others = {device("model", name): ModelReport(release=OLD, state="failed", run="r1") for name in "ab"}
    snapshot = snapshot_of(RETAINED, others)
    assert snapshot.releases == (
        ReleaseView("failed", "r1", 0, devices=2),
        ReleaseView("in service", "r0", 9, devices=1),
    )


def test_fleet_traffic_is_the_sum_of_its_devices() -> None:
    def status(traffic: Traffic | None) -> DeviceStatus:
        return replace(STATUS, traffic=traffic)

    one = Traffic(up=ByPurpose(training=5, headers=1), down=ByPurpose(models=2))
    huge = Traffic(up=ByPurpose(training=LARGEST_COUNT))
    statuses = {device("status", "a"): status(one), device("status", "b"): status(None)}
    assert snapshot_of(statuses).traffic == one
    assert snapshot_of(statuses, {device("status", "b"): status(one)}).traffic == one + one
    summed = snapshot_of(statuses, {device("status", "b"): status(huge)}).traffic
    assert summed is not None
    assert summed.up.training == LARGEST_COUNT
    assert snapshot_of({device("status", "b"): status(None)}).traffic is None


ROW = b'{"run":"r","points":[' + b",".join([b'{"round":1}'] * (MOST_POINTS + 1)) + b"]}"


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("server/history", ROW),
        ("devices/pi-1/history", ROW),
        ("server/history", b'{"run":"r","points":[{"round":1,"exit":1.5}]}'),
        ("server/history", b'{"run":"r","points":[{"round":1,"time":1e18}]}'),
        ("server/confusion", b'{"run":"r","round":1,"confusion":{"classes":[1,2],"counts":[[1,2]]}}'),
        ("server/confusion", b'{"run":"r","round":1,"confusion":{"classes":[1],"counts":[[1,2]]}}'),
        ("server/confusion", b'{"run":"r","round":1,"confusion":{"classes":[1],"counts":[[-1]]}}'),
        ("server/timing", b'{"run":"r","round":1,"attempt":1,"phase":"train","opened":-1}'),
        ("server/network", b'{"run":"r","stages":[{"name":"a","features":[0],"parameters":1}]}'),
        ("devices/pi-1/serving", b'{"state":"online","instance":1,"offloaded_share":2}'),
        ("devices/pi-1/serving", b'{"state":"online","instance":1,"last":[1,2,3,4,5,6]}'),
    ],
)
def test_message_out_of_bounds_is_counted_and_changes_nothing(topic: str, payload: bytes) -> None:
    view = FleetView("lab")
    view.take(Message(f"{TOPICS.base}/{topic}", payload, retained=True), NOW)
    assert view.snapshot() == replace_malformed(FleetView("lab").snapshot(), 1)


def replace_malformed(snapshot: FleetSnapshot, malformed: int) -> FleetSnapshot:
    return FleetSnapshot(**(vars(snapshot) | {"malformed": malformed}))


@pytest.mark.parametrize("degrees", [1e308, -1e308, 2_147_483.647, -274.0])
def test_impossible_temperature_is_not_shown(degrees: float) -> None:
    assert device_of({device("status"): replace(STATUS, temperature=degrees)}).temperature is None


def test_device_view_is_the_same_object_until_it_changes() -> None:
    view = FleetView("lab")
    others = {device("status", "pi-2"): STATUS}
    for topic, message in {**RETAINED, **others}.items():
        view.take(Message(topic, message.encode(), retained=True), NOW)
    before = view.snapshot().devices
    assert all(one is other for one, other in zip(before, view.snapshot().devices, strict=True))
    changed = replace(STATUS, step=5)
    view.take(Message(device("status", "pi-2"), changed.encode()), NOW + 1)
    first, second = view.snapshot().devices
    assert first is before[0]
    assert (second.step, second.seen) == (5, NOW + 1)
    no_waiting = replace(TIMING, waiting=())
    view.take(Message(f"{TOPICS.base}/server/timing", no_waiting.encode()), NOW)
    first, same = view.snapshot().devices
    assert first.waiting_since is None
    assert same is second
    view.take(Message(TOPICS.run, replace(RUN, run="r2").encode()), NOW)
    assert [found.confusion for found in view.snapshot().devices] == [None, None]


def test_device_confusion_of_too_many_classes_is_refused() -> None:
    size = MOST_CONFUSED_BY_DEVICE + 1
    matrix = ConfusionMatrix(tuple(range(size)), ((0,) * size,) * size)
    assert FleetConfusion.decode(FleetConfusion(run="r", round=1, confusion=matrix).encode())
    with pytest.raises(MalformedMessage, match=f"more than {MOST_CONFUSED_BY_DEVICE} classes"):
        DeviceFigures.decode(replace_confusion(matrix))


def replace_confusion(matrix: ConfusionMatrix) -> bytes:
    return FIGURES.encode().replace(
        MATRIX_JSON,
        FleetConfusion(run="", round=0, confusion=matrix).encode().partition(b'"confusion":')[2][:-1],
    )


MATRIX_JSON = b'{"classes":[0,3],"counts":[[5,1],[2,4]]}'


def test_number_of_device_histories_is_limited() -> None:
    view = FleetView("lab")
    for index in range(4 * MOST_CURVES):
        topic = device("history", f"pi-{index}")
        view.take(Message(topic, DeviceHistory(run="r1", points=CURVE).encode(), retained=True), NOW)
    assert view.snapshot().malformed == 2 * MOST_CURVES


def test_last_will_of_a_server_keeps_its_estimate() -> None:
    will = {TOPICS.server_status: ServerStatus(state="offline", instance=7)}
    assert snapshot_of(RETAINED, will).estimate == NOW + 600
