# SPDX-License-Identifier: Apache-2.0
"""A real `splitee device` process that is refused ends with one line and an exit code of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from splitee.errors import CertificateRevoked, ExitCode
from splitee.mqtt.link import Link
from splitee.protocol.topics import Topics

from .conftest import DEADLINE, HOST, Fleet, files, run_broker, splitee_device

Connect = Callable[..., Link]

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]


def last_line(done: subprocess.CompletedProcess[str], code: ExitCode) -> str:
    """The one line that the process ends with."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("splitee: ")]
    assert len(lines) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


def flags_of(folder: Path) -> tuple[str, ...]:
    return ("--config", str(folder / "device.toml"))


def test_device_without_a_certificate_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    flags = ("--broker", str(fleet.address), "--fleet", "barn", "--ca", str(fleet.device("pi-1") / "ca.crt"))
    line = last_line(splitee_device("pi-1", *flags, state=tmp_path), ExitCode.CERT_MISSING)
    assert "it wants to know who this is; give --cert and --key" in line


def test_identity_of_another_fleet_is_refused_by_device_and_broker(fleet: Fleet, tmp_path: Path) -> None:
    assert run_broker("init", "--name", HOST, directory=tmp_path / "other").exception is None
    assert run_broker("add-device", "pi-1", "--folder", directory=tmp_path / "other").exception is None
    stranger = tmp_path / "other" / "bundles" / "pi-1"
    there = ("--broker", str(fleet.address), "--fleet", "barn")
    line = last_line(
        splitee_device("pi-1", *flags_of(stranger), *there, state=tmp_path / "1"), ExitCode.UNTRUSTED
    )
    assert "its certificate is not trusted" in line
    ca = ("--ca", str(fleet.device("pi-1") / "ca.crt"))
    line = last_line(
        splitee_device("pi-1", *flags_of(stranger), *there, *ca, state=tmp_path / "2"), ExitCode.CERT_FOREIGN
    )
    assert "is this client's certificate of another fleet?" in line


def test_expired_certificate_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    folder = fleet.issue("old", days=0)
    line = last_line(splitee_device("old", *flags_of(folder), state=tmp_path), ExitCode.CERT_EXPIRED)
    assert "renew it (splitee broker renew old)" in line


def test_plain_connection_to_the_tls_port_suggests_mqtts(fleet: Fleet, tmp_path: Path) -> None:
    flags = ("--broker", f"mqtt://{HOST}:{fleet.address.port}", "--connect-timeout", "1")
    line = last_line(splitee_device("pi-1", *flags, state=tmp_path), ExitCode.UNREACHABLE)
    assert "if it speaks TLS, use mqtts://" in line


def test_certificate_of_another_device_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    folder = fleet.device("pi-1")
    line = last_line(splitee_device("pi-9", *flags_of(folder), state=tmp_path), ExitCode.REFUSED)
    assert "lets this client in, but not as 'pi-9'" in line


def test_revoked_device_loses_access_and_cannot_connect_again(
    fleet: Fleet, connect: Connect, tmp_path: Path
) -> None:
    folder = fleet.device("lost")
    link = connect(folder)
    status = Topics("barn").device("lost", "status")
    link.publish(status, b"x")
    assert link.flush(DEADLINE)
    assert link.refused == 0
    assert run_broker("revoke-device", "lost", directory=fleet.directory).exception is None
    fleet.reload()
    until = time.monotonic() + DEADLINE
    while not link.refused:  # its open connection lasts, and reaches nothing
        assert time.monotonic() < until
        link.publish(status, b"x")
        link.flush(DEADLINE)
    with pytest.raises(CertificateRevoked):
        Link(fleet.address, "lost-2", tls=files(folder)).open(DEADLINE)
    line = last_line(splitee_device("lost", *flags_of(folder), state=tmp_path), ExitCode.CERT_REVOKED)
    assert "this client has been shut out of the fleet" in line
    link.close()


def test_revoked_device_publishes_again_with_a_new_bundle(fleet: Fleet, connect: Connect) -> None:
    fleet.device("back")
    for command in (("revoke-device", "back"), ("add-device", "back", "--folder")):
        assert run_broker(*command, directory=fleet.directory).exception is None
    fleet.reload()
    link = connect(fleet.directory / "bundles" / "back")
    until = time.monotonic() + DEADLINE
    while True:
        before = link.refused
        link.publish(Topics("barn").device("back", "status"), b"x")
        assert link.flush(DEADLINE)
        if link.refused == before:
            break
        assert time.monotonic() < until
