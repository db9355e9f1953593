# SPDX-License-Identifier: Apache-2.0
"""`splitee broker`: a fleet's authority, its broker's configuration, its devices' identities."""

from __future__ import annotations

import pwd
import socket
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import click

from splitee.cli.bounds import whole
from splitee.cli.command import Group, section
from splitee.cli.plain_text import echo
from splitee.cli.settings import setting, switch
from splitee.errors import ConfigError, SpliteeError
from splitee_broker.authority import Authority, Issued, Role, check_device
from splitee_broker.commands.check import check_broker
from splitee_broker.commands.invite import invite
from splitee_broker.commands.options import (
    DIRECTORY,
    as_folders,
    in_directory,
    private,
    valid_for,
)
from splitee_broker.commands.renew import renew_identities
from splitee_broker.files import (
    CONFIGURATION,
    RELOAD,
    access_files,
    client_files,
    configuration,
    configured_user,
    make_traversable,
    write_broker_folder,
    write_bundle,
    write_folder,
)
from splitee_broker.limits import DEVICES, MOST_DEVICES
from splitee_broker.retained import clear_retained
from splitee_broker.signing_keys import (
    PACKING_KEY,
    PINNED,
    RELEASE_KEY,
    SIGNING_KEY,
    SOFTWARE_KEY,
    new_key,
    pinned_keys,
)

MOST_USERS = (1 << 32) - 1  # -1 in 32 bits means none


@click.group(cls=Group)
def broker() -> None:
    """Set up a fleet's broker: its configuration and its certificates."""


@broker.command()
@section(
    "Broker",
    setting("--fleet", default="default", metavar="NAME", help="Name of the fleet that this broker is for."),
    switch(
        "--name",
        "hosts",
        multiple=True,
        metavar="HOST",
        help="Name or address by which clients reach the broker; the first goes into bundles.",
        show_default="this machine's, with .local",
    ),
    switch(
        "--port",
        type=whole(1, 65535),
        metavar="PORT",
        help="Port on which the broker listens for TLS.",
        show_default="8883",
    ),
    switch(
        "--devices",
        type=whole(1, MOST_DEVICES),
        metavar="COUNT",
        help="Number of devices that the broker is to serve: it determines its limits.",
        show_default=str(DEVICES),
    ),
    switch(
        "--device-reads",
        multiple=True,
        metavar="TOPIC",
        help="Topic outside of the fleet that devices may read and Home Assistant may write, for "
        "`splitee infer --on-topic`; + and # are wildcards, %u is the device's name. An empty one: none.",
        show_default="none, or what was given before",
    ),
    switch(
        "--owner",
        metavar="USER",
        help="Account that the broker runs as.",
        show_default="mosquitto, for root",
    ),
    switch(
        "--broker-state",
        type=DIRECTORY,
        metavar="DIR",
        default=Path("/var/lib/mosquitto"),
        show_default=True,
        help="Folder in which the broker saves retained messages.",
    ),
)
@section(
    "Files",
    in_directory,
    valid_for,
    switch("--keep", is_flag=True, help="Do nothing if all files exist."),
)
@private
def init(
    directory: Path,
    fleet: str,
    hosts: tuple[str, ...],
    port: int | None,
    devices: int | None,
    device_reads: tuple[str, ...],
    owner: str | None,
    broker_state: Path,
    keep: bool,
    days: int,
) -> None:
    """Create the certificate authority, unless there is one, and the files of broker, server and viewer.

    Run it again to renew their certificates, or to change name or port; those of devices stay valid.
    """
    folder, account = directory.absolute() / "broker", _account(owner)
    with closing(_open(directory, fleet)) as authority:
        if keep and _is_complete(directory):
            return
        user = _user(owner, folder)
        default = authority.hosts or (f"{socket.gethostname()}.local",)
        authority.configure_broker(
            hosts or default,
            port or authority.port,
            devices or authority.devices,
            device_reads or authority.device_reads,
        )
        make_traversable(directory)
        tls = authority.issue("broker", Role.BROKER, days, (*dict.fromkeys((*authority.hosts, "localhost")),))
        health = authority.issue("health", Role.HEALTH, days)
        contents = {
            CONFIGURATION: configuration(
                folder, authority.port, broker_state.absolute(), authority.devices, user
            ),
            "ca.crt": authority.certificate,
            "broker.crt": tls.certificate,
            "broker.key": tls.key,
            "health.crt": health.certificate,
            "health.key": health.key,
        }
        write_broker_folder(folder, contents | access_files(authority), account)
        if SOFTWARE_KEY not in pinned_keys(directory):
            write_folder(directory / "authority", new_key(PACKING_KEY, SOFTWARE_KEY))
        for role in (Role.SERVER, Role.VIEWER, Role.HOME_ASSISTANT):
            identity = authority.issue(role.value, role, days)
            keys = _signing_key(directory) if role is Role.SERVER else None
            contents = client_files(role.value, role, identity, authority, keys=keys)
            write_folder(directory / role.value, contents)
    echo(f"{folder}: the broker's; start it: mosquitto -c {folder}/mosquitto.conf")
    echo(f"{directory}/server: splitee server --config {directory}/server/server.toml")
    echo(f"{directory}/server/{SIGNING_KEY}: signs releases; devices accept no others")
    echo(f"{directory}/viewer: splitee status --config {directory}/viewer/viewer.toml")
    echo(f"{directory}/homeassistant: for Home Assistant, see docs/how-to/watch.md")
    echo(f"{directory}/authority: the authority's key; back it up, and keep it from everybody")
    echo(f"{directory}/authority/{PACKING_KEY}: signs software for devices (`splitee pack`)")


