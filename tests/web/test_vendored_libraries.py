# SPDX-License-Identifier: Apache-2.0
"""The browser's libraries are the files of their packages, with their licences, and a release holds them."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import pytest
import vendor


def test_vendored_files_are_exactly_the_recorded_ones() -> None:
    assert vendor.faults() == []


def test_changed_or_missing_vendored_file_is_reported() -> None:
    htm = vendor.LIBRARIES[0]
    changed = replace(htm, files=dict.fromkeys(htm.files, "0" * 64))
    missing = replace(htm, files={"absent.js": "0" * 64})
    assert sum("not the file of htm" in fault for fault in vendor.faults([changed])) == len(htm.files)
    assert any(fault.endswith("absent.js: missing") for fault in vendor.faults([missing]))


@pytest.mark.parametrize("library", vendor.LIBRARIES, ids=lambda library: library.name)
def test_library_comes_with_its_licence_and_is_listed(library: vendor.Library) -> None:
    assert library.path("LICENSE").read_text().strip()
    listed = library.into / "README.md"
    assert library.licence in listed.read_text()


def test_release_contains_the_static_files_of_pages() -> None:
    settings = tomllib.loads((vendor.ROOT / "pyproject.toml").read_text())
    package = vendor.PAGES.parents[1]
    patterns = settings["tool"]["setuptools"]["package-data"][package.name]
    held = {path for pattern in patterns for path in package.glob(pattern) if path.is_file()}
    needed = {path for folder in package.rglob("static") for path in folder.rglob("*") if path.is_file()}
    assert needed and needed <= held
