# SPDX-License-Identifier: Apache-2.0
"""Refusals of msgspec name the field, the value and the bound, in plain words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import Meta

from splitee.cli.run_flags import build_run_spec
from splitee.errors import ConfigError
from splitee.validation_errors import format_error


class Inner(msgspec.Struct):
    sizes: list[Annotated[int, Meta(ge=1)]] = []


class Sample(msgspec.Struct):
    share: Annotated[float, Meta(ge=0, le=1)] = 0.5
    name: Annotated[str, Meta(max_length=5)] = ""
    kind: Literal["a", "b"] = "a"
    inner: Inner | None = None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"share": 2}, "share 2: expected a number of at most 1.0"),
        ({"share": "x"}, "share x: expected a number, got a text"),
        ({"name": "x" * 60}, f"name {'x' * 40}...: expected a text of length 5 at most"),
        ({"name": "two\nlines"}, r"name two\nlines: expected a text of length 5 at most"),
        ({"kind": "c"}, "kind c: invalid enum value 'c'"),
        ({"inner": {"sizes": [3, 0]}}, "inner.sizes[1] 0: expected a whole number of at least 1"),
        ([], "expected a map, got a list"),
    ],
)
def test_refusal_names_field_value_and_bound(value: Any, words: str) -> None:
    data = msgspec.json.encode(value)
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(data, type=Sample)
    assert format_error(refused.value, data) == format_error(refused.value, value) == words


def test_refused_setting_of_a_run_is_named_by_its_flag() -> None:
    def refused(**settings: Any) -> str:
        with pytest.raises(ConfigError) as error:
            build_run_spec(**{"network": "net", "num_classes": 2, "rounds": 1, **settings})
        return str(error.value)

    assert refused(threshold=2) == "--threshold 2: expected a number of at most 1.0"
    assert refused(input_shape=[7, 32, 32]).startswith("--input")
    assert refused(network="n" * 1001).endswith(": expected a text of length 1000 at most")
