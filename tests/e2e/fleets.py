# SPDX-License-Identifier: Apache-2.0
"""Fleets of real processes for the tests: `splitee server` and `splitee device` on a broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.distributed.run import main as torchrun
from warm import WarmProcess

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.networks.split import build_for
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_device.data.images import Shard, open_data
from splitee_device.data.statistics import channel_statistics
from splitee_lab.methods.simulation import SimulatedDevice, Simulation
from splitee_server.learning.initial.begin import with_weights
from splitee_server.learning.initial.weights import fit
from splitee_server.rounds.settling import DeviceReport, settle

CUTS = {"pi-1": 1, "pi-2": 2, "pi-3": 3}
SUPPORT = Path(__file__).parents[1] / "support"
LONGEST = 240.0  # seconds
POLL = 0.05
Program = Sequence[str] | Callable[[], object]


class Fleet:
    """One fleet; leaving the context kills its remaining processes."""

    def __init__(self, broker: str, name: str, directory: Path) -> None:
        self.broker = broker
        self.name = name
        self.directory = directory
        self.processes: dict[str, WarmProcess | subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()

    def server(
        self,
        *flags: str,
        name: str = "server",
        devices: int = 3,
        rounds: int = 2,
        release: bool = False,
        program: Program = (),
    ) -> None:
        """Start the server. `program`: see `start`."""
        defaults = ("--client-averaging", "none")  # `flags` may override it
        flags = (*defaults, *flags, *(() if release else ("--no-release",)))
        network = ("--network", "tiny_networks:tiny", "--input", "3x32x32")
        arguments = (*network, "--devices", str(devices), "--rounds", str(rounds))
        state = ("--state", str(self.directory / name), "--threads", "1")
        self.start(name, "server", *self.link, *arguments, *state, *flags, program=program)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """Suspend a process inside the context: it stays connected, but does nothing."""
        self.processes[name].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.processes[name].send_signal(signal.SIGCONT)

    def device(
        self,
        name: str,
        cut: int,
        *flags: str,
        shard: str | None = None,
        process: str = "",
        program: Program = (),
    ) -> None:
        data = ("--data", "builtin:fashion-mnist", "--limit", "192")
        state = ("--state", str(self.directory / (process or name)), "--threads", "1")
        trusted = ("--network", "tiny_networks:tiny")
        part = ("--shard", shard) if shard else ()
        arguments = ("--id", name, *self.link, *data, *trusted, *part, "--cut", str(cut), *state, *flags)
        self.start(process or name, "device", *arguments, program=program)

    def three_devices(self, cuts: Mapping[str, int] = CUTS) -> None:
        for index, (name, cut) in enumerate(cuts.items(), start=1):
            self.device(name, cut, shard=f"{index}/3")

    def wait(self, *names: str, timeout: float = LONGEST) -> list[int]:
        """Wait for processes to end, by default all; returns their exit codes.

        Raises AssertionError: one has failed while others still run, or not all end in `timeout` seconds.
        """
        waited = names or tuple(self.processes)
        deadline = time.monotonic() + timeout
        while True:
            codes = {name: self.processes[name].poll() for name in waited}
            if all(code is not None for code in codes.values()):
                return [code for code in codes.values() if code is not None]
            failed = {name: code for name, code in codes.items() if code}
            assert not failed, f"{failed} while others run on: {self.log(next(iter(failed)))[-2000:]}"
            assert time.monotonic() < deadline, f"after {timeout:.0f} s not all are done: {codes}"
            time.sleep(POLL)

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text()

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.directory / "server" / "report.json").read_text())
        return report

    @property
    def link(self) -> tuple[str, ...]:
        return "--broker", self.broker, "--fleet", self.name

    def start(self, name: str, *arguments: str, program: Program = ()) -> None:
        """Start a `splitee` command as the process `name`.

        `program`: a function that runs it in a forked process, or a command line to execute.
        """
        log, environment = self.directory / f"{name}.log", {**os.environ, "PYTHONPATH": str(SUPPORT)}
        if not isinstance(program, Sequence) or not program:
            self.processes[name] = WarmProcess(arguments, log, environment, program=program or None)
            return
        if Path(program[0]).name == "torchrun":  # its code runs in a forked process, and starts the ranks
            arguments = (*program[1:], *arguments)
            self.processes[name] = WarmProcess(arguments, log, environment, program=torchrun)
            return
        with log.open("ab") as file:
            self.processes[name] = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment,
            )


def offer(broker: BrokerAddress, topics: Topics, spec: RunSpec) -> None:
    """Publish a run as a server does."""
    publisher = Link(broker, f"server-of-{topics.fleet}")
    publisher.open(5)
    publisher.publish(topics.run, spec.encode(), retain=True)
    publisher.close()


def await_message(link: Link, topic: str, wanted: Callable[[bytes], bool] = lambda _: True) -> bytes:
    """The payload of the next message on `topic` for which `wanted` returns True."""
    while True:
        event = link.receive(60)
        assert event is not None, f"nothing came on {topic}"
        if isinstance(event, Message) and event.topic == topic and wanted(event.payload):
            return event.payload


def in_one_process(strategy: Any, order: Any, rounds: int, **settings: Any) -> str:
    """weights_sha256 of the same run, simulated without a broker; `settings`: see `simulation_of`."""
    simulation = simulation_of(strategy, order, rounds, **settings)
    for _ in simulation.rounds():
        pass
    return simulation.digest()


def simulation_of(
    strategy: Any,
    order: Any,
    rounds: int,
    *,
    run: str = "simulated",
    averaging: Any = "none",
    cuts: Mapping[str, int] = CUTS,
    moves: Mapping[str, int] | None = None,
    weights: str | None = None,
    **settings: Any,
) -> Simulation:
    """The same run, simulated without a broker. `moves`: new cuts at the first commit, by device.

    `weights`: initial weights, as for `--weights`.
    """
    spec = RunSpec(
        protocol=1,
        run=run,
        network="tiny_networks:tiny",
        num_classes=10,
        rounds=rounds,
        strategy=strategy,
        order=order,
        seed=1,
        client_averaging=averaging,
        exits="fleet",
        statistics_batches=4,
        deep_supervision=0.3,
        fused=True,
        **settings,
    )
    devices = {
        name: SimulatedDevice(
            cut,
            open_data(
                "builtin:fashion-mnist",
                input_shape=(3, 32, 32),
                shard=Shard(index, len(cuts)),
                seed=1,
                limit=192,
            ),
        )
        for index, (name, cut) in enumerate(cuts.items(), start=1)
    }
    spec, found = with_weights(spec, weights)
    network = build_for(spec)
    if spec.awaits_fleet:
        reports = [
            DeviceReport(d.cut, len(d.data.train), *channel_statistics(d.data.train).values())
            for d in devices.values()
        ]
        spec = settle(spec, network, reports)
    initial = fit(found, network, spec, ()) if found is not None else None
    return Simulation(spec, devices, moves={1: moves or {}}, initial=initial)
