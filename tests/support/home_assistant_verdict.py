# SPDX-License-Identifier: Apache-2.0
"""Runs in Home Assistant's environment: reads payloads and messages as JSON, writes its verdict as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from importlib import import_module
from typing import Any

import voluptuous
from homeassistant.components.update import UpdateEntity
from homeassistant.core import HomeAssistant
from homeassistant.helpers.template import Template


def check(component: dict[str, Any]) -> tuple[str, list[str]]:
    """Why a component is refused (empty: it is not), and its unknown fields."""
    fields = {name: value for name, value in component.items() if name != "platform"}
    schema = import_module(f"homeassistant.components.mqtt.{component['platform']}").DISCOVERY_SCHEMA
    try:
        accepted = schema(fields)
    except voluptuous.Invalid as error:
        return str(error), []
    return "", sorted(set(fields) - set(accepted))


def update_state(rendered: str) -> str | None:
    """The state of an update entity whose versions are `rendered`."""
    versions = json.loads(rendered)
    entity = UpdateEntity()
    entity._attr_installed_version = versions["installed_version"]
    entity._attr_latest_version = versions["latest_version"]
    return entity.state


async def main() -> None:
    request = json.load(sys.stdin)
    core = HomeAssistant(tempfile.gettempdir())
    components = request["components"]
    verdicts = {key: check(component) for key, component in components.items()}
    rendered = [
        Template(components[key][template], core).async_render_with_possible_json_value(message)
        for key, template, message in request["messages"]
    ]
    updates = [
        update_state(text) if components[key]["platform"] == "update" else None
        for (key, _, _), text in zip(request["messages"], rendered, strict=True)
    ]
    json.dump(
        {
            "refused": {key: reason for key, (reason, _) in verdicts.items() if reason},
            "ignored": {key: fields for key, (_, fields) in verdicts.items() if fields},
            "rendered": rendered,
            "updates": updates,
        },
        sys.stdout,
    )


asyncio.run(main())
