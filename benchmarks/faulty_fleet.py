"""A real fleet on a real Mosquitto whose parts can be killed, cut off and started again."""

from __future__ import annotations

import itertools
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from splitee_lab.local.brokers import MOSQUITTO_SETTINGS, OwnBroker, free_port

CHUNK = 1 << 16


class Network(Protocol):
    """How one device reaches the broker, and how that is cut."""

    kind: str
    host: str  # where the broker is for the device
    address: str
    prefix: tuple[str, ...]  # what a command is started with to be on this network

    def cut(self) -> None: ...
    def mend(self) -> None: ...
    def close(self) -> None: ...


class Proxy:
    """A TCP proxy in between. Cut, it forwards nothing and keeps its connections, like a pulled cable."""

    kind = "proxy"
    host = "127.0.0.1"
    prefix: tuple[str, ...] = ()

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._listener = socket.create_server((self.host, 0))
        self.address = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._is_cut = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._forward, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        self._is_cut.set()

    def mend(self) -> None:
        self._is_cut.clear()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _forward(self) -> None:
        while not self._closing.is_set():
            if self._is_cut.is_set():
                self._closing.wait(0.05)
                continue
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._move(key.fileobj)  # type: ignore[arg-type]
        for one in list(self._pairs):
            one.close()
        self._listener.close()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            self._pairs[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _move(self, one: socket.socket) -> None:
        if one not in self._pairs:
            return
        other = self._pairs[one]
        try:
            data = one.recv(CHUNK)
            if data:
                other.sendall(data)
                return
        except OSError:
            pass
        for end in (one, other):
            self._selector.unregister(end)
            del self._pairs[end]
            end.close()


class Namespace:
    """A network namespace of the device's own, joined by a veth pair whose near end is taken down."""

    kind = "namespace"
    _numbers = itertools.count(1)

    def __init__(self, port: int) -> None:
        number = next(self._numbers)
        self._name = f"splitee-{os.getpid()}-{number}"
        self._near, far = f"sp{os.getpid() % 9999}n{number}", f"sp{os.getpid() % 9999}f{number}"
        network = f"10.{200 + os.getpid() % 50}.{number}"
        _ip("netns", "add", self._name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", far, "netns", self._name)
        _ip("addr", "add", f"{network}.1/24", "dev", self._near)
        _ip("link", "set", self._near, "up")
        _ip("-n", self._name, "addr", "add", f"{network}.2/24", "dev", far)
        _ip("-n", self._name, "link", "set", far, "up")
        _ip("-n", self._name, "link", "set", "lo", "up")
        self.host = f"{network}.1"
        self.address = f"mqtt://{self.host}:{port}"
        self.prefix: tuple[str, ...] = ("ip", "netns", "exec", self._name)

    def cut(self) -> None:
        _ip("link", "set", self._near, "down")

    def mend(self) -> None:
        _ip("link", "set", self._near, "up")

    def close(self) -> None:
        _ip("netns", "delete", self._name)


def can_make_namespaces() -> bool:
    """Whether this user may make network namespaces and veth pairs here."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"splitee-try-{os.getpid()}"
    near = f"sptry{os.getpid() % 9999}"
    try:
        _ip("netns", "add", name)
        try:
            _ip("link", "add", near, "type", "veth", "peer", "name", "far0", "netns", name)
        finally:
            _ip("netns", "delete", name)
    except subprocess.CalledProcessError:
        return False
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@dataclass
class Part:
    """One process of the fleet and how to start it again."""

    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    unexpected: list[int] = field(default_factory=list)  # exit codes that no fault explains


class FaultyFleet:
    """Broker, server and devices; everything is ended when the context is left."""

    def __init__(self, directory: Path, server: Sequence[str], devices: Mapping[str, Sequence[str]]) -> None:
        """`server`, `devices`: flags of the commands, without broker, fleet and state."""
        directory.mkdir(parents=True)
        self.directory = directory
        port, namespaces = free_port(), can_make_namespaces()
        self.networks: dict[str, Network] = {
            device: Namespace(port) if namespaces else Proxy("127.0.0.1", port) for device in devices
        }
        listeners = [f"listener {port} {network.host}\n" for network in self.networks.values() if namespaces]
        self.broker = OwnBroker("mosquitto", directory, MOSQUITTO_SETTINGS + "".join(listeners), port)
        serving = ("--no-release", *server)
        self.parts = {"server": Part(self._command("server", str(self.broker.address), serving))}
        for device, flags in devices.items():
            network = self.networks[device]
            command = self._command("device", network.address, ("--id", device, *flags), state=device)
            self.parts[device] = Part([*network.prefix, *command])

    def __enter__(self) -> FaultyFleet:
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
        for network in self.networks.values():
            network.close()
        self.broker.stop()

    @property
    def finished(self) -> bool:
        """Whether every process has ended well; one that fell by itself is started again, and noted."""
        done = True
        for name, part in self.parts.items():
            code = part.process.poll() if part.process is not None else None
            if part.process is not None and code not in (None, 0):
                part.unexpected.append(int(code or 0))
                self.start(name)
            done = done and code == 0
        return done

    def start(self, name: str) -> None:
        part = self.parts[name]
        with (self.directory / f"{name}.log").open("ab") as log:
            part.process = subprocess.Popen(part.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self, name: str) -> bool:
        """SIGKILL; False when the process has ended already."""
        process = self.parts[name].process
        if process is None or process.poll() is not None:
            return False
        process.kill()
        process.wait()
        self.parts[name].process = None
        return True

    def tear_newest_state(self, name: str) -> None:
        """What a power cut may do to a file that was being written: only its beginning is left."""
        files = sorted((self.directory / name).glob("round-*.state"))
        if files:
            os.truncate(files[-1], files[-1].stat().st_size // 2)

    def _command(self, kind: str, address: str, flags: Sequence[str], state: str = "server") -> list[str]:
        link = ("--broker", address, "--fleet", "chaos", "--connect-timeout", "0")
        where = ("--state", str(self.directory / state), "--threads", "1")
        return [sys.executable, "-m", "splitee", kind, *link, *where, *flags]
