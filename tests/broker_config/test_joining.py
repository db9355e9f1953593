# SPDX-License-Identifier: Apache-2.0
"""A device joins by a code: `splitee broker invite` and `splitee join`, up to a real broker."""

from __future__ import annotations

import socket
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm
from invitations import Invitation, joined

from splitee.errors import (
    BrokerUnreachable,
    CertificateRevoked,
    ConfigError,
    ExitCode,
    PairingEnded,
    SpliteeError,
    StateError,
    StateInUse,
)
from splitee.mqtt.link import Link
from splitee.pairing.code import new_code
from splitee.protocol.topics import Topics
from splitee_broker.authority import Authority
from splitee_device.joining.exchange import Hub, connected
from splitee_device.joining.identity_files import IdentityFiles
from splitee_lab.local.brokers import free_port
from splitee_lab.local.forked import without_settings

from .conftest import DEADLINE, FLEET, HOST, Fleet, files, run_broker, splitee_device

pytestmark = pytest.mark.slow

Connect = Callable[..., Link]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A fleet's authority, whose broker does not run."""
    made = run_broker("init", "--fleet", FLEET, "--name", HOST, directory=tmp_path / "own")
    assert made.exception is None
    return tmp_path / "own"


def refused(kind: type[SpliteeError], where: Hub | str, code: str, device: Path, *flags: str) -> str:
    """The line of a refusal, which has changed no file."""
    before = contents(device)
    error = joined(where, code, device, *flags).exception
    assert isinstance(error, kind), error
    assert "\n" not in str(error)
    assert contents(device) == before
    return str(error)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(directory: Path) -> list[str]:
    """The names of the devices that the authority knows."""
    lines = run_broker("list", directory=directory).output.splitlines()
    return [line.split()[0] for line in lines if line.split()[1] == "device"]


