# SPDX-License-Identifier: Apache-2.0
"""A fleet of real processes on a real Mosquitto, which benchmarks measure, kill and restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import click

from benchmarks.broker_store import Database, keeping
from benchmarks.device_network import Direct, Namespace, Network, Proxy, can_make_namespaces
from benchmarks.throttling import ThrottlingProxy, Way
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, RestartableBroker, free_port

FLEET = "benchmark"
TOPICS = Topics(FLEET)
CUTS = {"pi-1": 3, "pi-2": 5, "pi-3": 7}
WRONG_CLOCK = Path(__file__).parent / "wrong_clock"
LONGEST = 1800.0  # seconds that a run may take
TICK = 0.1  # seconds
LOG_LINES, STACK_LINES = 12, 40  # of a process, in the report on a run that does not end

out_option = click.option("--out", type=click.Path(path_type=Path), help="Keep logs and states here.")


@dataclass(frozen=True)
class Settings:
    """Settings of a run of resnet18 at 32 pixels; `samples`: training images per device."""

    rounds: int
    samples: int

    def server(self, strategy: str) -> list[str]:
        network = ("--network", "resnet18", "--input", "3x32x32")
        run = (*network, "--rounds", str(self.rounds), "--strategy", strategy)
        return [*run, "--devices", str(len(CUTS)), "--seed", "1", "--batch-size", "16"]

    def devices(self) -> dict[str, list[str]]:
        data = ["--data", "builtin:fashion-mnist", "--limit", str(self.samples)]
        return {
            device: [*data, "--shard", f"{index}/{len(CUTS)}", "--cut", str(cut)]
            for index, (device, cut) in enumerate(CUTS.items(), start=1)
        }


@dataclass
class FleetProcess:
    """One process of the fleet and how to start it again."""

    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    unexpected: list[int] = field(default_factory=list)  # exit codes that no fault explains


class Fleet:
    """Broker, server and devices; all processes are killed when the context is left."""

    def __init__(
        self,
        directory: Path,
        server: Sequence[str],
        devices: Mapping[str, Sequence[str]],
        *,
        broker_settings: str = MOSQUITTO_SETTINGS,
        isolated: Collection[str] | None = None,
        networks: Mapping[str, Callable[[int], Network]] = MappingProxyType({}),
        throttled: Mapping[str, Way] = MappingProxyType({}),
        keeps_store: bool = False,
        own_clocks: bool = False,
    ) -> None:
        """`server`, `devices`: flags of the commands, without those for broker, fleet and state.

        `isolated`: devices with a network of their own that can be cut; None: all.
        `networks`: factories of other networks, by device; the argument is the broker's port.
        `throttled`: devices behind a proxy in `throttles`, which has no limit at first.
        `keeps_store`: the broker has a database. `own_clocks`: `set_clock` changes a process's clock.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        port, namespaces = free_port(), can_make_namespaces()
        isolated_network = Namespace if namespaces else partial(Proxy, "127.0.0.1")
        self.networks: dict[str, Network] = {
            device: networks[device](port)
            if device in networks
            else isolated_network(port)
            if isolated is None or device in isolated
            else Direct(port)
            for device in devices
        }
        listeners = [
            f"listener {port} {network.host}\n"
            for network in self.networks.values()
            if network.kind == "namespace"
        ]
        settings = keeping(broker_settings, directory) if keeps_store else broker_settings
        self.broker = RestartableBroker("mosquitto", directory, settings + "".join(listeners), port)
        self._own_clocks = own_clocks
        self.database = Database(directory)
        self.throttles: dict[str, ThrottlingProxy] = {}
        serving = ("--no-release", *server)
        self.parts = {"server": FleetProcess(self._command("server", str(self.broker.address), serving))}
        for device, flags in devices.items():
            network = self.networks[device]
            address = network.address
            if device in throttled:
                proxy = ThrottlingProxy("127.0.0.1", port, 0, throttled[device], listens=network.host)
                self.throttles[device], address = proxy, proxy.address
            command = self._command("device", address, ("--id", device, *flags), state=device)
            self.parts[device] = FleetProcess([*network.prefix, *command])

    def __enter__(self) -> Fleet:
        self.broker.start()
        for name in self.parts:
            self.start(name)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self.parts.values():
            if part.process is not None and part.process.poll() is None:
                part.process.send_signal(signal.SIGCONT)
                part.process.kill()
                part.process.wait()
        for proxy in self.throttles.values():
            proxy.close()
        for network in self.networks.values():
            network.close()
        self.broker.stop()

    @property
    def finished(self) -> bool:
        """Whether every process has ended with exit code 0; one that failed is recorded, and restarted."""
        done = True
        for name, part in self.parts.items():
            code = part.process.poll() if part.process is not None else None
            if part.process is not None and code not in (None, 0):
                part.unexpected.append(int(code or 0))
                self.start(name)
            done = done and code == 0
        return done

    @property
    def pids(self) -> dict[str, int]:
        """Ids of all started processes, including the broker."""
        assert self.broker.broker is not None
        assert self.broker.broker.pid is not None
        parts = {name: part.process.pid for name, part in self.parts.items() if part.process is not None}
        return {**parts, "broker": self.broker.broker.pid}

    def report(self) -> dict[str, Any]:
        """The server's report, with exit codes that no fault explains as `unexpected_exits`, by process."""
        report: dict[str, Any] = json.loads((self.directory / "server" / "report.json").read_text())
        report["unexpected_exits"] = {
            name: part.unexpected for name, part in self.parts.items() if part.unexpected
        }
        return report

    def start(self, name: str) -> None:
        part = self.parts[name]
        environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}  # an aborted one dumps its stacks
        if self._own_clocks:
            path = os.pathsep.join(filter(None, (str(WRONG_CLOCK), os.environ.get("PYTHONPATH", ""))))
            environment |= {"PYTHONPATH": path, "CLOCK_FILE": str(self._clock(name))}
        with self.log(name).open("ab") as log:
            part.process = subprocess.Popen(
                part.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def until(self, condition: Callable[[], bool], meanwhile: Callable[[], object]) -> None:
        """Call `meanwhile` until `condition` is true.

        Raises ClickException after LONGEST seconds: it says what each process does. They are aborted.
        """
        deadline = time.monotonic() + LONGEST
        while not condition():
            if time.monotonic() > deadline:
                raise click.ClickException(f"not finished after {LONGEST:.0f} s\n\n{self._abort()}")
            meanwhile()

    def finish(self, meanwhile: Callable[[], object] = lambda: time.sleep(TICK)) -> None:
        """As `until`, until all processes have ended with exit code 0."""
        self.until(lambda: self.finished, meanwhile)

    def _abort(self) -> str:
        """Abort the processes that run; what each did: the end of its log, and its stacks."""
        described = []
        for name, part in self.parts.items():
            log, process = self.log(name), part.process
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            state, size = "has not been started again", log.stat().st_size
            if process is not None and (code := process.poll()) is not None:
                state = f"ended with exit code {code}"
            elif process is not None:
                state = "runs"
                process.send_signal(signal.SIGCONT)
                process.send_signal(signal.SIGABRT)
                process.wait()
                lines += log.read_bytes()[size:].decode(errors="replace").splitlines()[:STACK_LINES]
            described.append("\n".join((f"{name} {state}:", *lines)))
        broker = self.broker.broker
        ended = None if broker is None or broker.process is None else broker.process.poll()
        described.append("broker runs" if ended is None else f"broker ended with status {ended}")
        return "\n\n".join(described)

    def set_clock(self, name: str, seconds: float) -> None:
        """Set how many seconds the clock of process `name` is ahead."""
        self._clock(name).write_text(str(seconds))

    def _clock(self, name: str) -> Path:
        return self.directory / f"{name}.clock"

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def kill(self, name: str) -> bool:
        """Kill a process with SIGKILL; False: it had already ended."""
        process = self.parts[name].process
        if process is None or process.poll() is not None:
            return False
        process.kill()
        process.wait()
        self.parts[name].process = None
        return True

    def await_exit(self, name: str) -> int:
        """Wait for a process to end; its exit code. The process is not restarted."""
        process = self.parts[name].process
        assert process is not None
        code = process.wait(LONGEST)
        self.parts[name].process = None
        return code

    def tear_newest_state(self, name: str) -> None:
        """Truncate the newest state to half, as a power cut during a write may do."""
        files = sorted((self.directory / name).glob("round-*.state"))
        if files:
            os.truncate(files[-1], files[-1].stat().st_size // 2)

    def _command(self, kind: str, address: str, flags: Sequence[str], state: str = "server") -> list[str]:
        link = ("--broker", address, "--fleet", FLEET, "--connect-timeout", "0")
        state_flags = ("--state", str(self.directory / state), "--threads", "1")
        return [sys.executable, "-m", "splitee", kind, *link, *state_flags, *flags]


def undisturbed_run(directory: Path, strategy: str, settings: Settings) -> dict[str, Any]:
    """The report of a fleet that runs to its end without faults."""
    with Fleet(directory, settings.server(strategy), settings.devices()) as fleet:
        fleet.finish()
        return fleet.report()


@contextmanager
def working_directory(out: Path | None) -> Iterator[Path]:
    """`out`, or a temporary directory if it is None."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="splitee-benchmark-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # a broker may run as another account, with its folder in here
        yield directory
