# SPDX-License-Identifier: Apache-2.0
"""`splitee broker`: its files, their permissions, and its errors."""

from __future__ import annotations

import errno
import os
import re
import stat
import tarfile
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from splitee.errors import ConfigError, ExitCode, SpliteeError, StateError
from splitee.inference.signatures import ReleaseKey, ReleaseSigner
from splitee.mqtt.address import TlsFiles
from splitee.protocol.inference import ModelOffer
from splitee_broker.files import SHIPPED_DIRECTORY, SHIPPED_FLEET, SHIPPED_PORT, SHIPPED_STATE, _shipped
from splitee_broker.limits import DEVICES, MOST_DEVICES, limits

from .conftest import run_broker


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A fleet's authority, made by the account that runs the tests."""
    made = run_broker("init", "--fleet", "barn", "--name", "hub.local", directory=tmp_path / "own")
    assert made.exception is None
    return tmp_path / "own"


def refused(*arguments: str, directory: Path, kind: type[SpliteeError] = ConfigError) -> str:
    before = contents(directory)
    error = run_broker(*arguments, directory=directory).exception
    assert isinstance(error, kind), error
    assert "\n" not in str(error)
    assert contents(directory) == before, "a refused command changes nothing"
    return str(error)


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_keys_are_readable_by_their_owner_only_and_never_printed(directory: Path) -> None:
    printed = run_broker("add-device", "pi-1", directory=directory).output
    printed += run_broker("revoke-device", "pi-1", directory=directory).output
    printed += run_broker("list", directory=directory).output
    assert "PRIVATE" not in printed
    for path in directory.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode & ~0o050 == 0o700, path
            assert mode == 0o700 or path.name == "broker", path
        else:
            assert mode == (0o600 if path.suffix not in (".crt", ".pem") else mode & 0o644), path
    for folder in ("broker", "server", "viewer", "homeassistant", "bundles"):
        for path in (directory / folder).iterdir():
            assert (directory / "authority" / "ca.key").read_bytes() not in path.read_bytes()


def test_bundle_pins_the_key_that_signs_releases_on_the_server(directory: Path) -> None:
    server = directory / "server"
    run_broker("add-device", "pi-1", "--folder", directory=directory)
    device = directory / "bundles" / "pi-1"
    assert tomllib.loads((server / "server.toml").read_text())["signing-key"] == "release.key"
    assert tomllib.loads((device / "device.toml").read_text())["release-key"] == "release.pub"
    offer = ReleaseSigner(server / "release.key").sign(
        ModelOffer(release="a" * 64, size=1, run="r"), "barn", "pi-1"
    )
    ReleaseKey.read(device / "release.pub").check(offer, "barn", "pi-1")
    assert stat.S_IMODE((server / "release.key").stat().st_mode) == 0o600


def test_release_key_is_not_made_again_by_init(directory: Path) -> None:
    """Devices have pinned it; and an operator may remove it from the server."""
    key, pinned = directory / "server" / "release.key", directory / "authority" / "release.pub"
    before = key.read_bytes(), pinned.read_bytes()
    assert run_broker("init", "--fleet", "barn", directory=directory).exception is None
    assert (key.read_bytes(), pinned.read_bytes()) == before
    key.unlink()
    assert run_broker("init", "--fleet", "barn", directory=directory).exception is None
    assert not key.exists() and pinned.read_bytes() == before[1]
    assert "signing-key" not in (directory / "server" / "server.toml").read_text()


def test_init_makes_the_release_key_of_a_fleet_from_an_older_release(directory: Path) -> None:
    for path in (directory / "server" / "release.key", directory / "authority" / "release.pub"):
        path.unlink()
    assert run_broker("add-device", "pi-1", "--folder", directory=directory).exception is None
    assert not (directory / "bundles" / "pi-1" / "release.pub").exists()
    assert run_broker("init", "--fleet", "barn", "--keep", directory=directory).exception is None
    assert (directory / "server" / "release.key").exists()


