# SPDX-License-Identifier: Apache-2.0
"""requirements/*.txt: complete, pinned to the tested versions, with hashes; the Docker image uses them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = {"base": "", "train": "[train]", "server": "[server,page]"}
MACHINES = ("x86_64", "aarch64")
OF_CUDA = ("nvidia-", "cuda-", "triton")
HASHED = re.compile(r"(?P<pin>\S+==[^\\]+?) \\\n(?P<hashes>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def text(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def pinned(lines: list[str], machine: str) -> dict[str, str]:
    """{name: version} on this machine."""
    found: dict[str, str] = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate(environment(machine)):
            found[canonicalize_name(requirement.name)] = next(iter(requirement.specifier)).version
    return found


def environment(machine: str, extra: str = "") -> dict[str, str]:
    """The values of markers for Linux on this kind of machine."""
    return {**default_environment(), "platform_machine": machine, "sys_platform": "linux", "extra": extra}  # type: ignore[dict-item]


def requirements(name: str) -> list[str]:
    """Of the project, from pyproject.toml; of an installed package, from its metadata."""
    if name != "hetero-splitee":
        try:
            return metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return []
    extras = PROJECT["optional-dependencies"].items()
    of_extras = [
        f"{line} and extra == '{extra}'" if ";" in line else f"{line}; extra == '{extra}'"
        for extra, lines in extras
        for line in lines
    ]
    return [*PROJECT["dependencies"], *of_extras]


def needed(line: str, machine: str) -> Iterator[str]:
    """The names of all packages that a requirement brings, itself included."""
    seen, waiting = set(), [Requirement(line)]
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *sorted(wanted.extras)):
            if (wanted.name, extra) in seen:
                continue
            seen.add((wanted.name, extra))
            yield canonicalize_name(wanted.name)
            waiting += [
                further
                for further in map(Requirement, requirements(wanted.name))
                if further.marker is None or further.marker.evaluate(environment(machine, extra))
            ]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", EXTRAS)
def test_all_dependencies_are_pinned_to_the_tested_versions(name: str, machine: str) -> None:
    found = pinned([match["pin"] for match in HASHED.finditer(text(name))], machine)
    wanted = set(needed(f"hetero-splitee{EXTRAS[name]}", machine)) - {"hetero-splitee"}
    assert {"click", "numpy", "onnxruntime"} <= wanted
    if machine == "aarch64":  # the metadata is that of the torch which is installed here, for x86_64
        wanted = {package for package in wanted if not package.startswith((*OF_CUDA, "setuptools"))}
    assert sorted(wanted - found.keys()) == []
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    tested = pinned(lines, machine)
    assert {name: version for name, version in found.items() if tested.get(name, version) != version} == {}


@pytest.mark.parametrize("name", [*EXTRAS, "server-without-torch", "build"])
def test_requirements_hold_only_hashed_pins(name: str) -> None:
    lines = text(name).splitlines(keepends=True)
    body = "".join(line for line in lines if not line.startswith("#"))
    assert HASHED.sub("", body) == ""
    for match in HASHED.finditer(body):
        digests = DIGEST.findall(match["hashes"])
        assert len(digests) == len(set(digests)) >= 1


def test_server_requirements_without_torch_lack_only_torch_packages() -> None:
    whole, rest = (
        pinned([match["pin"] for match in HASHED.finditer(text(name))], "x86_64")
        for name in ("server", "server-without-torch")
    )
    gone = whole.keys() - rest.keys()
    assert {"torch", "torchvision"} <= gone
    assert {name for name in gone if not name.startswith(("torch", *OF_CUDA))} == set()
    assert {name: whole[name] for name in rest} == rest


def test_dockerfile_pins_its_base_image_and_all_installed_packages() -> None:
    steps = re.findall(r"pip (?:install|wheel) [^\\&;]*", (ROOT / "server" / "Dockerfile").read_text())
    assert len(steps) == 5
    assert [step for step in steps if "--require-hashes" not in step and "--no-deps" not in step] == []
    images = re.findall(r"(?m)^ARG PYTHON_IMAGE=(\S+)", (ROOT / "server" / "Dockerfile").read_text())
    assert [bool(re.fullmatch(r"python:[\w.-]+@sha256:[0-9a-f]{64}", image)) for image in images] == [True]
