# SPDX-License-Identifier: Apache-2.0
"""Chromium on the labelling page, for tests that may kill the device and remove images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, ViewportSize, expect

LIMIT = 30_000  # milliseconds


@contextmanager
def open_page(
    browser: Browser, url: str, *, width: int = 1300, theme: Any = "light", phone: bool = False
) -> Iterator[Page]:
    """The page at `url`; errors of scripts and violations of its Content Security Policy fail the test.

    `phone`: emulates a touch screen without a mouse.
    """
    errors: list[str] = []
    expect.set_options(timeout=LIMIT)
    context = browser.new_context(
        viewport=ViewportSize(width=width, height=900), color_scheme=theme, has_touch=phone, is_mobile=phone
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
