# SPDX-License-Identifier: Apache-2.0
"""`splitee status`: what is printed of a fleet, also on real brokers."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from contextlib import closing

import pytest
from fakes import FakeClock, FakePort
from msgspec.structs import replace
from retained_fleet import (
    FIGURES,
    METRICS,
    NOW,
    PROFILE,
    RETAINED,
    RUN,
    SERVER,
    STATUS,
    TOPICS,
    device_of,
    rollout,
    view_of,
)
from rich.console import Console
from slow_proxy import SlowProxy

from splitee.cli.main import main
from splitee.commands.status import REPEAT_AFTER, follow, render
from splitee.errors import BrokerRefused, ExitCode
from splitee.mqtt.events import Message, Overflow
from splitee.mqtt.link import Link
from splitee.protocol.accuracies import ClassRecall, ReleasedThreshold
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fleet import (
    Capability,
    CutCost,
    DeviceMetrics,
    DeviceStatus,
    FleetMetrics,
)
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.inference import ModelReport, PredictedState, Serving
from splitee.protocol.rollouts import DeviceUpdate, Rollouts, Update, Wave
from splitee.protocol.topics import Topics
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_lab.local.brokers import RunningBroker


def test_progress_and_traffic_of_a_device_fit_80_columns() -> None:
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


def test_dismissed_devices_are_one_line_despite_retained_messages() -> None:
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


def test_device_behind_a_slow_link_is_shown_as_slow_until_offline() -> None:
    view, topic = view_of(RETAINED), TOPICS.device("pi-1", "status")
    view.take(Message(topic, replace(STATUS, upload=20_000.0).encode()), NOW)
    assert next(line for line in printed(view).splitlines() if line.startswith("pi-1")).split()[1] == "slow"
    assert "pi-1  slow: its link carries 0.16 Mbit/s" in printed(view)
    view.take(Message(topic, DeviceStatus(state="offline", instance=1).encode()), NOW)
    assert "offline" in printed(view)
    assert "slow" not in printed(view)


def test_status_shows_accuracies_weakest_class_and_threshold() -> None:
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
        "threshold 0.400 (chosen on 400 images): expected 20.0 % offloaded"
    ) in shown
    assert device_of(view).held_out_samples == 31


def test_requested_cut_is_shown_until_the_device_has_it() -> None:
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


def test_sampled_round_shows_which_devices_take_part() -> None:
    waits = replace(STATUS, doing="waiting")
    view = view_of({**RETAINED, TOPICS.run: replace(RUN, sample="1"), TOPICS.device("pi-2", "status"): waits})
    first, *lines = shown(view)
    assert "round 2 of 5: train, with 1 of 2 devices" in first
    assert [line.split()[:3] for line in lines if line.startswith("pi-")][:2] == [
        ["pi-1", "training", "3"], ["pi-2", "not", "picked"],
    ]  # fmt: skip
    assert {device.id: device.in_phase for device in view.snapshot().devices} == {"pi-1": True, "pi-2": False}


def test_recommendation_of_the_profiler_is_shown() -> None:
    can = Capability(
        network="resnet18", batch_size=32, codec="fp16", machine="Raspberry Pi 4", cores=4, threads=4,
        upload=1e6, reason="cut 3 (layer1.1): the fastest round, 12 s; training sets its pace",
        cuts=(CutCost(cut=3, seconds=0.2, bytes=1000, memory=1000, fits=True),),
    )  # fmt: skip
    view = view_of({**RETAINED, TOPICS.device("pi-1", "profile"): replace(PROFILE, capability=can)})
    assert (
        "Raspberry Pi 4, 4 cores, 200 ms a batch, 8 Mbit/s; cut 3 (layer1.1): the fastest round, 12 s"
    ) in printed(view)


def test_number_of_predictions_and_alone_accuracy_are_shown() -> None:
    serving = replace(STATUS, doing="serving", predicted=1234, offloaded=308)
    alone = replace(PROFILE, alone_accuracy=0.612)
    view = view_of(
        {
            **RETAINED,
            TOPICS.device("pi-1", "status"): serving,
            TOPICS.device("pi-1", "profile"): alone,
        }
    )
    assert "1234, 25% offloaded" in printed(view)
    assert "61.2" in printed(view)


def printed(view: FleetView) -> str:
    console = Console(width=250, file=io.StringIO())
    console.print(render(view.snapshot(), NOW))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(view: FleetView) -> list[str]:
    """The lines of `splitee status` on a terminal without colours."""
    written = io.StringIO()
    console = Console(file=written, width=300, force_terminal=True, color_system=None)
    console.print(render(view.snapshot(), NOW))
    return written.getvalue().split("\n")


def test_hostile_texts_from_the_wire_are_escaped_and_add_no_line() -> None:
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
        f"{TOPICS.base}/rollouts": Rollouts(rollouts=(rollout(reason="calm"),)),
        TOPICS.device("pi-1", "update"): DeviceUpdate(software=Update(latest="1", state="failed")),
        TOPICS.device("pi-1", "serving"): Serving(state="online", instance=3, time=NOW),
        TOPICS.device("pi-1", "state"): PredictedState(label="cat", confidence=1, since=NOW, time=NOW),
    }
    hostile: dict[str, JsonMessage] = {
        TOPICS.server_status: replace(SERVER, doing=evil),
        TOPICS.run: replace(RUN, network=evil),
        TOPICS.device("pi-1", "metrics"): replace(FIGURES, figures=replace(device, stage=evil)),
        TOPICS.device("pi-1", "profile"): replace(
            PROFILE, version=evil, capability=replace(capability, machine=evil, reason=evil)
        ),
        f"{TOPICS.base}/rollouts": Rollouts(rollouts=(rollout(version=evil, reason=evil),)),
        TOPICS.device("pi-1", "update"): DeviceUpdate(
            software=Update(latest=evil, state="failed", reason=evil)
        ),
        TOPICS.device("pi-1", "state"): PredictedState(label=evil, confidence=1, since=NOW, time=NOW),
    }
    honest, attacked = FleetView("lab"), FleetView("lab")
    for topic, message in messages.items():
        honest.take(Message(topic, message.encode(), retained=True), NOW)
        attacked.take(Message(topic, hostile.get(topic, message).encode(), retained=True), NOW)
    lines = shown(attacked)
    assert len(lines) == len(shown(honest))
    assert all(line.isprintable() for line in lines)
    text = "\n".join(lines)
    assert text.count(r"\x1b[2J\x9b31m\r\n00:00:00 INFO forged \u202e[red]") == 10


def test_live_status_requests_retained_messages_again_after_it_has_lost_some() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    clock, requests = FakeClock(), []

    class Broker(FakePort):
        def subscribe(self, *filters: str) -> None:
            super().subscribe(*filters)
            requests.append(clock())
            for topic, message in RETAINED.items():
                self.deliver(topic, message.encode(), retained=True)

    port, view = Broker(clock), FleetView(TOPICS.fleet)
    for seconds in (0, 1, 2):
        port.happen(Overflow(), seconds)
    port.happen(BrokerRefused("no more"), 60)
    with pytest.raises(BrokerRefused):
        follow(console, port, view, clock)
    assert device_of(view).id == "pi-1"
    assert "resnet18" in console.file.getvalue()  # type: ignore[attr-defined]
    first, second = requests
    assert first - 1000 < 1
    assert REPEAT_AFTER <= second - first < REPEAT_AFTER + 1, "a broker is not flooded with requests"


def status(capfd: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `splitee status`."""
    with pytest.raises(SystemExit) as ended:
        main(["status", *flags])
    captured = capfd.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


