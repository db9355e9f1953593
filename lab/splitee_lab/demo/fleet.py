# SPDX-License-Identifier: Apache-2.0
"""A whole fleet on one machine: broker, server and devices as processes, and the baselines."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from splitee.errors import BrokerUnreachable, NetworkError, StateError
from splitee.mqtt.events import Event, Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.networks.split import build_network
from splitee.protocol.fleet import Metrics
from splitee.protocol.fleet_view import FleetSnapshot, FleetView
from splitee.protocol.retained import clear, retained_topics
from splitee.protocol.routes import ROUTES
from splitee.protocol.topics import Topics
from splitee.samples.fitting import Shape, format_shape
from splitee_device.data.sources import open_source
from splitee_lab.demo.inference import InService, infer_on
from splitee_lab.demo.machine import PeakMemory, machine
from splitee_lab.demo.page import serve_page
from splitee_lab.demo.progress import Display
from splitee_lab.demo.state import DemoState
from splitee_lab.demo.workload import workload
from splitee_lab.local.brokers import RunningBroker, open_broker
from splitee_lab.local.limits import CpuShares, Limits, device_limits
from splitee_lab.local.processes import Children
from splitee_lab.methods.baselines import (
    ALONE,
    ALONE_EXIT,
    CENTRALIZED,
    Baseline,
    DataSource,
    baselines_of,
    train_all,
)
from splitee_lab.report.demo_page import complete, read_history, write
from splitee_lab.report.demo_report import BaselineResult, DeviceChoice, Report
from splitee_server.release.exporting import TRUNKS
from splitee_server.rounds.class_report import ClassReport, class_report

DATA = "builtin:fashion-mnist"
SMALL: Shape = (3, 32, 32)  # for the built-in images of 28 x 28 pixels
DEPTHS = (0.3, 0.5, 0.7)  # of the network's stages; resnet18: after layer1, layer2, layer3
CONNECT = 30.0  # seconds
CLEAR = 5.0  # seconds to reach the broker again at the end
BUDGET = 120  # seconds in which a device with limits measures the cost of cuts, also beside other work
TICK = 0.25  # seconds between checks of the processes while no message arrives


@dataclass(frozen=True)
class DemoDevice:
    """One device of a demo: it trains on part K/N of the images. With `limits` it chooses its cut."""

    id: str
    cut: int
    shard: str
    limits: Limits | None = None


@dataclass(frozen=True)
class Demo:
    """What to run. `samples`: most training images per device; None: its whole share."""

    network: str
    strategy: str
    rounds: int
    devices: int
    seed: int
    broker: str
    codec: str
    averaging: str  # of client networks
    samples: int | None
    baselines: bool
    out: Path
    profile: bool = False  # devices have limits, and the profiler chooses their cuts
    input_shape: Shape = SMALL
    page: bool = False  # it is shown in a browser


def spread_cuts(num_layers: int) -> list[int]:
    """Up to three distinct cuts of 1..num_layers-1, at DEPTHS of the network."""
    return sorted({min(max(int(depth * num_layers + 0.5), 1), num_layers - 1) for depth in DEPTHS})


def plan(network: str, num_classes: int, devices: int, input_shape: Shape = SMALL) -> list[DemoDevice]:
    """The devices, their cuts in turn.

    Raises:
        NetworkError: there is no such network, or it cannot be cut.
    """
    described = build_network(network, num_classes=num_classes, input_shape=input_shape, device="meta")
    cuts = spread_cuts(described.num_layers)
    if not cuts:
        raise NetworkError(f"{network} has a single stage: nothing to cut")
    return [
        DemoDevice(f"pi-{number}", cuts[(number - 1) % len(cuts)], f"{number}/{devices}")
        for number in range(1, devices + 1)
    ]


def run(demo: Demo, display: Display, print_line: Callable[[str], None], stack: ExitStack) -> Report:
    """Runs the demo and writes OUT/report.json and OUT/report.html; no process outlives `stack`.

    Those of the fleet do not outlive the call; a page, and the broker that it reads, are left to `stack`.

    Raises:
        StateError: OUT is in use, or cannot be written.
        ChildFailed: one of its processes ended too early.
    """
    with _new_folder(demo.out):
        return _run(demo, display, print_line, stack)


def _run(demo: Demo, display: Display, print_line: Callable[[str], None], stack: ExitStack) -> Report:
    num_classes = len(open_source(DATA).class_names)
    devices = plan(demo.network, num_classes, demo.devices, demo.input_shape)
    if demo.profile:
        kinds = device_limits(demo.devices)
        devices = [replace(device, limits=kind) for device, kind in zip(devices, kinds, strict=True)]
    display.begin(
        DemoState(
            [device.id for device in devices],
            demo.rounds,
            measuring=BUDGET if demo.profile else 0,
            baselines=demo.baselines,
        )
    )
    fleet = f"demo-{secrets.token_hex(4)}"
    peaks = PeakMemory()
    with ExitStack() as own:
        broker = (stack if demo.page else own).enter_context(open_broker(demo.broker, demo.out))
        if demo.page:
            print_line(f"page: {stack.enter_context(serve_page(demo.out, _settings(demo, broker, fleet)))}")
        print_line(f"{broker.kind} broker at {broker.address}, fleet {fleet}; logs in {demo.out}")
        view = FleetView(fleet)
        with (
            closing(Link(broker.address, f"splitee-{fleet}-view")) as link,
            CpuShares() as shares,
            Children(demo.out, _settings(demo, broker, fleet)) as children,
        ):
            link.subscribe(*view.filters)
            link.open(CONNECT)
            if broker.process is None:  # a page shows the fleet until the end
                (stack if demo.page else own).callback(_clear_retained, broker, fleet, devices)
            children.start("server", server_arguments(demo, num_classes))
            devices = [_start(demo, device, children, shares, peaks) for device in devices]
            if demo.profile:
                print_line(_describe_limits(devices, shares))
            monitor = _FleetMonitor(link, view, broker, children, display, peaks)
            snapshot = monitor.follow(demo, devices)
            history = read_history(demo.out / "server" / "history.jsonl")
            children.start("serve", ["serve", "--model", str(demo.out / "server" / "models" / TRUNKS)])
            monitor.await_serving()
            options = LinkOptions(broker.address, fleet, CONNECT, None)
            served = _serve(demo, devices, history, options, display)
            children.stop()
    wanted = _wanted_baselines(demo, devices, snapshot)
    known = workload(snapshot, wanted)
    report = complete(
        demo.out / "server" / "report.json",
        network=demo.network,
        data=DATA,
        broker=broker.kind,
        client_averaging=demo.averaging,
        machine=machine(),
        baselines=_baselines(wanted, display) if wanted else None,
        inference=[found.figures for found in served],
        classes=_classes(snapshot, served),
        choices=choices_of(devices, snapshot),
        compute_share=known.shares if known else {},
        peak_memory=peaks.found,
        history=history,
    )
    return write(demo.out, report)


def _start(
    demo: Demo, device: DemoDevice, children: Children, shares: CpuShares, peaks: PeakMemory
) -> DemoDevice:
    """Starts a device's process; returns it with the limits that it got."""
    child = children.start(device.id, device_arguments(demo, device))
    peaks.watch(device.id, child.process.pid)
    if device.limits is None:
        return device
    return replace(
        device, limits=replace(device.limits, cpu=shares.limit(child.process.pid, device.limits.cpu))
    )


