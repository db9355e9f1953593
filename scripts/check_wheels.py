"""Proves that a Raspberry Pi installs without a compiler: base and [train] resolve to wheels for 64-bit Arm.

pip can look for another platform's wheels, but evaluates markers for the machine it runs on; so each
package's own requirements are read here, for aarch64, and asked for until none is new.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 36)  # up to Debian 12's 2.36, which Raspberry Pi OS has
PYTHONS = ("3.11", "3.12")
TARGETS = {"base": [], "[train]": ["train"]}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for python in PYTHONS:
        for target, extras in TARGETS.items():
            wanted = [*project["dependencies"]]
            for extra in extras:
                wanted += project["optional-dependencies"][extra]
            found = resolve(wanted, python)
            heavy = [f"{name} {found[name]}" for name in ("numpy", "onnxruntime", "torch") if name in found]
            print(f"cp{python.replace('.', '')} aarch64 {target}: {len(found)} wheels, {', '.join(heavy)}")


def resolve(lines: Iterable[str], python: str) -> dict[str, str]:
    """The versions of all packages that `lines` need on aarch64, each a wheel; exits when one has none."""
    requirements = {str(kept) for line in lines if (kept := needed(line, python, ()))}
    while True:
        installed = ask_pip(sorted(requirements), python)
        known = len(requirements)
        for item in installed:
            extras = tuple(item.get("requested_extras", ()))
            for line in item["metadata"].get("requires_dist", ()):
                kept = needed(line, python, extras)
                if kept is not None:
                    requirements.add(str(kept))
        if len(requirements) == known:
            return {
                canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in installed
            }


def needed(line: str, python: str, extras: tuple[str, ...]) -> Requirement | None:
    """The requirement without its marker, or None where the marker rules it out on a Pi."""
    requirement = Requirement(line)
    marker, requirement.marker = requirement.marker, None
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "aarch64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    if marker is None or any(marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras)):
        return requirement
    return None


def ask_pip(requirements: list[str], python: str) -> list[dict[str, Any]]:
    """pip's choice of wheels for these requirements alone; what they need in turn is in the metadata."""
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in GLIBC] + ["manylinux2014_aarch64"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--dry-run", "--ignore-installed", "--report", "-", "--target", "unused", "--no-deps"]
    command += ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
    command += [word for abi in (f"cp{python.replace('.', '')}", "abi3", "none") for word in ("--abi", abi)]
    command += [word for platform in platforms for word in ("--platform", platform)]
    done = subprocess.run([*command, *requirements], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"check_wheels: Python {python} on aarch64: no wheels for all of this; see above")
    report: list[dict[str, Any]] = json.loads(done.stdout)["install"]
    return report


if __name__ == "__main__":
    main()
