# SPDX-License-Identifier: Apache-2.0
"""The files that the authority produces: the broker's folder, and folders and bundles of identities."""

from __future__ import annotations

import io
import os
import pwd
import re
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path

from splitee.durable import write_atomically
from splitee.errors import StateError
from splitee.protocol.topics import discovery_name
from splitee_broker.authority import Authority, Identity, Role
from splitee_broker.limits import limits
from splitee_broker.outside_topics import outside_rules
from splitee_broker.signing_keys import RELEASE_KEY, SIGNING_KEY, SOFTWARE_KEY

SHIPPED_DIRECTORY = "/etc/splitee/broker"  # path in the shipped configuration, which `configuration` replaces
SHIPPED_STATE = "/var/lib/mosquitto/"
SHIPPED_PORT = "listener 8883"
SHIPPED_FLEET = "splitee/v1/default/"
SHIPPED_DISCOVERY = "homeassistant/device/splitee_default/"

CONFIGURATION = "mosquitto.conf"
USER = "# The account that can read these files (--owner), if root starts Mosquitto.\n"
PUBLIC = (".crt", ".pem")
RELOAD = "make the broker read it: systemctl reload splitee-broker (or send it SIGHUP)"


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes each file durably. The folder's owner owns all of them, and alone can read keys.

    Raises:
        StateError: it cannot be written, or it is a link.
    """
    with _opened(folder) as descriptor:
        status = os.fstat(descriptor)
        _write_files(folder, descriptor, contents, (status.st_uid, status.st_gid))


def write_broker_folder(
    folder: Path, contents: Mapping[str, bytes], account: tuple[int, int] | None = None
) -> None:
    """Writes the broker's files, which its account owns. If root writes them, the folder belongs to root.

    So the account finds its files there, but cannot add or replace files.

    Args:
        account: user and group that the broker runs as; None: the owner of the existing files.

    Raises:
        StateError: it cannot be written, or it is a link.
    """
    with _opened(folder) as descriptor:
        user, group = account or _account_of(descriptor)
        if os.geteuid() == 0:
            os.fchown(descriptor, 0, group)
            os.fchmod(descriptor, 0o750)
        _write_files(folder, descriptor, contents, (user, group))


def make_traversable(folder: Path) -> None:
    """Lets every account pass through `folder`, if it belongs to this process's user.

    Raises:
        StateError: it is a link, or cannot be made.
    """
    with _opened(folder) as descriptor:
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, 0o755)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A descriptor of `folder`, which is created if it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        reason = "it is a link" if folder.is_symlink() else error.strerror
        raise StateError(
            f"cannot write {folder}: {reason}; run as its owner, or take another --directory"
        ) from None


def _account_of(descriptor: int) -> tuple[int, int]:
    """The owner of the files in the broker's folder; instead of root, Mosquitto's account if it exists."""
    folder = os.fstat(descriptor)
    user = folder.st_uid
    if user == os.geteuid():
        with suppress(FileNotFoundError):
            user = os.stat(CONFIGURATION, dir_fd=descriptor, follow_symlinks=False).st_uid
    if user == 0:
        with suppress(KeyError):
            mosquitto = pwd.getpwnam("mosquitto")
            return mosquitto.pw_uid, mosquitto.pw_gid
    return user, folder.st_gid


def _write_files(
    folder: Path, descriptor: int, contents: Mapping[str, bytes], owner: tuple[int, int]
) -> None:
    for name, data in contents.items():
        mode = 0o644 if name.endswith(PUBLIC) else 0o600
        write_atomically(folder / name, data, mode=mode, owner=owner, folder=descriptor)


def write_bundle(path: Path, contents: Mapping[str, bytes]) -> None:
    """Writes one tar file, readable by its owner alone."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as bundle:
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            bundle.addfile(entry, io.BytesIO(data))
    write_folder(path.parent, {path.name: memory.getvalue()})


def client_files(
    name: str,
    role: Role,
    identity: Identity,
    authority: Authority,
    *,
    keys: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """The files of a client: `device.toml` (or its role's) for `--config`, and the files that it names.

    Args:
        keys: its halves of the keys that sign releases and software, by their files' names.
    """
    settings = [f'id = "{name}"'] if role is Role.DEVICE else []
    settings += [
        f'fleet = "{authority.fleet}"',
        f'broker = "{authority.url}"',
        'ca = "ca.crt"',
        'cert = "client.crt"',
        'key = "client.key"',
    ]
    of_flags = {"signing-key": SIGNING_KEY, "release-key": RELEASE_KEY, "software-key": SOFTWARE_KEY}
    settings += [f'{flag} = "{file}"' for flag, file in of_flags.items() if file in (keys or {})]
    return {
        f"{role}.toml": ("\n".join(settings) + "\n").encode(),
        "ca.crt": identity.authority,
        "client.crt": identity.certificate,
        "client.key": identity.key,
        **(keys or {}),
    }


def configuration(folder: Path, port: int, state: Path, devices: int, user: str = "") -> bytes:
    """The shipped mosquitto.conf for a broker's `folder`, `port`, `state` directory and number of devices.

    `user`: the account that Mosquitto changes to if root starts it; "": its own.
    """
    text = _shipped(CONFIGURATION)
    for name, value in limits(devices).items():
        text = re.sub(rf"(?m)^{name} .*", f"{name} {value}", text)
    own = {SHIPPED_PORT: f"listener {port}", SHIPPED_DIRECTORY: str(folder), SHIPPED_STATE: f"{state}/"}
    # In one pass, because one of these may be a part of another's value.
    text = re.sub("|".join(map(re.escape, own)), lambda found: own[found[0]], text)
    return (f"{text}\n{USER}user {user}\n" if user else text).encode()


def configured_user(folder: Path) -> str:
    """The account that the existing configuration names; "": none. Raises StateError: it cannot be read."""
    path = folder / CONFIGURATION
    try:
        if path.is_symlink() or not path.is_file():
            return ""
        found = re.search(r"(?m)^user (.+)$", path.read_text(errors="replace"))
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}; run as root") from None
    return found[1] if found else ""


def access_files(authority: Authority) -> dict[str, bytes]:
    """The files that change with the admitted clients; the broker reads them on SIGHUP."""
    return {"acl": access_rules(authority), "crl.pem": authority.revocation_list()}


def access_rules(authority: Authority) -> bytes:
    """The shipped acl for the authority's fleet. It denies everything to revoked names."""
    discovery = f"homeassistant/device/splitee_{discovery_name(authority.fleet)}/"
    text = _shipped("acl").replace(SHIPPED_FLEET, f"splitee/v1/{authority.fleet}/")
    text = text.replace(SHIPPED_DISCOVERY, discovery)
    text += outside_rules(authority.device_reads)
    for name in authority.revoked_names():
        text += f"\n# Revoked.\nuser {name}\ntopic deny #\n"
    return text.encode()


def _shipped(name: str) -> str:
    return files("splitee_broker").joinpath(name).read_text()
