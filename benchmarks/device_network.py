# SPDX-License-Identifier: Apache-2.0
"""Networks between a benchmark's device and the broker, which can be interrupted."""

from __future__ import annotations

import itertools
import os
import selectors
import shutil
import socket
import subprocess
import threading
from typing import Protocol

CHUNK = 1 << 16


class Network(Protocol):
    """The network between one device and the broker."""

    kind: str
    host: str  # the broker's host on this network
    address: str  # the broker's URL on this network
    prefix: tuple[str, ...]  # prefix of a command, to run it on this network

    def cut(self) -> None: ...
    def mend(self) -> None: ...
    def close(self) -> None: ...


class Proxy:
    """A TCP proxy. While it is cut, it forwards nothing and keeps its connections, like a pulled cable."""

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
        for end in list(self._pairs):
            end.close()
        self._listener.close()

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        for source, target in ((near, far), (far, near)):
            self._pairs[source] = target
            self._selector.register(source, selectors.EVENT_READ)

    def _move(self, source: socket.socket) -> None:
        if source not in self._pairs:
            return
        target = self._pairs[source]
        try:
            data = source.recv(CHUNK)
            if data:
                target.sendall(data)
                return
        except OSError:
            pass
        for end in (source, target):
            self._selector.unregister(end)
            del self._pairs[end]
            end.close()


class Direct:
    """A direct connection to the broker, which cannot be cut."""

    kind = "none"
    host = "127.0.0.1"
    prefix: tuple[str, ...] = ()

    def __init__(self, port: int) -> None:
        self.address = f"mqtt://{self.host}:{port}"

    def cut(self) -> None:
        raise NotImplementedError("a direct connection cannot be cut")

    mend = cut

    def close(self) -> None:
        """There is nothing to close."""


class Namespace:
    """The device's own network namespace, connected by a veth pair; `cut` takes the near end down."""

    kind = "namespace"
    _numbers = itertools.count(1)

    def __init__(self, port: int) -> None:
        number = next(self._numbers)
        self._name = f"splitee-{os.getpid()}-{number}"
        self._near, far = f"sp{os.getpid() % 9999}n{number}", f"sp{os.getpid() % 9999}f{number}"
        network = f"10.{200 + os.getpid() % 50}.{number}"
        ip("link", "add", self._near, "type", "veth", "peer", "name", far)
        namespace_of(self._name, self._near, far, network)
        self.host = f"{network}.1"
        self.address = f"mqtt://{self.host}:{port}"
        self.prefix: tuple[str, ...] = ("ip", "netns", "exec", self._name)

    def cut(self) -> None:
        ip("link", "set", self._near, "down")

    def mend(self) -> None:
        ip("link", "set", self._near, "up")

    def close(self) -> None:
        delete_namespace(self._name)


def namespace_of(name: str, near: str, far: str, network: str) -> None:
    """Make a network namespace with the interface `far`; `near` has the address `network`.1, `far` has .2."""
    ip("netns", "add", name)
    ip("link", "set", far, "netns", name)
    ip("addr", "add", f"{network}.1/24", "dev", near)
    ip("link", "set", near, "up")
    ip("-n", name, "addr", "add", f"{network}.2/24", "dev", far)
    ip("-n", name, "link", "set", far, "up")
    ip("-n", name, "link", "set", "lo", "up")


def delete_namespace(name: str) -> None:
    ip("netns", "delete", name)


def can_make_namespaces() -> bool:
    """Whether this process may make network namespaces and veth pairs."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"splitee-try-{os.getpid()}"
    near = f"sptry{os.getpid() % 9999}"
    try:
        ip("netns", "add", name)
        try:
            ip("link", "add", near, "type", "veth", "peer", "name", "far0", "netns", name)
        finally:
            ip("netns", "delete", name)
    except subprocess.CalledProcessError:
        return False
    return True


def ip(*arguments: str) -> None:
    """Run `ip` of iproute2. Raises CalledProcessError: it has failed."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
