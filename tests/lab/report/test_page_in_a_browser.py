# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser, in all its cases: nothing is cut off, and nothing leaves the screen."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import made_up_reports
import pytest
from screenshots import WIDTHS, Browser, browser

from splitee_lab.report.demo_page import page


@pytest.fixture
def chromium(tmp_path: Path) -> Browser:
    """In CI a missing browser is a failure, never a skip."""
    program = browser()
    if program is not None:
        return Browser(program, tmp_path)
    if os.environ.get("CI") == "true":
        pytest.fail("no Chromium, and CI=true: install it (apt install chromium)")
    pytest.skip("no Chromium: how the page looks is NOT checked (apt install chromium)")


@pytest.mark.slow(8)
def test_page_fits_on_a_screen_and_on_a_phone(chromium: Browser) -> None:
    pages = {name: page(report) for name, report in made_up_reports.reports().items()}
    measured = chromium.measure(pages)
    assert set(measured) == {f"{name}-{width}" for name in pages for width in WIDTHS}
    assert {name: faults for name, (_, faults) in measured.items() if faults} == {}


WIDE = '<table style="width: 1500px"><tr><td>wide</td></tr></table>'
CUT = '<p style="width: 90px; overflow: hidden; white-space: nowrap">much too long for its box</p>'


@pytest.mark.slow(2)
@pytest.mark.parametrize(
    ("wrong", "said"), [(WIDE, "TD leaves the page: wide"), (CUT, "P is cut off: much too")]
)
def test_content_that_does_not_fit_is_detected(chromium: Browser, wrong: str, said: str) -> None:
    html = page(made_up_reports.report(devices=1)).replace("<footer>", f"{wrong}<footer>")
    for _, faults in chromium.measure({"page": html}).values():
        assert any(fault.startswith(said) for fault in faults)


@pytest.mark.slow(6)
def test_screenshot_has_the_requested_size_and_follows_the_theme(chromium: Browser, tmp_path: Path) -> None:
    html = page(made_up_reports.report(devices=1))
    images = {}
    for theme in ("light", "dark"):
        chromium.capture(html, 1300, 900, theme, tmp_path / f"{theme}.png")
        images[theme] = (tmp_path / f"{theme}.png").read_bytes()
        assert struct.unpack(">II", images[theme][16:24]) == (1300, 900)
    assert images["light"] != images["dark"]