def test_status_prints_the_state_retained_by_the_broker(
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
    assert as_json["rollouts"] == []
    assert as_json["run"]["network"] == "resnet18"


@pytest.mark.slow(6)
@pytest.mark.mosquitto
def test_retained_messages_that_take_seconds_are_all_shown(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], capfd: pytest.CaptureFixture[str]
) -> None:
    topics = Topics("large")
    profile = replace(PROFILE, class_names=tuple(f"class {number:03}" for number in range(150)))
    link = make_link(mosquitto_broker.address, "writer")
    devices = [f"pi-{number:03}" for number in range(300)]
    for device in devices:
        link.publish(topics.device(device, "profile"), profile.encode(), retain=True)
    assert link.flush(10)
    with closing(SlowProxy(mosquitto_broker.address, rate=150_000)) as proxy:
        code, printed, errors = status(capfd, "--broker", str(proxy.address), "--fleet", "large", "--json")
    assert (code, errors) == (ExitCode.OK, "")
    assert [device["id"] for device in json.loads(printed)["devices"]] == devices


def test_status_of_an_unknown_fleet_is_refused_in_one_line(
    broker: RunningBroker, capfd: pytest.CaptureFixture[str]
) -> None:
    code, printed, errors = status(capfd, "--broker", str(broker.address), "--fleet", "nobody", "--once")
    assert (code, printed) == (ExitCode.CONFIG, "")
    assert errors.startswith(f"splitee: no fleet 'nobody' at {broker.address}")
    assert len(errors.splitlines()) == 1


