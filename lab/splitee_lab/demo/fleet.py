"""A whole fleet on one machine: broker, server and devices as processes, and what they are compared with."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from splitee.errors import NetworkError, StateError
from splitee.mqtt.events import Event, Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.networks.split import build_for, build_network
from splitee.protocol.fleet_view import FleetSnapshot, FleetView
from splitee.protocol.topics import Topics
from splitee.samples.fitting import Shape, by
from splitee.training.compute import fleet_round_macs, round_macs
from splitee_device.data.sources import open_source
from splitee_lab.demo.inference import infer_on
from splitee_lab.demo.progress import Display
from splitee_lab.local.brokers import RunningBroker, open_broker
from splitee_lab.local.limits import CpuShares, Limits, kinds_of_devices
from splitee_lab.local.processes import Children
from splitee_lab.methods.baselines import (
    ALONE,
    ALONE_EXIT,
    CENTRALIZED,
    DataSource,
    baselines_of,
    train_all,
)
from splitee_lab.report.class_figures import read_class_report
from splitee_lab.report.demo_page import complete, read_history, write
from splitee_lab.report.demo_report import BaselineResult, DeviceChoice, Report
from splitee_server.release.exporting import TRUNKS
from splitee_server.rounds.class_report import EVALUATION

DATA = "builtin:fashion-mnist"
SMALL: Shape = (3, 32, 32)  # for the built-in images of 28 x 28 pixels
DEPTHS = (0.3, 0.5, 0.7)  # of the network's stages; resnet18: after layer1, layer2, layer3
CONNECT = 30.0  # seconds
BUDGET = 120  # seconds in which a device with limits measures what cuts cost it, also beside other work
TICK = 0.25  # seconds between looks at the processes while no message comes


@dataclass(frozen=True)
class DemoDevice:
    """One device of a demo: it trains on part K/N of the pictures. With `limits` it chooses its cut."""

    id: str
    cut: int
    shard: str
    limits: Limits | None = None


@dataclass(frozen=True)
class Demo:
    """What to run. `samples`: at most so many training pictures a device, None for its whole share."""

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


def run(demo: Demo, display: Display, say: Callable[[str], None]) -> Report:
    """Runs the demo and writes OUT/report.json and OUT/report.html; no process outlives it.

    Raises:
        StateError: OUT is in use, or cannot be written.
        ChildFailed: a process of it ended too early.
    """
    with _new_folder(demo.out):
        return _run(demo, display, say)


def _run(demo: Demo, display: Display, say: Callable[[str], None]) -> Report:
    num_classes = len(open_source(DATA).class_names)
    devices = plan(demo.network, num_classes, demo.devices, demo.input_shape)
    if demo.profile:
        kinds = kinds_of_devices(demo.devices)
        devices = [replace(device, limits=kind) for device, kind in zip(devices, kinds, strict=True)]
    fleet = f"demo-{secrets.token_hex(4)}"
    with open_broker(demo.broker, demo.out) as broker:
        say(f"{broker.kind} broker at {broker.address}, fleet {fleet}; logs in {demo.out}")
        view = FleetView(fleet)
        with (
            closing(Link(broker.address, f"splitee-{fleet}-view")) as link,
            CpuShares() as shares,
            Children(demo.out, _settings(demo, broker, fleet)) as children,
        ):
            link.subscribe(*view.filters)
            link.open(CONNECT)
            children.start("server", server_arguments(demo, num_classes))
            devices = [_start(demo, device, children, shares) for device in devices]
            if demo.profile:
                say(_limits_in_words(devices, shares))
            snapshot = _follow(link, view, broker, children, display)
            children.start("serve", ["serve", "--model", str(demo.out / "server" / "models" / TRUNKS)])
            _await_serving(link, view, broker, children)
            options = LinkOptions(broker.address, fleet, CONNECT, None)
            answers = [infer_on(device.id, demo.out / device.id, options) for device in devices]
            children.stop()
            if broker.process is None:
                _tidy(link, fleet, devices)
    baselines = _baselines(demo, devices, snapshot, display) if demo.baselines else None
    report = complete(
        demo.out / "server" / "report.json",
        network=demo.network,
        data=DATA,
        broker=broker.kind,
        baselines=baselines,
        inference=answers,
        choices=choices_of(devices, snapshot),
        compute_share=compute_shares(snapshot),
    )
    return write(
        demo.out,
        report,
        read_history(demo.out / "server" / "history.jsonl"),
        read_class_report(demo.out / "server" / EVALUATION),
    )


def _start(demo: Demo, device: DemoDevice, children: Children, shares: CpuShares) -> DemoDevice:
    """Starts a device's process; returns it with the limits that it got."""
    child = children.start(device.id, device_arguments(demo, device))
    if device.limits is None:
        return device
    return replace(
        device, limits=replace(device.limits, cpu=shares.limit(child.process.pid, device.limits.cpu))
    )


