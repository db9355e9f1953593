# SPDX-License-Identifier: Apache-2.0
"""Does a device behind a slow, distant and lossy link train to the end, and is it shown as slow, not offline?

    python -m benchmarks.slow_link [--rate 1000] [--round-trip 0.4] [--loss 5]

A real fleet trains resnet18 on a real Mosquitto, with `--missing skip` and a deadline floor far below the
time that the link needs. The first device is behind a link of --rate kbit/s, which loses --loss percent of
the packets each way. The kernel's own TCP (cubic, as on most devices) runs over it. The benchmark needs root
and /dev/net/tun, but no netem.
Prints one JSON line, and exits with 1 if the device was left out of a round, lost an established connection,
was shown as offline, or was never shown as slow, or if a process ended unexpectedly.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.device_network import can_make_namespaces
from benchmarks.real_fleet import FLEET, TICK, Fleet, Settings, out_option, working_directory
from benchmarks.slow_network import LinkKind, SlowNamespace
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet_view import DeviceView, FleetView

SLOW = "pi-1"
FLOOR = 20  # seconds, the least deadline of a round
CONNECT = 60.0  # seconds to connect


@dataclass(frozen=True)
class Impatient(Settings):
    """Settings with which rounds go on without late devices."""

    def server(self, strategy: str) -> list[str]:
        waits = ["--missing", "skip", "--deadline-floor", str(FLOOR)]
        return [*super().server(strategy), *waits]


class Watched:
    """Records how the fleet's view shows one device from its first training or evaluation on.

    Attributes:
        shown: seconds for which it was shown as offline, slow, or online.
        oldest: greatest age of its latest status, in seconds.
    """

    def __init__(self, link: Link, device: str) -> None:
        self._link = link
        self._device = device
        self._view = FleetView(FLEET)
        self._polled_at = time.monotonic()
        self._is_at_work = False
        self.shown: dict[str, float] = dict.fromkeys(("offline", "slow", "online"), 0.0)
        self.oldest = 0.0
        link.subscribe(*self._view.filters)

    def poll(self) -> None:
        while (event := self._link.receive(TICK)) is not None:
            if isinstance(event, Message):
                self._view.take(event, time.time())
        now = time.monotonic()
        for device in self._view.snapshot().devices:
            if device.id == self._device and not self._view.snapshot().finished:
                self._note(device, now - self._polled_at)
        self._polled_at = now

    def _note(self, device: DeviceView, seconds: float) -> None:
        self._is_at_work = self._is_at_work or device.doing in ("training", "evaluating")
        if not self._is_at_work:
            return
        state = "offline" if not device.online else "online" if device.upload is None else "slow"
        self.shown[state] += seconds
        self.oldest = max(self.oldest, time.time() - (device.seen or time.time()))


def slow_run(directory: Path, strategy: str, settings: Settings, kind: LinkKind) -> dict[str, Any]:
    """Train a fleet with a device behind a link of `kind`; the figures of this device."""
    began = time.monotonic()
    with Fleet(
        directory,
        settings.server(strategy),
        settings.devices(),
        isolated=(),
        networks={SLOW: lambda port: SlowNamespace(port, kind)},
    ) as fleet:
        with closing(Link(fleet.broker.address, "slow-link-benchmark")) as link:
            link.open(CONNECT)
            watched = Watched(link, SLOW)
            fleet.finish(watched.poll)
        report, log = fleet.report(), fleet.log(SLOW).read_text()
    device = next(device for device in report["devices"] if device["id"] == SLOW)
    return {
        "seconds": round(time.monotonic() - began),
        "batches": [entry["batches"] for entry in report["devices"]],
        "megabytes": round(device["bytes"] / 1e6, 1),
        "connections_lost": log.count("connection lost"),
        "left_out": (directory / "server.log").read_text().count("going on without"),
        "shown": {state: round(seconds) for state, seconds in watched.shown.items()},
        "oldest_status": round(watched.oldest, 1),
        "unexpected_exits": report["unexpected_exits"],
    }


@click.command()
@click.option("--rate", default=1000.0, show_default=True, help="kbit/s each way.")
@click.option("--round-trip", default=0.4, show_default=True, help="Seconds.")
@click.option("--loss", default=5.0, show_default=True, help="Percent of the packets each way.")
@click.option("--strategy", default="averaging", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--samples", default=96, show_default=True, help="Training images per device.")
@out_option
def main(
    rate: float, round_trip: float, loss: float, strategy: str, rounds: int, samples: int, out: Path | None
) -> None:
    """Train with a device behind a slow and lossy link."""
    if not can_make_namespaces() or not Path("/dev/net/tun").exists():
        raise click.ClickException("expected root, iproute2 and /dev/net/tun: the link is made of two taps")
    kind = LinkKind(1000 * rate, round_trip, loss / 100)
    settings = Impatient(rounds, samples)
    with working_directory(out) as directory:
        found = slow_run(directory, strategy, settings, kind)
    click.echo(json.dumps({"rate": rate, "round_trip": round_trip, "loss": loss, **found}))
    fine = not found["connections_lost"] and not found["left_out"] and not found["unexpected_exits"]
    sys.exit(not fine or found["shown"]["offline"] or not found["shown"]["slow"])


if __name__ == "__main__":
    main()
