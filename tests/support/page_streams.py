# SPDX-License-Identifier: Apache-2.0
"""The state of the fleet's page in a browser: the events of its stream, applied in order."""

from __future__ import annotations

import json
import threading
import urllib.request
from types import TracebackType
from typing import Any

from waiting import until


class PageStream:
    """One browser: current `fleet`, `devices` by id, `log` and `broker`; `names` of all events."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.fleet: dict[str, Any] = {}
        self.devices: dict[str, dict[str, Any]] = {}
        self.log: list[dict[str, Any]] = []
        self.broker: dict[str, Any] = {}
        self.names: list[str] = []
        self._response = urllib.request.urlopen(f"{url}events", timeout=60)  # noqa: S310
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> PageStream:
        self._thread.start()
        until(lambda: "whole" in self.names)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.fp.raw._sock.shutdown(2)  # ends the blocking read
        self._thread.join()
        self._response.close()

    def kinds(self, device: str | None = None) -> list[str]:
        """Kinds of the log's events of a device; None: of events without a device."""
        return [event["kind"] for event in self.log if event["device"] == device]

    def _read(self) -> None:
        name = ""
        for line in self._response:
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                self._apply(name, json.loads(value))

    def _apply(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "whole":
                devices = data["fleet"].pop("devices")
                self.fleet, self.log, self.broker = data["fleet"], data["log"], data["broker"]
                self.devices = {device["id"]: device for device in devices}
            case "fleet":
                self.fleet = data["fleet"]
            case "devices":
                for row in data["devices"]:
                    self.devices[row["id"]] = {**self.devices.get(row["id"], {}), **row}
            case "gone":
                for device in data["gone"]:
                    del self.devices[device]
            case "log":
                self.log = self.log + data["log"]
            case "broker":
                self.broker = data["broker"]
        self.names.append(name)
