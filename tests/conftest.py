"""Brokers for the tests: real processes on loopback."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from splitee_lab.brokers import (
    MOSQUITTO_SETTINGS,
    OwnBroker,
    RunningBroker,
    embedded,
    find_mosquitto,
    mosquitto,
)

BOTH = [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]


def require_mosquitto() -> None:
    """Where a broker must be there (CI), its absence is a failure, never a skip."""
    if find_mosquitto() is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("no mosquitto on PATH, and CI=true: install it (apt install mosquitto)")
    pytest.skip("no mosquitto on PATH (apt install mosquitto)")


@pytest.fixture(scope="session")
def mosquitto_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    require_mosquitto()
    with mosquitto(tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with embedded(tmp_path_factory.mktemp("embedded")) as broker:
        yield broker


@pytest.fixture(params=BOTH)
def broker(request: pytest.FixtureRequest) -> RunningBroker:
    """Each of the two brokers, shared by all tests of the session: use topics of your own."""
    running: RunningBroker = request.getfixturevalue(f"{request.param}_broker")
    return running


@pytest.fixture(params=BOTH)
def broker_kind(request: pytest.FixtureRequest) -> str:
    """For `make_broker`: the name of each of the two brokers."""
    return str(request.param)


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., OwnBroker]]:
    """`make_broker(kind, settings)`: a broker of the test's own that it may kill and start again."""
    with ExitStack() as stack:

        def make(kind: str = "mosquitto", settings: str = MOSQUITTO_SETTINGS) -> OwnBroker:
            if kind == "mosquitto":
                require_mosquitto()
            own = OwnBroker(kind, tmp_path, settings)
            stack.callback(own.stop)
            own.start()
            return own

        yield make
