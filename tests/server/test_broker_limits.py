# SPDX-License-Identifier: Apache-2.0
"""What a server says, at its start, of a broker that is too small for its devices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call

from splitee.errors import ExitCode
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import OwnBroker
from splitee_server.broker_limits import say_limits

pytestmark = pytest.mark.mosquitto

SMALL = "allow_anonymous true\nmax_packet_size 10000\nmax_inflight_messages 5\n"
MakeBroker = Callable[..., OwnBroker]


@pytest.fixture
def said(
    make_broker: MakeBroker, make_link: Callable[..., Link], caplog: pytest.LogCaptureFixture
) -> Callable[[str, int], list[str]]:
    """`said(settings, devices)`: levels and lines of the log, at a Mosquitto with these settings."""

    def say(settings: str, devices: int) -> list[str]:
        link = make_link(make_broker("mosquitto", settings).address)
        with caplog.at_level(logging.INFO, "splitee_server"):
            say_limits(link, devices)
        return [
            f"{record.levelname} {record.getMessage()}"
            for record in caplog.records
            if record.name == "splitee_server.broker_limits"
        ]

    return say


def test_packets_too_small_for_a_whole_message_are_a_warning(said: Callable[[str, int], list[str]]) -> None:
    packet, window = said(SMALL, 100)
    assert packet.startswith("WARNING broker mqtt://127.0.0.1:")
    assert (
        "takes packets of at most 10.0 KB, and messages that are not sent in parts have up to 33.8 KB"
        in packet
    )
    assert "max_packet_size" in packet
    assert "allows 5 unacknowledged messages, not 20" in window


def test_small_packets_cost_parts(said: Callable[[str, int], list[str]]) -> None:
    (packet,) = said("allow_anonymous true\nmax_packet_size 100000\n", 3)
    assert packet.startswith("INFO ")
    assert packet.endswith("takes packets of at most 100.0 KB: batches come in parts")


def test_a_large_fleet_is_sent_to_the_check_and_a_small_one_is_not(
    said: Callable[[str, int], list[str]],
) -> None:
    assert said("allow_anonymous true\n", 3) == []
    (line,) = said("allow_anonymous true\n", 1000)
    assert line.endswith("for 1,000 devices: splitee broker check --devices 1000")


def test_a_broker_without_retained_messages_is_refused(
    make_broker: MakeBroker, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    address = make_broker("mosquitto", "allow_anonymous true\nretain_available false\n").address
    code, line = call(capsys, "server", "--broker", str(address), "--state", str(tmp_path / "state"))
    assert code == ExitCode.REFUSED
    assert "keeps no retained messages" in line
