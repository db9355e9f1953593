# SPDX-License-Identifier: Apache-2.0
"""Devices and servers of different releases decode each other's messages."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.strategies import MESSAGES, messages

from splitee.protocol.routes import ROUTES

RECORDED = sorted((Path(__file__).parents[2] / "data").glob("messages-*.json"))
EVERY_MESSAGE = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)


def test_recorded_messages_of_a_release_exist() -> None:
    assert RECORDED


@pytest.mark.parametrize("release", RECORDED, ids=lambda path: path.stem)
def test_messages_of_an_earlier_release_are_decoded(release: Path) -> None:
    """A route that is removed, or that refuses a recorded message, needs another protocol number."""
    routes = {route.path: route for route in ROUTES}
    for path, payloads in json.loads(release.read_text()).items():
        assert payloads, path
        for payload in payloads:
            routes[path].message.decode(base64.b64decode(payload))


def with_later_fields(value: Any) -> Any:
    """A message as a later release may send it: each of its structures has an unknown field."""
    if isinstance(value, msgspec.Struct):
        fields = {name: with_later_fields(getattr(value, name)) for name in value.__struct_fields__}
        return {**fields, "of_a_later_release": {"and": [1, "more"]}}
    if isinstance(value, list | tuple):
        return [with_later_fields(item) for item in value]
    if isinstance(value, dict):
        return {key: with_later_fields(item) for key, item in value.items()}
    return value


@EVERY_MESSAGE
@settings(max_examples=10)
@given(data=st.data())
def test_fields_of_a_later_release_are_ignored(kind: type[Any], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    encoder: Any = msgspec.json if message.encode()[:1] == b"{" else msgspec.msgpack
    assert kind.decode(encoder.encode(with_later_fields(message))) == message


@EVERY_MESSAGE
@settings(max_examples=10)
@given(data=st.data())
def test_missing_optional_fields_are_decoded_as_their_defaults(kind: type[Any], data: st.DataObject) -> None:
    """Any of the fields that have a default may be missing."""
    message = data.draw(messages(kind))
    optional = {field.name for field in msgspec.structs.fields(kind) if not field.required}
    missing = data.draw(st.sets(st.sampled_from(sorted(optional)))) if optional else set()
    encoder: Any = msgspec.json if message.encode()[:1] == b"{" else msgspec.msgpack
    sent = {name: value for name, value in msgspec.structs.asdict(message).items() if name not in missing}
    read = kind.decode(encoder.encode(sent))
    for field in msgspec.structs.fields(kind):
        expected = default(field) if field.name in missing else getattr(message, field.name)
        assert getattr(read, field.name) == expected


def default(field: msgspec.structs.FieldInfo) -> Any:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
