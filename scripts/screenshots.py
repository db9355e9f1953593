# SPDX-License-Identifier: Apache-2.0
"""Screenshots of a demo's page in a real browser: at 1,300 and 400 pixels, light and dark.

    python scripts/screenshots.py OUT [NAME=REPORT.json ...]

OUT gets NAME-WIDTH-THEME.png for each report; if none is named, for the made-up reports of all cases. A line
is printed for each element that is cut off or does not fit, at most 10 per page and width; the exit code is 1
if there are any. It needs Chromium on PATH (apt install chromium).
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import made_up_reports

from splitee_lab.report.demo_page import page, read_report

WIDTHS = (1300, 400)  # pixels
THEMES = {"dark": 0, "light": 1}  # Blink's values of preferredColorScheme
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MARK = "measured"
MOST = 10  # printed faults per page and width; often they have one cause
LIMIT = 120  # seconds that a browser may run

# The pages are in frames, because a browser's window has at least 500 pixels. The script measures the height
# of each page, and finds elements whose content overflows or is cut off, or that leave the page.
FRAMES = """<!doctype html><meta name="color-scheme" content="light dark">
<style>body { margin: 0 } iframe { border: 0; display: block; height: 20px }</style>
%s
<pre id="%s"></pre>
<script>
function faults(view) {
  const found = [], page = view.document.documentElement, width = page.clientWidth;
  for (const one of view.document.querySelectorAll("body *")) {
    if (!one.getClientRects().length || one.tagName == "STYLE") continue;
    const box = one.getBoundingClientRect(), style = view.getComputedStyle(one);
    const isDrawing = one instanceof view.SVGElement;
    const inner = !isDrawing && style.display != "inline" && one.scrollWidth > one.clientWidth + 1;
    const hides = inner && style.overflowX != "visible";
    const leaves = (box.right > width + 1 || box.left < -1) && !(isDrawing && one.tagName != "text");
    if (inner || hides || leaves) {
      const what = leaves ? "leaves the page" : hides ? "is cut off" : "overflows";
      found.push(one.tagName + " " + what + ": " + one.textContent.trim().slice(0, 60));
    }
    if (isDrawing && one.tagName == "text") {
      const frame = one.closest("figure").getBoundingClientRect();
      if (box.right > frame.right + 1 || box.left < frame.left - 1 || box.bottom > frame.bottom + 1)
        found.push("text leaves its drawing: " + one.textContent.trim());
    }
  }
  return found;
}
onload = () => {
  const all = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const view = frame.contentWindow;
    frame.style.height = view.document.documentElement.scrollHeight + "px";
    all[frame.title] = {height: view.document.documentElement.scrollHeight, faults: faults(view)};
  }
  document.getElementById("%s").textContent = JSON.stringify(all);
  document.getElementById("%s").hidden = true;
};
</script>
"""


class Browser:
    """Headless Chromium, with a new profile in `folder` for each call."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._folder = folder
        self._pages = 0

    def measure(self, pages: Mapping[str, str]) -> dict[str, tuple[int, list[str]]]:
        """By "NAME-WIDTH": height of the page in pixels, and elements that do not fit."""
        by_title = {
            f"{name}-{width}": (content, width) for name, content in pages.items() for width in WIDTHS
        }
        shown = self._run(_frames(by_title), "--dump-dom").decode()
        found = re.search(rf'<pre id="{MARK}"[^>]*>(.*?)</pre>', shown, re.DOTALL)
        if found is None or not found[1]:
            raise SystemExit("the browser has measured nothing")
        measured = json.loads(html.unescape(found[1]))
        return {name: (one["height"], one["faults"]) for name, one in measured.items()}

    def capture(self, content: str, width: int, height: int, theme: str, path: Path) -> None:
        """Take a screenshot of a whole page as PNG; `width` and `height` in pixels."""
        self._run(
            _frames({path.stem: (content, width)}),
            f"--screenshot={path}",
            f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={THEMES[theme]}",
            "--hide-scrollbars",
        )

    def _run(self, content: str, *flags: str) -> bytes:
        self._pages += 1
        file = self._folder / f"{self._pages}.html"
        file.write_text(content)
        common = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000")
        profile = f"--user-data-dir={self._folder / f'profile-{self._pages}'}"
        done = subprocess.run(
            [self._program, *common, profile, *flags, file.as_uri()],
            capture_output=True,
            timeout=LIMIT,
            check=True,
        )
        return done.stdout


def _frames(pages: Mapping[str, tuple[str, int]]) -> str:
    """A page with a frame for each of `pages`: content and width by title."""
    frames = [
        f'<iframe title="{html.escape(title)}" style="width: {width}px" srcdoc="{html.escape(content)}">'
        "</iframe>"
        for title, (content, width) in pages.items()
    ]
    return FRAMES % ("\n".join(frames), MARK, MARK, MARK)


def browser() -> str | None:
    """The path of Chromium; None: it is not on PATH."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def main(arguments: Sequence[str]) -> int:
    program = browser()
    if not arguments or program is None:
        print(__doc__ if program else "no Chromium on PATH: apt install chromium", file=sys.stderr)
        return 2
    out, named = Path(arguments[0]), [one.partition("=") for one in arguments[1:]]
    reports = {name: read_report(Path(path)) for name, _, path in named} or made_up_reports.reports()
    pages = {name: page(report) for name, report in reports.items()}
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="screenshots-") as folder:
        opened = Browser(program, Path(folder))
        measured = opened.measure(pages)
        for name, content in pages.items():
            for width in WIDTHS:
                for theme in THEMES:
                    path = out / f"{name}-{width}-{theme}.png"
                    opened.capture(content, width, measured[f"{name}-{width}"][0], theme, path.resolve())
    faults = [f"{name}: {fault}" for name, (_, found) in measured.items() for fault in found[:MOST]]
    print("\n".join(faults) or f"all fits; {len(pages) * len(WIDTHS) * len(THEMES)} screenshots in {out}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
