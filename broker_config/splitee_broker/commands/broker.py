"""`splitee broker`: a fleet's authority, its broker's configuration, its devices' identities."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any

import click

from splitee.cli.bounds import whole
from splitee.cli.settings import setting
from splitee.errors import ConfigError, StateError
from splitee.protocol.topics import check_name
from splitee_broker.authority import Authority, Issued, Role
from splitee_broker.files import access_rules, client_files, configuration, write_bundle, write_folder
from splitee_broker.release_key import RELEASE_KEY, SIGNING_KEY, new_release_key

DIRECTORY = click.Path(path_type=Path, file_okay=False)
DAYS = 5 * 365
RELOAD = "make the broker read it: systemctl reload mosquitto (or send it SIGHUP)"

in_directory = click.option(
    "--directory",
    type=DIRECTORY,
    default=Path("/etc/splitee"),
    show_default=True,
    envvar="SPLITEE_BROKER_DIRECTORY",
    help="Holds authority/, broker/, server/, viewer/, homeassistant/ and bundles/.",
)
valid_for = click.option(
    "--days", type=whole(1, 7000), default=DAYS, show_default=True, help="Certificates are valid."
)


def private(command: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the command so that what it creates is its owner's alone."""

    @wraps(command)
    def with_umask(**arguments: Any) -> Any:
        before = os.umask(0o077)
        try:
            return command(**arguments)
        finally:
            os.umask(before)

    return with_umask


@click.group()
def broker() -> None:
    """Set up a fleet's broker: its configuration, and the certificates by which it knows who speaks."""


@broker.command()
@in_directory
@setting("--fleet", default="default", metavar="NAME", help="The fleet that this broker is for.")
@click.option(
    "--name",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="A name or address by which clients reach the broker; the first goes into bundles. "
    "Default: this machine's, with .local.",
)
@click.option("--port", type=whole(1, 65535), help="Default: 8883.")
@click.option(
    "--owner", metavar="USER", help="Account that the broker runs as. Default: mosquitto, for root."
)
@click.option(
    "--broker-state",
    type=DIRECTORY,
    default=Path("/var/lib/mosquitto"),
    show_default=True,
    help="Where the broker keeps what is retained.",
)
@click.option("--keep", is_flag=True, help="Do nothing where all is there.")
@valid_for
@private
def init(
    directory: Path,
    fleet: str,
    hosts: tuple[str, ...],
    port: int | None,
    owner: str | None,
    broker_state: Path,
    keep: bool,
    days: int,
) -> None:
    """Make the authority, unless there is one, and what the broker, the server and a viewer need of it.

    Run it again to renew their certificates, or for another name or port; the devices' stay valid.
    """
    folder = directory.absolute() / "broker"
    with closing(_open(directory, fleet)) as authority:
        if keep and _is_whole(directory):
            return
        default = authority.hosts or (f"{socket.gethostname()}.local",)
        authority.serve_at(hosts or default, port or authority.port)
        _own(folder, owner)
        tls = authority.issue("broker", Role.BROKER, days, (*dict.fromkeys((*authority.hosts, "localhost")),))
        health = authority.issue("health", Role.HEALTH, days)
        contents = {
            "mosquitto.conf": configuration(folder, authority.port, broker_state),
            "ca.crt": authority.certificate,
            "broker.crt": tls.certificate,
            "broker.key": tls.key,
            "health.crt": health.certificate,
            "health.key": health.key,
        }
        write_folder(folder, contents | _rules(authority))
        for role in (Role.SERVER, Role.VIEWER, Role.HOME_ASSISTANT):
            identity = authority.issue(role.value, role, days)
            key = _signing_key(directory) if role is Role.SERVER else None
            contents = client_files(role.value, role, identity, authority, release_key=key)
            write_folder(directory / role.value, contents)
    click.echo(f"{folder}: the broker's; start it: mosquitto -c {folder}/mosquitto.conf")
    click.echo(f"{directory}/server: splitee server --config {directory}/server/server.toml")
    click.echo(f"{directory}/server/{SIGNING_KEY}: signs what is released; devices take nothing else")
    click.echo(f"{directory}/viewer: splitee status --config {directory}/viewer/viewer.toml")
    click.echo(f"{directory}/homeassistant: for Home Assistant, see docs/operations.md")
    click.echo(f"{directory}/authority: the authority's key; back it up, and keep it from everybody")