def may_publish(link: Link, device: str) -> bool:
    """Whether its messages are accepted once the broker has read its access list."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        before = link.refused
        link.publish(Topics(FLEET).device(device, "status"), b"x")
        assert link.flush(DEADLINE)
        if link.refused == before:
            return True
    return False


@pytest.mark.mosquitto
def test_device_joins_by_two_commands_and_is_accepted_by_the_broker(fleet: Fleet, tmp_path: Path) -> None:
    """All by the commands that users run; the broker need not reload."""
    device = tmp_path / "device"
    with Invitation(fleet.directory, tmp_path / "log") as invitation:
        own = ("--id", "pi-9", "--directory", str(device), "--data", 'my "photos"')
        done = warm.run("join", invitation.hub, invitation.code, *own, environment=without_settings())
        assert (done.returncode, done.stderr) == (0, "")
        assert invitation.ended() == 0
        assert f"{HOST}: pi-9 has joined" in invitation.shown().splitlines()
    settings = tomllib.loads((device / "device.toml").read_text())
    assert settings == {
        "id": "pi-9",
        "fleet": FLEET,
        "broker": f"mqtts://{HOST}:{fleet.address.port}",
        "ca": "device/ca.crt",
        "cert": "device/client.crt",
        "key": "device/client.key",
        "release-key": "release.pub",
        "software-key": "software.pub",
        "data": 'my "photos"',
    }
    assert f"next: splitee device --config {device}/device.toml" in done.stdout
    flags = ("--config", str(device / "device.toml"), "--patience", "0.5")
    came = splitee_device("pi-9", *flags, state=tmp_path / "state")
    assert came.returncode == ExitCode.STALLED, came.stderr


@pytest.mark.mosquitto
def test_device_paired_anew_is_accepted_and_its_old_key_is_refused(
    fleet: Fleet, connect: Connect, tmp_path: Path
) -> None:
    old, device = fleet.device("again"), tmp_path / "device"
    connect(old, client_id="old").close()
    reload = ("--reload", f"kill -HUP {fleet.pid}")
    with Invitation(fleet.directory, tmp_path / "log", "again", *reload) as invitation:
        assert "it is revoked once the new one is stored" in invitation.shown()
        assert joined(invitation.hub, invitation.code, device, "--id", "else").exception is None
        assert invitation.ended() == 0
        assert f"again: the broker has read who is let in (kill -HUP {fleet.pid})" in invitation.shown()
        assert "a connection that is still open by it ends when the broker is restarted" in invitation.shown()
    until = time.monotonic() + DEADLINE
    while True:
        link = Link(fleet.address, "old-2", tls=files(old))
        try:
            link.open(DEADLINE)
        except CertificateRevoked:
            break
        finally:
            link.close()
        assert time.monotonic() < until, "the old key gets in"
    assert may_publish(connect(device / "device", client_id="new"), "again")


@pytest.mark.mosquitto
def test_revoked_device_rejoins_only_by_an_invitation_with_its_name(
    fleet: Fleet, connect: Connect, tmp_path: Path
) -> None:
    fleet.device("returns")
    assert run_broker("revoke-device", "returns", directory=fleet.directory).exception is None
    fleet.reload()
    with Invitation(fleet.directory, tmp_path / "log") as invitation:
        line = refused(PairingEnded, invitation.hub, invitation.code, tmp_path / "d", "--id", "returns")
        assert "run `splitee broker invite returns` there" in line
    reload = ("--reload", f"kill -HUP {fleet.pid}")
    with Invitation(fleet.directory, tmp_path / "log-2", "returns", *reload) as invitation:
        assert joined(invitation.hub, invitation.code, tmp_path / "device").exception is None
        assert invitation.ended() == 0
    assert may_publish(connect(tmp_path / "device" / "device", client_id="r"), "returns")


def test_join_keeps_the_key_private_and_the_settings_readable_by_all(directory: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    with Invitation(directory, tmp_path / "log", "pi-1") as invitation:
        done = joined(invitation.hub, invitation.code, device)
        assert done.exception is None
        assert invitation.ended() == 0
        shown = invitation.shown()
    modes = {str(path.relative_to(device)): stat.S_IMODE(path.stat().st_mode) for path in device.rglob("*")}
    assert modes == {
        "device": 0o700,
        "device/ca.crt": 0o600,
        "device/client.crt": 0o600,
        "device/client.key": 0o600,
        "device.toml": 0o644,
        "release.pub": 0o644,
        "software.pub": 0o644,
    }
    secret = (device / "device" / "client.key").read_text().splitlines()[1]
    assert secret not in shown + done.output
    assert all(secret.encode() not in data for data in contents(directory).values())


def test_several_devices_join_by_one_code(directory: Path, tmp_path: Path) -> None:
    with Invitation(directory, tmp_path / "log", "--count", "3") as invitation:
        done: dict[str, BaseException | None] = {}

        def join_as(name: str) -> None:
            code = joined_by_process(invitation, tmp_path / name, name)
            done[name] = None if code == 0 else AssertionError(code)

        threads = [threading.Thread(target=join_as, args=(f"pi-{number}",)) for number in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == {"pi-1": None, "pi-2": None, "pi-3": None}
        assert invitation.ended() == 0
    assert names(directory) == ["pi-1", "pi-2", "pi-3"]


def joined_by_process(invitation: Invitation, device: Path, name: str) -> int:
    own = ("--id", name, "--directory", str(device))
    return warm.run("join", invitation.hub, invitation.code, *own, environment=without_settings()).returncode


def test_taken_or_invalid_name_costs_no_try_and_another_name_is_accepted(
    directory: Path, tmp_path: Path
) -> None:
    assert run_broker("add-device", "pi-1", directory=directory).exception is None
    with Invitation(directory, tmp_path / "log") as invitation:
        line = refused(PairingEnded, invitation.hub, invitation.code, tmp_path / "d", "--id", "pi-1")
        assert "the fleet knows a device pi-1 already: choose another --id" in line
        line = refused(PairingEnded, invitation.hub, invitation.code, tmp_path / "d", "--id", "server")
        assert "it refuses the name server" in line
        assert joined(invitation.hub, invitation.code, tmp_path / "d", "--id", "pi-2").exception is None
        assert invitation.ended() == 0
        assert "tries" not in invitation.shown()


def test_invite_goes_on_after_its_output_is_closed(directory: Path, tmp_path: Path) -> None:
    own = ("invite", "pi-1", "--port", "0", "--directory", str(directory))
    command = [sys.executable, "-m", "splitee", "broker", *own]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        _, _, where, code = process.stdout.readline().split()
        process.stdout.close()
        assert "it does not accept this code" in refused(PairingEnded, where, new_code(), tmp_path / "d")
        done = joined(where, code, tmp_path / "d")
        assert (done.exception, "has not confirmed" in done.output) == (None, False)
        assert (process.wait(60), process.stderr.read()) == (0, "")


def test_device_has_joined_if_the_hub_is_killed_before_it_confirms(directory: Path, tmp_path: Path) -> None:
    """`splitee join` prints what to do if the hub did not confirm; the name can be invited again."""
    with Invitation(directory, tmp_path / "log", "pi-1") as invitation:
        write = IdentityFiles.write

        def killed(self: IdentityFiles, *identity: Any) -> None:
            write(self, *identity)
            invitation.kill()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(IdentityFiles, "write", killed)
            done = joined(invitation.hub, invitation.code, tmp_path / "d")
    assert done.exception is None
    assert "unless it says that pi-1 has joined, run `splitee broker invite pi-1` there" in done.output
    with Invitation(directory, tmp_path / "log-2", "pi-1") as invitation:
        done = joined(invitation.hub, invitation.code, tmp_path / "d")
        assert (done.exception, "has not confirmed" in done.output) == (None, False)
        assert invitation.ended() == 0
    files(tmp_path / "d" / "device").context()


def test_used_code_is_refused_for_another_device(directory: Path, tmp_path: Path) -> None:
    with Invitation(directory, tmp_path / "log") as invitation:
        with connected(invitation.hub, print) as first, connected(invitation.hub, print) as second:
            first.prove(code := invitation.code.replace("-", ""))
            second.prove(code)
            first.request(FLEET, "pi-1")
            first.confirm()
            with pytest.raises(PairingEnded, match="the invitation has ended meanwhile"):
                second.request(FLEET, "pi-2")
        assert invitation.ended() == 0
        line = refused(BrokerUnreachable, invitation.hub, invitation.code, tmp_path / "d", "--id", "pi-2")
        assert "no hub waits there; an invitation ends when it is used" in line
    assert names(directory) == ["pi-1"]


def test_invitation_expires_after_its_validity(directory: Path, tmp_path: Path) -> None:
    with Invitation(directory, tmp_path / "log", "--valid", "1s") as invitation:
        assert invitation.ended() == ExitCode.PAIRING
        assert "the invitation has expired: 0 of 1 devices have joined;" in invitation.shown()
        line = refused(BrokerUnreachable, invitation.hub, invitation.code, tmp_path / "d", "--id", "pi-2")
        assert "no hub waits there; an invitation ends when it is used, after its time" in line


def test_device_that_left_before_confirming_may_join_again(directory: Path, tmp_path: Path) -> None:
    """An unconfirmed certificate does not count; it is revoked when the device has joined."""
    with Invitation(directory, tmp_path / "log") as invitation:
        with connected(invitation.hub, print) as exchange:
            exchange.prove(invitation.code.replace("-", ""))
            exchange.request(FLEET, "pi-1")
        invitation.wait_for("pi-1 did not confirm that it has stored its identity; it may try again")
        assert joined(invitation.hub, invitation.code, tmp_path / "d", "--id", "pi-1").exception is None
        assert invitation.ended() == 0
        assert "pi-1: make the broker read it" in invitation.shown()
    assert names(directory) == ["pi-1"]


def test_device_is_added_while_an_invitation_is_open(directory: Path, tmp_path: Path) -> None:
    with Invitation(directory, tmp_path / "log") as invitation:
        assert run_broker("add-device", "pi-1", directory=directory).exception is None
        assert joined(invitation.hub, invitation.code, tmp_path / "d", "--id", "pi-2").exception is None
        assert invitation.ended() == 0


def test_command_waits_while_another_holds_the_authority(directory: Path) -> None:
    """An invitation locks the authority for a moment with each device, so often with many."""
    authority = Authority(directory / "authority")
    ends = threading.Timer(0.5, authority.close)
    ends.start()
    assert names(directory) == []
    ends.join()


def test_join_keeps_other_settings_of_the_device(directory: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    (device / "device.toml").write_text('# ours\ndata = "/srv/images"\ncut = 5\nrelease-key = "old.pub"\n')
    with Invitation(directory, tmp_path / "log", "pi-1") as invitation:
        assert joined(invitation.hub, invitation.code, device).exception is None
    lines = (device / "device.toml").read_text().splitlines()
    assert lines[6:] == [
        'release-key = "release.pub"',
        'software-key = "software.pub"',
        "# ours",
        'data = "/srv/images"',
        "cut = 5",
    ]


@pytest.mark.parametrize(("key", "value"), [("id", "pi-7"), ("fleet", "bay")])
def test_identity_of_another_id_or_fleet_is_replaced_only_with_force(
    directory: Path, tmp_path: Path, key: str, value: str
) -> None:
    device = tmp_path / "device"
    (device / "device").mkdir(parents=True)
    (device / "device.toml").write_text(f'{key} = "{value}"\n')
    (device / "device" / "client.key").write_text("old")
    with Invitation(directory, tmp_path / "log", "pi-1") as invitation:
        line = refused(ConfigError, invitation.hub, invitation.code, device)
        assert f"device.toml is of {key} {value!r}, and the invitation for" in line
        assert "--force, if the old identity is to be lost" in line
        assert names(directory) == []
        assert joined(invitation.hub, invitation.code, device, "--force").exception is None
    assert tomllib.loads((device / "device.toml").read_text())["id"] == "pi-1"
    assert b"PRIVATE KEY" in (device / "device" / "client.key").read_bytes()


def test_identity_of_the_same_device_is_replaced_as_a_whole(directory: Path, tmp_path: Path) -> None:
    device = tmp_path / "device"
    for log in ("first", "second"):
        with Invitation(directory, tmp_path / log, "pi-1") as invitation:
            assert joined(invitation.hub, invitation.code, device).exception is None
    files(device / "device").context()  # a certificate and its own key
    assert not [path for path in device.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("nowhere.invalid", "is the name right, and the port open in the hub's firewall?"),
        ("a" * 300, "is the name right"),
    ],
)
def test_join_reports_an_unknown_host(tmp_path: Path, where: str, line: str) -> None:
    assert line in refused(BrokerUnreachable, where, new_code(), tmp_path)


def test_join_reports_a_closed_port(tmp_path: Path) -> None:
    line = refused(BrokerUnreachable, f"{HOST}:{free_port()}", new_code(), tmp_path)
    assert "no hub waits there" in line


@pytest.mark.mosquitto
def test_join_reports_that_the_broker_port_is_no_hub(fleet: Fleet, tmp_path: Path) -> None:
    line = refused(BrokerUnreachable, f"{HOST}:{fleet.address.port}", new_code(), tmp_path)
    assert "it is no hub that invites" in line


@pytest.mark.parametrize(
    "where", ["", "a b@c", "hub:0", "hub:99999", "hub:x", "mqtts://hub", "[::1", "hub/x"]
)
def test_join_refuses_an_invalid_address(tmp_path: Path, where: str) -> None:
    assert "expected a name or an address, or HOST:PORT" in refused(ConfigError, where, new_code(), tmp_path)


def test_directory_that_cannot_be_written_is_refused_before_connecting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    line = refused(StateError, f"{HOST}:{free_port()}", new_code(), tmp_path / "file" / "below")
    assert "run it by sudo, or take another --directory" in line


@pytest.mark.parametrize("data", ["/srv/\udcff", "/srv/\x7f", "/srv/a\nb"])
def test_data_that_settings_cannot_hold_is_refused_before_connecting(tmp_path: Path, data: str) -> None:
    """The first is a folder's name that is not UTF-8."""
    line = refused(ConfigError, Hub(HOST, free_port()), new_code(), tmp_path / "device", "--data", data)
    assert line == f"--data {data!r}: the settings take printable characters only; rename the folder"


