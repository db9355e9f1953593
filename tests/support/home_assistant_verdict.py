# SPDX-License-Identifier: Apache-2.0
"""Runs in Home Assistant's environment: payloads and messages as JSON in, what it makes of them out."""

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
    """Why it is refused, and the fields that are not known; the platform is that of the topic."""
    fields = {name: value for name, value in component.items() if name != "platform"}
    schema = import_module(f"homeassistant.components.mqtt.{component['platform']}").DISCOVERY_SCHEMA
    try:
        taken = schema(fields)
    except voluptuous.Invalid as error:
        return str(error), []
    return "", sorted(set(fields) - set(taken))


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
    checked = {key: check(component) for key, component in components.items()}
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
            "refused": {key: why for key, (why, _) in checked.items() if why},
            "ignored": {key: fields for key, (_, fields) in checked.items() if fields},
            "rendered": rendered,
            "updates": updates,
        },
        sys.stdout,
    )


asyncio.run(main())
