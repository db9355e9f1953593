# SPDX-License-Identifier: Apache-2.0
"""Topics: each is parsed as it was built, and invalid names are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitee.errors import ConfigError
from splitee.protocol.topics import NAME, PROTOCOL, Topics, check_name

NAMES = st.from_regex(NAME, fullmatch=True)
INVALID_NAMES = ["", ".", "..", "-a", "_a", "a/b", "a b", "a+", "#", "$SYS", "a\n", "a\0", "ä", "a" * 65]


def test_topics_contain_the_fleet_and_protocol_version() -> None:
    topics = Topics("home")
    whole = {topics.run, topics.round, topics.commit, topics.metrics, topics.server_status}
    assert all(topic.startswith(f"splitee/v{PROTOCOL}/home/") for topic in whole)
    assert len(whole) == 5
    assert topics.device("pi", "inbox/ack") == f"splitee/v{PROTOCOL}/home/devices/pi/inbox/ack"
    assert topics.all_devices("features") == f"splitee/v{PROTOCOL}/home/devices/+/features"


@given(fleet=NAMES, device=NAMES, leaf=st.sampled_from(["status", "inbox/plan", "inbox/weights/layer1.0"]))
def test_device_topic_is_parsed_into_device_and_leaf(fleet: str, device: str, leaf: str) -> None:
    topics = Topics(fleet)
    assert topics.parse_device(topics.device(device, leaf)) == (device, leaf)


@given(st.text(max_size=40) | st.text("/+#ab.-", max_size=12))
def test_hostile_topic_is_not_parsed_or_yields_a_valid_device(rest: str) -> None:
    topics = Topics("home")
    assert topics.parse_device(rest) is None
    parsed = topics.parse_device(f"{topics.base}/devices/{rest}")
    assert parsed is None or (NAME.fullmatch(parsed[0]) and topics.device(*parsed).endswith(f"/{rest}"))


@pytest.mark.parametrize("tail", ["", "pi", "pi/", "/status", "-pi/status", "p i/status", "pi\n/status"])
def test_invalid_device_topic_is_not_parsed(tail: str) -> None:
    assert Topics("home").parse_device(f"splitee/v{PROTOCOL}/home/devices/{tail}") is None


@pytest.mark.parametrize("base", ["splitee/v1/other", "splitee/v2/home", "splitee/v1/home2"])
def test_topic_of_another_fleet_or_version_is_not_parsed(base: str) -> None:
    assert Topics("home").parse_device(f"{base}/devices/pi/status") is None


@given(NAMES)
def test_valid_names_are_accepted(name: str) -> None:
    assert check_name(name, "device") == name


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_invalid_names_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ConfigError, match=r"device .*: expected 1 to 64 letters") as refused:
        check_name(name, "device")
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="fleet"):
        Topics(name)
