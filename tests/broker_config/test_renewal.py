# SPDX-License-Identifier: Apache-2.0
"""`splitee broker renew`: new certificates beside the old ones, in a running fleet."""

from __future__ import annotations

import os
import socket
import ssl
import stat
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from cryptography import x509

from splitee.errors import ConfigError, ExitCode, SpliteeError
from splitee.mqtt.link import Link
from splitee_broker.authority import Authority

from .conftest import DEADLINE, HOST, Fleet, files, run_broker, splitee_device

ROLES = ("broker", "health", "homeassistant", "server", "viewer")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A fleet whose roles' certificates end in 20 days, and pi-1's in 1,000."""
    made = run_broker(
        "init", "--fleet", "barn", "--name", "hub.local", "--days", "20", directory=tmp_path / "own"
    )
    assert made.exception is None
    add_device("pi-1", 1000, tmp_path / "own")
    return tmp_path / "own"


def add_device(name: str, days: int, directory: Path) -> None:
    added = run_broker("add-device", name, "--days", str(days), directory=directory)
    assert added.exception is None


def renewed(*arguments: str, directory: Path) -> list[str]:
    """The lines of a renewal: `FILE: what to do; the old one ends DATE`."""
    result = run_broker("renew", *arguments, directory=directory)
    assert result.exception is None, result.exception
    assert "PRIVATE" not in result.output
    return result.output.splitlines()


def serials(directory: Path) -> dict[str, int]:
    found = directory.rglob("*.crt")
    return {
        str(path.relative_to(directory)): x509.load_pem_x509_certificate(path.read_bytes()).serial_number
        for path in found
    }


def test_certificates_that_end_soon_are_renewed_in_place(directory: Path) -> None:
    settings = directory / "server" / "server.toml"
    settings.write_text(settings.read_text() + "devices = 10\n")
    before, kept = serials(directory), settings.read_bytes()
    lines = renewed(directory=directory)
    after = serials(directory)
    assert {path for path in after if after[path] != before[path]} == {
        "broker/broker.crt",
        "broker/health.crt",
        "homeassistant/client.crt",
        "server/client.crt",
        "viewer/client.crt",
    }
    assert [line.split(": ")[0] for line in lines] == [
        str(directory / path)
        for path in (
            "broker/broker.crt",
            "broker/health.crt",
            "server/client.crt",
            "viewer/client.crt",
            "homeassistant/client.crt",
        )
    ]
    assert settings.read_bytes() == kept
    key = directory / "server" / "client.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    files(directory / "server").context()  # certificate and key belong together
    tls = x509.load_pem_x509_certificate((directory / "broker" / "broker.crt").read_bytes())
    names = tls.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.local", "localhost"]
    assert renewed(directory=directory) == ["nothing to renew: no certificate ends within 60 days"]


def test_named_device_is_renewed_whenever_its_certificate_ends(directory: Path, tmp_path: Path) -> None:
    add_device("pi-2", 1000, directory)
    before = (directory / "bundles" / "splitee-pi-2.tar").read_bytes()
    (line,) = renewed("pi-1", "--days", "30", directory=directory)
    assert "carry it to pi-1, then: device/install.sh --bundle splitee-pi-1.tar" in line
    assert (directory / "bundles" / "splitee-pi-2.tar").read_bytes() == before
    with tarfile.open(directory / "bundles" / "splitee-pi-1.tar") as bundle:
        assert set(bundle.getnames()) == {
            "device.toml",
            "ca.crt",
            "client.crt",
            "client.key",
            "release.pub",
            "software.pub",
        }
    assert renewed("pi-1", "pi-2", "--within", "10", directory=directory) == [
        "nothing to renew: no certificate ends within 10 days"
    ]
    assert len(renewed("pi-1", "pi-2", "--within", "40", directory=directory)) == 1
    with closing(Authority(directory / "authority")) as authority:
        assert [line.revoked for line in authority.issued] == [None] * len(authority.issued)
        assert authority.revoke("pi-1") == 3, "all that may still be in use"


def test_device_folder_is_renewed_as_a_folder(directory: Path) -> None:
    run_broker("add-device", "pi-3", "--folder", directory=directory)
    before = serials(directory)["bundles/pi-3/client.crt"]
    (line,) = renewed("pi-3", directory=directory)
    assert line.startswith(f"{directory / 'bundles' / 'pi-3'}: carry it to pi-3; ")
    assert serials(directory)["bundles/pi-3/client.crt"] != before
    assert not (directory / "bundles" / "splitee-pi-3.tar").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pi-9", "has no certificate; there are: broker, "),
        ("lost", "has been revoked: give it a new identity"),
    ],
)
def test_renewal_of_an_unknown_or_revoked_device_is_refused(directory: Path, name: str, reason: str) -> None:
    add_device("lost", 1000, directory)
    run_broker("revoke-device", "lost", directory=directory)
    before = serials(directory)
    error = run_broker("renew", "pi-1", name, directory=directory).exception
    assert isinstance(error, ConfigError)
    assert reason in str(error)
    assert serials(directory) == before
    assert not any("lost" in line for line in renewed("--within", "7000", directory=directory))


def test_renewal_without_an_authority_is_refused(tmp_path: Path) -> None:
    error = run_broker("renew", directory=tmp_path).exception
    assert isinstance(error, SpliteeError)
    assert "make it with `splitee broker init`" in str(error)


@pytest.mark.mosquitto
@pytest.mark.slow
def test_broker_accepts_both_the_old_and_the_renewed_certificate(
    fleet: Fleet, connect: Callable[..., Link], tmp_path: Path
) -> None:
    folder = fleet.device("pi-1")
    old = tmp_path / "old"
    folder.rename(old)
    folder.mkdir()
    renewed("pi-1", "--folder", directory=fleet.directory)
    assert (folder / "client.crt").read_bytes() != (old / "client.crt").read_bytes()
    connect(old, client_id="old")
    connect(folder, client_id="new")


@pytest.mark.mosquitto
@pytest.mark.slow
def test_device_warns_before_its_certificate_ends(fleet: Fleet, tmp_path: Path) -> None:
    settings = fleet.issue("soon", days=20) / "device.toml"
    done = splitee_device("soon", "--config", str(settings), "--patience", "0.5", state=tmp_path)
    assert done.returncode == ExitCode.STALLED, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if "certificate" in line)
    assert " WARNING the certificate of 'soon' in " in line
    assert "ends in 19 days" in line
    assert "(splitee broker renew soon)" in line


@pytest.mark.mosquitto
@pytest.mark.slow
def test_broker_uses_its_renewed_certificate_after_a_reload(
    fleet: Fleet, connect: Callable[..., Link]
) -> None:
    path = fleet.directory / "broker" / "broker.crt"
    before = shown(fleet)
    owner = path.stat().st_uid
    renewed("broker", "health", directory=fleet.directory)
    assert shown(fleet) == before
    assert (path.stat().st_uid, path.with_suffix(".key").stat().st_uid) == (owner, owner)
    fleet.reload()
    until = time.monotonic() + DEADLINE
    while shown(fleet) == before:
        assert time.monotonic() < until, fleet.log.read_text()
    assert shown(fleet) == x509.load_pem_x509_certificate(path.read_bytes()).serial_number
    os.kill(fleet.pid, 0)
    connect(fleet.device("pi-2"))


def shown(fleet: Fleet) -> int:
    """The serial number of the certificate that the broker sends."""
    context = files(fleet.device("pi-2")).context()
    with (
        socket.create_connection((HOST, fleet.address.port), timeout=DEADLINE) as bare,
        context.wrap_socket(bare, server_hostname=HOST) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True)
    assert certificate is not None
    return x509.load_pem_x509_certificate(ssl.DER_cert_to_PEM_cert(certificate).encode()).serial_number