def test_second_join_in_the_same_folder_is_refused_while_the_first_waits(tmp_path: Path) -> None:
    """Both would write the same files, and the certificate of one would lie beside the key of the other."""
    device = tmp_path / "device"
    with socket.create_server((HOST, 0)) as silent:
        silent.settimeout(DEADLINE)
        command = ["join", f"{HOST}:{silent.getsockname()[1]}", new_code(), "--directory", str(device)]
        first = warm.WarmProcess(command, tmp_path / "log", without_settings())
        waiting, _ = silent.accept()
        with waiting:
            line = refused(StateInUse, Hub(HOST, free_port()), new_code(), device)
            assert line == f"{device}: another `splitee join` works there; wait until it has ended"
            first.kill()
            first.wait()
    refused(BrokerUnreachable, Hub(HOST, free_port()), new_code(), device)


def test_invalid_settings_file_is_refused_before_connecting(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text("id = ")
    assert "expected a device's settings" in refused(
        ConfigError, f"{HOST}:{free_port()}", new_code(), tmp_path
    )


def test_missing_code_is_refused_without_a_terminal(tmp_path: Path) -> None:
    done = warm.run("join", HOST, "--directory", tmp_path, environment=without_settings())
    assert done.returncode == ExitCode.CONFIG
    assert "CODE: expected what `splitee broker invite` shows" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("pi 1",), "NAME 'pi 1': expected 1 to 64 letters"),
        (("server",), "expected a device's own name"),
        (("pi-1", "--count", "2"), "a NAME is for one device"),
        (("--valid", "0s"), "--valid 0s: such as 90s, 15m or 2h, at most 24h"),
        (("--valid", "25h"), "--valid 25h: such as"),
        (("--valid", "15"), "--valid 15: such as"),
        (("--count", "0"), "--count 0: from 1 to 1000"),
        (("--reload", "kill 'x"), "--reload kill 'x: expected a command as a shell reads it"),
    ],
)
def test_invalid_invite_arguments_are_refused(directory: Path, arguments: tuple[str, ...], line: str) -> None:
    error = run_broker("invite", *arguments, directory=directory).exception
    assert line in (error.format_message() if hasattr(error, "format_message") else str(error))


def test_invite_needs_an_authority_and_a_free_port(directory: Path, tmp_path: Path) -> None:
    error = run_broker("invite", directory=tmp_path / "none").exception
    assert "make it with `splitee broker init`" in str(error)
    with Invitation(directory, tmp_path / "log") as invitation:
        error = run_broker("invite", "--port", str(invitation.hub.port), directory=directory).exception
        assert f"--port {invitation.hub.port}: " in str(error)
        assert "take another, or end what uses it" in str(error)
