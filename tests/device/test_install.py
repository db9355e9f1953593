# SPDX-License-Identifier: Apache-2.0
"""The installer and its systemd unit, as far as they go without booting a machine."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from splitee.errors import ExitCode
from splitee_device.upgrade.launcher import STOP_TIMEOUT
from splitee_device.upgrade.software import VARIABLE

ROOT = Path(__file__).parents[2]
INSTALL = ROOT / "device" / "install.sh"
UNIT = ROOT / "device" / "systemd" / "splitee-device.service"
BROKER_UNIT = ROOT / "broker_config" / "splitee-broker.service"
SCORE = 2.0


def require_systemd_analyze() -> None:
    """Where it must be there (CI), its absence is a failure, never a skip."""
    if shutil.which("systemd-analyze"):
        return
    if os.environ.get("CI") == "true":
        pytest.fail("no systemd-analyze, and CI=true: install it (apt install systemd)")
    pytest.skip("no systemd-analyze (apt install systemd)")


def install(root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(INSTALL), "--root", str(root), *flags],
        env={**os.environ, "PIP_NO_COMPILE": "0"},  # which is yes: it is half of an installation's time
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def refused(root: Path, *flags: str) -> str:
    """The one line of a refusal, which has changed no file."""
    before = kept(root)
    done = install(root, *flags)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("install.sh: ")]
    assert len(lines) == 1, done.stderr
    assert kept(root) == before
    return lines[0]


def kept(root: Path) -> list[Path]:
    """All paths but the folder `opt`, which may be made to see how much space is free in it."""
    return sorted(path for path in root.rglob("*") if path.name != "opt")


def bundle(
    path: Path,
    fleet: str = "barn",
    device: str = "pi-1",
    release_key: str = "",
    *,
    without: str = "",
    besides: tuple[tarfile.TarInfo, ...] = (),
) -> str:
    """A bundle as `splitee broker add-device` makes it, but for the certificates' contents.

    Bundles of older releases have no `release_key`.
    """
    files = {
        "device.toml": f'id = "{device}"\nfleet = "{fleet}"\nbroker = "mqtts://hub.local:8883"\n'
        'ca = "ca.crt"\ncert = "client.crt"\nkey = "client.key"\n',
        "ca.crt": "authority",
        "client.crt": f"certificate of {device}",
        "client.key": "key",
    }
    if release_key:
        files["release.pub"] = release_key
        files["software.pub"] = f"{release_key} for software"
        files["device.toml"] += 'release-key = "release.pub"\nsoftware-key = "software.pub"\n'
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            if name != without:
                entry = tarfile.TarInfo(name)
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text.encode()))
        for entry in besides:
            tar.addfile(entry)
    return str(path)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """An entry that is no plain file."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize("path", [UNIT, BROKER_UNIT], ids=lambda path: path.stem)
def test_unit_passes_systemd_verification(tmp_path: Path, path: Path) -> None:
    require_systemd_analyze()
    unit = tmp_path / path.name
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={sys.executable}", path.read_text()))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", [UNIT, BROKER_UNIT], ids=lambda path: path.stem)
def test_unit_stays_within_the_exposure_limit(path: Path) -> None:
    require_systemd_analyze()
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    score = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert score is not None
    assert float(score[1]) <= SCORE, done.stdout


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--frobnicate",), "unknown flag --frobnicate; see --help"),
        (("--bundle",), "--bundle needs a value"),
        (("--bundle", "/nowhere.tar"), "/nowhere.tar: no such file"),
        (("--bundle", str(INSTALL)), "expected a device's bundle"),
        (("--python", "/nowhere/python"), "/nowhere/python: expected Python 3.11 or later"),
    ],
)
def test_wrong_flag_is_refused_in_one_line_and_changes_no_file(
    tmp_path: Path, flags: tuple[str, ...], line: str
) -> None:
    assert line in refused(tmp_path, *flags)


