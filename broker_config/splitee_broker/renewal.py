# SPDX-License-Identifier: Apache-2.0
"""New certificates for identities that end soon; the old ones stay valid until they end."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from splitee.errors import ConfigError
from splitee_broker.authority import Authority, Issued, Role
from splitee_broker.files import client_files, write_broker_folder, write_bundle, write_folder
from splitee_broker.signing_keys import pinned_keys


def to_renew(authority: Authority, names: Collection[str], within: int | None) -> list[Issued]:
    """The last certificates of the identities to renew, those that end first at the beginning.

    Args:
        names: only these; empty: all that have not been revoked.
        within: days from now in which a certificate ends; None: whenever it ends.

    Raises:
        ConfigError: one of `names` has no certificate, or has been revoked.
    """
    last = {line.name: line for line in authority.issued}
    for name in names:
        if name not in last:
            raise ConfigError(f"{name!r} has no certificate; there are: {', '.join(sorted(last))}")
        if last[name].revoked is not None:
            raise ConfigError(
                f"{name} has been revoked: give it a new identity, if it shall come back "
                f"(splitee broker add-device {name})"
            )
    limit = (
        datetime.now(UTC) + timedelta(days=within) if within is not None else datetime.max.replace(tzinfo=UTC)
    )
    chosen = (last[name] for name in names) if names else last.values()
    return sorted(
        (line for line in chosen if line.revoked is None and line.until <= limit), key=lambda line: line.until
    )


def renew(authority: Authority, line: Issued, days: int, directory: Path, *, as_folder: bool) -> Path:
    """Issues a new certificate for the name of `line`; returns what was written.

    A device gets a new bundle (or folder) to carry to it. For all others, the certificate and the key are
    replaced in place, and their settings stay.

    Raises:
        StateError: it cannot be written.
    """
    if line.role is Role.DEVICE:
        identity = authority.issue(line.name, line.role, days)
        contents = client_files(line.name, line.role, identity, authority, keys=pinned_keys(directory))
        bundles = directory / "bundles"
        if as_folder or (bundles / line.name).is_dir():
            write_folder(bundles / line.name, contents)
            return bundles / line.name
        write_bundle(bundles / f"splitee-{line.name}.tar", contents)
        return bundles / f"splitee-{line.name}.tar"
    # A broker's certificate has its names, the others have none.
    hosts = tuple(dict.fromkeys((*authority.hosts, "localhost"))) if line.role is Role.BROKER else ()
    identity = authority.issue(line.name, line.role, days, hosts)
    is_brokers = line.role in (Role.BROKER, Role.HEALTH)
    stem = line.role.value if is_brokers else "client"
    folder = directory / (Role.BROKER.value if is_brokers else line.role.value)
    write = write_broker_folder if is_brokers else write_folder
    write(folder, {f"{stem}.crt": identity.certificate, f"{stem}.key": identity.key})
    return folder / f"{stem}.crt"
