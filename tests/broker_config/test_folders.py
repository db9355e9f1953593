# SPDX-License-Identifier: Apache-2.0
"""Files that root writes in another account's folder are written there, or nowhere."""

from __future__ import annotations

import os
import pwd
import secrets
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from splitee.durable import write_atomically
from splitee.errors import StateError
from splitee_broker.files import write_broker_folder, write_folder
from splitee_lab.local.brokers import free_port

from .conftest import mosquitto, run_broker

NAMES = ("mosquitto.conf", "acl", "crl.pem", "ca.crt", "broker.crt", "broker.key", "health.crt", "health.key")


def account() -> pwd.struct_passwd:
    """The account that the broker runs as; only root can act for it."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    try:
        return pwd.getpwnam("mosquitto")
    except KeyError:
        pytest.skip("this machine has no account for Mosquitto")


def as_broker(*command: str | Path) -> int:
    """The exit status of a command that the broker's account runs."""
    entry = account()
    return subprocess.run(
        command, user=entry.pw_uid, group=entry.pw_gid, extra_groups=[], capture_output=True, check=False
    ).returncode


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every account may enter: pytest's are closed."""
    with TemporaryDirectory(prefix="splitee-folders-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def outside(shared: Path) -> Path:
    """A folder of root's, with a file."""
    folder = shared / "outside"
    folder.mkdir(mode=0o700)
    (folder / "shadow").write_text("root's")
    (folder / "shadow").chmod(0o600)
    return folder


def facts(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Owner, group, permissions and content of all that is in a folder, and of the folder itself."""
    found = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[str(path)] = (status.st_uid, status.st_gid, status.st_mode, content)
    return found


def init(directory: Path, *flags: str) -> None:
    made = run_broker("init", "--fleet", "barn", "--name", "hub", *flags, directory=directory)
    assert made.exception is None, made.exception


def test_broker_account_reads_its_files_but_cannot_write_in_their_folder(shared: Path) -> None:
    entry, folder = account(), shared / "own" / "broker"
    init(shared / "own")
    assert (folder.stat().st_uid, folder.stat().st_gid) == (0, entry.pw_gid)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    for name in NAMES:
        assert as_broker("cat", folder / name) == 0
        assert as_broker("ln", "-sf", "/etc/passwd", folder / name) != 0
        assert as_broker("mv", folder / name, folder / "else") != 0
    assert as_broker("touch", folder / ".acl.new") != 0
    assert {path.name for path in folder.iterdir()} == set(NAMES)


@pytest.mark.parametrize("target", ["shadow", "not-there"])
def test_links_planted_in_the_broker_folder_are_not_followed(
    shared: Path, outside: Path, target: str
) -> None:
    """Releases before this one gave the whole folder to the broker's account."""
    entry, folder = account(), shared / "own" / "broker"
    folder.mkdir(parents=True)
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    for name in NAMES:
        for planted in (name, f".{name}.new", f".{name}"):
            assert as_broker("ln", "-s", outside / target, folder / planted) == 0
    before = facts(outside)
    init(shared / "own")
    for command in ("add-device", "revoke-device", "add-device"):
        assert run_broker(command, "pi-1", directory=shared / "own").exception is None
    assert facts(outside) == before
    assert folder.stat().st_uid == 0
    for name in NAMES:
        status = (folder / name).lstat()
        assert stat.S_ISREG(status.st_mode)
        assert (status.st_uid, status.st_gid) == (entry.pw_uid, entry.pw_gid)


def test_owner_given_to_init_keeps_the_files_when_they_are_rewritten(shared: Path) -> None:
    account()
    init(shared / "own", "--owner", "1883")
    init(shared / "own")
    run_broker("add-device", "pi-1", directory=shared / "own")
    run_broker("revoke-device", "pi-1", directory=shared / "own")
    owners = {(path.stat().st_uid, path.stat().st_gid) for path in (shared / "own/broker").iterdir()}
    assert owners == {(1883, 1883)}


@pytest.mark.parametrize("owner", ["root", "0", "daemon"])
def test_broker_that_root_starts_runs_as_its_owner_and_reads_its_files(shared: Path, owner: str) -> None:
    """Otherwise it becomes Mosquitto's own account, which cannot read them."""
    account()
    port = free_port()
    state = shared / "state"
    state.mkdir()
    state.chmod(0o777)
    flags = ("--port", str(port), "--broker-state", str(state))
    init(shared / "own", "--owner", owner, *flags)
    log = shared / "log"
    with mosquitto(shared / "own", port, log) as pid:
        user = Path(f"/proc/{pid}").stat().st_uid
    assert user == (pwd.getpwnam("daemon").pw_uid if owner == "daemon" else 0)
    assert "Error" not in log.read_text()
    init(shared / "own", *flags)
    named = "daemon" if owner == "daemon" else "root"
    assert f"\nuser {named}\n" in (shared / "own" / "broker" / "mosquitto.conf").read_text(), "it stays"


def test_write_is_refused_if_its_temporary_name_is_already_a_link(
    shared: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry, folder = account(), shared / "theirs"
    folder.mkdir()
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    monkeypatch.setattr(secrets, "token_hex", lambda _count: "foreseen")
    assert as_broker("ln", "-s", outside / "shadow", folder / ".foreseen.new") == 0
    before = facts(outside)
    for write in (write_folder, write_broker_folder):
        with pytest.raises(StateError, match="File exists"):
            write(folder, {"acl": b"new"})
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    with pytest.raises(StateError, match="File exists"):
        write_atomically(folder / "acl", b"new", mode=0o644, owner=(entry.pw_uid, entry.pw_gid))
    assert facts(outside) == before
    assert not (folder / "acl").exists()


@pytest.mark.parametrize("write", [write_folder, write_broker_folder])
def test_write_to_a_folder_that_is_a_link_is_refused(
    shared: Path, outside: Path, write: Callable[[Path, dict[str, bytes]], None]
) -> None:
    (shared / "pi-1").symlink_to(outside)
    before = facts(outside)
    with pytest.raises(StateError, match=r"pi-1: it is a link; run as its owner"):
        write(shared / "pi-1", {"client.key": b"key"})
    assert facts(outside) == before


def test_files_written_in_a_folder_belong_to_its_owner(shared: Path) -> None:
    entry, folder = account(), shared / "server"
    folder.mkdir()
    os.chown(folder, entry.pw_uid, entry.pw_gid)
    write_folder(folder, {"client.key": b"key", "ca.crt": b"authority"})
    for name, mode in (("client.key", 0o600), ("ca.crt", 0o644)):
        status = (folder / name).stat()
        assert (status.st_uid, status.st_gid) == (entry.pw_uid, entry.pw_gid)
        assert stat.S_IMODE(status.st_mode) == mode


def test_authority_folder_that_is_a_link_is_refused(shared: Path, outside: Path) -> None:
    """As in a folder of the host's user that a container's root works in."""
    (shared / "own").mkdir()
    (shared / "own" / "authority").symlink_to(outside)
    before = facts(outside)
    made = run_broker("init", "--name", "hub", directory=shared / "own")
    assert isinstance(made.exception, StateError)
    assert "authority: it is a link" in str(made.exception)
    assert facts(outside) == before


@pytest.mark.parametrize("command", [("list",), ("renew",), ("add-device", "pi-1"), ("invite",)])
def test_authority_is_closed_to_other_accounts_with_one_line(shared: Path, command: tuple[str, ...]) -> None:
    """As for an operator who has forgotten sudo."""
    init(shared / "own")
    run_broker(*command, "--help", directory=shared / "own")  # loads what that account may not read
    os.seteuid(account().pw_uid)
    try:
        error = run_broker(*command, directory=shared / "own").exception
    finally:
        os.seteuid(0)
    assert isinstance(error, StateError), error
    reason = "Permission denied; run it by sudo, or take another --directory"
    assert str(error) == f"authority in {shared / 'own' / 'authority'}: {reason}"
