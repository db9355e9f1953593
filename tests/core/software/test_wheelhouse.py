# SPDX-License-Identifier: Apache-2.0
"""Software files: signed wheels are extracted unchanged, and changed files are refused."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from wheels import make_keys, small_wheel, software_file

from splitee.errors import ConfigError, SoftwareError
from splitee.inference.signatures import ReleaseKey, ReleaseSigner
from splitee.software.packing import describe
from splitee.software.wheelhouse import MOST_MANIFEST, SoftwareManifest, Wheelhouse


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("wheels")
    return [small_wheel(folder, "hetero_splitee", "0.2.0"), small_wheel(folder, "Some.Thing", "1.0")]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path], wheels: list[Path]) -> bytes:
    return software_file(tmp_path_factory.mktemp("packed") / "a.wheels", keys[0], *wheels).read_bytes()


def read(data: bytes, key: Path) -> Wheelhouse:
    return Wheelhouse.read(io.BytesIO(data), ReleaseKey.read(key))


def signed(manifest: bytes, key: Path, rest: bytes = b"") -> bytes:
    signature = ReleaseSigner(key).sign_software(manifest)
    return f"splitee software 1 {signature} {len(manifest)}\n".encode() + manifest + rest


def wheel(name: str, size: int = 1) -> dict[str, Any]:
    return {"name": name, "size": size, "sha256": "0" * 64}


def test_wheels_are_extracted_unchanged(
    packed: bytes, keys: tuple[Path, Path], wheels: list[Path], tmp_path: Path
) -> None:
    wheelhouse = read(packed, keys[1])
    manifest = wheelhouse.manifest
    assert (manifest.version, manifest.python, manifest.machine) == ("0.2.0", "any", "any")
    assert [wheel.distribution for wheel in manifest.wheels] == ["hetero-splitee", "some-thing"]
    for extracted, original in zip(wheelhouse.extract(tmp_path), wheels, strict=True):
        assert (extracted.name, extracted.read_bytes()) == (original.name, original.read_bytes())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(place=some.integers(0, 10_000), value=some.integers(0, 255), cut=some.booleans())
def test_changed_or_truncated_file_is_refused(
    packed: bytes,
    keys: tuple[Path, Path],
    tmp_path_factory: pytest.TempPathFactory,
    place: int,
    value: int,
    cut: bool,
) -> None:
    place %= len(packed)
    changed = packed[:place] if cut else packed[:place] + bytes([value]) + packed[place + 1 :]
    if changed == packed:
        return
    with pytest.raises(SoftwareError) as refused:
        read(changed, keys[1]).extract(tmp_path_factory.mktemp("out"))
    assert str(refused.value).isprintable(), "one line"


@settings(max_examples=200, deadline=None)
@given(data=some.binary(max_size=300))
@example(data=b"splitee software 1 " + b"0" * 128 + b" 9999999\n")
@example(data=b"splitee software 2 " + b"0" * 128 + b" 2\n{}")
def test_file_of_another_format_is_refused(keys: tuple[Path, Path], data: bytes) -> None:
    with pytest.raises(SoftwareError, match=r"^expected software for devices[ -~]*$"):
        read(data, keys[1])


def test_signature_of_another_fleet_is_refused(packed: bytes, tmp_path: Path) -> None:
    with pytest.raises(SoftwareError, match="signature is not this fleet's"):
        read(packed, make_keys(tmp_path / "other")[1])


def test_manifest_over_the_size_limit_is_refused(keys: tuple[Path, Path]) -> None:
    with pytest.raises(SoftwareError, match="expected software for devices"):
        read(signed(b" " * (MOST_MANIFEST + 1), keys[0]), keys[1])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "latest"}, "expected a version such as 1.2.3 or 1.2.3rc1, not 'latest'"),
        ({"python": "cp27"}, "python cp27: expected"),
        ({"machine": "../x"}, "machine ../x: expected"),
        ({"machine": "two\nlines"}, r"machine two\nlines: expected"),
        ({"wheels": []}, "wheels []: expected a list of length 1 at least"),
        ({"index": "file:///etc"}, "index file:///etc: expected"),
        (
            {"wheels": [wheel("../../evil-1-py3-none-any.whl")]},
            "wheels[0].name ../../evil-1-py3-none-any.whl:",
        ),
        ({"wheels": [wheel("-r-1-py3-none-any.whl")]}, "wheels[0].name -r-1-py3-none-any.whl: expected"),
        (
            {"wheels": [wheel("a-1-py3-none-any.whl", 0)]},
            "wheels[0].size 0: expected a whole number of at least",
        ),
    ],
    ids=str,
)
def test_signed_manifest_with_invalid_fields_is_refused_in_one_line(
    keys: tuple[Path, Path], wheels: list[Path], change: dict[str, Any], reason: str
) -> None:
    """What follows the manifest is as long as it says, so that its fields are the only reason."""
    manifest = {**msgspec.to_builtins(describe(wheels)), **change}
    size = 0 if manifest["index"] else sum(each["size"] for each in manifest["wheels"])
    with pytest.raises(SoftwareError, match=re.escape(reason)) as refused:
        read(signed(msgspec.json.encode(manifest), keys[0], bytes(size)), keys[1])
    assert str(refused.value).isprintable(), "one line"


def test_fields_of_a_later_release_are_ignored(keys: tuple[Path, Path], wheels: list[Path]) -> None:
    manifest = {**msgspec.to_builtins(describe(wheels)), "later": [1]}
    rest = b"".join(wheel.read_bytes() for wheel in wheels)
    assert read(signed(msgspec.json.encode(manifest), keys[0], rest), keys[1]).manifest.version == "0.2.0"


def test_data_after_the_wheels_is_refused(packed: bytes, keys: tuple[Path, Path]) -> None:
    with pytest.raises(SoftwareError, match="there is more than its wheels"):
        read(packed + b"x", keys[1])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (("py3-none-any",), ("any", "any")),
        (("cp311-cp311-manylinux_2_28_aarch64",), ("cp311", "aarch64")),
        (("cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64",), ("cp311", "x86_64")),
        (("cp39-abi3-manylinux_2_28_aarch64",), ("any", "aarch64")),
        (("cp312-cp312-linux_aarch64", "cp39-abi3-manylinux_2_28_aarch64"), ("cp312", "aarch64")),
        (("cp311-abi3-linux_aarch64", "cp36.cp37-abi3-linux_aarch64"), ("any", "aarch64")),
        (("cp312-abi3-linux_aarch64", "cp311-abi3-linux_aarch64"), ("cp312+", "aarch64")),
        (("cp312-abi3-linux_aarch64", "cp313-cp313-linux_aarch64"), ("cp313", "aarch64")),
    ],
)
def test_python_and_machine_are_read_from_wheel_names(
    tmp_path: Path, tags: tuple[str, ...], expected: tuple[str, str]
) -> None:
    made = [small_wheel(tmp_path, f"other{number}", "1", tag) for number, tag in enumerate(tags)]
    manifest = describe([small_wheel(tmp_path, "hetero_splitee", "0.2.0"), *made])
    assert (manifest.python, manifest.machine) == expected


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["other-1-py3-none-any"], "expected splitee's own wheel"),
        (["hetero_splitee-next-py3-none-any"], "expected a version such as 1.2.3"),
        (
            ["hetero_splitee-0.2.0-py3-none-any", "hetero_splitee-0.3.0-py3-none-any"],
            "one wheel of each package",
        ),
        (
            [
                "hetero_splitee-0.2.0-py3-none-any",
                "a-1-cp311-cp311-linux_x86_64",
                "b-1-cp311-cp311-linux_aarch64",
            ],
            "expected wheels for one machine, got aarch64 and x86_64",
        ),
        (
            [
                "hetero_splitee-0.2.0-py3-none-any",
                "a-1-cp311-cp311-linux_x86_64",
                "b-1-cp312-cp312-linux_x86_64",
            ],
            "expected wheels for one Python, got cp311 and cp312",
        ),
        (
            [
                "hetero_splitee-0.2.0-py3-none-any",
                "a-1-cp311-cp311-linux_x86_64",
                "b-1-cp312-abi3-linux_x86_64",
            ],
            "expected wheels for one Python, got cp311, and cp312 or later",
        ),
        (["hetero_splitee-0.2.0-py3-none-any", "a-1-cp311-cp311-win_amd64"], "expected a wheel for Linux"),
        (
            ["hetero_splitee-0.2.0-py3-none-any", "a-1-cp310.cp311-none-any"],
            "a-1-cp310.cp311-none-any.whl: expected a wheel for one Python such as cp311",
        ),
        (["hetero_splitee-0.2.0"], "expected a wheel, DISTRIBUTION-VERSION"),
    ],
)
def test_unsuitable_wheels_are_refused_in_one_line_with_the_reason(
    tmp_path: Path, names: list[str], reason: str
) -> None:
    content = small_wheel(tmp_path, "content", "1").read_bytes()
    paths = [tmp_path / f"{name}.whl" for name in names]
    for path in paths:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(reason)) as refused:
        describe(paths)
    assert str(refused.value).isprintable(), "one line"


def test_missing_or_broken_wheel_is_refused_with_the_reason(tmp_path: Path) -> None:
    broken = tmp_path / "hetero_splitee-0.2.0-py3-none-any.whl"
    with pytest.raises(ConfigError, match="No such file"):
        describe([broken])
    broken.write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match="no zip file"):
        describe([broken])


def test_wheel_with_a_damaged_byte_is_described_or_refused(tmp_path: Path) -> None:
    own = small_wheel(tmp_path, "hetero_splitee", "0.2.0")
    whole = own.read_bytes()
    for place in range(len(whole) - 150, len(whole)):  # in the list of its files, which ends it
        own.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        with suppress(ConfigError):
            describe([own])


def test_software_with_a_stable_abi_is_for_its_python_and_later_ones() -> None:
    manifest = SoftwareManifest("0.2.0", "cp312+", "any", 0, ())
    for python in ("cp312", "cp313"):
        manifest.check_machine("aarch64", python)
    for python in ("cp311", "cp39", "pp312", ""):
        with pytest.raises(SoftwareError, match=r"is for any and Python cp312\+, this device is"):
            manifest.check_machine("aarch64", python)


@pytest.mark.parametrize(("machine", "python"), [("x86_64", "cp311"), ("aarch64", "cp312")])
def test_software_for_another_machine_or_python_is_refused(machine: str, python: str) -> None:
    manifest = SoftwareManifest("0.2.0", "cp311", "aarch64", 0, ())
    manifest.check_machine("aarch64", "cp311")
    with pytest.raises(
        SoftwareError, match=f"is for aarch64 and Python cp311, this device is {machine} and {python}"
    ):
        manifest.check_machine(machine, python)
