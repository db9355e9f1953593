# SPDX-License-Identifier: Apache-2.0
"""What a server logs at its start about a broker that is too small for its devices."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import call

from splitee.errors import ExitCode
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import RestartableBroker
from splitee_server.broker_limits import log_broker_limits

pytestmark = pytest.mark.mosquitto

SMALL = "allow_anonymous true\nmax_packet_size 10000\nmax_inflight_messages 5\n"
MakeBroker = Callable[..., RestartableBroker]


@pytest.fixture
def logged_limits(
    make_broker: MakeBroker, make_link: Callable[..., Link], caplog: pytest.LogCaptureFixture
) -> Callable[[str, int], list[str]]:
    """`logged_limits(settings, devices)`: levels and lines of the log, at a Mosquitto with these settings."""

    def log_limits(settings: str, devices: int) -> list[str]:
        link = make_link(make_broker("mosquitto", settings).address)
        with caplog.at_level(logging.INFO, "splitee_server"):
            log_broker_limits(link, devices)
        return [
            f"{record.levelname} {record.getMessage()}"
            for record in caplog.records
            if record.name == "splitee_server.broker_limits"
        ]

    return log_limits


def test_packet_limit_below_a_whole_message_is_logged_as_a_warning(
    logged_limits: Callable[[str, int], list[str]],
) -> None:
    packet, window = logged_limits(SMALL, 100)
    assert packet.startswith("WARNING broker mqtt://127.0.0.1:")
    assert (
        "takes packets of at most 10.0 KB, and messages that are not sent in parts have up to 33.8 KB"
        in packet
    )
    assert "max_packet_size" in packet
    assert "allows 5 unacknowledged messages, not 20" in window


def test_packet_limit_that_splits_batches_is_logged_as_info(
    logged_limits: Callable[[str, int], list[str]],
) -> None:
    (packet,) = logged_limits("allow_anonymous true\nmax_packet_size 100000\n", 3)
    assert packet.startswith("INFO ")
    assert packet.endswith("takes packets of at most 100.0 KB: batches come in parts")


def test_broker_check_is_suggested_to_large_fleets_only(
    logged_limits: Callable[[str, int], list[str]],
) -> None:
    assert logged_limits("allow_anonymous true\n", 3) == []
    (line,) = logged_limits("allow_anonymous true\n", 1000)
    assert line.endswith("for 1,000 devices: splitee broker check --devices 1000")


def test_broker_without_retained_messages_is_refused(
    make_broker: MakeBroker, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    address = make_broker("mosquitto", "allow_anonymous true\nretain_available false\n").address
    code, line = call(capsys, "server", "--broker", str(address), "--state", str(tmp_path / "state"))
    assert code == ExitCode.REFUSED
    assert "keeps no retained messages" in line