def test_software_key_is_made_once_and_stays_with_the_authority(directory: Path) -> None:
    key, pinned = (directory / "authority" / name for name in ("software.key", "software.pub"))
    before = key.read_bytes(), pinned.read_bytes()
    run_broker("add-device", "pi-1", "--folder", directory=directory)
    device = directory / "bundles" / "pi-1"
    signature = ReleaseSigner(key).sign_software(b"manifest")
    ReleaseKey.read(
        device / tomllib.loads((device / "device.toml").read_text())["software-key"]
    ).check_software(b"manifest", signature)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret = before[0].splitlines()[1]
    elsewhere = [path for path in directory.rglob("*") if path.is_file() and path != key]
    assert not any(secret in path.read_bytes() for path in elsewhere)
    assert run_broker("init", "--fleet", "barn", directory=directory).exception is None
    assert (key.read_bytes(), pinned.read_bytes()) == before
    key.unlink()  # its operator keeps it elsewhere
    assert run_broker("init", "--fleet", "barn", directory=directory).exception is None
    assert not key.exists() and pinned.read_bytes() == before[1]


def test_bundle_holds_settings_keys_and_certificates_of_a_device(directory: Path, tmp_path: Path) -> None:
    result = run_broker("add-device", "pi-1", directory=directory)
    bundle = directory / "bundles" / "splitee-pi-1.tar"
    assert str(bundle) in result.output
    with tarfile.open(bundle) as tar:
        assert {entry.mode for entry in tar} == {0o600}
        tar.extractall(tmp_path / "device", filter="data")
    settings = tomllib.loads((tmp_path / "device" / "device.toml").read_text())
    assert settings == {
        "id": "pi-1",
        "fleet": "barn",
        "broker": "mqtts://hub.local:8883",
        "ca": "ca.crt",
        "cert": "client.crt",
        "key": "client.key",
        "release-key": "release.pub",
        "software-key": "software.pub",
    }
    TlsFiles(*(tmp_path / "device" / settings[name] for name in ("ca", "cert", "key"))).context()
    certificate = x509.load_pem_x509_certificate((tmp_path / "device" / "client.crt").read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=pi-1"


def test_device_certificate_is_for_clients_and_broker_certificate_for_servers(directory: Path) -> None:
    run_broker("add-device", "pi-1", "--folder", directory=directory)
    for path, usage in (("bundles/pi-1/client.crt", "clientAuth"), ("broker/broker.crt", "serverAuth")):
        certificate = x509.load_pem_x509_certificate((directory / path).read_bytes())
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [purpose._name for purpose in purposes] == [usage]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("device", ["pi/1", "pi+1", "#", "pi 1", "", "-pi", "pi\n1", "é", "x" * 65])
def test_device_id_invalid_in_topics_or_certificates_is_refused(directory: Path, device: str) -> None:
    line = refused("add-device", "--", device, directory=directory)
    assert "expected 1 to 64 letters, digits, '_', '.' or '-'" in line


@pytest.mark.parametrize("device", ["server", "viewer", "health", "homeassistant", "broker"])
def test_device_id_equal_to_a_role_name_is_refused(directory: Path, device: str) -> None:
    assert "expected a device's own name" in refused("add-device", device, directory=directory)


def test_second_certificate_is_refused_until_the_first_is_revoked(directory: Path) -> None:
    assert run_broker("add-device", "pi-1", directory=directory).exception is None
    assert "revoke it first" in refused("add-device", "pi-1", directory=directory)
    before = contents(directory)
    assert run_broker("add-device", "pi-1", "--keep", directory=directory).exception is None
    assert contents(directory) == before
    assert run_broker("revoke-device", "pi-1", directory=directory).exception is None
    assert "user pi-1\ntopic deny #" in (directory / "broker" / "acl").read_text()
    assert "has no valid certificate; devices: pi-1" in refused("revoke-device", "pi-2", directory=directory)
    assert run_broker("add-device", "pi-1", directory=directory).exception is None
    assert "user pi-1" not in (directory / "broker" / "acl").read_text()
    crl = x509.load_pem_x509_crl((directory / "broker" / "crl.pem").read_bytes())
    assert len(crl) == 1


def test_repeated_init_renews_role_certificates_and_keeps_device_certificates(directory: Path) -> None:
    run_broker("add-device", "pi-1", "--folder", directory=directory)
    before = contents(directory)
    assert run_broker("init", "--fleet", "barn", "--keep", directory=directory).exception is None
    assert contents(directory) == before
    again = ("init", "--fleet", "barn", "--name", "2001:db8::1", "--port", "9883")
    assert run_broker(*again, directory=directory).exception is None
    after = contents(directory)
    changed = {str(path.relative_to(directory)) for path in after if after[path] != before.get(path)}
    assert "authority/ca.key" not in changed
    assert "bundles/pi-1/client.crt" not in changed
    assert {"broker/broker.crt", "server/client.crt", "broker/mosquitto.conf"} <= changed
    assert 'broker = "mqtts://[2001:db8::1]:9883"' in (directory / "server" / "server.toml").read_text()
    assert "listener 9883\n" in (directory / "broker" / "mosquitto.conf").read_text()
    run_broker("add-device", "pi-2", "--folder", directory=directory)
    assert "[2001:db8::1]:9883" in (directory / "bundles" / "pi-2" / "device.toml").read_text()


def test_list_shows_each_identity_with_its_role_state_and_date(directory: Path) -> None:
    def until(certificate: str) -> str:
        loaded = x509.load_pem_x509_certificate((directory / certificate).read_bytes())
        return f"valid until {loaded.not_valid_after_utc:%Y-%m-%d}"

    run_broker("add-device", "pi-1", "pi-22", "--folder", directory=directory)
    days = [datetime.now(UTC).date()]
    run_broker("revoke-device", "pi-22", directory=directory)
    days.append(datetime.now(UTC).date())
    lines = run_broker("list", directory=directory).output.splitlines()
    broker, health, *roles, own, revoked = (line.split(maxsplit=2) for line in lines)
    assert broker == ["broker", "broker", until("broker/broker.crt")]
    assert health == ["health", "health", until("broker/health.crt")]
    assert roles == [
        [role, role, until(f"{role}/client.crt")] for role in ("homeassistant", "server", "viewer")
    ]
    assert own == ["pi-1", "device", until("bundles/pi-1/client.crt")]
    assert revoked in (["pi-22", "device", f"revoked {day}"] for day in days)


def test_missing_authority_wrong_fleet_bad_host_and_broken_ledger_are_refused(
    directory: Path, tmp_path: Path
) -> None:
    assert "make it with `splitee broker init`" in refused("add-device", "pi-1", directory=tmp_path / "none")
    assert "is of fleet 'barn', not 'default'" in refused("init", directory=directory)
    for host in ("a b", "http://x", "-x", "hub.local:8883", ""):
        line = refused("init", "--fleet", "barn", "--name", host, directory=directory)
        assert "expected a host's name or an IP address" in line
    (directory / "authority" / "ledger.json").write_text("{")
    assert "bring it back from your backup" in refused("list", directory=directory, kind=StateError)


def test_full_disk_is_reported_in_one_line(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    line = refused("add-device", "pi-1", directory=directory, kind=StateError)
    assert "No space left on device" in line
    assert StateError.exit_code == ExitCode.STATE


def test_shipped_files_contain_the_values_that_init_replaces() -> None:
    configuration, rules = _shipped("mosquitto.conf"), _shipped("acl")
    for text in (SHIPPED_PORT, SHIPPED_DIRECTORY, SHIPPED_STATE):
        assert text in configuration
    assert rules.count("splitee/v1/") == rules.count(SHIPPED_FLEET)


def test_broker_limits_follow_from_the_number_of_devices(directory: Path) -> None:
    def settings() -> dict[str, str]:
        lines = (directory / "broker" / "mosquitto.conf").read_text().splitlines()
        return dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))

    shipped = {name: f" {value}\n" for name, value in limits(DEVICES).items()}
    assert all(f"\n{name}{value}" in _shipped("mosquitto.conf") for name, value in shipped.items())
    again = ("init", "--fleet", "barn")
    assert run_broker(*again, "--devices", "1000", directory=directory).exception is None
    many = settings()
    assert many["max_connections"] == str(5 * 1000 + 100 + 4096)
    assert (many["max_queued_messages"], many["max_queued_bytes"]) == (str(16 * 1000), str(512 << 20))
    assert run_broker(*again, directory=directory).exception is None
    assert settings() == many, "renewing keeps the number"
    assert "from 1 to 10000" in str(run_broker(*again, "--devices", "0", directory=directory).exception)


