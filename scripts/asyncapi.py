# SPDX-License-Identifier: Apache-2.0
"""Writes docs/reference/asyncapi.json: the protocol as AsyncAPI 3.0, from routes and messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from splitee.protocol.encoding import JsonMessage
from splitee.protocol.routes import ROUTES, Route
from splitee.protocol.topics import PROTOCOL

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "asyncapi.json"
DESCRIPTION = (
    "Messages between the devices and the server of a fleet. protocol.md has the rules for their order. In "
    "messages of the type application/msgpack bytes are msgpack's bin, although the schemas say base64."
)
FLEET = {"description": "The fleet: 1 to 64 letters, digits, '_', '.' or '-', first a letter or digit."}
DEVICE = {"description": "The device's id, with the same rule as the fleet's name."}


def document() -> dict[str, Any]:
    """The protocol as an AsyncAPI document."""
    kinds = list(dict.fromkeys(route.message for route in ROUTES))
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Hetero-SplitEE", "version": f"{PROTOCOL}.0.0", "description": DESCRIPTION},
        "defaultContentType": "application/json",
        "channels": {name(route): channel(route) for route in ROUTES},
        "operations": {f"{route.sender}-{name(route)}": operation(route) for route in ROUTES},
        "components": {"messages": {kind.__name__: message(kind) for kind in kinds}, "schemas": schemas},
    }


def name(route: Route) -> str:
    return route.path.replace("/+", "").replace("/", "-")


def channel(route: Route) -> dict[str, Any]:
    address = f"splitee/v{PROTOCOL}/{{fleet}}/{route.path.replace('+', '{device}')}"
    kind = route.message.__name__
    return {
        "address": address,
        "description": f"Written by: {route.sender}. Read by: {', '.join(route.readers)}.",
        "parameters": {"fleet": FLEET, **({"device": DEVICE} if route.of_device else {})},
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"}},
    }


def operation(route: Route) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{name(route)}"},
        "bindings": {"mqtt": {"qos": 1, "retain": route.retained, "bindingVersion": "0.2.0"}},
    }


def message(kind: type) -> dict[str, Any]:
    packing = "json" if issubclass(kind, JsonMessage) else "msgpack"
    return {
        "contentType": f"application/{packing}",
        "payload": {"$ref": f"#/components/schemas/{kind.__name__}"},
    }


def page() -> str:
    """The file's text."""
    return json.dumps(document(), indent=1) + "\n"
