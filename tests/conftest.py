# SPDX-License-Identifier: Apache-2.0
"""Brokers for the tests, real processes on loopback, and links to them."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

# First, as in every `splitee` process: it postpones the import of torch's compiler, which takes seconds.
import splitee.cli.main  # noqa: F401  # isort: skip

import pytest
import torch
from open_files import open_to_all
from trained import Trained, trained_once

from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.events import Connected, Message
from splitee.mqtt.link import Link
from splitee_lab.local.brokers import (
    MOSQUITTO_SETTINGS,
    RestartableBroker,
    RunningBroker,
    embedded,
    find_mosquitto,
    mosquitto,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ["OMP_NUM_THREADS"] = "1"  # in all processes that tests start, because they run in parallel

DEADLINE = 10.0  # seconds
FLEET = 3  # CPU seconds of most tests that start a fleet
BOTH = [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of fleets and trained models as slow; starting the slowest first balances the workers.

    The tests of a module that share a browser run on one worker, one after another, so that it starts once.
    So do those of the group `exports`: the first export of a process takes seconds.
    """
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if item.get_closest_marker("slow") is not None:
            continue
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.slow(FLEET))
        elif {"trained", "averaged"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=cost, reverse=True)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Exempt imported modules from garbage collection, during collection and later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def cost(item: pytest.Item) -> float:
    """Seconds of a slow test, by its mark; 1 if the mark has none, 0 for other tests."""
    mark = item.get_closest_marker("slow")
    if mark is None:
        return 0
    return float(mark.args[0]) if mark.args else 1


def require_mosquitto() -> None:
    """Skip the test without Mosquitto; in CI, fail it."""
    if find_mosquitto() is not None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("no mosquitto on PATH, and CI=true: install it (apt install mosquitto)")
    pytest.skip("no mosquitto on PATH (apt install mosquitto)")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Reset the number of threads, which commands called in this process change; weights depend on it."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def log_levels() -> None:
    """Reset the levels of loggers, which commands called in this process change."""
    for name in ("splitee", "splitee_device"):
        logging.getLogger(name).setLevel(logging.NOTSET)


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
def make_broker(tmp_path: Path) -> Iterator[Callable[..., RestartableBroker]]:
    """`make_broker(kind, settings)`: a broker for one test, which may stop and restart it."""
    with ExitStack() as stack:

        def make(kind: str = "mosquitto", settings: str = MOSQUITTO_SETTINGS) -> RestartableBroker:
            if kind == "mosquitto":
                require_mosquitto()
            own = RestartableBroker(kind, tmp_path, settings)
            stack.callback(own.stop)
            own.start()
            return own

        yield make


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run with its models. Tests that change them must copy them."""
    return trained_once(tmp_path_factory, "sequential")


@pytest.fixture(scope="session")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The same with the strategy `averaging`."""
    return trained_once(tmp_path_factory, "averaging")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium. While it is open, no command that runs an event loop can be called in this thread."""
    from browser import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture
def base(request: pytest.FixtureRequest) -> str:
    """A topic for this test alone, because the brokers are shared."""
    return f"test/{request.node.name}".replace("[", "/").replace("]", "")


@pytest.fixture
def make_link() -> Iterator[Callable[..., Link]]:
    with ExitStack() as stack:

        def make(address: BrokerAddress, client_id: str = "link", *filters: str, **options: object) -> Link:
            link = Link(address, client_id, **options)  # type: ignore[arg-type]
            link.subscribe(*filters)
            stack.callback(link.close)
            link.open(DEADLINE)
            event = link.receive(DEADLINE)
            assert isinstance(event, Connected)
            return link

        yield make


@pytest.fixture
def messages() -> Callable[[Link, int], list[Message]]:
    """`messages(link, count)`: the next events, all of which must be messages."""

    def receive(link: Link, count: int) -> list[Message]:
        received = [link.receive(DEADLINE) for _ in range(count)]
        assert all(isinstance(event, Message) for event in received), received
        return [event for event in received if isinstance(event, Message)]

    return receive


@pytest.fixture
def public_path(tmp_path: Path) -> Path:
    """A directory that Mosquitto's user may enter, unlike pytest's own."""
    return open_to_all(tmp_path)
