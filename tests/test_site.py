# SPDX-License-Identifier: Apache-2.0
"""docs/ is built into a site: offline, of its own files only, and without broken links."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from once import made_once

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

pytestmark = pytest.mark.slow(8)


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """As `make docs` does."""
    [command] = re.findall(
        r"^\t\$\(BIN\)/sphinx-build (.*) docs build/docs$", (ROOT / "Makefile").read_text(), re.M
    )
    words = [sys.executable, "-m", "sphinx", *command.split(), str(source), str(out)]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=300, cwd=ROOT)


class References(HTMLParser):
    """The files that a page loads, and the targets of its links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.linked: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name in ("src", "srcset") or (name == "href" and tag == "link")):
                self.loaded.append(value)
            elif value and name == "href" and tag == "a":
                self.linked.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(out: Path) -> None:
        built = build(DOCS, out)
        assert built.returncode == 0, built.stderr

    return made_once(tmp_path_factory, "site", make)


def test_every_page_is_linked_from_the_first_page_of_the_site(site: Path) -> None:
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    linked = {
        Path(target.partition("#")[0]) for target in References((site / "index.html").read_text()).linked
    }
    assert pages - {Path("README.html")} - linked == set()
    assert "".join((site / "index.html").read_text()).count("<h1>") == 1


def test_site_loads_only_its_own_files(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for target in References(page.read_text()).loaded:
            assert "//" not in target, (page, target)
            assert (page.parent / target.partition("?")[0].partition("#")[0]).exists(), (page, target)
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text()), style


def test_broken_links_fail_the_build_with_page_and_line(tmp_path: Path) -> None:
    """Each kind is reported with its page and its line, and no other warning is."""
    source = shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")  # a page links to it
    lines = {}
    for name, link in (
        ("start/install.md", "[x](../faq.md#no-such-heading)"),
        ("start/three-machines.md", "[x](no-such-page.md)"),
        ("faq.md", "![x](no-such.svg)"),
    ):
        text = (source / name).read_text() + "\n"
        (source / name).write_text(f"{text}{link}\n")
        lines[name] = text.count("\n") + 1
    built = build(source, tmp_path / "site")
    assert built.returncode != 0
    warnings = [line for line in built.stderr.splitlines() if "WARNING" in line]
    assert len(warnings) == len(lines), built.stderr
    for name, line in lines.items():
        assert any(f"{name}:{line}: WARNING" in warning for warning in warnings), built.stderr
