# SPDX-License-Identifier: Apache-2.0
"""A fleet's retained topics folded into one picture of it, and `splitee status` on real brokers."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from rich.console import Console

from splitee.cli.main import main
from splitee.commands.status import render
from splitee.errors import ExitCode
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.accuracies import ClassRecall, ReleasedThreshold
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fleet import (
    Capability,
    CutCost,
    DeviceFigures,
    DeviceMetrics,
    DeviceStatus,
    FleetMetrics,
    Metrics,
    Profile,
    ServerStatus,
)
from splitee.protocol.fleet_view import MAX_DEVICES, DeviceView, FleetView
from splitee.protocol.rounds import Commit, Participant, Participation, RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_lab.local.brokers import RunningBroker

NOW = 1_800_000_000.0
TOPICS = Topics("lab")
RUN = RunSpec(protocol=1, run="r1", network="resnet18", num_classes=10, rounds=5)
ROUND = RoundOpen(run="r1", round=2, attempt=1, phase="train", participants=1)
PART = Participation(
    run="r1", round=2, attempt=1, phase="train", part=Participant(cut=3, steps=62, base=1), room=8
)
COMMIT = Commit(run="r1", round=1, attempt=1, weights_sha256="1" * 64)
METRICS = Metrics(
    run="r1",
    round=1,
    rounds=5,
    seconds=20.0,
    devices={
        "pi-1": DeviceMetrics(
            cut=3, stage="layer1.1", train_samples=2000, exit_accuracy=0.5, trunk_accuracy=0.75
        )
    },
    batches_trained=62,
    duplicates_dropped=0,
)
FIGURES = DeviceFigures(run=METRICS.run, round=METRICS.round, figures=METRICS.devices["pi-1"])
SERVER = ServerStatus(state="online", instance=1, run="r1", doing="training", waiting_for=("pi-1",))
STATUS = DeviceStatus(
    state="online",
    instance=1,
    doing="training",
    round=2,
    step=31,
    steps=62,
    loss=0.5,
    batches=93,
    bytes=1000,
    time=NOW - 60,
)
PROFILE = Profile(
    protocol=1,
    instance=1,
    version="0.1.0",
    cut=3,
    class_names=("a", "b"),
    train_samples=2000,
    held_out_samples=100,
)
RETAINED: dict[str, JsonMessage] = {
    TOPICS.server_status: SERVER,
    TOPICS.run: RUN,
    TOPICS.round: ROUND,
    TOPICS.commit: COMMIT,
    TOPICS.metrics: replace(METRICS, devices={}),
    TOPICS.device("pi-1", "metrics"): FIGURES,
    TOPICS.device("pi-1", "inbox/participation"): PART,
    TOPICS.device("pi-1", "status"): STATUS,
    TOPICS.device("pi-1", "profile"): PROFILE,
}


def view_of(messages: dict[str, JsonMessage]) -> FleetView:
    view = FleetView("lab")
    for topic, message in messages.items():
        view.take(Message(topic, message.encode(), retained=True), NOW)
    return view


def device_of(view: FleetView) -> DeviceView:
    (device,) = view.snapshot().devices
    return device


def test_every_topic_has_its_place() -> None:
    snapshot = view_of(RETAINED).snapshot()
    assert (snapshot.server, snapshot.run, snapshot.phase, snapshot.metrics) == (SERVER, RUN, ROUND, METRICS)
    assert (snapshot.committed, snapshot.malformed, snapshot.finished) == (1, 0, False)
    assert snapshot.devices == (
        DeviceView(
            id="pi-1",
            online=True,
            doing="training",
            cut=3,
            stage="layer1.1",
            round=2,
            step=31,
            steps=62,
            loss=0.5,
            batches=93,
            bytes=1000,
            exit_accuracy=0.5,
            trunk_accuracy=0.75,
            seen=NOW - 60,
            train_samples=2000,
            in_phase=True,
            version="0.1.0",
        ),
    )


def test_what_a_device_sends_and_receives_is_shown_and_fits_80_columns() -> None:
    status = DeviceStatus(
        state="online",
        instance=1,
        doing="evaluating",
        round=12,
        step=123,
        steps=140,
        loss=1.234,
        bytes=1_234_500_000,
        traffic=Traffic(
            up=ByPurpose(training=1_234_000_000, evaluation=500_000, headers=9),
            down=ByPurpose(client_networks=2_300_000, headers=7),
        ),
    )
    view = view_of(RETAINED)
    view.take(Message(TOPICS.device("pi-1", "status"), status.encode()), NOW)
    assert device_of(view).traffic == status.traffic
    console = Console(file=io.StringIO(), width=80)
    console.print(render(view.snapshot(), NOW))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    [line] = [line for line in shown.splitlines() if line.startswith("pi-1")]
    for part in ("evaluating", "3 layer1.1", "123/140", "1.234", "50.0", "75.0", "1234/2.3", "0 s"):
        assert part in line
    assert "\u2026" not in shown, "nothing is cut off"
    will = DeviceStatus(state="offline", instance=1)
    view.take(Message(TOPICS.device("pi-1", "status"), will.encode()), NOW)
    assert device_of(view).traffic == status.traffic, "a last will knows nothing of it"


def test_who_is_dismissed_is_one_line_whatever_the_broker_still_retains() -> None:
    view = view_of(RETAINED)
    server = replace(SERVER, dismissed=("cam-3", "pi-1"), waiting_for=())
    view.take(Message(TOPICS.server_status, server.encode()), NOW)
    snapshot = view.snapshot()
    assert snapshot.devices == ()
    console = Console(file=io.StringIO(), width=120)
    console.print(render(snapshot, NOW))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 dismissed: cam-3, pi-1" in shown.splitlines()[2]
    view.take(Message(TOPICS.server_status, SERVER.encode()), NOW)
    assert device_of(view).id == "pi-1"


def test_the_order_of_arrival_does_not_matter() -> None:
    backwards = dict(reversed(RETAINED.items()))
    assert view_of(backwards).snapshot() == view_of(RETAINED).snapshot()


def test_a_device_behind_a_slow_link_is_shown_as_slow_until_it_is_gone() -> None:
    view, topic = view_of(RETAINED), TOPICS.device("pi-1", "status")
    view.take(Message(topic, replace(STATUS, upload=20_000.0).encode()), NOW)
    assert next(line for line in printed(view).splitlines() if line.startswith("pi-1")).split()[1] == "slow"
    assert "pi-1  slow: its link carries 0.16 Mbit/s" in printed(view)
    view.take(Message(topic, DeviceStatus(state="offline", instance=1).encode()), NOW)
    assert "offline" in printed(view)
    assert "slow" not in printed(view)


def test_the_status_says_how_good_the_fleet_is_and_on_how_many_images() -> None:
    weakest = ClassRecall("glass", 20, 0.4)
    figures = DeviceMetrics(
        cut=3,
        stage="layer1.1",
        train_samples=2000,
        held_out_samples=31,
        adaptive_accuracy=0.7,
        weakest_class=ClassRecall("[red]\n", 3, 0.0),
        released=ReleasedThreshold(threshold=0.4, images=400, expected_offload=0.2),
    )
    fleet = FleetMetrics(images=400, adaptive_accuracy=0.83, weakest_class=weakest)
    view = view_of(RETAINED)
    view.take(Message(TOPICS.metrics, replace(METRICS, devices={}, fleet=fleet).encode()), NOW)
    view.take(Message(TOPICS.device("pi-1", "metrics"), replace(FIGURES, figures=figures).encode()), NOW)
    shown = printed(view)
    assert "fleet  adaptive 83.0 % (79.0 to 86.4, 400 images)" in shown
    assert "weakest class glass 40.0 % (21.9 to 61.3, 20 images)" in shown
    assert (
        "pi-1  weakest class [red]\\n 0.0 % (0.0 to 56.2, 3 images); "
        "threshold 0.400, chosen on 400 images, offloads about 20.0 %"
    ) in shown
    assert device_of(view).held_out_samples == 31


def test_the_figures_of_devices_that_have_come_are_shown() -> None:
    """Each device has a message of its own: of this round, of the one before, or not yet."""
    view = view_of(RETAINED)
    older = replace(FIGURES, round=METRICS.round - 1)
    view.take(Message(TOPICS.device("pi-2", "metrics"), older.encode()), NOW)
    metrics = view.snapshot().metrics
    assert metrics is not None and set(metrics.devices) == {"pi-1"}
    view.take(Message(TOPICS.device("pi-2", "metrics"), FIGURES.encode()), NOW)
    metrics = view.snapshot().metrics
    assert metrics is not None and set(metrics.devices) == {"pi-1", "pi-2"}
    view.take(Message(TOPICS.device("pi-2", "metrics"), b"", retained=True), NOW)
    metrics = view.snapshot().metrics
    assert metrics is not None and set(metrics.devices) == {"pi-1"}


def test_an_unknown_fleet_is_empty() -> None:
    assert FleetView("lab").snapshot().empty
    assert not view_of({TOPICS.run: RUN}).snapshot().empty


@pytest.mark.parametrize("topic", [TOPICS.round, TOPICS.metrics, TOPICS.commit])
def test_what_an_earlier_run_left_does_not_count(topic: str) -> None:
    view = view_of(RETAINED)
    later = RunSpec(protocol=1, run="r2", network="resnet18", num_classes=10, rounds=5)
    view.take(Message(TOPICS.run, later.encode()), NOW)
    snapshot = view.snapshot()
    assert (snapshot.phase, snapshot.metrics, snapshot.committed) == (None, None, 0)
    assert device_of(view).trunk_accuracy is None


@pytest.mark.parametrize("topic", RETAINED)
@pytest.mark.parametrize("payload", [b"{", b"[]", b"\xff\xfe", b'{"state": "on fire"}', b"{}", b"null"])
def test_a_malformed_message_is_counted_and_changes_nothing(topic: str, payload: bytes) -> None:
    view = view_of(RETAINED)
    before = view.snapshot()
    view.take(Message(topic, payload), NOW)
    after = view.snapshot()
    assert after.malformed == 1
    assert (after.devices, after.run, after.phase, after.server) == (
        before.devices,
        before.run,
        before.phase,
        before.server,
    )


def test_a_cut_that_a_device_has_asked_for_is_shown_until_it_is_there() -> None:
    view = view_of(RETAINED)
    assert device_of(view).next_cut is None
    view.take(
        Message(TOPICS.device("pi-1", "profile"), replace(PROFILE, next_cut=1).encode(), retained=True), NOW
    )
    assert (device_of(view).cut, device_of(view).next_cut) == (3, 1)
    assert "3 layer1.1, next 1" in printed(view)
    moved = replace(PROFILE, cut=1)
    view.take(Message(TOPICS.device("pi-1", "profile"), moved.encode(), retained=True), NOW)
    assert (device_of(view).cut, device_of(view).next_cut) == (1, None)


def test_of_a_run_that_samples_its_devices_it_is_shown_who_is_in_the_round() -> None:
    waits = replace(STATUS, doing="waiting")
    view = view_of({**RETAINED, TOPICS.run: replace(RUN, sample="1"), TOPICS.device("pi-2", "status"): waits})
    first, *lines = shown(view)
    assert "round 2 of 5: train, with 1 of 2 devices" in first
    assert [line.split()[:3] for line in lines if line.startswith("pi-")][:2] == [
        ["pi-1", "training", "3"], ["pi-2", "not", "picked"],
    ]  # fmt: skip
    assert {device.id: device.in_phase for device in view.snapshot().devices} == {"pi-1": True, "pi-2": False}


def test_what_the_profiler_recommends_is_shown() -> None:
    can = Capability(
        network="resnet18", batch_size=32, codec="fp16", machine="Raspberry Pi 4", cores=4, threads=4,
        upload=1e6, reason="cut 3 (layer1.1): the fastest round, 12 s; training sets its pace",
        cuts=(CutCost(cut=3, seconds=0.2, bytes=1000, memory=1000, fits=True),),
    )  # fmt: skip
    view = view_of({**RETAINED, TOPICS.device("pi-1", "profile"): replace(PROFILE, capability=can)})
    assert (
        "Raspberry Pi 4, 4 cores, 200 ms a batch, 8 Mbit/s; cut 3 (layer1.1): the fastest round, 12 s"
    ) in printed(view)


def test_what_a_device_has_predicted_and_what_it_is_alone_are_shown() -> None:
    serving = replace(STATUS, doing="serving", predicted=1234, offloaded=308)
    alone = replace(PROFILE, alone_accuracy=0.612)
    view = view_of(
        {
            **RETAINED,
            TOPICS.device("pi-1", "status"): serving,
            TOPICS.device("pi-1", "profile"): alone,
        }
    )
    assert "1234, 25% asked" in printed(view)
    assert "61.2" in printed(view)


def printed(view: FleetView) -> str:
    console = Console(width=250, file=io.StringIO())
    console.print(render(view.snapshot(), NOW))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_topics_of_other_fleets_are_ignored() -> None:
    view = FleetView("lab")
    view.take(Message(Topics("other").device("pi-1", "status"), STATUS.encode(), retained=True), NOW)
    view.take(Message(Topics("other").run, RUN.encode(), retained=True), NOW)
    assert view.snapshot().empty


def test_a_cleared_topic_is_forgotten() -> None:
    view = view_of(RETAINED)
    for topic in RETAINED:
        view.take(Message(topic, b""), NOW)
    assert view.snapshot().empty


def test_seen_is_the_arrival_of_a_live_status_and_the_devices_own_time_of_a_retained_one() -> None:
    view = view_of(RETAINED)
    assert device_of(view).seen == NOW - 60
    view.take(Message(TOPICS.device("pi-1", "status"), STATUS.encode()), NOW)
    assert device_of(view).seen == NOW


def test_seen_is_by_the_brokers_count_where_the_devices_clock_is_wrong() -> None:
    view, topic = view_of(RETAINED), TOPICS.device("pi-1", "status")
    of_another_year = replace(STATUS, time=NOW + 365 * 86400).encode()
    view.take(Message(topic, of_another_year, retained=True, age=7), NOW)
    assert device_of(view).seen == NOW - 7
    view.take(Message(topic, of_another_year, retained=True), NOW)  # of a broker that does not count
    assert device_of(view).seen == NOW


def test_a_last_will_leaves_what_the_device_said_before() -> None:
    view = view_of(RETAINED)
    will = DeviceStatus(state="offline", instance=1)
    view.take(Message(TOPICS.device("pi-1", "status"), will.encode()), NOW)
    device = device_of(view)
    assert not device.online
    assert (device.round, device.loss, device.bytes) == (2, 0.5, 1000)


@pytest.mark.parametrize(
    ("doing", "number", "step", "steps", "done"),
    [
        ("starting", 0, 0, 0, 0.0),
        ("training", 1, 0, 62, 0.0),
        ("training", 2, 31, 62, 1.5),
        ("waiting", 2, 62, 62, 2.0),
        ("evaluating", 2, 1, 16, 2.0),
        ("finished", 5, 0, 0, 5.0),
    ],
)
def test_rounds_that_are_behind_a_device(doing: str, number: int, step: int, steps: int, done: float) -> None:
    status = {"state": "online", "instance": 1, "doing": doing, "round": number, "step": step, "steps": steps}
    view = FleetView("lab")
    view.take(Message(TOPICS.device("pi-1", "status"), json.dumps(status).encode(), retained=True), NOW)
    assert device_of(view).done == done


def test_the_number_of_devices_is_bounded() -> None:
    view = FleetView("lab")
    payload = STATUS.encode()
    for number in range(MAX_DEVICES + 3):
        view.take(Message(TOPICS.device(f"pi-{number}", "status"), payload, retained=True), NOW)
    snapshot = view.snapshot()
    assert (len(snapshot.devices), snapshot.malformed) == (MAX_DEVICES, 3)


def shown(view: FleetView) -> list[str]:
    """The lines of `splitee status` on a terminal without colours."""
    written = io.StringIO()
    console = Console(file=written, width=300, force_terminal=True, color_system=None)
    console.print(render(view.snapshot(), NOW))
    return written.getvalue().split("\n")


def test_texts_from_the_wire_steer_no_terminal_and_forge_no_line() -> None:
    evil = "\x1b[2J\x9b31m\r\n00:00:00 INFO forged \u202e[red]"
    capability = Capability(
        network="n", batch_size=1, codec="fp16", machine="board", cores=1, threads=1, reason="cut 3"
    )
    device = METRICS.devices["pi-1"]
    messages: dict[str, JsonMessage] = {
        **RETAINED,
        TOPICS.metrics: replace(METRICS, devices={}),
        TOPICS.device("pi-1", "metrics"): FIGURES,
        TOPICS.device("pi-1", "profile"): replace(PROFILE, capability=capability),
    }
    hostile: dict[str, JsonMessage] = {
        TOPICS.server_status: replace(SERVER, doing=evil),
        TOPICS.run: replace(RUN, network=evil),
        TOPICS.device("pi-1", "metrics"): replace(FIGURES, figures=replace(device, stage=evil)),
        TOPICS.device("pi-1", "profile"): replace(
            PROFILE, version=evil, capability=replace(capability, machine=evil, reason=evil)
        ),
    }
    honest, attacked = FleetView("lab"), FleetView("lab")
    for topic, message in messages.items():
        honest.take(Message(topic, message.encode(), retained=True), NOW)
        attacked.take(Message(topic, hostile.get(topic, message).encode(), retained=True), NOW)
    lines = shown(attacked)
    assert len(lines) == len(shown(honest))
    assert all(line.isprintable() for line in lines)
    text = "\n".join(lines)
    assert text.count(r"\x1b[2J\x9b31m\r\n00:00:00 INFO forged \u202e[red]") == 5


def status(capfd: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `splitee status`."""
    with pytest.raises(SystemExit) as ended:
        main(["status", *flags])
    captured = capfd.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


