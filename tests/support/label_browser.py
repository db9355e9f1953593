# SPDX-License-Identifier: Apache-2.0
"""Chromium without a window, driven by Playwright, for the page on which one labels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

LIMIT = 30_000  # milliseconds


@contextmanager
def chromium() -> Iterator[Browser]:
    """Where it must be there (CI), its absence is a failure, never a skip."""
    program = shutil.which("chromium")
    if program is None and os.environ.get("CI") == "true":
        pytest.fail("no Chromium, and CI=true: install it (apt install chromium)")
    if program is None:
        pytest.skip("no Chromium: the page is NOT tried in a browser (apt install chromium)")
    expect.set_options(timeout=LIMIT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def looking(browser: Browser, url: str, *, width: int = 1300, dark: bool = False) -> Iterator[Page]:
    """The page at `url`; a script's error fails the test, and so does what the headers forbid."""
    errors: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    context.set_default_timeout(LIMIT)
    page = context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda line: errors.append(line.text) if "Content Security" in line.text else None)
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    assert errors == []
