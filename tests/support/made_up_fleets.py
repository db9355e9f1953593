# SPDX-License-Identifier: Apache-2.0
"""Made-up fleets for the fleet's page, and a page that shows them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from sites import served

import splitee_web
from splitee.protocol.accuracies import ClassRecall, ConfusionMatrix, ReleasedThreshold
from splitee.protocol.fleet import Capability, CutCost, FleetMetrics, Metrics, RoundSeconds, ServerStatus
from splitee.protocol.fleet_view import DeviceView, FleetSnapshot, ModelInService, ReleaseView
from splitee.protocol.inference import LastPrediction, PredictedState, ServedModel, Serving
from splitee.protocol.overview import Baselines, DevicePoint, HistoryPoint, NetworkStage, WaitedFor
from splitee.protocol.rollouts import DeviceUpdate, Rollout, Update, Wave
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.traffic import ByPurpose, Traffic
from splitee_web.listening import ListenOptions
from splitee_web.site import STREAMS, make_app

PAGE = Path(splitee_web.__file__).parent / "fleet/static"
CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
STAGES = ("stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "head")
RUN = "20261129-kitchen"
ROUNDS = 10
MIB = 1 << 20


def device(number: int, name: str = "", *, now: float, round_: int = 4, **others: Any) -> DeviceView:
    """A device that trains; `others`: fields that replace the usual views."""
    cut = (3, 5, 7)[number % 3]
    usual = DeviceView(
        id=name or f"pi-{number}",
        online=True,
        doing="training",
        cut=cut,
        stage=STAGES[cut - 1],
        round=round_,
        step=(17 * number + 12) % 62,
        steps=62,
        loss=0.55 + 0.07 * math.sin(number),
        batches=62 * (round_ - 1),
        bytes=(40 + number % 7) * 1_000_000,
        exit_accuracy=0.74 + 0.03 * math.sin(number),
        trunk_accuracy=0.84 + 0.02 * math.cos(number),
        seen=now - number % 2,
        train_samples=2000,
        capability=_capability(),
        adaptive_accuracy=0.83 + 0.02 * math.cos(number),
        held_out_samples=400,
        weakest_class=ClassRecall("shirt", 40, 0.525),
        alone_accuracy=0.71,
        traffic=_traffic(1 + number % 3),
        in_phase=True,
        version="0.1.0",
        temperature=52.0 + number % 9,
        memory=(690 + 37 * (number % 11)) * MIB,
        memory_limit=1842 * MIB,
    )
    return replace(usual, **others)


def _capability() -> Capability:
    costs = [
        CutCost(cut, 0.02 * cut + 0.1, 800_000 // cut, (300 + 60 * cut) * MIB, cut < 8) for cut in range(1, 9)
    ]
    return Capability(
        network="resnet18",
        batch_size=32,
        codec="fp16",
        machine="Raspberry Pi 5 Model B Rev 1.0",
        cores=4,
        threads=4,
        memory=1500 * MIB,
        upload=11_600_000,
        round_trip=0.0021,
        reason="the fastest that fits its memory; cut 8 takes 780 MiB",
        cuts=tuple(costs),
    )


def _traffic(scale: int) -> Traffic:
    up = ByPurpose(
        training=31_000_000, evaluation=6_100_000, client_networks=2_700_000, protocol=90_000, headers=41_000
    )
    down = ByPurpose(client_networks=2_600_000, protocol=260_000, headers=38_000)
    total = Traffic(up=up, down=down)
    for _ in range(scale - 1):
        total += Traffic(up=up, down=down)
    return total


def confusion(size: int = len(CLASSES)) -> ConfusionMatrix:
    counts = [[0] * size for _ in range(size)]
    for true in range(size):
        counts[true][true] = 90 - 7 * (true % 4)
        for step in (1, 3, 6):
            counts[true][(true * 3 + step) % size] += 2 + (true * step) % 9
    return ConfusionMatrix(tuple(range(size)), tuple(map(tuple, counts)))


def history(rounds: int, drop: float = 0.0) -> tuple[HistoryPoint, ...]:
    began = time.time() - 40 * rounds
    return tuple(
        HistoryPoint(
            round=number,
            time=began + 40 * number,
            seconds=40.0 * number,
            exit=0.76 - drop - 0.4 * math.exp(-number / 2.5),
            trunk=0.86 - drop - 0.5 * math.exp(-number / 2.5),
            adaptive=0.85 - drop - 0.45 * math.exp(-number / 2.5),
        )
        for number in range(1, rounds + 1)
    )


def own_history(rounds: int, drop: float) -> tuple[DevicePoint, ...]:
    return tuple(
        DevicePoint(round=one.round, exit=one.exit, trunk=one.trunk, adaptive=one.adaptive)
        for one in history(rounds, drop)
    )


def fleet(devices: Sequence[DeviceView], *, now: float, round_: int = 4, **others: Any) -> FleetSnapshot:
    """A fleet that trains; `others`: fields that replace the usual views."""
    run = RunSpec(
        protocol=1, run=RUN, network="resnet18", num_classes=len(CLASSES), class_names=CLASSES, rounds=ROUNDS
    )
    evaluated = history(round_ - 1)
    last = evaluated[-1]
    usual = FleetSnapshot(
        fleet="kitchen",
        server=ServerStatus("online", 7, RUN, f"training round {round_}", time=now - 1),
        run=run,
        phase=RoundOpen(RUN, round_, 1, "train", len(devices)),
        committed=round_ - 1,
        metrics=Metrics(
            run=RUN,
            round=last.round,
            seconds=last.seconds,
            rounds=ROUNDS,
            batches_trained=62 * last.round * len(devices),
            duplicates_dropped=0,
            fleet=FleetMetrics(
                exit_accuracy=last.exit,
                trunk_accuracy=last.trunk,
                adaptive_accuracy=last.adaptive,
                images=400 * len(devices),
            ),
            time=last.time,
        ),
        devices=tuple(devices),
        malformed=0,
        opened=now - 21,
        estimate=now + 40 * (ROUNDS - round_ + 0.5),
        network_stages=tuple(NetworkStage(name, (64, 8, 8), 73_984) for name in STAGES),
        history=evaluated,
        baselines=Baselines(majority=0.1, alone=0.71),
        seconds=RoundSeconds(training=14.2, waiting=17.9, evaluation=5.4, aggregation=0.8, commit=0.4),
        confusion=confusion(),
        traffic=_traffic(3),
    )
    return replace(usual, **others)


def training(now: float) -> FleetSnapshot:
    """Three devices train; the fleet waits for the third, which is slow."""
    views = [
        device(number, now=now, confusion=confusion(), history=own_history(3, 0.02 * number))
        for number in range(1, 4)
    ]
    views[2] = replace(views[2], upload=180_000.0, waiting_since=now - 34, step=5)
    return fleet(views, now=now, waiting=(WaitedFor("pi-3", now - 34),))


def finished(now: float) -> FleetSnapshot:
    """A finished run; two devices serve its model, the third has rolled back to an earlier one."""
    served = ServedModel("c0ffee" * 10 + "c0ff", RUN, ROUNDS, now - 300)
    model = ModelInService(served.release, "in service", "", RUN, ROUNDS, now - 300, served)
    before = msgspec.structs.replace(
        served, run="20261120-kitchen", release="beef" * 16, since=now - 9 * 86_400
    )
    rolled_back = replace(
        model,
        state="rolled back",
        reason="3 of 50 images predicted otherwise than by the server",
        serves=before,
    )
    last = tuple(
        LastPrediction(
            CLASSES[index], 0.97 - 0.11 * index, "trunk" if index == 2 else "exit", now - 3 * index
        )
        for index in range(5)
    )
    serving = Serving("online", 9, now, 21.5, 48.2, 0.18, 0.02, last)
    views = [
        device(
            number,
            now=now,
            doing="serving",
            round_=ROUNDS,
            step=0,
            steps=0,
            serving=serving,
            model=model,
            confusion=confusion(),
            history=own_history(ROUNDS, 0.02 * number),
            released=ReleasedThreshold(
                threshold=0.412, images=400, expected_offload=0.21, expected_accuracy=0.846
            ),
        )
        for number in range(1, 4)
    ]
    views[2] = replace(views[2], model=rolled_back, temperature=84.0)
    return fleet(
        views,
        now=now,
        round_=ROUNDS + 1,
        phase=RoundOpen(RUN, ROUNDS, 1, "finished"),
        committed=ROUNDS,
        opened=now - 200,
        estimate=None,
        server=ServerStatus("offline", 7, RUN, "finished"),
        server_seen=now - 180,
        releases=(ReleaseView("in service", RUN, ROUNDS, 2), ReleaseView("rolled back", RUN, ROUNDS, 1)),
    )


def releasing(now: float) -> FleetSnapshot:
    """A rollout of a model, whose devices download, serve or have failed, and a stopped one of software."""
    before = finished(now)
    state = PredictedState(label="ankle boot", confidence=0.93, since=now - 200, time=now)
    models = (
        Update("barn-6", "barn-7", "downloading", 1_200_000, 4_000_000, "", "spring", 2),
        Update("barn-7", "barn-7", "in service", 0, 4_000_000, "", "spring", 1),
        Update("barn-6", "barn-7", "failed", 0, 4_000_000, "41 lost, 9 gained of 256 images", "spring", 2),
    )
    software = Update("0.1.0", "0.2.0", "trying", 0, 90_000_000, "", "0.2.0", 1)
    views = [
        replace(one, update=DeviceUpdate(model=model), predicted_state=state)
        for one, model in zip(before.devices, models, strict=True)
    ]
    views[1] = replace(views[1], update=DeviceUpdate(model=models[1], software=software))
    waves = (Wave(1, in_service=1), Wave(10, in_service=4, failed=1, asleep=2, late=1), Wave(20))
    later = now + 86_400
    rollouts = (
        Rollout("spring", "model", "barn-7", "running", now - 900, later, 2, 2, waves),
        Rollout(
            "0.2.0",
            "software",
            "0.2.0",
            "stopped",
            now - 4000,
            later,
            0,
            1,
            (Wave(3, failed=1), Wave(28)),
            "1 device failed, none may",
        ),
        Rollout(
            "winter", "model", "barn-6", "finished", now - 800_000, now, 2, 1, (Wave(31, in_service=31),)
        ),
    )
    return replace(before, devices=tuple(views), rollouts=rollouts)


def dead(now: float) -> FleetSnapshot:
    """One of three devices has failed during a round."""
    before = training(now)
    gone = replace(before.devices[1], online=False, seen=now - 47, waiting_since=now - 47)
    views = (before.devices[0], gone, replace(before.devices[2], upload=None, waiting_since=None))
    return replace(before, devices=views, waiting=(WaitedFor("pi-2", now - 47),))


def without_server(now: float) -> FleetSnapshot:
    """The server has failed; the devices wait for it."""
    before = training(now)
    views = tuple(replace(one, doing="waiting", upload=None, waiting_since=None) for one in before.devices)
    server = ServerStatus("offline", 7, RUN)
    return replace(before, devices=views, server=server, server_seen=now - 65, waiting=())


def earlier_seasons() -> tuple[dict[str, Any], ...]:
    """Two earlier seasons, as JSON."""
    return tuple(
        {
            "run": f"2026112{number}-kitchen",
            "rounds": 10,
            "ended": 1_790_000_000.0 + 700_000 * number,
            "devices": 3,
            "train_images": 400 * number,
            "held_out_images": 120,
            "exit_accuracy": 0.5 + 0.05 * number,
            "trunk_accuracy": 0.6 + 0.05 * number,
            "adaptive_accuracy": 0.6 + 0.06 * number,
            "class_recalls": [{"name": "shirt", "images": 12, "recall": 0.4 + 0.1 * number}],
        }
        for number in (1, 2)
    )


def many(now: float, count: int = 1000) -> FleetSnapshot:
    """A large fleet in which a few devices need attention."""
    views = [device(number, f"camera-{number:04}", now=now) for number in range(1, count + 1)]
    for part, others in (
        (0.016, {"online": False, "seen": now - 125}),
        (0.232, {"temperature": 83.0}),
        (0.5, {"memory": 1790 * MIB}),
        (0.75, {"waiting_since": now - 40}),
    ):
        views[int(part * count)] = replace(views[int(part * count)], **others)
    held, quarantined = views[int(0.75 * count)].id, views[int(0.041 * count)].id
    for index in range(5, count, 9):
        views[index] = replace(views[index], doing="waiting", step=0, steps=0)
    return fleet(
        views,
        now=now,
        server=ServerStatus("online", 7, RUN, "training round 4", quarantined=(quarantined,), time=now - 1),
        waiting=(WaitedFor(held, now - 40),),
        traffic=_traffic(40),
    )


def empty(now: float) -> FleetSnapshot:
    """A fleet without any message."""
    return FleetSnapshot("kitchen", None, None, None, 0, None, (), 0)


def event(kind: str, text: str, when: float, device: str | None = None) -> dict[str, Any]:
    return {"time": when, "kind": kind, "device": device, "text": text}


def events(now: float) -> list[dict[str, Any]]:
    return [
        event("run-began", f"run {RUN} began: resnet18, sequential, 10 rounds", now - 160),
        event("joined", "requests to join with cut 5, 2000 images for training", now - 158, "pi-1"),
        event("round-committed", "round 3 of 10 committed", now - 30),
        event("round-evaluated", "round 3 evaluated: adaptive 71.4 %", now - 24),
        event("round-opened", "round 4 of 10: training, 3 devices", now - 21),
    ]


HERE = ListenOptions("127.0.0.1", 0)
CONNECTED = {"connected": True, "since": 0.0, "text": ""}


@dataclass
class MadeUpPage:
    """The fleet's page, with events from a test instead of a broker.

    Attributes:
        snapshot: the fleet that a newly connected browser receives.
        url: the address of the page.
    """

    snapshot: FleetSnapshot
    log: list[dict[str, Any]]
    broker: dict[str, Any] | None
    where: ListenOptions = HERE
    seasons: tuple[dict[str, Any], ...] = ()
    url: str = ""

    def __post_init__(self) -> None:
        self.app = make_app(self.where, PAGE)
        self.app.router.add_get("/events", self._events)

    @contextmanager
    def served(self) -> Iterator[MadeUpPage]:
        with ExitStack() as stack:
            self.url = stack.enter_context(served(self.app, self.where))
            self.stop = stack.close
            yield self

    def send(self, name: str, value: Any) -> None:
        """Send an event to all browsers, from any thread."""
        data = _encoded(name, value)
        self._loop.call_soon_threadsafe(self.app[STREAMS].send, name, data)

    def show(self, snapshot: FleetSnapshot) -> None:
        """Change the fleet, and send browsers the difference."""
        before = {one.id: one for one in self.snapshot.devices}
        rows = [_changed(before.get(one.id), one) for one in snapshot.devices]
        gone = sorted(before.keys() - {one.id for one in snapshot.devices})
        self.snapshot = snapshot
        self.send("fleet", _of_fleet(snapshot))
        if gone:
            self.send("gone", gone)
        self.send("devices", [row for row in rows if len(row) > 1])

    async def _events(self, request: web.Request) -> web.StreamResponse:
        self._loop = asyncio.get_running_loop()
        return await self.app[STREAMS].respond(request, lambda: [("whole", self._whole())])

    def _whole(self) -> bytes:
        fleet_json = {**_of_fleet(self.snapshot), "devices": self.snapshot.devices, "seasons": self.seasons}
        whole = {"now": time.time(), "fleet": fleet_json, "log": self.log, "broker": self.broker}
        return msgspec.json.encode(whole)


def _encoded(name: str, value: Any) -> bytes:
    return msgspec.json.encode({"now": time.time(), name: value})


def _changed(before: DeviceView | None, after: DeviceView) -> dict[str, Any]:
    names = [each.name for each in fields(after)]
    changed = {
        name: getattr(after, name) for name in names if getattr(before, name, ...) != getattr(after, name)
    }
    return {"id": after.id, **changed}


def _of_fleet(snapshot: FleetSnapshot) -> dict[str, Any]:
    return {each.name: getattr(snapshot, each.name) for each in fields(snapshot) if each.name != "devices"}
