# SPDX-License-Identifier: Apache-2.0
"""Writes the generated files of docs/: make docs, before the site is built."""

from __future__ import annotations

from pathlib import Path

import asyncapi
import drawings
import exit_codes_page
import protocol_page
import report_page
import settings_page

PAGES = (settings_page, protocol_page, asyncapi, exit_codes_page, report_page)


def files() -> dict[Path, str]:
    """The texts of the generated files, by path."""
    pages = {module.PAGE: module.page() for module in PAGES}
    return pages | {drawings.DIRECTORY / name: text for name, text in drawings.drawings().items()}


if __name__ == "__main__":
    drawings.DIRECTORY.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text)
