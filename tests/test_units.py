# SPDX-License-Identifier: Apache-2.0
"""The systemd units: whatever goes wrong, the log of a service fills no card."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from splitee_web.commands.page import page

ROOT = Path(__file__).parents[1]
UNITS = sorted(
    path for folder in ("broker_config", "device", "server") for path in (ROOT / folder).rglob("*.service")
)
LINE = 300  # bytes, with what the journal keeps of a line beside its text
MOST = 100 << 20  # bytes a day of a unit's log, whatever goes wrong


def section(unit: Path, name: str = "Service") -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(unit.read_text())
    return parser[name]


def test_there_are_units() -> None:
    assert {unit.name for unit in UNITS} >= {
        "splitee-broker.service",
        "splitee-device.service",
        "splitee-page.service",
    }


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_a_days_log_of_a_unit_is_bounded(unit: Path) -> None:
    found = section(unit)
    assert found["LogRateLimitIntervalSec"] == "10min"
    assert int(found["LogRateLimitBurst"]) * LINE * 24 * 6 <= MOST


def test_the_pages_unit_names_settings_that_the_command_knows_and_files_that_a_viewer_has() -> None:
    text = (ROOT / "server" / "splitee-page.service").read_text()
    known = {str(parameter.envvar) for parameter in page.params if getattr(parameter, "envvar", None)}
    assert set(re.findall(r"SPLITEE_\w+", text)) <= known | {"SPLITEE_CONFIG"}
    credentials = re.findall(r"^LoadCredential=(\S+):/etc/splitee/viewer/(\S+)$", text, re.MULTILINE)
    assert credentials == [(name, name) for name in ("viewer.toml", "ca.crt", "client.crt", "client.key")]
