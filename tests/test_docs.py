"""What is generated in docs/ is up to date, and well formed; its links lead somewhere."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import make_docs
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCHEMA = Path(__file__).parent / "data" / "asyncapi-3.0.0.json.gz"  # npm: @asyncapi/specs, Apache-2.0


@pytest.mark.parametrize("path", make_docs.files(), ids=lambda path: path.name)
def test_generated_files_are_up_to_date(path: Path) -> None:
    assert path.read_text() == make_docs.files()[path], "run `make docs`"


def test_the_protocol_for_tools_is_what_asyncapi_says_it_must_be() -> None:
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    jsonschema.validate(json.loads((ROOT / "docs" / "asyncapi.json").read_text()), schema)


def test_drawings_are_well_formed() -> None:
    drawings = sorted((ROOT / "docs" / "drawings").glob("*.svg"))
    assert drawings
    for drawing in drawings:
        assert ElementTree.parse(drawing).getroot().tag.endswith("svg")  # noqa: S314


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_there_are(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if heading:
            assert heading in anchors(found), target


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
