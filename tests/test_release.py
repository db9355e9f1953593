# SPDX-License-Identifier: Apache-2.0
"""A release needs a section in the changelog, which its script finds."""

from __future__ import annotations

import re

import pytest
from scripts.release import ROOT, section, version

CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_changelog_has_the_version_and_lists_newer_versions_first() -> None:
    assert section(CHANGELOG, version())
    versions = [
        tuple(map(int, found.split("."))) for found in re.findall(r"^## \[([\d.]+)\]", CHANGELOG, re.M)
    ]
    assert versions == sorted(versions, reverse=True)
    assert CHANGELOG.index("## [Unreleased]") < CHANGELOG.index(f"## [{version()}]")


@pytest.mark.parametrize(
    "text", ["", "## [1.0.0]\n\nwithout a date\n", "## [1.0.0] - 2026-01-01\n\n## [0.9.0] - 2025-01-01\n"]
)
def test_release_of_a_version_without_changelog_text_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="expected a section"):
        section(text, "1.0.0")


def test_every_source_file_names_its_licence() -> None:
    for package in (
        "core",
        "web",
        "device",
        "server",
        "export",
        "lab",
        "broker_config",
        "benchmarks",
        "scripts",
        "tests",
    ):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            assert not text.strip() or "SPDX-License-Identifier: Apache-2.0" in text[:200], path
