# SPDX-License-Identifier: Apache-2.0
"""The systemd units: the log of a service is bounded, so that it fills no card."""

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


def test_units_of_broker_device_and_page_are_found() -> None:
    assert {unit.name for unit in UNITS} >= {
        "splitee-broker.service",
        "splitee-device.service",
        "splitee-page.service",
    }


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.name))
def test_log_of_a_unit_is_bounded_per_day(unit: Path) -> None:
    found = section(unit)
    assert found["LogRateLimitIntervalSec"] == "10min"
    assert int(found["LogRateLimitBurst"]) * LINE * 24 * 6 <= MOST


def test_page_unit_uses_known_settings_and_the_files_of_a_viewer() -> None:
    text = (ROOT / "server" / "splitee-page.service").read_text()
    known = {str(parameter.envvar) for parameter in page.params if getattr(parameter, "envvar", None)}
    assert set(re.findall(r"SPLITEE_\w+", text)) <= known | {"SPLITEE_CONFIG"}
    credentials = re.findall(r"^LoadCredential=(\S+):/etc/splitee/viewer/(\S+)$", text, re.MULTILINE)
    assert credentials == [(name, name) for name in ("viewer.toml", "ca.crt", "client.crt", "client.key")]
