# SPDX-License-Identifier: Apache-2.0
"""docs/: what is generated is up to date and well formed, links lead somewhere, words are the field's."""

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
WORDS = {  # what must not be said, and what is said instead
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


def test_the_protocol_for_tools_is_what_asyncapi_says_it_must_be() -> None:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    jsonschema.validate(json.loads((DOCS / "reference" / "asyncapi.json").read_text()), schema)


def test_drawings_are_well_formed() -> None:
    drawings = sorted((DOCS / "drawings").glob("*.svg"))
    assert drawings
    for drawing in drawings:
        assert ElementTree.parse(drawing).getroot().tag.endswith("svg")  # noqa: S314


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_there_are(page: Path) -> None:
    for target in links(page):
        path, _, heading = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if heading:
            assert heading in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_words_are_those_of_the_field(page: Path) -> None:
    text = page.read_text()
    if page.name in GENERATED:
        pytest.skip("its words are those of the commands' help")
    said = CODE.sub("", text.partition("<!-- Below this line: made by")[0])
    found = {
        match[0]: instead
        for word, instead in WORDS.items()
        for match in re.finditer(rf"\b(?:{word})\b.{{0,30}}", said, re.IGNORECASE)
    }
    assert found == {}


def test_twenty_questions_are_two_clicks_from_the_readme() -> None:
    questions = DOCS / "faq.md"
    assert "docs/faq.md" in links(ROOT / "README.md")
    asked = re.findall(r"^\d+\. \*\*(.+?\?)", questions.read_text(), re.MULTILINE)
    assert len(asked) == len(set(asked)) >= 20
    parts = re.split(r"^\d+\. ", questions.read_text(), flags=re.MULTILINE)[1:]
    assert [part for part in parts if not re.search(r"\]\([^):]+\)", part)] == [], "where is it said?"


def links(page: Path) -> list[str]:
    """What a page refers to within the project."""
    text = page.read_text()
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
