# SPDX-License-Identifier: Apache-2.0
"""`splitee upgrade`: each refusal is one line, and changes nothing."""

from __future__ import annotations

import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, refusal
from wheels import make_keys, small_wheel, software_file

from splitee import __version__
from splitee.errors import ExitCode
from splitee_device.upgrade.software import BASE, CURRENT, LOCK, TRIAL, TRIED, Software

OTHER = "x86_64" if platform.machine() == "aarch64" else "aarch64"


class Device:
    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self.capsys = path, capsys
        self.signing, self.key = make_keys(path / "keys")
        self.software = Software(path / "software")
        self.software.path.mkdir()
        self.software.install_base(Path(sys.prefix))

    def file(self, version: str, *tags: str) -> Path:
        others = [small_wheel(self.path, f"other{number}", "1", tag) for number, tag in enumerate(tags)]
        own = small_wheel(self.path, "hetero_splitee", version)
        return software_file(self.path / f"{version}.wheels", self.signing, own, *others)

    def upgrade(self, *arguments: object) -> tuple[int, str]:
        flags = ["--software", str(self.software.path), "--software-key", str(self.key)]
        return call(self.capsys, "upgrade", *flags, *map(str, arguments))

    def refuses(self, code: ExitCode, words: str, *arguments: object) -> None:
        given, line = self.upgrade(*arguments)
        assert given == code, line
        assert words in line
        assert {path.name for path in self.software.path.iterdir()} <= {BASE, CURRENT, TRIED, LOCK}


@pytest.fixture
def device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Device:
    return Device(tmp_path, capsys)


def test_software_for_another_machine_is_refused(device: Device) -> None:
    file = device.file("9.0", f"cp3{sys.version_info.minor}-none-linux_{OTHER}")
    device.refuses(ExitCode.SOFTWARE, f"splitee 9.0 is for {OTHER} and Python cp3", file)


def test_software_for_another_python_version_is_refused(device: Device) -> None:
    file = device.file("9.0", f"cp37-cp37m-linux_{platform.machine()}")
    device.refuses(ExitCode.SOFTWARE, "and Python cp37, this device is", file)


def test_software_with_a_wrong_signature_is_refused(device: Device) -> None:
    file = device.file("9.0")
    file.write_bytes(file.read_bytes().replace(b'"9.0"', b'"9.1"', 1))
    device.refuses(ExitCode.SOFTWARE, "signature is not this fleet's", file)
    other = make_keys(device.path / "other")[1]
    device.refuses(
        ExitCode.SOFTWARE, "signature is not this fleet's", "--software-key", other, device.file("9.0")
    )


def test_truncated_wrong_or_missing_file_is_refused(device: Device) -> None:
    file = device.file("9.0")
    file.write_bytes(file.read_bytes()[:-1])
    device.refuses(ExitCode.SOFTWARE, "is cut off", file)
    device.refuses(ExitCode.SOFTWARE, "expected software for devices", device.key)
    device.refuses(ExitCode.SOFTWARE, "No such file", device.path / "nothing.wheels")


def test_software_that_is_not_newer_is_refused(device: Device) -> None:
    device.refuses(ExitCode.SOFTWARE, f"is not newer than {__version__}", device.file(__version__))
    device.refuses(ExitCode.SOFTWARE, f"splitee 0.0.9 is not newer than {__version__}", device.file("0.0.9"))


@pytest.mark.slow
def test_wheel_for_an_unsupported_platform_is_refused(device: Device) -> None:
    tag = f"cp3{sys.version_info.minor}-none-musllinux_1_2_{platform.machine()}"
    device.refuses(ExitCode.SOFTWARE, "is not a supported wheel on this platform", device.file("9.0", tag))


@pytest.mark.slow(2)
def test_software_with_a_missing_dependency_is_refused(device: Device) -> None:
    own = small_wheel(device.path, "hetero_splitee", "9.0", needs="no-such-package")
    file = software_file(device.path / "needs.wheels", device.signing, own)
    device.refuses(ExitCode.SOFTWARE, "9.0 requires no-such-package, which is not installed", file)


def test_upgrade_is_refused_during_another_installation_or_trial(device: Device) -> None:
    with (device.software.path / LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        device.refuses(ExitCode.STATE, "another process installs software now", device.file("9.0"))
    device.software.point(TRIED, "9.0-aaaaaaaaaaaa")
    device.refuses(ExitCode.STATE, "9.0-aaaaaaaaaaaa is being tried", device.file("9.0"))


def test_roll_back_without_earlier_software_is_refused(device: Device) -> None:
    device.refuses(ExitCode.SOFTWARE, "keeps no software from before", "--roll-back")


def test_roll_back_makes_the_base_the_next_trial(device: Device) -> None:
    name = "9.0-aaaaaaaaaaaa"
    python = device.software.python(name)
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    device.software.point(CURRENT, name)
    assert device.upgrade("--roll-back")[0] == ExitCode.OK
    assert device.software.target(TRIAL) == BASE


def test_list_flag_shows_the_version_in_service_and_failed_trials(device: Device) -> None:
    device.software.reject_trial("9.0-aaaaaaaaaaaa", "it ended")
    with pytest.raises(SystemExit):
        from splitee.cli.main import main

        main(["upgrade", "--software", str(device.software.path), "--list"])
    assert device.capsys.readouterr().out.splitlines() == [
        f"in service: {__version__}",
        "given up: 9.0: it ended",
    ]


def test_invalid_flags_are_refused(device: Device) -> None:
    file = device.file("9.0")
    for arguments in ((), (file, "--list"), ("--list", "--roll-back")):
        device.refuses(ExitCode.CONFIG, "give one of FILE, --roll-back and --list", *arguments)
    code, line = call(device.capsys, "upgrade", "--software", str(device.software.path), str(file))
    assert (code, "only signed software is taken" in line) == (ExitCode.CONFIG, True)
    code, line = call(device.capsys, "upgrade", "--software", str(device.path / "none"), "--list")
    assert (code, "no such folder" in line) == (ExitCode.SOFTWARE, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_root_reads_the_file_and_upgrades_as_the_owner_of_the_software_folder(
    public_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as that it is not newer: the owner need not be able to run this test's Python."""
    device = Device(public_path, capsys)
    os.chown(device.software.path, 65534, 65534)
    file = device.file(__version__)
    file.chmod(0o600)
    command = [sys.executable, "-m", "splitee", "upgrade", "--software", str(device.software.path)]
    command += ["--software-key", str(device.key), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.SOFTWARE, done.stderr
    assert f"is not newer than {__version__}" in refusal(done.stderr)
    assert (device.software.path / LOCK).stat().st_uid == 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
@pytest.mark.parametrize("flag", ["--list", "--roll-back"])
def test_root_runs_installed_software_only_as_the_folder_owner(public_path: Path, flag: str) -> None:
    """An intruder in the service could place any program there."""
    software = Software(public_path / "software")
    upgraded = "9.1-aaaaaaaaaaaa"
    for name in (BASE, upgraded):
        python = software.python(name)
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\nid -u >> {software.path}/ran\necho splitee, version 9.0\n")
        python.chmod(0o755)
    software.point(CURRENT, upgraded)
    os.chown(software.path, 65534, 65534)
    command = [sys.executable, "-m", "splitee", "upgrade", "--software", str(software.path), flag]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "9.0" in done.stdout, done.stderr
    assert set((software.path / "ran").read_text().split()) == {"65534"}
