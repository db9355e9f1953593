# SPDX-License-Identifier: Apache-2.0
"""New software on a running device: released by the fleet or installed by hand, tried, taken or given up."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from msgspec.structs import replace
from once import made_once
from waiting import until
from wheels import hollow_wheel, make_keys, own_wheel, small_wheel, software_file

from splitee import __version__
from splitee.errors import ExitCode
from splitee.inference.signatures import ReleaseSigner
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fields import ReleaseAction
from splitee.protocol.inference import ReleasePart, ReleaseWant, SoftwareOffer, SoftwareReport
from splitee.protocol.routes import RELEASES
from splitee.protocol.topics import Topics
from splitee.software.packing import describe, pack
from splitee_broker.signing_keys import PACKING_KEY, RELEASE_KEY, SIGNING_KEY, SOFTWARE_KEY, new_key
from splitee_device.upgrade.software import BASE, CURRENT, LOCK, TRIAL, Software
from splitee_lab.local.brokers import RunningBroker
from systemd import FakeSystemd

ROUTES = RELEASES["software"]
GOOD, ENDS, BROKEN = "0.2.0", "0.3.0", "0.4.0"
OWN = ("core", "device")  # the packages of a device
PART = 1 << 20  # bytes
LONG = 240.0  # seconds

pytestmark = [pytest.mark.mosquitto]


def make_files(folder: Path) -> None:
    """Software that works, that loads but ends as soon as it runs, and that does not load."""
    signing_key = make_keys(folder)[0]
    for name, data in new_key(SIGNING_KEY, RELEASE_KEY).items():
        (folder / name).write_bytes(data)
    wheels = {
        GOOD: own_wheel(folder, GOOD, folders=OWN),
        ENDS: hollow_wheel(folder, ENDS, replaced={"splitee/__main__.py": "raise SystemExit(7)\n"}),
        BROKEN: own_wheel(
            folder,
            BROKEN,
            replaced={"splitee_device/commands/infer.py": "import no_such_package\n"},
            folders=OWN,
        ),
    }
    for version, wheel in wheels.items():
        software_file(folder / version, signing_key, wheel)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "software", make_files)


class Server:
    """Offers software to a device, and sends the parts that it requests."""

    def __init__(self, broker: RunningBroker, fleet: str, device: str, files: Path) -> None:
        self.topics, self.device, self.files = Topics(fleet), device, files
        self.signer = ReleaseSigner(files / SIGNING_KEY)
        self.link = Link(broker.address, f"{fleet}-server")
        self.link.subscribe(ROUTES.want.topic(self.topics, device), ROUTES.report.topic(self.topics, device))
        self.link.open(10)
        self.reports: list[SoftwareReport] = []
        self.data = b""

    def offer(self, version: str, action: ReleaseAction = "install") -> str:
        self.data = (self.files / version).read_bytes()
        release = hashlib.sha256(self.data).hexdigest()
        offer = SoftwareOffer(release=release, size=len(self.data), version=version, action=action)
        signed = self.signer.sign(offer, self.topics.fleet, self.device)
        self.link.publish(ROUTES.offer.topic(self.topics, self.device), signed.encode(), retain=True)
        return offer.release

    def until(self, release: str, state: str) -> SoftwareReport:
        """Serves until the device reports this state of the release."""
        self.reports.clear()
        until(lambda: self._serve() and self._has_said(release, state), lambda: self.reports[-3:], LONG)
        return self.reports[-1]

    def _has_said(self, release: str, state: str) -> bool:
        last = self.reports[-1:]
        return bool(last) and (last[0].release, last[0].state) == (release, state)

    def _serve(self) -> bool:
        event = self.link.receive(0.5)
        if isinstance(event, Message) and event.topic == ROUTES.want.topic(self.topics, self.device):
            want = ReleaseWant.decode(event.payload)
            data = self.data[want.offset : want.offset + PART]
            part = ReleasePart(release=want.release, offset=want.offset, data=data)
            self.link.publish(ROUTES.part.topic(self.topics, self.device), part.encode())
        elif isinstance(event, Message) and event.payload:
            self.reports.append(SoftwareReport.decode(event.payload))
        return True


class Device:
    """`splitee infer`, started by `splitee-start`."""

    def __init__(self, path: Path, broker: RunningBroker, fleet: str, key: Path) -> None:
        self.software = Software(path / "software")
        self.log, self.key = path / "log", key
        (path / "watched").mkdir()
        launcher = [sys.executable, "-m", "splitee_device.upgrade.launcher"]
        flags = {
            "--broker": broker.address,
            "--fleet": fleet,
            "--id": "pi-1",
            "--models": path / "models",
            "--watch": path / "watched",
            "--release-key": key.parent / RELEASE_KEY,
            "--software-key": key,
        }
        arguments = [str(word) for pair in flags.items() for word in pair]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*launcher, "--software", self.software.path, "infer", *arguments],
                stdout=log,
                stderr=log,
            )

    def await_log(self, words: str, times: int = 1) -> None:
        until(lambda: self.log.read_text().count(words) >= times, self.log.read_text, LONG)

    def upgrade(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """`splitee upgrade` of this device, by hand."""
        flags = ["--software", self.software.path, "--software-key", self.key]
        command = [sys.executable, "-m", "splitee", "upgrade", *flags, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONG)


@pytest.fixture
def device(
    tmp_path: Path, mosquitto_broker: RunningBroker, files: Path, request: pytest.FixtureRequest
) -> Iterator[Device]:
    fleet = f"upgrade-{request.node.name}"[:60].replace("_", "-")
    running = Device(tmp_path, mosquitto_broker, fleet, files / SOFTWARE_KEY)
    running.await_log("no model yet")
    yield running
    with suppress(ProcessLookupError):
        running.process.terminate()
    running.process.wait(60)


@pytest.mark.slow(12)
def test_released_software_comes_up_or_is_rolled_back(
    device: Device, files: Path, mosquitto_broker: RunningBroker, request: pytest.FixtureRequest
) -> None:
    fleet = f"upgrade-{request.node.name}"[:60].replace("_", "-")
    server = Server(mosquitto_broker, fleet, "pi-1", files)
    server.until("", "in service")
    assert server.reports[-1].runs == __version__

    good = server.offer(GOOD)
    said = server.until(good, "in service")
    assert (said.version, said.runs) == (GOOD, GOOD)
    assert {"downloading", "trying"} <= {report.state for report in server.reports}
    assert device.software.release() == good

    ends = server.offer(ENDS)
    said = server.until(ends, "rolled back")
    assert (said.reason, said.runs) == ("it ended with exit code 7 before it had come up", GOOD)

    broken = server.offer(BROKEN)
    said = server.until(broken, "failed")
    assert (
        "does not start on this device: ModuleNotFoundError: No module named 'no_such_package'" in said.reason
    )

    server.offer(GOOD, action="roll back")
    said = server.until(good, "rolled back")
    assert said.runs == __version__
    assert device.software.in_service == BASE
    server.link.close()


@pytest.mark.slow(8)
def test_software_is_installed_and_rolled_back_by_hand(device: Device, files: Path) -> None:
    done = device.upgrade(files / GOOD)
    assert done.returncode == ExitCode.OK, done.stderr
    device.await_log("splitee 0.2.0 has come up, and is in service")
    assert device.upgrade("--list").stdout.splitlines() == [
        f"in service: {GOOD}",
        f"before it: {__version__}",
    ]
    assert device.upgrade(files / GOOD).returncode == ExitCode.SOFTWARE
    released = hashlib.sha256((files / GOOD).read_bytes()).hexdigest()
    assert device.software.release() == released, "the fleet's release of the same file is in service there"
    assert device.upgrade("--roll-back").returncode == ExitCode.OK
    device.await_log(f"trying {BASE}")
    assert device.process.poll() is None


@pytest.mark.slow(4)
def test_training_device_notifies_systemd_while_it_waits_and_stops_once(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """Its launcher is the service's main process: it alone notifies that the service stops."""
    software = Software(tmp_path / "software")
    launcher = [sys.executable, "-m", "splitee_device.upgrade.launcher", "--software", str(software.path)]
    place = ["--broker", str(mosquitto_broker.address), "--fleet", "upgrade-trains", "--id", "pi-1"]
    given = ["--data", "builtin:fashion-mnist", "--state", str(tmp_path / "state")]
    with FakeSystemd(tmp_path / "notify", 60) as systemd:
        environment = {**os.environ, **systemd.environment}
        process = subprocess.Popen([*launcher, "device", *place, *given], env=environment)
        until(lambda: "READY=1" in systemd.states, lambda: systemd.states)
        until(lambda: software.broker() is not None, lambda: systemd.states)
        process.terminate()
        assert process.wait(LONG) == ExitCode.OK
        until(lambda: "STOPPING=1" in systemd.states)
    assert systemd.states.count("STOPPING=1") == 1
    assert not systemd.expired