@broker.command("add-device")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@section(
    "Files",
    in_directory,
    valid_for,
    as_folders,
    switch("--keep", is_flag=True, help="Skip devices that have a certificate."),
)
@private
def add_device(ids: tuple[str, ...], directory: Path, keep: bool, folder: bool, days: int) -> None:
    """Give a device its identity: one file, bundles/splitee-ID.tar, to carry to it and to no one else."""
    for device in ids:
        check_device(device, "ID")
    with closing(_open(directory)) as authority:
        for device in ids:
            there = authority.valid(device)
            if there is not None and keep:
                continue
            if there is not None:
                raise ConfigError(
                    f"{device} has a certificate until {there.until:%Y-%m-%d}: "
                    f"renew it (splitee broker renew {device}), or, if somebody else may have it, "
                    f"revoke it first (splitee broker revoke-device {device})"
                )
            returns = device in authority.revoked_names()
            identity = authority.issue(device, Role.DEVICE, days)
            contents = client_files(device, Role.DEVICE, identity, authority, keys=pinned_keys(directory))
            if returns:  # first, because no later command would do it if the bundle cannot be written
                write_broker_folder(directory / "broker", access_files(authority))
            written = _write_identity(directory / "bundles", folder, device, contents)
            hint = "" if folder else f", then: device/install.sh --bundle {written.name}"
            echo(f"{written}: carry it to {device}{hint}")
            if returns:
                echo(f"{device} had been revoked; {RELOAD}")


@broker.command("revoke-device")
@click.argument("device", metavar="ID")
@section("Files", in_directory)
@private
def revoke_device(device: str, directory: Path) -> None:
    """Lock out a device that is lost, stolen or retired.

    The retained messages of the device are cleared if the broker can be reached from here. Otherwise run the
    command again later.
    """
    with closing(_open(directory)) as authority:
        if not authority.revoke(device) and device not in authority.revoked_names():
            known = ", ".join(sorted({line.name for line in authority.issued if line.role is Role.DEVICE}))
            raise ConfigError(f"{device!r} has no valid certificate; devices: {known or 'none'}")
        write_broker_folder(directory / "broker", access_files(authority))
    echo(f"{device} is revoked; {RELOAD}")
    again = f"splitee broker revoke-device {device}"
    try:
        count = clear_retained(directory / Role.SERVER, device)
    except SpliteeError as error:
        echo(f"what the broker retains of {device} is still there ({error}); to clear it: {again}")
    else:
        echo(f"{count} retained topics of {device} are cleared; once the broker has read it, again: {again}")


