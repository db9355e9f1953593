# SPDX-License-Identifier: Apache-2.0
"""docs/: generated files are up to date and well formed, links lead to targets, terms are the field's."""

from __future__ import annotations

import gzip
import json
import re
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import make_docs
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SCHEMA = Path(__file__).parent / "data" / "asyncapi-3.0.0.json.gz"  # npm: @asyncapi/specs, Apache-2.0
GENERATED = {"commands.md", "exit-codes.md", "report.md"}  # their words are those of the code
CODE = re.compile(
    r"^```.*?^```$|^(?: {4}|\t).*$|`[^`\n]+`|<!--.*?-->|</?\w[^>]*>|\]\([^)]*\)", re.MULTILINE | re.DOTALL
)
WORDS = {  # words to avoid, and their replacements
    r"pictures?": "image",
    r"doubts?": "uncertainty",
    r"asks?|asking|asked": "offload (an image), request, or want",
    r"answer(?:s|ed|ing)?": "prediction (of a network), or reply",
    r"told (?:at|apart)": "reported, or distinguished",
    r"(?:a|the|whole|each) looks?": "measurement",
    r"not sure|is sure": "uncertain, certain",
}


@cache
def generated() -> dict[Path, str]:
    return make_docs.files()


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text() == generated()[path], "run `make docs`"


def test_asyncapi_document_is_valid_by_its_schema() -> None:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    jsonschema.validate(json.loads((DOCS / "reference" / "asyncapi.json").read_text()), schema)


def test_drawings_are_well_formed() -> None:
    drawings = sorted((DOCS / "drawings").glob("*.svg"))
    assert drawings
    for drawing in drawings:
        assert ElementTree.parse(drawing).getroot().tag.endswith("svg")  # noqa: S314


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_existing_files_and_headings(page: Path) -> None:
    for target in links(page):
        path, _, heading = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if heading:
            assert heading in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_use_the_terms_of_the_field(page: Path) -> None:
    text = page.read_text()
    if page.name in GENERATED:
        pytest.skip("its words are those of the commands' help")
    prose = CODE.sub("", text.partition("<!-- Below this line: made by")[0])
    found = {
        match[0]: instead
        for word, instead in WORDS.items()
        for match in re.finditer(rf"\b(?:{word})\b.{{0,30}}", prose, re.IGNORECASE)
    }
    assert found == {}


def test_tests_that_pages_name_exist() -> None:
    files = list((ROOT / "tests").rglob("test_*.py"))
    tests = {name for path in files for name in re.findall(r"def (test_\w+)", path.read_text())}
    tests.update(path.name for path in files)
    named = {
        (name, page.name)
        for page in PAGES
        for name in re.findall(r"`(?:[\w/]*/)?(test_\w+(?:\.py)?)`", page.read_text())
    }
    assert {found for found in named if found[0] not in tests} == set()


def test_readme_links_a_faq_of_twenty_questions_each_with_a_link() -> None:
    page = DOCS / "faq.md"
    assert "docs/faq.md" in links(ROOT / "README.md")
    questions = re.findall(r"^\d+\. \*\*(.+?\?)", page.read_text(), re.MULTILINE)
    assert len(questions) == len(set(questions)) >= 20
    parts = re.split(r"^\d+\. ", page.read_text(), flags=re.MULTILINE)[1:]
    assert [part for part in parts if not re.search(r"\]\([^):]+\)", part)] == [], "where is it said?"


def links(page: Path) -> list[str]:
    """The targets of a page's links within the project."""
    text = page.read_text()
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