def _limits_in_words(devices: list[DemoDevice], shares: CpuShares) -> str:
    each = ", ".join(
        f"{device.id} {device.limits.cpu:.0%} of a core and {device.limits.memory} MiB"
        for device in devices
        if device.limits is not None
    )
    why = " (smaller shares need root: a control group for each)" if shares.pinned else ""
    return f"{each}{why}; they measure which cut suits them, for at most {BUDGET} s"


def choices_of(devices: list[DemoDevice], snapshot: FleetSnapshot) -> list[DeviceChoice]:
    """What the devices with limits have chosen, and why, as their profiles tell it."""
    known = {device.id: device for device in snapshot.devices}
    return [
        DeviceChoice(device.id, device.limits.cpu, device.limits.memory, view.cut, view.capability.reason)
        for device in devices
        if device.limits is not None
        and (view := known.get(device.id)) is not None
        and view.cut is not None
        and view.capability is not None
    ]


def compute_shares(snapshot: FleetSnapshot) -> dict[str, float]:
    """By device, what it computes in the fleet's rounds, as a share of training the whole network.

    At the cut that it has in the end; by then the run is settled.
    """
    run = snapshot.run
    if run is None:
        return {}
    network = build_for(run, device="meta")
    return {
        device.id: fleet_round_macs(network, run, device.train_samples, device.cut)
        / round_macs(network, run, device.train_samples)
        for device in snapshot.devices
        if device.cut is not None and device.train_samples
    }


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """Makes an empty folder; where nothing comes into it, it is gone afterwards, with those made for it."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise StateError(f"--out {out} is not empty: name a new folder, for the runs' states do not mix")
    except OSError as error:
        raise StateError(f"--out {out}: {error.strerror}") from None
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _settings(demo: Demo, broker: RunningBroker, fleet: str) -> dict[str, str]:
    """What all processes share; an address with a password is for no process list to show."""
    address = str(broker.address) if broker.process is not None else demo.broker
    return {"SPLITEE_BROKER": address, "SPLITEE_FLEET": fleet, "SPLITEE_THREADS": "1"}


def server_arguments(demo: Demo, num_classes: int) -> list[str]:
    """Of `splitee`: a demo's server."""
    flags = {
        "--network": demo.network,
        "--num-classes": num_classes,
        "--input": by(demo.input_shape),
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
    """Of `splitee`: a demo's device."""
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


def _follow(
    link: Link, view: FleetView, broker: RunningBroker, children: Children, display: Display
) -> FleetSnapshot:
    """Shows the fleet until all its processes have ended well: now and then, and each round's figures."""
    metrics = Topics(view.snapshot().fleet).metrics
    shown = 0.0
    event: Event | None = None
    while not children.all_done() or event is not None:
        broker.check()
        event = link.receive(TICK)
        is_due = time.monotonic() > shown + TICK
        if isinstance(event, Message):
            view.take(event, time.time())
            is_due |= event.topic == metrics
        if is_due:
            display.fleet(view.snapshot())
            shown = time.monotonic()
    display.fleet(view.snapshot())
    return view.snapshot()


def _await_serving(link: Link, view: FleetView, broker: RunningBroker, children: Children) -> None:
    """Until `splitee serve` answers for the fleet."""
    while (server := view.snapshot().server) is None or not server.doing.startswith("serving"):
        broker.check()
        children.check()
        event = link.receive(TICK)
        if isinstance(event, Message):
            view.take(event, time.time())


def _tidy(link: Link, fleet: str, devices: list[DemoDevice]) -> None:
    """Clears what the fleet has retained at a broker that is not ours."""
    topics = Topics(fleet)
    retained = [topics.server_status, topics.run, topics.round, topics.commit, topics.metrics]
    for device in devices:
        retained += [
            topics.device(device.id, leaf)
            for leaf in ("status", "profile", "inbox/plan", "inbox/model", "model")
        ]
    for topic in retained:
        link.publish(topic, b"", retain=True)


def _baselines(
    demo: Demo, devices: list[DemoDevice], snapshot: FleetSnapshot, display: Display
) -> BaselineResult | None:
    if snapshot.run is None:
        return None
    shards = {device.id: device.shard for device in devices}
    cuts = {device.id: device.cut for device in snapshot.devices if device.cut is not None}
    wanted = baselines_of(snapshot.run, DataSource(DATA, demo.samples), shards, cuts)
    found = train_all(wanted, len(os.sched_getaffinity(0)), display.baseline)
    centralized, alone, alone_exit = (
        {one.device: found[one] for one in wanted if one.kind == kind}
        for kind in (CENTRALIZED, ALONE, ALONE_EXIT)
    )
    return BaselineResult(centralized[CENTRALIZED], alone, alone_exit)