@broker.command("add-device")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@in_directory
@click.option("--keep", is_flag=True, help="Pass over devices that have a certificate.")
@click.option("--folder", is_flag=True, help="Write a folder for each device, not a tar file.")
@valid_for
@private
def add_device(ids: tuple[str, ...], directory: Path, keep: bool, folder: bool, days: int) -> None:
    """Give a device its identity: one file, bundles/splitee-ID.tar, to carry to it and to no one else."""
    for device in ids:
        check_name(device, "ID")
        if device in set(Role) - {Role.DEVICE}:
            raise ConfigError(f"ID {device!r}: expected a device's own name; this one is the {device}'s")
    with closing(_open(directory)) as authority:
        for device in ids:
            there = authority.valid(device)
            if there is not None and keep:
                continue
            if there is not None:
                raise ConfigError(
                    f"{device} has a certificate until {there.until:%Y-%m-%d}: "
                    f"revoke it first, if it needs another (splitee broker revoke-device {device})"
                )
            returns = device in authority.shut_out()
            identity = authority.issue(device, Role.DEVICE, days)
            key = _pinned_key(directory)
            contents = client_files(device, Role.DEVICE, identity, authority, release_key=key)
            written = _hand_out(directory / "bundles", folder, device, contents)
            hint = "" if folder else f", then: device/install.sh --bundle {written.name}"
            click.echo(f"{written}: carry it to {device}{hint}")
            if returns:
                write_folder(directory / "broker", _rules(authority))
                click.echo(f"{device} had been revoked; {RELOAD}")


@broker.command("revoke-device")
@click.argument("device", metavar="ID")
@in_directory
@private
def revoke_device(device: str, directory: Path) -> None:
    """Shut a device out: for one that is lost, stolen or retired."""
    with closing(_open(directory)) as authority:
        if not authority.revoke(device):
            known = ", ".join(sorted({line.name for line in authority.issued if line.role is Role.DEVICE}))
            raise ConfigError(f"{device!r} has no valid certificate; devices: {known or 'none'}")
        write_folder(directory / "broker", _rules(authority))
    click.echo(f"{device} is revoked; {RELOAD}")


@broker.command("list")
@in_directory
def list_identities(directory: Path) -> None:
    """List who has a certificate, of which kind, and until when."""
    with closing(_open(directory)) as authority:
        last = {line.name: line for line in authority.issued}
    width = max((len(name) for name in last), default=0)
    for name, line in sorted(last.items(), key=lambda item: (item[1].role is Role.DEVICE, item[0])):
        click.echo(f"{name:{width}}  {line.role:7}  {_standing(line, datetime.now(UTC))}")


def _standing(line: Issued, now: datetime) -> str:
    if line.revoked is not None:
        return f"revoked {line.revoked:%Y-%m-%d}"
    return f"{'valid until' if now < line.until else 'EXPIRED'} {line.until:%Y-%m-%d}"


def _is_whole(directory: Path) -> bool:
    """Whether all that `init` makes is there, what came with later releases included."""
    last = directory / Role.HOME_ASSISTANT / f"{Role.HOME_ASSISTANT}.toml"
    return last.exists() and bool(_pinned_key(directory))


def _signing_key(directory: Path) -> dict[str, bytes]:
    """The server's half of the release key; none, where its operator has taken it away.

    It is made with the fleet, and never again: devices have pinned it.
    """
    there = directory / Role.SERVER / SIGNING_KEY
    if _pinned_key(directory):
        return {SIGNING_KEY: there.read_bytes()} if there.exists() else {}
    made = new_release_key()
    write_folder(directory / "authority", {RELEASE_KEY: made[RELEASE_KEY]})
    return {SIGNING_KEY: made[SIGNING_KEY]}


def _pinned_key(directory: Path) -> dict[str, bytes]:
    """The devices' half; none in a fleet of an older release, until `init` is run again."""
    there = directory / "authority" / RELEASE_KEY
    return {RELEASE_KEY: there.read_bytes()} if there.exists() else {}


def _open(directory: Path, fleet: str | None = None) -> Authority:
    return Authority(directory / "authority", fleet)


def _rules(authority: Authority) -> dict[str, bytes]:
    """What changes with who is let in; the broker reads it on SIGHUP."""
    return {"acl": access_rules(authority), "crl.pem": authority.revocation_list()}


def _hand_out(bundles: Path, as_folder: bool, device: str, contents: dict[str, bytes]) -> Path:
    if as_folder:
        write_folder(bundles / device, contents)
        return bundles / device
    bundle = bundles / f"splitee-{device}.tar"
    write_bundle(bundle, contents)
    return bundle


def _own(folder: Path, owner: str | None) -> None:
    """The broker's folder, and its parent that it must pass through, for the broker's account."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if folder.parent.stat().st_uid == os.geteuid():
            folder.parent.chmod(0o755)
        if owner is not None:
            shutil.chown(folder, int(owner) if owner.isdecimal() else owner)
        elif os.geteuid() == 0 and folder.stat().st_uid == 0 and _exists("mosquitto"):
            shutil.chown(folder, "mosquitto", "mosquitto")
    except LookupError:
        raise ConfigError(f"--owner {owner}: this machine has no such account") from None
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror}; run as root, or take another --directory") from None


def _exists(account: str) -> bool:
    return any(entry.pw_name == account for entry in pwd.getpwall())
