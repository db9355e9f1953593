# SPDX-License-Identifier: Apache-2.0
"""`splitee page` of a real fleet on a real broker, in a real browser, through the deaths of its processes."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from browser import overflow, tab
from fleets import Fleet
from playwright.sync_api import Browser, expect
from retained_fleet import rollout

from splitee.mqtt.link import Link
from splitee.protocol import routes
from splitee.protocol.accuracies import ClassRecall, ConfusionMatrix
from splitee.protocol.fleet import (
    DeviceFigures,
    DeviceMetrics,
    DeviceStatus,
    Metrics,
    Profile,
    ServerStatus,
)
from splitee.protocol.inference import LastPrediction, ModelReport, PredictedState, Serving
from splitee.protocol.rollouts import DeviceUpdate, Rollouts, Update
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RunningBroker

FIVE_SECONDS = 5_000  # milliseconds
LONG = 90_000  # milliseconds for a fleet to start or to train
EVIL = "\u202e</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2066" + "w" * 120
ENDLESS = 5_000  # rounds
ROUND = "Number(document.querySelector('.headline')?.textContent.match(/Round ([0-9]+)/)?.[1] ?? 0)"


def url_of(fleet: Fleet, listen: str = "127.0.0.1:0") -> str:
    """The URL of `splitee page`, once it is served."""
    serving = re.compile(r"fleet \S+: (http://\S+)")
    fleet.start("page", "page", *fleet.link, "--listen", listen)
    deadline = time.monotonic() + LONG / 1000
    log = fleet.directory / "page.log"
    while not log.exists() or not (found := serving.findall(log.read_text())):
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no log"
        time.sleep(0.05)
    return str(found[-1])


def kill(fleet: Fleet, name: str) -> None:
    fleet.processes[name].send_signal(signal.SIGKILL)
    fleet.processes[name].wait()


@pytest.mark.mosquitto
@pytest.mark.slow(25)
def test_page_follows_a_fleet_whose_processes_die_and_restart(
    mosquitto_broker: RunningBroker, browser: Browser, tmp_path: Path
) -> None:
    with Fleet(str(mosquitto_broker.address), "watched-page", tmp_path) as fleet:
        url = url_of(fleet)
        with tab(browser, url) as page:
            expect(page.locator(".headline")).to_contain_text("has connected yet")
            fleet.server(rounds=ENDLESS)
            fleet.three_devices()
            trained = re.compile("^[2-9] of|^[1-9][0-9]+ of")
            expect(page.locator(".glance dd b").first).to_have_text(trained, timeout=LONG)
            expect(page.locator("[data-id] .strip")).to_have_count(3)
            expect(page.get_by_role("img", name="Accuracy of the fleet")).to_be_visible()
            expect(page.locator(".events")).to_contain_text(re.compile(r"round \d+ evaluated"))

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
            expect(page.locator(".trouble")).to_contain_text("The page's server has not replied since")
            assert url_of(fleet, url.removeprefix("http://").rstrip("/")) == url
            expect(page.locator(".trouble")).to_have_count(0)
            expect(page.locator("[data-id] .state.good")).to_have_count(3)


@pytest.mark.mosquitto
@pytest.mark.slow(6)
def test_messages_of_hostile_members_are_shown_as_text(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], browser: Browser, tmp_path: Path
) -> None:
    topics, link = Topics("hostile-page"), make_link(mosquitto_broker.address, "hostile-member")
    of_device = partial(topics.device, "pi-1")
    run = RunSpec(protocol=1, run="r1", network=EVIL, num_classes=2, rounds=5, class_names=(EVIL, "b"))
    profile = Profile(
        protocol=1,
        instance=1,
        version=EVIL,
        cut=1,
        class_names=(EVIL, "b"),
        train_samples=9,
        held_out_samples=9,
    )
    figures = DeviceMetrics(
        cut=1, stage=EVIL, train_samples=9, held_out_samples=9, weakest_class=ClassRecall(EVIL, 9, 0.5)
    )
    matrix = ConfusionMatrix((0, 1), ((4, 5), (0, 0)))
    last = LastPrediction(EVIL, 0.9, "exit", 1.0)
    report = ModelReport("ab" * 32, "failed", EVIL, run=EVIL)
    sent = {
        topics.run: run,
        topics.server_status: ServerStatus("online", 1, "r1", EVIL),
        topics.metrics: Metrics("r1", 1, 5, 1.0, 9, 0),
        of_device("status"): DeviceStatus("online", 1),
        of_device("profile"): profile,
        of_device("metrics"): DeviceFigures("r1", 1, figures, matrix),
        of_device("serving"): Serving("online", 1, last=(last,)),
        of_device("model"): report,
        of_device("update"): DeviceUpdate(software=Update(EVIL, EVIL, "failed", 1, 2, EVIL)),
        of_device("state"): PredictedState(EVIL, 0.9, 1.0, 1.0),
        routes.ROLLOUTS.topic(topics): Rollouts((rollout(version=EVIL, reason=EVIL),)),
    }
    for topic, message in sent.items():
        link.publish(topic, message.encode(), retain=True)
    with (
        Fleet(str(mosquitto_broker.address), "hostile-page", tmp_path) as fleet,
        tab(browser, url_of(fleet)) as page,
    ):
        page.on("dialog", lambda dialog: pytest.fail("a script of the wire has run"))
        page.get_by_role("button", name="pi-1").first.click()
        details = page.get_by_role("dialog")
        for part in ("Weakest class", "Version", "Because", "Latest software", "Software: because", "State"):
            expect(details.locator(".known > div", has_text=part).last).to_contain_text(EVIL)
        expect(details.get_by_role("table", name="Last predictions")).to_contain_text(EVIL)
        expect(details.get_by_role("columnheader", name=EVIL)).to_have_count(1)
        expect(page.locator("header .facts")).to_contain_text(EVIL)
        expect(page.locator("article.rollout")).to_contain_text(EVIL)
        expect(page.locator(".updates").last).to_contain_text(EVIL)
        assert page.locator("bdi", has_text=EVIL).count() >= 14
        assert overflow(page) == 0
