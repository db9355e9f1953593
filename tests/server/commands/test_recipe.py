# SPDX-License-Identifier: Apache-2.0
"""Settings of a run from its recipe, and settings that override it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from splitee.cli.settings import settings_file
from splitee_server.commands.learning_flags import learning_settings
from splitee_server.commands.recipe import METHOD_ALONE

found: dict[str, Any] = {}


@click.command()
@settings_file
@learning_settings
def train(**settings: Any) -> None:
    found.update(settings)


def settings_of(*arguments: str, **variables: str) -> dict[str, Any]:
    found.clear()
    done = CliRunner().invoke(train, arguments, env=variables, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return dict(found)


def test_recipe_plain_is_the_method_alone_and_auto_is_the_default() -> None:
    plain, auto = settings_of("--recipe", "plain"), settings_of()
    assert plain.keys() == auto.keys()
    assert {name: plain[name] for name in METHOD_ALONE} == METHOD_ALONE
    assert {name for name in plain if plain[name] != auto[name]} <= METHOD_ALONE.keys()
    assert (auto["exits"], auto["client_averaging"]) == ("fleet", "layerwise")
    assert settings_of("--recipe", "auto") == auto


def test_given_settings_override_the_recipe(tmp_path: Path) -> None:
    config = tmp_path / "server.toml"
    config.write_text('exits = "fleet"\n')
    plain = settings_of(
        "--recipe", "plain", "--config", str(config), "--soft-labels", "0.5", SPLITEE_STATISTICS_BATCHES="4"
    )
    expected = {**METHOD_ALONE, "exits": "fleet", "soft_labels": 0.5, "statistics_batches": 4}
    assert {name: plain[name] for name in METHOD_ALONE} == expected


def test_recipe_and_its_settings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    settings_of("--recipe", "plain", "--exits", "fleet")
    assert "recipe plain: client averaging none, " in caplog.text
    assert "exits fleet, " in caplog.text