CRASHING = """
import os, sys
from pathlib import Path
from splitee.cli.main import main

left = int(sys.argv.pop(1))

def crash(event, arguments):
    global left
    if event == "subprocess.Popen":
        left -= 1
        if left < 0:
            os._exit(9)

sys.addaudithook(crash)
main(sys.argv[1:])
"""


@pytest.mark.slow(2)
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_interrupted_installation_changes_nothing(files: Path, tmp_path: Path, steps: int) -> None:
    """Before packages are installed, before their requirements are checked, and before they are loaded."""
    software = Software(tmp_path)
    software.install_base(Path(sys.prefix))
    flags = ["upgrade", "--software", tmp_path, "--software-key", files / SOFTWARE_KEY, files / ENDS]
    command = [sys.executable, "-c", CRASHING, str(steps), *map(str, flags)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 9
    assert software.target(TRIAL) is None
    assert software.in_service == BASE
    software.prune()
    assert {path.name for path in tmp_path.iterdir()} == {BASE, ".lock"}


class Index(AbstractContextManager["Index"]):
    """A package index on loopback, which serves the files of its folders."""

    def __init__(self, path: Path) -> None:
        handler = partial(SimpleHTTPRequestHandler, directory=str(path))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.path = path
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def has(self, wheel: Path, content: bytes) -> None:
        folder = self.path / wheel.name.split("-")[0].replace("_", "-")
        folder.mkdir(exist_ok=True)
        (folder / wheel.name).write_bytes(content)

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.slow(5)
def test_upgrade_from_an_index_keeps_packages_of_earlier_upgrades(files: Path, tmp_path: Path) -> None:
    """A package that the first file brings is there after the second, which comes from an index."""
    software, extra = Software(tmp_path / "software"), small_wheel(tmp_path, "extra", "1")
    software.path.mkdir()
    flags = ["--software", software.path, "--software-key", files / SOFTWARE_KEY]

    def upgrade(file: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "splitee", "upgrade", *map(str, flags), str(file)]
        environment = {**os.environ, **misleading}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    (settings := tmp_path / "pip.conf").write_text(f"[install]\ntarget = {tmp_path / 'elsewhere'}\n")
    misleading = {"PIP_CONFIG_FILE": str(settings), "PIP_TARGET": str(tmp_path / "elsewhere")}
    key = files / PACKING_KEY
    first = upgrade(software_file(tmp_path / "first", key, hollow_wheel(tmp_path, GOOD), extra))
    assert first.returncode == ExitCode.OK, first.stderr
    software.move(TRIAL, CURRENT)

    (tmp_path / "index").mkdir()
    with Index(tmp_path / "index") as index:
        wheel = hollow_wheel(tmp_path, "0.2.1")
        listed = software_file(tmp_path / "second", key, wheel, index=index.address)
        other = hollow_wheel(tmp_path / "index", "0.2.1", replaced={"splitee/clock.py": ""})
        index.has(wheel, other.read_bytes())
        lied = upgrade(listed)
        assert lied.returncode == ExitCode.SOFTWARE
        assert "0.2.1 is not installed" in lied.stderr.splitlines()[-1]
        index.has(wheel, wheel.read_bytes())
        second = upgrade(listed)
        assert second.returncode == ExitCode.OK, second.stderr

    name = software.target(TRIAL)
    assert name is not None
    shown = "import extra, splitee; print(extra.__version__, splitee.__version__, extra.__file__)"
    done = subprocess.run(
        [software.python(name), "-P", "-c", shown], capture_output=True, text=True, check=True
    )
    version, own, file = done.stdout.split()
    assert (version, own) == ("1", "0.2.1")
    assert Path(file).is_relative_to(software.path / name)
    assert Path(file).stat().st_nlink == 2, "it takes no room twice"
    assert not (tmp_path / "elsewhere").exists(), "pip has no settings but ours"
    left = {path.name for path in software.path.iterdir()} - {BASE, CURRENT, TRIAL, LOCK}
    assert left == {name, software.in_service}


SMALL_DISK = ("unshare", "--map-root-user", "--mount", "sh", "-ec")
MOUNT = 'mount -t tmpfs -o size=$1 tmpfs "$0"; shift; "$@" || code=$?; ls -A "$0" >&2; exit ${code:-0}'


@pytest.mark.slow
@pytest.mark.parametrize("size", ["2m", "70m"], ids=["is-too-small", "fills-up"])
def test_upgrade_on_a_full_disk_leaves_nothing_behind(files: Path, tmp_path: Path, size: str) -> None:
    """The manifest states less than the wheels take, so that the second disk fills up on the way."""
    if subprocess.run([*SMALL_DISK, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mounts of one's own here")
    wheels = hollow_wheel(tmp_path, GOOD), small_wheel(tmp_path, "large", "1", content=bytes(80 << 20))
    manifest = replace(describe(wheels), unpacked=0)
    pack(wheels, manifest, ReleaseSigner(files / PACKING_KEY), tmp_path / "large.wheels")
    (disk := tmp_path / "disk").mkdir()
    flags = ["--software", disk, "--software-key", files / SOFTWARE_KEY, tmp_path / "large.wheels"]
    command = [*SMALL_DISK, MOUNT, disk, size, sys.executable, "-m", "splitee", "upgrade", *flags]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.STATE, done.stderr
    *_, line, left_behind, link = done.stderr.splitlines()
    assert "what is in service runs on" in line
    assert (left_behind, link) == (".lock", BASE)