def _describe_limits(devices: list[DemoDevice], shares: CpuShares) -> str:
    each = ", ".join(
        f"{device.id} {device.limits.cpu:.0%} of a core and {device.limits.memory} MiB"
        for device in devices
        if device.limits is not None
    )
    why = " (smaller shares need root: a control group for each)" if shares.pinned else ""
    return f"{each}{why}; they measure which cut suits them, for at most {BUDGET} s"


def choices_of(devices: list[DemoDevice], snapshot: FleetSnapshot) -> list[DeviceChoice]:
    """What the devices with limits have chosen, and why, by their profiles."""
    known = {device.id: device for device in snapshot.devices}
    return [
        DeviceChoice(device.id, device.limits.cpu, device.limits.memory, view.cut, view.capability.reason)
        for device in devices
        if device.limits is not None
        and (view := known.get(device.id)) is not None
        and view.cut is not None
        and view.capability is not None
    ]


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """Make an empty folder; if it stays empty, it is removed afterwards, with parents made for it."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise StateError(f"--out {out} is not empty: name a new folder: the states of runs do not mix")
    except OSError as error:
        raise StateError(f"--out {out}: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _settings(demo: Demo, broker: RunningBroker, fleet: str) -> dict[str, str]:
    """Settings for all processes, as variables: a process list must not show an address with a password."""
    address = str(broker.address) if broker.process is not None else demo.broker
    return {"SPLITEE_BROKER": address, "SPLITEE_FLEET": fleet, "SPLITEE_THREADS": "1"}


def server_arguments(demo: Demo, num_classes: int) -> list[str]:
    """Arguments of `splitee` for a demo's server."""
    flags = {
        "--network": demo.network,
        "--num-classes": num_classes,
        "--input": format_shape(demo.input_shape),
        "--devices": demo.devices,
        "--rounds": demo.rounds,
        "--strategy": demo.strategy,
        "--seed": demo.seed,
        "--codec": demo.codec,
        "--client-averaging": demo.averaging,
        "--state": demo.out / "server",
    }
    return ["server", *(str(part) for flag in flags.items() for part in flag)]


