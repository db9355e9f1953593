"""The README's commands work as they stand, and its tables say what the code says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import warm
from PIL import Image

from splitee.errors import ExitCode
from splitee_lab.local.brokers import RunningBroker

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[list[str]]:
    """Every `splitee` command of the README's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("splitee ")]


def test_the_exit_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", README, re.MULTILINE)
    assert rows == [(str(int(code)), code.help) for code in ExitCode]


def test_every_make_target_it_names_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)", README))
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow(15)
@pytest.mark.mosquitto
def test_server_device_and_status_as_written(mosquitto_broker: RunningBroker, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number, name in enumerate(("bees", "snails", "worms")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for picture in range(4):
            pixels = random.integers(0, 80, (40, 48, 3), np.uint8) + np.uint8(60 * number)
            Image.fromarray(pixels).save(folder / f"{picture}.jpg")

    log = tmp_path / "log"

    def start(words: list[str], changed: dict[str, str] | None = None) -> warm.WarmProcess:
        address = f"{mosquitto_broker.address.host}:{mosquitto_broker.address.port}"
        here = {"BROKER:1883": address, "/var/lib/splitee": str(tmp_path), "~": str(tmp_path)}
        text = words
        for old, new in (here | (changed or {})).items():
            text = [word.replace(old, new) for word in text]
        return warm.WarmProcess(text[1:], log)

    server, device, status = commands()[:3]
    processes = [start(server), start(device), start(device, {"pi-1": "pi-2"})]
    assert [process.wait(240) for process in processes] == [0, 0, 0], log.read_text()
    log.unlink()
    assert start([*status, "--once"]).wait(60) == 0
    assert "pi-2" in log.read_text()
