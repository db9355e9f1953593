"""What the authority hands out: the broker's folder, folders and bundles of identities."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from splitee.durable import write_atomically
from splitee.errors import StateError
from splitee.protocol.topics import discovery_name
from splitee_broker.authority import Authority, Identity, Role
from splitee_broker.release_key import RELEASE_KEY, SIGNING_KEY

SHIPPED_DIRECTORY = "/etc/splitee/broker"  # what the shipped configuration says, for `configure` to replace
SHIPPED_STATE = "/var/lib/mosquitto/"
SHIPPED_PORT = "listener 8883"
SHIPPED_FLEET = "splitee/v1/default/"
SHIPPED_DISCOVERY = "homeassistant/device/splitee_default/"

PUBLIC = (".crt", ".pem")


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Each file durably; keys for the folder's owner alone, who owns all of it.

    Raises:
        StateError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = folder.stat()
        for name, data in contents.items():
            path = folder / name
            write_atomically(path, data)
            path.chmod(0o644 if path.suffix in PUBLIC else 0o600)
            os.chown(path, owner.st_uid, owner.st_gid)
    except OSError as error:
        raise StateError(
            f"cannot write {folder}: {error.strerror}; run as its owner, or take another --directory"
        ) from None


def write_bundle(path: Path, contents: Mapping[str, bytes]) -> None:
    """One tar file, readable by its owner alone."""
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
    release_key: Mapping[str, bytes] | None = None,
) -> dict[str, bytes]:
    """What a client needs: `device.toml` (or its role's) for `--config`, and the files that it names.

    Args:
        release_key: the half that it has of the key by which releases are signed, by its file's name.
    """
    settings = [f'id = "{name}"'] if role is Role.DEVICE else []
    settings += [
        f'fleet = "{authority.fleet}"',
        f'broker = "{authority.url}"',
        'ca = "ca.crt"',
        'cert = "client.crt"',
        'key = "client.key"',
    ]
    files_of_key = dict(release_key or {})
    if SIGNING_KEY in files_of_key:
        settings.append(f'signing-key = "{SIGNING_KEY}"')
    if RELEASE_KEY in files_of_key:
        settings.append(f'release-key = "{RELEASE_KEY}"')
    return {
        f"{role}.toml": ("\n".join(settings) + "\n").encode(),
        "ca.crt": identity.authority,
        "client.crt": identity.certificate,
        "client.key": identity.key,
        **files_of_key,
    }


def configuration(folder: Path, port: int, state: Path) -> bytes:
    """The shipped mosquitto.conf for a broker's `folder`, `port` and `state` directory."""
    text = _shipped("mosquitto.conf")
    text = text.replace(SHIPPED_PORT, f"listener {port}").replace(SHIPPED_DIRECTORY, str(folder))
    return text.replace(SHIPPED_STATE, f"{state}/").encode()


def access_rules(authority: Authority) -> bytes:
    """The shipped acl for the authority's fleet; it denies everything to whom was revoked."""
    discovery = f"homeassistant/device/splitee_{discovery_name(authority.fleet)}/"
    text = _shipped("acl").replace(SHIPPED_FLEET, f"splitee/v1/{authority.fleet}/")
    text = text.replace(SHIPPED_DISCOVERY, discovery)
    for name in authority.shut_out():
        text += f"\n# Revoked.\nuser {name}\ntopic deny #\n"
    return text.encode()


def _shipped(name: str) -> str:
    return files("splitee_broker").joinpath(name).read_text()
