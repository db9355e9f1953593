# SPDX-License-Identifier: Apache-2.0
"""Are releases of models and software, in waves to twenty devices, installed completely or not at all?

    python -m benchmarks.releases [--out DIR]

Twenty processes of `splitee infer` use a Mosquitto with TLS and the shipped access rules; `splitee serve`
distributes releases. Three devices are paired by a code. The rollout of a bad model stops at its first wave,
and is rolled back. A good model reaches all devices: five are off and receive it when they start again, and
one is killed during its download, which it resumes. One software upgrade comes into service, another one does
not and is rolled back. One device is paired again.

Prints a table and a JSON line, and exits with 1 if a result is wrong.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.real_fleet import out_option, working_directory
from benchmarks.release_files import Models, software, train
from benchmarks.release_hub import FLEET, Device, Hub, Watcher, join, wait_until
from splitee import __version__
from splitee.errors import SpliteeError
from splitee_server.release.rollouts import PART
from splitee_server.release.wave_sizes import in_wave_order

DEVICES = [f"cam-{number:02}" for number in range(1, 21)]
PAIRED, REPAIRED = DEVICES[16:19], DEVICES[19]
BAD, GOOD = "bad", "good"
CREDULOUS, STRICT = in_wave_order(BAD, DEVICES)[:2]  # the first wave; CREDULOUS has no held-out images
ORDER = in_wave_order(GOOD, DEVICES)
OTHERS = [device for device in ORDER if device not in (CREDULOUS, STRICT, REPAIRED)]
ASLEEP, KILLED = OTHERS[-5:], OTHERS[-6]
UPGRADED, STUCK = [device for device in OTHERS[2:] if device not in (*ASLEEP, KILLED, *PAIRED)][:2]
NEXT, SILENT = "90.1.0", "90.2.0"  # versions of software
MIDDLE = 2 << 20  # bytes of the model that the device has at least when it is killed
TRIAL = 75.0  # seconds without service, at most: a minute for the new software, and the start of the old one


@dataclass(frozen=True)
class Row:
    """A step: its description, its result, and its seconds."""

    what: str
    found: str
    passed: bool
    seconds: float


class Scenario:
    """The steps of the benchmark, one after the other."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self.rows: list[Row] = []
        trained, self._server_model = train(directory)
        self._models = Models(trained, directory / "variants")
        self._image = directory / "image.png"
        pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self._image)
        self._hub = Hub(directory / "hub", len(DEVICES))
        self._devices: dict[str, Device] = {}
        stack.callback(self._hub.close)
        self._hub.start(self._server_model)
        self._watcher = Watcher(self._hub)
        stack.callback(self._watcher.close)
        self._watcher.start()

    def run(self) -> None:
        """Run all steps. Raises ClickException if a step does not end in time."""
        steps: tuple[Callable[[], tuple[str, str, bool]], ...] = (
            self._pair,
            self._start,
            self._release_bad,
            self._roll_back,
            self._release_good,
            self._wake,
            self._upgrade,
            self._upgrade_silent,
            self._pair_anew,
            self._count,
        )
        for step in steps:
            began = time.monotonic()
            what, found, passed = step()
            self.rows.append(Row(what, found, passed, time.monotonic() - began))

    def _pair(self) -> tuple[str, str, bool]:
        added = [name for name in DEVICES if name not in PAIRED]
        self._hub.add(added)
        for name in added:
            self._add(name, self._hub.settings(name))
        with self._hub.invitation("--count", len(PAIRED)) as (address, code):
            for name in PAIRED:
                self._add(name, join(address, code, name, self._directory / "joined" / name))
        return "three devices join by one code", ", ".join(PAIRED), True

    def _add(self, name: str, settings: Path) -> None:
        takes_software = name in (UPGRADED, STUCK)
        directory = self._directory / "devices" / name
        self._devices[name] = Device(name, settings, directory, takes_software=takes_software)
        self._stack.callback(self._devices[name].stop)

    def _start(self) -> tuple[str, str, bool]:
        for name in DEVICES:
            if name != STRICT:
                self._begin(name)
        self._await_awake([name for name in DEVICES if name != STRICT])
        for name in DEVICES:
            if name != STRICT:
                self._devices[name].give(self._image)
        return "devices predict, one is still off", f"{len(DEVICES) - 1} of {len(DEVICES)}", True

    def _begin(self, name: str) -> None:
        self._devices[name].adopt(self._models.base(name, has_images=name != CREDULOUS))
        self._devices[name].start()

    def _release_bad(self) -> tuple[str, str, bool]:
        folders = self._models.variants(DEVICES, BAD, 3, -5.0)
        pace = ("--waves", "10%,100%", "--max-failures", 0, "--soak", 600)
        self._hub.release(*folders, "--name", BAD, *pace, "--detach")
        self._await_state([CREDULOUS], "in service")
        self._begin(STRICT)
        wait_until(lambda: self._rollout_is(BAD, "stopped"), "the bad model is stopped")
        rollout = self._watcher.rollout(BAD)
        assert rollout is not None
        reached = sorted(self._watcher.wants)
        found = f"{rollout.state} at wave {rollout.wave}; {len(reached)} devices have fetched it"
        stopped = rollout.wave == 1 and reached == sorted((CREDULOUS, STRICT))
        return "a bad model, on two devices first", found, stopped

    def _roll_back(self) -> tuple[str, str, bool]:
        self._hub.release("--roll-back", BAD)
        self._await_state([CREDULOUS], "rolled back")
        wait_until(lambda: self._serves_round(CREDULOUS, 2), "the device has its old model again")
        failed = self._watcher.updates[STRICT].model
        passed = failed.state == "failed" and self._serves_round(STRICT, 2)
        return "it is rolled back", f"{CREDULOUS} has gone back; {STRICT}: {failed.reason[:60]}", passed

    def _release_good(self) -> tuple[str, str, bool]:
        for name in ASLEEP:
            self._devices[name].stop()
        wait_until(
            lambda: not any(self._watcher.is_awake(name) for name in ASLEEP), "five devices are asleep"
        )
        self._watcher.wants.clear()
        self._watcher.when_requested(KILLED, MIDDLE, self._devices[KILLED].kill)
        folders = self._models.variants(DEVICES, GOOD, 4, 1.0001)
        pace = ("--waves", "1,10%,100%", "--max-failures", 0, "--soak", 1)
        self._hub.release(*folders, "--name", GOOD, *pace, "--detach")
        wait_until(self._devices[KILLED].is_off, "a device is killed in the middle of its download")
        partial = next(iter(self._devices[KILLED].models.glob("*.incoming")))
        have, before = partial.stat().st_size, len(self._watcher.wants[KILLED])
        self._devices[KILLED].start()
        awake = [name for name in DEVICES if name not in ASLEEP]
        self._await_state(awake, "in service")
        wants = self._watcher.wants[KILLED]
        size = self._size(KILLED)
        resent = sum(min(PART, size - offset) for offset in wants) - size
        in_waves = list(self._watcher.wants)[:2] == ORDER[:2]
        found = (
            f"{len(awake)} devices; killed at {have >> 10} of {size >> 10} KiB, went on from "
            f"{wants[before] >> 10}, {resent >> 10} KiB on their way were sent again"
        )
        passed = in_waves and 0 < have < size and wants[before] == have and resent <= PART
        return "a good model: 1, then 2, then all", found, passed

    def _size(self, name: str) -> int:
        """Bytes of the largest release that a device has reported."""
        return max(self._watcher.sizes[name])

    def _wake(self) -> tuple[str, str, bool]:
        early = [name for name in ASLEEP if not self._serves_round(name, 2)]
        for name in ASLEEP:
            self._devices[name].start()
        self._await_state(ASLEEP, "in service")
        wait_until(lambda: self._rollout_is(GOOD, "finished"), "all devices have the good model")
        return "five devices wake up", f"{len(ASLEEP)} have it; the release is finished", not early

    def _upgrade(self) -> tuple[str, str, bool]:
        self._release_software(NEXT, UPGRADED, {})
        wait_until(lambda: self._software(UPGRADED) == ("in service", NEXT), "the new software is in service")
        return "software that comes up", f"{UPGRADED} runs {NEXT}", True

    def _upgrade_silent(self) -> tuple[str, str, bool]:
        """The new process runs, but never connects to the broker."""
        text = "import time\nwhile True:\n    time.sleep(1)\n"
        self._release_software(SILENT, STUCK, {"splitee/__main__.py": text})
        wait_until(lambda: not self._watcher.is_awake(STUCK), "the software is tried")
        seconds = wait_until(
            lambda: self._software(STUCK) == ("rolled back", __version__), "the old software is back"
        )
        return (
            "software that does not",
            f"{STUCK} runs {__version__} again, after {seconds:.0f} s without",
            seconds <= TRIAL,
        )

    def _release_software(self, version: str, device: str, replaced: dict[str, str]) -> None:
        path = software(self._directory / "software", version, self._hub.packing_key, replaced)
        self._hub.release(path, "--devices", device, "--name", f"software-{version}", "--detach")

    def _pair_anew(self) -> tuple[str, str, bool]:
        device, old = self._devices[REPAIRED], self._hub.settings(REPAIRED).parent
        with self._hub.invitation(REPAIRED) as (address, code):
            settings = join(address, code, REPAIRED, self._directory / "joined" / REPAIRED)
        device.stop()
        wait_until(lambda: not self._watcher.is_awake(REPAIRED), "the device is off")
        device.settings = settings
        device.start()
        self._await_awake([REPAIRED])
        link = self._hub.link("benchmark-thief", old)
        try:
            link.open(10)
            outcome = "still gets in"
        except SpliteeError as error:
            outcome = type(error).__name__
        finally:
            link.close()
        return (
            "a device is paired anew",
            f"{REPAIRED} is back; its old key: {outcome}",
            outcome == "CertificateRevoked",
        )

    def _count(self) -> tuple[str, str, bool]:
        for device in self._devices.values():
            device.give(self._image)
        given = {name: device.images for name, device in self._devices.items()}
        wait_until(lambda: dict(self._watcher.predictions) == given, "all images are predicted")
        fallen = [name for name, device in self._devices.items() if device.ends or device.has_fallen()]
        right = sum(self._serves_round(name, 4) for name in DEVICES)
        found = (
            f"{sum(given.values())} images predicted, {right} devices with the good model, "
            f"{len(fallen)} processes fallen"
        )
        return "nothing is lost", found, right == len(DEVICES) and not fallen and self._hub.is_well()

    def _await_awake(self, names: list[str]) -> None:
        wait_until(lambda: all(self._watcher.is_awake(name) for name in names), "devices predict")

    def _await_state(self, names: list[str], state: str) -> None:
        def reached() -> bool:
            updates = self._watcher.updates
            return all(name in updates and updates[name].model.state == state for name in names)

        wait_until(reached, f"the model is {state} on {', '.join(names)}")

    def _serves_round(self, name: str, number: int) -> bool:
        """Whether the server reports that the model of round `number` is in service on device `name`."""
        return name in self._watcher.updates and self._watcher.updates[name].model.installed.endswith(
            f" round {number}"
        )

    def _rollout_is(self, name: str, state: str) -> bool:
        rollout = self._watcher.rollout(name)
        return rollout is not None and rollout.state == state

    def _software(self, name: str) -> tuple[str | None, str]:
        found = self._watcher.updates[name].software
        return found.state, found.installed


def table(rows: list[Row]) -> Table:
    shown = Table(title=f"Releases to {len(DEVICES)} devices, fleet {FLEET}")
    for column in ("step", "result", "seconds", "passed"):
        shown.add_column(column, justify="right" if column == "seconds" else "left")
    for row in rows:
        shown.add_row(row.what, row.found, f"{row.seconds:.1f}", "yes" if row.passed else "NO")
    return shown


@click.command()
@out_option
def main(out: Path | None) -> None:
    """Release good and bad models and software to a fleet; some devices are off, one is killed."""
    with working_directory(out) as directory, ExitStack() as stack:
        scenario = Scenario(directory.absolute(), stack)
        try:
            scenario.run()
        finally:
            Console(width=120).print(table(scenario.rows))
    passed = all(row.passed for row in scenario.rows)
    steps = {row.what: {"found": row.found, "seconds": round(row.seconds, 1)} for row in scenario.rows}
    click.echo(
        json.dumps({"benchmark": "releases", "devices": len(DEVICES), "steps": steps, "passed": passed})
    )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