def device_arguments(demo: Demo, device: DemoDevice) -> list[str]:
    """Arguments of `splitee` for a demo's device."""
    flags = {
        "--id": device.id,
        "--data": DATA,
        "--shard": device.shard,
        "--cut": device.cut,
        "--state": demo.out / device.id,
    }
    if device.limits is not None:
        memory = device.limits.memory
        flags |= {"--cut": "auto", "--prefer": "deepest", "--memory": memory, "--budget": BUDGET}
    if ":" in demo.network:
        flags["--network"] = demo.network
    if demo.samples is not None:
        flags["--limit"] = demo.samples
    return ["device", *(str(part) for flag in flags.items() for part in flag)]


@dataclass
class _FleetMonitor:
    """Watches a fleet while it runs, and updates the display."""

    link: Link
    view: FleetView
    broker: RunningBroker
    children: Children
    display: Display
    peaks: PeakMemory

    def follow(self, demo: Demo, devices: list[DemoDevice]) -> FleetSnapshot:
        """Show the fleet and each round's figures, until all processes have ended well."""
        metrics = Topics(self.view.snapshot().fleet).metrics
        shown, is_expected = 0.0, False
        event: Event | None = None
        while not self.children.all_done() or event is not None:
            event = self._next()
            is_due = time.monotonic() > shown + TICK
            is_due |= isinstance(event, Message) and event.topic == metrics
            if is_due:
                self.peaks.monitor()
                self.display.fleet(self.view.snapshot())
                is_expected = is_expected or self._expect(demo, devices)
                shown = time.monotonic()
        self.display.fleet(self.view.snapshot())
        return self.view.snapshot()

    def await_serving(self) -> None:
        """Wait until `splitee serve` predicts for the fleet."""
        while (server := self.view.snapshot().server) is None or not server.doing.startswith("serving"):
            self.children.check()
            self._next()

    def _next(self) -> Event | None:
        self.broker.check()
        event = self.link.receive(TICK)
        if isinstance(event, Message):
            self.view.take(event, time.time())
        return event

    def _expect(self, demo: Demo, devices: list[DemoDevice]) -> bool:
        """Tell the display how much there is to compute, once all devices take part; True: it is known."""
        snapshot = self.view.snapshot()
        if snapshot.phase is None or snapshot.phase.participants < len(devices):
            return False
        known = workload(snapshot, _wanted_baselines(demo, devices, snapshot))
        if known is not None:
            self.display.expect(known)
        return known is not None


def _clear_retained(broker: RunningBroker, fleet: str, devices: list[DemoDevice]) -> None:
    """Clear the fleet's retained messages at a broker that the demo has not started, if it still runs."""
    topics = Topics(fleet)
    retained = [route.topic(topics) for route in ROUTES if route.retained and not route.of_device]
    for device in devices:
        retained += retained_topics(topics, device.id)
    with suppress(BrokerUnreachable), closing(Link(broker.address, f"splitee-{fleet}-clear")) as link:
        link.open(CLEAR)
        clear(link, retained)


def _serve(
    demo: Demo, devices: list[DemoDevice], history: list[Metrics], options: LinkOptions, display: Display
) -> list[InService]:
    """What each device's released model predicts for its held-out images."""
    evaluated = {metrics.round: metrics.devices for metrics in history}
    found = []
    for place, device in enumerate(devices):

        def report(share: float, place: int = place) -> None:
            display.predicted((place + share) / len(devices))

        found.append(infer_on(device.id, demo.out / device.id, options, evaluated, report))
    return found


def _classes(snapshot: FleetSnapshot, served: list[InService]) -> ClassReport | None:
    """The class report of all devices' images, as predicted in service."""
    if snapshot.run is None or not served:
        return None
    names = served[0].class_names
    scores = {found.figures.id: found.score for found in served}
    return class_report(snapshot.run.run, served[0].figures.round, scores, len(names), names)


def _wanted_baselines(demo: Demo, devices: list[DemoDevice], snapshot: FleetSnapshot) -> list[Baseline]:
    if snapshot.run is None or not demo.baselines:
        return []
    shards = {device.id: device.shard for device in devices}
    cuts = {device.id: device.cut for device in snapshot.devices if device.cut is not None}
    return baselines_of(snapshot.run, DataSource(DATA, demo.samples), shards, cuts)


def _baselines(wanted: list[Baseline], display: Display) -> BaselineResult:
    found = train_all(wanted, len(os.sched_getaffinity(0)), display.baseline)
    centralized, alone, alone_exit = (
        {one.device: found[one] for one in wanted if one.kind == kind}
        for kind in (CENTRALIZED, ALONE, ALONE_EXIT)
    )
    return BaselineResult(centralized[CENTRALIZED], alone, alone_exit)
