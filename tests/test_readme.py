# SPDX-License-Identifier: Apache-2.0
"""The README's commands work as they stand, and its statements are those of the project and its docs."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import warm
import yaml
from PIL import Image

from splitee_lab.local.brokers import RunningBroker

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
THREE_MACHINES = (ROOT / "docs" / "start" / "three-machines.md").read_text()
RESULTS = (ROOT / "docs" / "explanation" / "learning.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands(page: str) -> list[list[str]]:
    """Every `splitee` command of a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("splitee ")]


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", README))
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_readme_states_the_projects_version_python_and_licence() -> None:
    assert f"Version {PROJECT['version']} " in README
    assert f"Python {PROJECT['requires-python'].removeprefix('>=')} or later" in README
    assert f"[{PROJECT['license']}](LICENSE)" in README


def test_citation_has_this_version_and_licence_and_the_paper_of_the_readme() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (str(citation["version"]), citation["license"]) == (PROJECT["version"], PROJECT["license"])
    paper = citation["preferred-citation"]
    assert all(author["family-names"] in README for author in paper["authors"])
    assert paper["title"] in README
    assert paper["url"] in README


def test_result_table_of_the_readme_is_in_the_docs() -> None:
    [table] = re.findall(r"^\| \| cut 3 .*?\n\n", README, re.MULTILINE | re.DOTALL)
    assert table in RESULTS


def test_clone_address_is_a_placeholder_in_the_readme_only() -> None:
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert [path.name for path in files if re.search("git clone CLONE_ADDRESS ", path.read_text())] == [
        "README.md"
    ]


def test_first_three_commands_of_the_readme_are_those_of_the_docs() -> None:
    assert commands(README)[:3] == commands(THREE_MACHINES)[:3]


@pytest.mark.slow(25)
@pytest.mark.mosquitto
def test_documented_server_device_status_and_predict_commands_work(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    for number, name in enumerate(("bees", "snails", "worms")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for index in range(4):
            pixels = random.integers(0, 80, (40, 48, 3), np.uint8) + np.uint8(60 * number)
            Image.fromarray(pixels).save(folder / f"{index}.jpg")

    log = tmp_path / "log"
    address = f"{mosquitto_broker.address.host}:{mosquitto_broker.address.port}"
    here = {"hub.local:1883": address} | {
        name: str(tmp_path / name) for name in ("photos", "server-state", "device-state")
    }

    def start(words: list[str], changed: dict[str, str] | None = None) -> warm.WarmProcess:
        text = words
        for old, new in (here | (changed or {})).items():
            text = [word.replace(old, new) for word in text]
        return warm.WarmProcess(text[1:], log)

    server, device, status, predict = commands(THREE_MACHINES)
    second = {"pi-1": "pi-2", "device-state": str(tmp_path / "second-state")}
    processes = [start(server), start(device), start(device, second)]
    assert [process.wait(240) for process in processes] == [0, 0, 0], log.read_text()
    log.unlink()
    assert start([*status, "--once"]).wait(60) == 0
    assert "pi-2" in log.read_text()
    log.unlink()
    assert start(predict).wait(60) == 0, log.read_text()
    assert log.read_text().count(".jpg") == 4
