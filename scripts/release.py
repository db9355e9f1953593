# SPDX-License-Identifier: Apache-2.0
"""Builds a release, tries it in empty environments, and tags it: `make release`.

The version is that of pyproject.toml, and CHANGELOG.md must have a section for it. The wheel is installed
twice: with `[lab]`, where `splitee demo --quick` must train a fleet, and without extras, where
`splitee predict` must classify an image with a model of that fleet, and torch must be absent. Nothing is
pushed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
SAMPLE = """\
import sys, numpy, splitee_device.data
from pathlib import Path
from PIL import Image
images = numpy.load(Path(splitee_device.data.__file__).parent / "builtin" / "fashion-mnist.npz")
Image.fromarray(images["test_images"][0]).save(sys.argv[1])
"""


def version() -> str:
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    return found


def section(changelog: str, of: str) -> str:
    """The text of a version's section. Raises SystemExit: no such section with a date and text."""
    found = re.search(
        rf"^## \[{re.escape(of)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)", changelog, re.DOTALL | re.MULTILINE
    )
    if found is None or not found[1].strip():
        raise SystemExit(f"CHANGELOG.md: expected a section '## [{of}] - YYYY-MM-DD' that says what changed")
    return found[1].strip()


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command; returns its standard output. Raises SystemExit: it failed."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def check_tree(tag: str) -> None:
    """Raises SystemExit: there are uncommitted changes, or the tag exists."""
    if changed := run("git", "status", "--porcelain"):
        raise SystemExit(f"commit or remove first:\n{changed}")
    if run("git", "tag", "--list", tag):
        raise SystemExit(f"{tag} exists: raise the version in pyproject.toml")


def build() -> Path:
    """Build the wheel and the sdist into dist/; returns the wheel."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", DIST)
    [wheel] = DIST.glob("*.whl")
    return wheel


def environment(path: Path, requirement: str) -> Path:
    """Make an environment with `requirement` installed; returns the folder of its programs."""
    run(sys.executable, "-m", "venv", path)
    run(path / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", requirement)
    return path / "bin"


def try_out(wheel: Path, work: Path) -> None:
    """Raises SystemExit: `splitee demo` or `splitee predict` fails, or the base install has torch."""
    lab = environment(work / "lab", f"{wheel}[lab]")
    started = time.monotonic()
    run(lab / "splitee", "demo", "--quick", "--out", work / "demo", cwd=work)
    print(f"demo --quick: {time.monotonic() - started:.0f} s")
    base = environment(work / "base", str(wheel))
    run(base / "python", "-c", SAMPLE, work / "sample.png")
    [model, *_] = sorted((work / "demo").rglob("manifest.json"))
    prediction = json.loads(
        run(base / "splitee", "predict", "--json", "--model", model.parent, work / "sample.png", cwd=work)
    )
    print(f"predict: {prediction}")
    if list((work / "base" / "lib").glob("python*/site-packages/torch")):
        raise SystemExit("the base install has brought torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-tag", action="store_true", help="Build and try only.")
    arguments = parser.parse_args()
    tag = f"v{version()}"
    notes = section((ROOT / "CHANGELOG.md").read_text(), version())
    check_tree(tag)
    wheel = build()
    with tempfile.TemporaryDirectory(prefix="splitee-release-") as work:
        try_out(wheel, Path(work))
    if not arguments.no_tag:
        run("git", "tag", "--annotate", tag, "--message", f"{tag}\n\n{notes}")
        print(f"tagged {tag}; push it with: git push origin {tag}")
    print(f"built {', '.join(path.name for path in sorted(DIST.glob('hetero*')))}")


if __name__ == "__main__":
    main()