broker.add_command(check_broker)
broker.add_command(renew_identities)
broker.add_command(invite)


@broker.command("list")
@section("Files", in_directory)
def list_identities(directory: Path) -> None:
    """List all certificates, with their kinds and their end dates."""
    with closing(_open(directory)) as authority:
        last = {line.name: line for line in authority.issued}
    width = max((len(name) for name in last), default=0)
    for name, line in sorted(last.items(), key=lambda item: (item[1].role is Role.DEVICE, item[0])):
        echo(f"{name:{width}}  {line.role:7}  {_describe_validity(line, datetime.now(UTC))}")


def _describe_validity(line: Issued, now: datetime) -> str:
    if line.revoked is not None:
        return f"revoked {line.revoked:%Y-%m-%d}"
    return f"{'valid until' if now < line.until else 'EXPIRED'} {line.until:%Y-%m-%d}"


def _is_complete(directory: Path) -> bool:
    """Whether all files that `init` makes exist, including those of later releases."""
    last = directory / Role.HOME_ASSISTANT / "client.key"  # the last file that it writes
    return last.exists() and len(pinned_keys(directory)) == len(PINNED)


def _signing_key(directory: Path) -> dict[str, bytes]:
    """The server's half of the release key; empty if the operator has removed it.

    It is made with the fleet, and never again, because devices have pinned it. The server's half is written
    first, so that a killed command never leaves the other half alone.
    """
    there = directory / Role.SERVER / SIGNING_KEY
    if RELEASE_KEY in pinned_keys(directory):
        return {SIGNING_KEY: there.read_bytes()} if there.exists() else {}
    made = new_key(SIGNING_KEY, RELEASE_KEY)
    write_folder(directory / Role.SERVER, {SIGNING_KEY: made[SIGNING_KEY]})
    write_folder(directory / "authority", {RELEASE_KEY: made[RELEASE_KEY]})
    return {SIGNING_KEY: made[SIGNING_KEY]}


def _open(directory: Path, fleet: str | None = None) -> Authority:
    return Authority(directory / "authority", fleet)


def _write_identity(bundles: Path, as_folder: bool, device: str, contents: dict[str, bytes]) -> Path:
    if as_folder:
        write_folder(bundles / device, contents)
        return bundles / device
    bundle = bundles / f"splitee-{device}.tar"
    write_bundle(bundle, contents)
    return bundle


def _user(owner: str | None, folder: Path) -> str:
    """The account's name in the broker's configuration; "": Mosquitto's own, or one of a container."""
    if owner is None:
        return configured_user(folder)
    if owner.isdecimal():
        return "" if int(owner) else "root"
    return owner


def _account(owner: str | None) -> tuple[int, int] | None:
    """User and group of an account, by its name or number; None: no account was given.

    Raises:
        ConfigError: there is no such account, or no account can have this number.
    """
    if owner is None:
        return None
    if owner.isdecimal() and (len(owner) > len(str(MOST_USERS)) or int(owner) >= MOST_USERS):
        raise ConfigError(f"--owner {owner[:20]}: expected a name, or a number below {MOST_USERS}")
    try:
        entry = pwd.getpwuid(int(owner)) if owner.isdecimal() else pwd.getpwnam(owner)
    except KeyError:
        if owner.isdecimal():  # of a container, which has its own accounts
            return int(owner), int(owner)
        raise ConfigError(f"--owner {owner}: this machine has no such account") from None
    return entry.pw_uid, entry.pw_gid
