# SPDX-License-Identifier: Apache-2.0
"""The devices that a software file goes to in a fleet with several kinds of machines."""

from __future__ import annotations

from splitee.protocol.inference import SoftwareReport
from splitee.software.wheelhouse import ANY, SoftwareManifest, Wheel
from splitee_server.release.recipients import choose


def manifest(python: str = ANY, machine: str = ANY) -> SoftwareManifest:
    wheel = Wheel("hetero_splitee-0.3.0-py3-none-any.whl", 1, "0" * 64)
    return SoftwareManifest("0.3.0", python, machine, 1, (wheel,))


def runs(version: str, machine: str = "", python: str = "") -> SoftwareReport:
    return SoftwareReport(release="", state="in service", runs=version, machine=machine, python=python)


KNOWN = {
    "ahead": runs("0.10.0", "aarch64", "cp311"),
    "hub": runs("0.2.0", "x86_64", "cp312"),
    "new": runs("0.3.0", "aarch64", "cp311"),
    "pi": runs("0.2.0", "aarch64", "cp311"),
    "old": runs("0.1.0"),
    "trains": None,
}


def test_software_for_one_machine_goes_only_to_devices_known_to_match() -> None:
    chosen = choose(manifest("cp311", "aarch64"), KNOWN)
    assert chosen.devices == ("pi",)
    assert chosen.others == {
        "ahead": "it runs 0.10.0",
        "hub": "x86_64 and cp312",
        "new": "it runs 0.3.0",
        "old": "it has not reported its machine",
        "trains": "it has not reported its machine",
    }


def test_software_for_any_machine_goes_to_all_devices_without_this_or_a_newer_version() -> None:
    chosen = choose(manifest(), KNOWN)
    assert chosen.devices == ("hub", "old", "pi", "trains")
    assert chosen.others == {"ahead": "it runs 0.10.0", "new": "it runs 0.3.0"}


def test_named_devices_get_the_software_unless_they_are_of_another_machine() -> None:
    """Also one that runs a newer version: an operator may go back."""
    chosen = choose(manifest("cp311", "aarch64"), KNOWN, ["stranger", "new", "hub", "old", "new", "ahead"])
    assert chosen.devices == ("ahead", "new", "old", "stranger")
    assert chosen.others == {"hub": "x86_64 and cp312"}