@pytest.mark.parametrize(
    "entry",
    [
        special("client.key", tarfile.SYMTYPE, "/etc/shadow"),
        special("client.key", tarfile.LNKTYPE, "ca.crt"),
        special("client.key", tarfile.FIFOTYPE),
        special("client.key", tarfile.CHRTYPE),
        special("device", tarfile.DIRTYPE),
        special("-c", tarfile.SYMTYPE, "/etc"),
    ],
    ids=["symbolic-link", "hard-link", "fifo", "device", "folder", "elsewhere"],
)
def test_bundle_with_links_folders_or_devices_is_refused(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    root = tmp_path / "root"
    root.mkdir()
    made = bundle(tmp_path / "b.tar", without=entry.name, besides=(entry,))
    assert "b.tar: it holds links, folders or devices; expected a device's bundle" in refused(
        root, "--bundle", made
    )


@pytest.mark.parametrize("name", ["device.toml", "ca.crt", "client.crt", "client.key"])
def test_missing_file_of_a_bundle_is_named(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    made = bundle(tmp_path / "b.tar", without=name)
    assert f"b.tar: {name} is missing; expected a device's bundle" in refused(root, "--bundle", made)


def test_truncated_bundle_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    made = Path(bundle(tmp_path / "b.tar"))
    made.write_bytes(made.read_bytes()[:1200])
    assert "expected a device's bundle" in refused(root, "--bundle", str(made))


def hollow_wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """A wheel that installs nothing but its own name."""
    distribution = f"{name.replace('-', '_')}-{version}"
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    about += "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(folder / f"{distribution}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{distribution}.dist-info/METADATA", about)
        wheel.writestr(
            f"{distribution}.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{distribution}.dist-info/RECORD", "")


@pytest.mark.slow(6)
def test_package_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    """The name and the version are right, and the content is another."""
    wheels, root = tmp_path / "wheels", tmp_path / "root"
    for folder in (wheels, root):
        folder.mkdir()
    hollow_wheel(wheels, "hetero-splitee", "0.1.0", "click")
    pins = (ROOT / "requirements" / "base.txt").read_text()
    for name, version in re.findall(r"(?m)^([\w-]+)==([\w.]+)", pins):
        hollow_wheel(wheels, name, version)
    flags = ("--infer-only", "--wheels", str(wheels), "--python", sys.executable)
    refusal = install(root, *flags)
    assert "DO NOT MATCH THE HASHES" in refusal.stderr
    assert "not all wheels are to be had" in refusal.stderr.splitlines()[-1]
    assert list(root.rglob("*")) == [root / "opt"], "the environment that was made for it is gone"


@pytest.mark.parametrize(("fleet", "device", "key"), [("bay", "pi-1", "fleet"), ("barn", "pi-2", "id")])
def test_bundle_of_another_fleet_or_device_is_refused(
    tmp_path: Path, fleet: str, device: str, key: str
) -> None:
    settings = tmp_path / "root" / "etc" / "splitee" / "device.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('id = "pi-1"\nfleet = "barn"\n')
    line = refused(tmp_path / "root", "--bundle", bundle(tmp_path / "b.tar", fleet, device))
    assert f"is for {key} {fleet if key == 'fleet' else device}, but this device's is" in line


@pytest.mark.slow(20)
def test_installer_repeats_an_installation_and_uninstalls_it(tmp_path: Path) -> None:
    """The wheels come from where pip finds them on this machine; where some are missing, nothing changes."""
    root, flags = tmp_path / "root", ("--infer-only", "--python", sys.executable)
    more = (tarfile.TarInfo("of-a-later-release"),)
    settings = root / "etc/splitee/device.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("# of an installation without a bundle")
    first = install(root, *flags, "--bundle", bundle(tmp_path / "b.tar", besides=more), "--data", 'dir "a"')
    assert first.returncode == 0, first.stderr
    assert (root / "opt/splitee/bin/splitee-start").exists()
    program = root / "opt/splitee/bin/splitee"
    shown = subprocess.run([program, "config", "status"], capture_output=True, text=True, check=True)
    assert "--broker" in shown.stdout
    assert settings.read_text().splitlines() == [
        "# of an installation without a bundle",
        'fleet = "barn"',
        'broker = "mqtts://hub.local:8883"',
        'id = "pi-1"',
        'data = "dir \\"a\\""',
    ]
    key = root / "etc/splitee/device/client.key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == ("key", 0o600)
    unit = root / "etc/systemd/system" / UNIT.name
    assert unit.read_bytes() == UNIT.read_bytes()

    (tmp_path / "wheels").mkdir()
    assert "splitee itself does not build" in refused(root, "--wheels", str(tmp_path / "wheels"))

    by_hand = settings.read_text().replace("data = ", "  data = ")
    settings.write_text(f"{by_hand}cut = 5")  # in an editor that ends no last line
    upgraded = root / "var/lib/splitee/software/current"
    upgraded.parent.mkdir(parents=True)
    upgraded.symlink_to("0.2.0-aaaaaaaaaaaa")
    newer = bundle(tmp_path / "b.tar", release_key="public half")
    again = install(root, *flags, "--no-hashes", "--bundle", newer, "--data", "/srv/images")
    assert again.returncode == 0, again.stderr
    assert not upgraded.is_symlink(), "what was installed by hand is in service"
    pinned = root / "etc/splitee/release.pub"
    assert (pinned.read_text(), pinned.stat().st_mode & 0o777) == ("public half", 0o644)
    assert (pinned.parent / "software.pub").read_text() == "public half for software"
    assert settings.read_text().splitlines()[4:] == [
        "cut = 5",
        'release-key = "release.pub"',
        'software-key = "software.pub"',
        'data = "/srv/images"',
    ]

    assert install(root, "--uninstall").returncode == 0
    assert not program.exists()
    assert not unit.exists()
    assert key.exists()
    assert settings.exists()
    assert install(root, "--uninstall", "--purge").returncode == 0
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert install(root, "--uninstall").returncode == 0, "nothing there is no mistake"


def test_service_is_not_restarted_after_final_exit_codes() -> None:
    [codes] = re.findall("^RestartPreventExitStatus=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert [int(code) for code in codes.split()] == [code for code in ExitCode if code.is_final]


def test_unit_leaves_software_and_signals_to_the_launcher() -> None:
    text = UNIT.read_text()
    assert re.search(r"^ExecStart=/opt/splitee/bin/splitee-start device ", text, re.MULTILINE)
    assert re.search(rf"^Environment={VARIABLE}=%S/splitee/", text, re.MULTILINE)
    assert "NotifyAccess=all" in text.splitlines(), "READY=1 comes from the process that the launcher started"
    assert "KillMode=mixed" in text.splitlines(), "the launcher hands signals on, the watchdog's as well"
    [minutes] = re.findall(r"^TimeoutStopSec=(\d+)min$", text, re.MULTILINE)
    assert int(minutes) * 60 > STOP_TIMEOUT, "the launcher ends a process that does not stop, not systemd"


def test_broker_and_device_start_after_the_clock_is_set() -> None:
    for unit in (UNIT, BROKER_UNIT):
        [order] = re.findall("^After=(.*)$", unit.read_text(), re.MULTILINE)
        assert "time-sync.target" in order.split()