def test_status_gives_up_without_a_broker(capfd: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    code, _, errors = status(capfd, "--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "0.5", "--once")
    assert code == ExitCode.UNREACHABLE
    assert "splitee: no broker at mqtt://127.0.0.1:1" in errors.splitlines()[-1]
    assert time.monotonic() - started < 10


def test_rollouts_are_shown_in_a_table_with_the_reason_below() -> None:
    stopped = rollout("summer", "stopped", reason="3 devices failed, at most 2 may")
    view = view_of({**RETAINED, f"{TOPICS.base}/rollouts": Rollouts(rollouts=(stopped, rollout()))})
    console = Console(file=io.StringIO(), width=80)
    console.print(render(view.snapshot(), NOW))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    [summer, reason] = [line.split() for line in lines if line.startswith("summer")]
    assert summer == ["summer", "model", "barn-7", "stopped", "2", "of", "3", "5", "1", "2", "1", "2", "20"]
    assert reason == ["summer", "stopped:", *stopped.reason.split()]
    [spring] = [line.split() for line in lines if line.startswith("spring")]
    assert spring[3] == "running"


def test_rollout_table_keeps_whole_names_and_drops_zero_counts_at_80_columns() -> None:
    run = "20261130T020327-d445"
    finished = rollout(
        f"{run}-2", "finished", version=f"{run} round 2", wave=1, waves=(Wave(2, in_service=2),)
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(
        render(view_of({f"{TOPICS.base}/rollouts": Rollouts(rollouts=(finished,))}).snapshot(), NOW)
    )
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    [header] = [line.split() for line in lines if line.startswith("rollout ")]
    assert header == ["rollout", "release", "state", "wave", "service"]
    [row] = [line.split() for line in lines if line.startswith(f"{run}-2 ")]
    assert row == [f"{run}-2", "model", run, "round", "finished", "1", "of", "1", "2"]


def test_rollouts_are_shown_before_any_device_is_known() -> None:
    view = view_of({f"{TOPICS.base}/rollouts": Rollouts(rollouts=(rollout(),))})
    assert not view.snapshot().empty
    output = printed(view)
    assert output.index("no device has connected yet") < output.index("spring")


def test_pending_updates_and_predicted_state_of_a_device_are_shown() -> None:
    update = DeviceUpdate(
        model=Update(latest="barn-7", state="downloading", have=1_200_000, size=4_000_000),
        software=Update(installed="0.2.0", latest="0.3.0", state="failed", reason="no space left"),
    )
    report = ModelReport(release="ab" * 32, state="downloading", run="r1")
    state = PredictedState(label="cat", confidence=0.93, since=NOW - 180, time=NOW)
    messages: dict[str, JsonMessage] = {
        TOPICS.device("pi-1", "update"): update,
        TOPICS.device("pi-1", "state"): state,
        TOPICS.device("pi-1", "serving"): Serving(state="online", instance=3, time=NOW),
        TOPICS.device("pi-1", "model"): report,
    }
    view = view_of({**RETAINED, **messages})
    assert (
        "pi-1  cat for 3 min, 0.93; 0 images a minute; "
        "model barn-7: downloading 1.2 of 4.0 MB; software 0.3.0: failed: no space left (0.2.0 in service)"
    ) in printed(view)
    settled = replace(update, model=replace(update.model, state="in service"), software=Update())
    view.take(Message(TOPICS.device("pi-1", "update"), settled.encode()), NOW)
    assert "barn-7" not in printed(view), "what is in service is not on its way"
    assert "model abababababab of run r1: downloading" in printed(view)