def test_systemd_unit_grants_descriptors_for_the_most_connections() -> None:
    unit = (Path(__file__).parents[2] / "broker_config" / "splitee-broker.service").read_text()
    found = re.search(r"(?m)^LimitNOFILE=(\d+)$", unit)
    assert found is not None
    assert limits(MOST_DEVICES)["max_connections"] + 100 < int(found[1])


def test_revocation_works_without_a_broker(directory: Path) -> None:
    run_broker("add-device", "pi-1", directory=directory)
    revoked = run_broker("revoke-device", "pi-1", directory=directory)
    assert revoked.exception is None
    first, second = revoked.output.splitlines()
    assert first.startswith("pi-1 is revoked; make the broker read it")
    assert "what the broker retains of pi-1 is still there (no broker at mqtts://hub.local:8883" in second
    assert second.endswith("to clear it: splitee broker revoke-device pi-1")
    (directory / "server" / "server.toml").unlink()
    again = run_broker("revoke-device", "pi-1", directory=directory)
    assert again.exception is None
    assert "is still there (" in again.output


def test_paths_in_the_configuration_are_those_that_were_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory below the shipped state's keeps its name; a relative one is of the caller's folder."""
    monkeypatch.chdir(tmp_path)
    own = tmp_path / SHIPPED_STATE.strip("/") / "own"
    made = run_broker("init", "--name", "hub", "--broker-state", "kept", directory=own)
    assert made.exception is None
    text = (own / "broker" / "mosquitto.conf").read_text()
    for key, path in (("cafile", own / "broker" / "ca.crt"), ("persistence_location", f"{tmp_path}/kept/")):
        assert f"\n{key} {path}\n" in text


@pytest.mark.parametrize("owner", ["4294967295", "99999999999999999999", "9" * 5000])
def test_number_that_no_account_has_is_refused_before_anything_is_made(tmp_path: Path, owner: str) -> None:
    line = refused("init", "--name", "hub", "--owner", owner, directory=tmp_path / "own")
    assert line == f"--owner {owner[:20]}: expected a name, or a number below 4294967295"
    assert not (tmp_path / "own").exists()


def test_revoked_device_is_let_in_again_though_its_bundle_could_not_be_written(directory: Path) -> None:
    """Its new certificate is in the ledger, and `renew` writes the bundle."""
    for command in ("add-device", "revoke-device"):
        assert run_broker(command, "pi-1", directory=directory).exception is None
    bundle = directory / "bundles" / "splitee-pi-1.tar"
    bundle.unlink()
    bundle.mkdir()
    assert isinstance(run_broker("add-device", "pi-1", directory=directory).exception, StateError)
    bundle.rmdir()
    assert run_broker("renew", "pi-1", directory=directory).exception is None
    assert bundle.is_file()
    assert "user pi-1" not in (directory / "broker" / "acl").read_text()
