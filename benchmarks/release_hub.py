# SPDX-License-Identifier: Apache-2.0
"""A fleet that receives releases: a hub with the shipped access rules, predicting devices, and a watcher."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from benchmarks.release_files import splitee
from splitee.mqtt.address import BrokerAddress, TlsFiles
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.gate import Gate, Received
from splitee.protocol.inference import PredictionReport, ReleaseReport, ReleaseWant, Serving
from splitee.protocol.rollouts import DeviceUpdate, Rollout, Rollouts
from splitee.protocol.topics import Topics
from splitee_broker.signing_keys import PACKING_KEY
from splitee_device.inference.model_store import ModelStore
from splitee_lab.local.brokers import find_mosquitto, free_port

FLEET = "benchmark"
HOST = "127.0.0.1"
LONG = 300.0  # seconds, the most for one step
POLL = 0.05  # seconds


def wait_until(condition: Callable[[], bool], what: str, limit: float = LONG) -> float:
    """Wait for `condition`; the seconds waited. Raises ClickException after `limit` seconds."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > limit:
            raise click.ClickException(f"not within {limit:.0f} s: {what}; see the logs with --out")
        time.sleep(POLL)
    return time.monotonic() - began


class Hub:
    """Authority, broker and `splitee serve`.

    Attributes:
        authority: directory of `splitee broker`.
        topics: the fleet's topics.
    """

    def __init__(self, directory: Path, devices: int) -> None:
        self._directory = directory
        self.authority, self.topics, self._port = directory / "authority", Topics(FLEET), free_port()
        (state := directory / "broker-state").mkdir(parents=True)
        directory.chmod(0o755)  # the broker may run as another account
        state.chmod(0o777)
        authority_flags = ("--directory", self.authority)
        fleet_flags = ("--fleet", FLEET, "--name", HOST, "--port", self._port, "--devices", devices)
        splitee("broker", "init", *authority_flags, *fleet_flags, "--broker-state", state)
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def server_settings(self) -> Path:
        return self.authority / "server" / "server.toml"

    @property
    def packing_key(self) -> Path:
        return self.authority / "authority" / PACKING_KEY

    @property
    def broker_pid(self) -> int:
        return self._processes[0].pid

    def start(self, model: Path) -> None:
        """Start the broker and `splitee serve`; `model`: folder of the server's model."""
        program = find_mosquitto()
        if program is None:
            raise click.ClickException("no mosquitto on PATH: install it (apt install mosquitto)")
        self._start("broker", [program, "-c", str(self.authority / "broker" / "mosquitto.conf")])
        wait_until(self._accepts, "the broker accepts connections")
        serve = ("serve", "--config", self.server_settings, "--model", model, "--threads", "1")
        releases = ("--releases", self._directory / "releases")
        self._start("serve", [sys.executable, "-m", "splitee", *map(str, (*serve, *releases))])

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self._directory / f"{name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _accepts(self) -> bool:
        with suppress(OSError), socket.create_connection((HOST, self._port), 1):
            return True
        return False

    def add(self, devices: Sequence[str]) -> None:
        """Create identities of devices as folders, to be copied to them."""
        splitee("broker", "add-device", *devices, "--folder", "--directory", self.authority)

    def settings(self, device: str) -> Path:
        """The device.toml of an added device; its keys are in the same folder."""
        return self.authority / "bundles" / device / "device.toml"

    @contextmanager
    def invitation(self, *flags: object) -> Iterator[tuple[str, str]]:
        """Yield address and code of an invitation. It must be used before the context is left."""
        options = ("--directory", self.authority, "--port", "0", "--reload", f"kill -HUP {self.broker_pid}")
        command = ["broker", "invite", *flags, *options]
        process = subprocess.Popen(
            [sys.executable, "-m", "splitee", *map(str, command)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if line.startswith("splitee join "))
            threading.Thread(target=process.stdout.read, daemon=True).start()
            _, _, address, code = line.split()
            yield address, code
            if process.wait(60) != 0:
                raise click.ClickException(f"the invitation ended with {process.returncode}")
        finally:
            process.kill()

    def release(self, *arguments: object) -> str:
        """The output of `splitee release` with the server's identity."""
        return splitee("release", *arguments, "--config", self.server_settings)

    def link(self, name: str, folder: Path) -> Link:
        tls = TlsFiles(folder / "ca.crt", folder / "client.crt", folder / "client.key")
        return Link(BrokerAddress(HOST, self._port, tls=True), name, tls=tls)

    def is_well(self) -> bool:
        """Whether broker and server are running."""
        return all(process.poll() is None for process in self._processes)

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(30)


class Device:
    """`splitee infer` on a device's files, started by the upgrade launcher if it accepts software.

    Attributes:
        images: number of images given to it.
        ends: unexpected exit codes of its processes.
    """

    def __init__(self, name: str, settings: Path, directory: Path, *, takes_software: bool = False) -> None:
        """`settings`: device.toml, written by `splitee broker` or `splitee join`."""
        self.name, self.settings, self.images = name, settings, 0
        self.ends: list[int] = []
        self.models, self._watched, self._log = directory / "models", directory / "watched", directory / "log"
        self._watched.mkdir(parents=True)
        self._software = directory / "software" if takes_software else None
        self._process: subprocess.Popen[bytes] | None = None

    def adopt(self, model: Path) -> None:
        """Install `model`, like `splitee infer --model`, but once and not at every start."""
        ModelStore(self.models).adopt(model)

    def start(self) -> None:
        launcher = ("-m", "splitee_device.upgrade.launcher", "--software", self._software)
        program = launcher if self._software is not None else ("-m", "splitee")
        flags = ("--config", self.settings, "--models", self.models, "--watch", self._watched, "--threads", 1)
        command = [sys.executable, *map(str, (*program, "infer", *flags))]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def give(self, image: Path) -> None:
        """Copy an image into the watched folder, to be classified."""
        self.images += 1
        partial = self._watched / f".{self.images}.part"
        shutil.copyfile(image, partial)
        partial.rename(self._watched / f"{self.images}{image.suffix}")

    def stop(self) -> None:
        """End the process with SIGTERM, like `systemctl stop`; the device publishes that it is offline."""
        self._end(signal.SIGTERM, (0,))

    def kill(self) -> None:
        self._end(signal.SIGKILL, (-signal.SIGKILL,))

    def _end(self, number: signal.Signals, expected: tuple[int, ...]) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.send_signal(number)
        code = self._process.wait(60)
        if code not in expected:
            self.ends.append(code)
        self._process = None

    def is_off(self) -> bool:
        return self._process is None

    def has_fallen(self) -> bool:
        return self._process is not None and self._process.poll() is not None


class Watcher:
    """Receives the fleet's messages with the server's identity, on a thread of its own.

    Attributes:
        wants: offsets in bytes of the parts that were requested, by device.
        sizes: bytes of the releases that were reported, by device.
        updates: the server's latest DeviceUpdate, by device.
        predictions: number of prediction reports, by device.
    """

    def __init__(self, hub: Hub) -> None:
        watched = (
            *(routes.RELEASES[kind].report for kind in ("model", "software")),
            *(routes.RELEASES[kind].want for kind in ("model", "software")),
            *(routes.SERVING, routes.DEVICE_UPDATE, routes.ROLLOUTS, routes.PREDICTIONS),
        )
        self._gate = Gate(hub.topics, watched, accepts_cleared=True)
        self.wants: dict[str, list[int]] = defaultdict(list)
        self.sizes: dict[str, set[int]] = defaultdict(set)
        self.updates: dict[str, DeviceUpdate] = {}
        self.predictions: Counter[str] = Counter()
        self._rollouts: dict[str, Rollout] = {}
        self._awake: set[str] = set()
        self._on_want: Callable[[str, int], None] | None = None
        self._link = hub.link("benchmark-watcher", hub.authority / "server")
        self._link.subscribe(*self._gate.filters)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._link.open(30)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._link.close()

    def rollout(self, name: str) -> Rollout | None:
        return self._rollouts.get(name)

    def is_awake(self, device: str) -> bool:
        return device in self._awake

    def when_requested(self, device: str, have: int, action: Callable[[], None]) -> None:
        """Call `action` once, when the device requests a part at offset `have` or higher."""

        def act(requester: str, offset: int) -> None:
            if requester == device and offset >= have:
                self._on_want = None
                action()

        self._on_want = act

    def _run(self) -> None:
        while not self._is_over.is_set():
            event = self._link.receive(0.2)
            received = self._gate.read(event) if isinstance(event, Message) else None
            if received is not None and received.message is not None:
                self._on_message(received)

    def _on_message(self, received: Received) -> None:
        device, message = received.device, received.message
        if isinstance(message, ReleaseWant):
            self.wants[device].append(message.offset)
            if self._on_want is not None:
                self._on_want(device, message.offset)
        elif isinstance(message, ReleaseReport):
            self.sizes[device].add(message.size)
        elif isinstance(message, Serving):
            (self._awake.add if message.state == "online" else self._awake.discard)(device)
        elif isinstance(message, DeviceUpdate):
            self.updates[device] = message
        elif isinstance(message, Rollouts):
            self._rollouts = {rollout.rollout: rollout for rollout in message.rollouts}
        elif isinstance(message, PredictionReport):
            self.predictions[device] += 1


def join(address: str, code: str, name: str, directory: Path) -> Path:
    """Join as device `name`; the path of the device.toml that `splitee join` writes."""
    splitee("join", address, code, "--id", name, "--directory", directory)
    return directory / "device.toml"
