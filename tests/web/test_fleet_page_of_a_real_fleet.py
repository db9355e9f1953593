# SPDX-License-Identifier: Apache-2.0
"""`splitee page` of a real fleet on a real broker, in a real browser, through the deaths of its processes."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import chromium, tab
from fleets import Fleet
from playwright.sync_api import Browser, expect

from splitee_lab.local.brokers import RunningBroker

FIVE_SECONDS = 5_000  # milliseconds
LONG = 90_000  # milliseconds for a fleet to start or to train
ENDLESS = 5_000  # rounds
ROUND = "Number(document.querySelector('.headline')?.textContent.match(/Round ([0-9]+)/)?.[1] ?? 0)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


def url_of(fleet: Fleet, listen: str = "127.0.0.1:0") -> str:
    """Of `splitee page`, once it is served."""
    said = re.compile(r"fleet watched-page: (http://\S+)")
    fleet.start("page", "page", *fleet.link, "--listen", listen)
    deadline = time.monotonic() + LONG / 1000
    log = fleet.directory / "page.log"
    while not log.exists() or not (found := said.findall(log.read_text())):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.05)
    return str(found[-1])


def kill(fleet: Fleet, name: str) -> None:
    fleet.processes[name].send_signal(signal.SIGKILL)
    fleet.processes[name].wait()


@pytest.mark.mosquitto
@pytest.mark.slow(25)
def test_a_fleet_whose_processes_die_and_come_back(
    mosquitto_broker: RunningBroker, browser: Browser, tmp_path: Path
) -> None:
    with Fleet(str(mosquitto_broker.address), "watched-page", tmp_path) as fleet:
        url = url_of(fleet)
        with tab(browser, url) as page:
            expect(page.locator(".headline")).to_contain_text("has spoken yet")
            fleet.server(rounds=ENDLESS)
            fleet.three_devices()
            trained = re.compile("^[2-9] of|^[1-9][0-9]+ of")
            expect(page.locator(".glance dd b").first).to_have_text(trained, timeout=LONG)
            expect(page.locator("[data-id] .strip")).to_have_count(3)
            expect(page.get_by_role("img", name="Accuracy of the fleet")).to_be_visible()
            expect(page.locator(".events")).to_contain_text("round 1 evaluated")

            page.reload()  # in the middle of a round
            expect(page.locator("[data-id] .state.good")).to_have_count(3)

            kill(fleet, "pi-2")
            dead = page.locator('[data-id="pi-2"] .state.bad')
            expect(dead).to_contain_text("offline for", timeout=FIVE_SECONDS)
            expect(page.locator(".glance")).to_contain_text("2 of 3")
            expect(page.locator(".events")).to_contain_text("pi-2 offline")
            fleet.device("pi-2", 2, shard="2/3")
            expect(dead).to_have_count(0, timeout=LONG)

            kill(fleet, "server")
            expect(page.locator(".headline.bad")).to_contain_text(
                "The server is offline", timeout=FIVE_SECONDS
            )
            fleet.server(rounds=ENDLESS)
            expect(page.locator(".headline.bad")).to_have_count(0, timeout=LONG)
            before = page.evaluate(ROUND)
            page.wait_for_function(f"() => {ROUND} > {before}", timeout=LONG)

            kill(fleet, "page")
            (tmp_path / "page.log").unlink()
            expect(page.locator(".trouble")).to_contain_text("The page's server does not answer since")
            assert url_of(fleet, url.removeprefix("http://").rstrip("/")) == url
            expect(page.locator(".trouble")).to_have_count(0)
            expect(page.locator("[data-id] .state.good")).to_have_count(3)