def test_status_prints_what_the_broker_retains(
    broker: RunningBroker, make_link: Callable[..., Link], capfd: pytest.CaptureFixture[str]
) -> None:
    link = make_link(broker.address, "writer")
    for topic, message in RETAINED.items():
        link.publish(topic, message.encode(), retain=True)
    link.publish(TOPICS.device("pi-2", "status"), b"not JSON", retain=True)
    assert link.flush(10)
    where = ("--broker", str(broker.address), "--fleet", "lab")
    code, printed, errors = status(capfd, *where, "--once")
    assert (code, errors) == (ExitCode.OK, "")
    for expected in ("resnet18", "round 2 of 5: train", "waits for pi-1", "layer1.1", "31/62", "75.0"):
        assert expected in printed
    assert "1 malformed" in printed
    code, printed, errors = status(capfd, *where, "--json")
    assert (code, errors) == (ExitCode.OK, "")
    as_json = json.loads(printed)
    assert as_json["devices"][0]["trunk_accuracy"] == 0.75
    assert as_json["run"]["network"] == "resnet18"


def test_status_says_when_there_is_no_such_fleet(
    broker: RunningBroker, capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed, errors = status(capfd, "--broker", str(broker.address), "--fleet", "nobody", "--once")
    assert (code, printed) == (ExitCode.CONFIG, "")
    assert errors.startswith(f"splitee: no fleet 'nobody' at {broker.address}")
    assert len(errors.splitlines()) == 1


def test_status_gives_up_where_no_broker_is(capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    code, _, errors = status(capfd, "--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "0.5", "--once")
    assert code == ExitCode.UNREACHABLE
    assert "splitee: no broker at mqtt://127.0.0.1:1" in errors.splitlines()[-1]
    assert time.monotonic() - started < 10
