# SPDX-License-Identifier: Apache-2.0
"""Devices and servers of releases that differ: what the one says, the other reads."""

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


def test_a_release_is_recorded() -> None:
    assert RECORDED


@pytest.mark.parametrize("release", RECORDED, ids=lambda path: path.stem)
def test_what_an_earlier_release_says_is_read(release: Path) -> None:
    """A route that is gone, or that reads no more what was said on it, needs another protocol number."""
    routes = {route.path: route for route in ROUTES}
    for path, payloads in json.loads(release.read_text()).items():
        assert payloads, path
        for payload in payloads:
            routes[path].message.decode(base64.b64decode(payload))


def grown(value: Any) -> Any:
    """A message as a later release may send it: each of its structures has a field that nobody here knows."""
    if isinstance(value, msgspec.Struct):
        fields = {name: grown(getattr(value, name)) for name in value.__struct_fields__}
        return {**fields, "of_a_later_release": {"and": [1, "more"]}}
    if isinstance(value, list | tuple):
        return [grown(item) for item in value]
    if isinstance(value, dict):
        return {key: grown(item) for key, item in value.items()}
    return value


@EVERY_MESSAGE
@settings(max_examples=10)
@given(data=st.data())
def test_fields_of_a_later_release_are_ignored(kind: type[Any], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    encoder: Any = msgspec.json if message.encode()[:1] == b"{" else msgspec.msgpack
    assert kind.decode(encoder.encode(grown(message))) == message


@EVERY_MESSAGE
@settings(max_examples=10)
@given(data=st.data())
def test_fields_that_a_release_before_does_not_have_get_their_default(
    kind: type[Any], data: st.DataObject
) -> None:
    """Whatever fields have a default, and are not sent."""
    message = data.draw(messages(kind))
    optional = {field.name for field in msgspec.structs.fields(kind) if not field.required}
    missing = data.draw(st.sets(st.sampled_from(sorted(optional)))) if optional else set()
    encoder: Any = msgspec.json if message.encode()[:1] == b"{" else msgspec.msgpack
    sent = {name: value for name, value in msgspec.structs.asdict(message).items() if name not in missing}
    read = kind.decode(encoder.encode(sent))
    for field in msgspec.structs.fields(kind):
        if field.name not in missing:
            assert getattr(read, field.name) == getattr(message, field.name)
