# SPDX-License-Identifier: Apache-2.0
"""A real Chromium that can reach only this machine, and tabs that fail on errors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize, sync_playwright
from screenshots import browser as program
from vendor import LIBRARIES

DESKTOP = ViewportSize(width=1300, height=900)
PHONE = ViewportSize(width=400, height=860)
PATIENCE = 15_000  # milliseconds to wait for an element
CUT_OFF = (
    "ERR_CONNECTION_REFUSED",
    "ERR_INCOMPLETE_CHUNKED_ENCODING",
    "ERR_CONNECTION_RESET",
)  # errors of connections that tests cut
LEVELS = ("serious", "critical")  # levels of axe-core's violations that fail a test

# Containers and CI have no user namespaces for the sandbox; all host names but this machine's are unknown.
FLAGS = ("--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Chromium; without it the test is skipped, and in CI it fails."""
    path = program()
    if path is None and os.environ.get("CI") == "true":
        pytest.fail("no Chromium, and CI=true: install it (apt install chromium)")
    if path is None:
        pytest.skip("no Chromium: the pages are NOT checked (apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@contextmanager
def tab(
    browser: Browser, url: str, viewport: ViewportSize = DESKTOP, theme: Any = "light", **more: Any
) -> Iterator[Page]:
    """A page in its own context; fails at its end if it logged an error or requested another server."""
    context = browser.new_context(viewport=viewport, color_scheme=theme, **more)
    context.set_default_timeout(PATIENCE)
    page, faults, origin = context.new_page(), list[str](), urlsplit(url).netloc

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(one in message.text for one in CUT_OFF):
            faults.append(f"console: {message.text}")

    page.on("console", note)
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("request", lambda request: faults.extend(_foreign(request.url, origin)))
    page.goto(url)
    yield page
    context.close()
    assert faults == []


def _foreign(url: str, origin: str) -> list[str]:
    requested = urlsplit(url)
    return (
        []
        if requested.scheme in ("data", "blob") or requested.netloc == origin
        else [f"request elsewhere: {url}"]
    )


def violations(page: Page) -> list[str]:
    """Violations that axe-core finds of level serious or above, a line each."""
    [axe] = [library for library in LIBRARIES if library.name == "axe-core"]
    source = Path(axe.path("axe.min.js")).read_text(encoding="utf-8")
    page.evaluate(source)  # by the debugger, to which the page's policy does not apply
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then((found) => JSON.stringify(found.violations))"
    )
    return [
        f"{one['impact']} {one['id']}: {node['target']} {node['failureSummary']}"
        for one in json.loads(found)
        for node in one["nodes"]
        if one["impact"] in LEVELS
    ]


def overflow(page: Page) -> int:
    """Number of pixels by which the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
