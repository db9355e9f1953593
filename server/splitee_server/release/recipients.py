# SPDX-License-Identifier: Apache-2.0
"""Which devices a file of software is for, by the machine and the software that they have reported."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from splitee.errors import SoftwareError
from splitee.protocol.inference import SoftwareReport
from splitee.software.versions import is_newer
from splitee.software.wheelhouse import ANY, SoftwareManifest


@dataclass(frozen=True)
class Recipients:
    """Devices that a file is for, and the reason for each other device, by name."""

    devices: tuple[str, ...]
    others: Mapping[str, str]


def choose(
    manifest: SoftwareManifest, known: Mapping[str, SoftwareReport | None], named: Collection[str] = ()
) -> Recipients:
    """Choose the devices that can install the software and run an older version.

    Args:
        known: devices of the fleet, with their reports on their software.
        named: devices that the operator names: these are chosen also if they run no older version, or if
            their machine is unknown; empty: all that are known.
    """
    devices, others = [], {}
    for device in sorted(set(named or known)):
        reason = _misfit(manifest, known.get(device), is_named=device in named)
        if reason:
            others[device] = reason
        else:
            devices.append(device)
    return Recipients(tuple(devices), others)


def _misfit(manifest: SoftwareManifest, report: SoftwareReport | None, *, is_named: bool) -> str:
    """Why a device cannot install it; "": it can, as far as that is known."""
    if report is not None and report.runs and not (is_named or is_newer(manifest.version, report.runs)):
        return f"it runs {report.runs}"
    if (manifest.machine, manifest.python) == (ANY, ANY):
        return ""
    if report is None or not report.machine:
        return "" if is_named else "it has not reported its machine"
    try:
        manifest.check_machine(report.machine, report.python)
    except SoftwareError:
        return f"{report.machine} and {report.python}"
    return ""
