# SPDX-License-Identifier: Apache-2.0
"""The fleet's page in a real browser: its contents, its keys, its accessibility, and its smoothness."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median

import made_up_fleets as fleets
import msgspec
import pytest
from browser import DESKTOP, PHONE, overflow, tab, violations
from frames import traced
from made_up_fleets import MadeUpPage
from playwright.sync_api import Browser, Locator, Page, ViewportSize, expect

from splitee.protocol.accuracies import ClassRecall
from splitee.protocol.fleet_view import FleetSnapshot

FIVE_SECONDS = 5_000  # milliseconds
NO_BROKER = {"connected": False, "since": 1_700_000_000.0, "text": "127.0.0.1:1883: connection refused"}
HOSTILE = "\u202e<script>alert(1)</script>&amp;\u2066" + "x" * 200

pytestmark = pytest.mark.slow(3)


@pytest.fixture
def page_of() -> Iterator[Callable[..., MadeUpPage]]:
    """Serves a made-up fleet."""
    served = []

    def serve(snapshot: FleetSnapshot, broker: object = fleets.CONNECTED, **more: object) -> MadeUpPage:
        page = MadeUpPage(snapshot, fleets.events(time.time()), broker, **more)
        served.append(page.served())
        return served[-1].__enter__()

    yield serve
    for page in served:
        page.__exit__(None, None, None)


Serve = Callable[..., MadeUpPage]


def row(page: Page, device: str) -> Locator:
    return page.locator(f'[data-id="{device}"]')


def test_main_figures_of_the_run_are_at_the_top_of_the_page(browser: Browser, page_of: Serve) -> None:
    served = page_of(fleets.training(time.time()))
    with tab(browser, served.url) as page:
        expect(page.get_by_role("heading", level=1)).to_have_text("kitchen")
        expect(page).to_have_title("kitchen: round 4 of 10")
        top = page.locator(".glance")
        for text in ("4 of 10", "71.4 %", "exit 64.0 %, trunk 70.9 %", "3 of 3", "1 needs attention", "pi-3"):
            expect(top).to_contain_text(text)
        expect(page.locator(".headline")).to_contain_text("Round 4 of 10: training, with 3 devices")
        assert top.bounding_box()["y"] < DESKTOP["height"] / 2


def test_device_row_shows_its_figures_with_units(browser: Browser, page_of: Serve) -> None:
    served = page_of(fleets.training(time.time()))
    with tab(browser, served.url) as page:
        found = " ".join(row(page, "pi-1").inner_text().split())
        for text in (
            "online", "ago", "5 of 9 layer2.1", "training", "29 of 62 batches", "0.609",
            "76.5 %", "85.1 %", "84.1 %", "shirt", "52.5 %", "53 °C", "727 MiB, 39 %", "41.0 MB",
            "92.8 Mbit/s", "no model", "version 0.1.0",
        ):  # fmt: skip
            assert text in found
        expect(row(page, "pi-3")).to_contain_text("slow, 1.44 Mbit/s")
        assert row(page, "pi-1").locator(".strip .on").get_attribute("d").count("M") == 5


def test_dead_device_is_shown_offline_in_red_and_in_words(browser: Browser, page_of: Serve) -> None:
    now = time.time()
    served = page_of(fleets.training(now))
    with tab(browser, served.url) as page:
        expect(row(page, "pi-2")).to_contain_text("online")
        served.show(fleets.dead(now))
        served.send("log", [fleets.event("offline", "offline", now, "pi-2")])
        expect(row(page, "pi-2").locator(".state.bad")).to_contain_text("offline for", timeout=FIVE_SECONDS)
        colour = row(page, "pi-2").locator(".state").evaluate("(one) => getComputedStyle(one).color")
        red, green, _ = map(int, re.findall(r"\d+", colour)[:3])
        assert red > 2 * green
        expect(page.locator(".glance")).to_contain_text("2 of 3")
        assert page.locator("[data-id]").first.get_attribute("data-id") == "pi-2"  # it needs attention first
        expect(page.locator("p[role=status]")).to_have_text("pi-2 offline")


def test_dead_server_is_reported_in_the_headline(browser: Browser, page_of: Serve) -> None:
    now = time.time()
    served = page_of(fleets.training(now))
    with tab(browser, served.url) as page:
        expect(page.locator(".headline.good, .headline.warn")).to_be_visible()
        served.show(fleets.without_server(now))
        served.send("log", [fleets.event("server-offline", "the server is offline", now)])
        headline = page.locator(".headline.bad")
        expect(headline).to_contain_text("The server is offline for", timeout=FIVE_SECONDS)
        expect(headline).to_contain_text("the run stands still at round 4")
        expect(page.locator("p[role=status]")).to_have_text("the server is offline")


def test_rollouts_are_shown_by_wave_and_devices_are_filtered_by_update(
    browser: Browser, page_of: Serve
) -> None:
    now = time.time()
    served = page_of(fleets.releasing(now))
    with tab(browser, served.url) as page:
        for text in ("Rollout spring: running, wave 2 of 3", "Rollout 0.2.0: stopped, wave 1 of 2"):
            expect(page.locator("header .facts")).to_contain_text(text)
        spring = page.get_by_role("article", name="Rollout spring")
        expect(spring).to_contain_text("model barn-7, wave 2 of 3, began 15 min ago, expires in 24 h")
        waves = spring.get_by_role("listitem")
        expect(waves.nth(1)).to_contain_text(
            "10 devices: 4 in service, 1 failed, 2 asleep, 1 late, 2 waiting"
        )
        expect(waves.nth(2)).to_contain_text("20 devices: not begun")
        widths = [one.bounding_box()["width"] for one in waves.nth(1).locator(".in-service, .failed").all()]
        assert widths[0] == pytest.approx(4 * widths[1], rel=0.05)
        stopped = page.get_by_role("article", name="Rollout 0.2.0")
        expect(stopped).to_contain_text("stopped")
        expect(stopped).to_contain_text("1 device failed, none may")
        page.get_by_text("1 earlier rollout").click()
        expect(page.get_by_role("article", name="Rollout winter")).to_contain_text("31 in service")
        expect(page.locator(".updates").first).to_contain_text("model barn-7: ○downloading 1.2 of 4.0 MB")
        expect(page.locator(".updates").last).to_contain_text("■failed: 41 lost, 9 gained of 256 images")
        expect(row(page, "pi-1")).to_contain_text("30 % of model")
        expect(row(page, "pi-1")).to_contain_text("ankle boot for 3 min")
        expect(row(page, "pi-3")).to_contain_text("model failed")
        page.get_by_role("button", name="Update failed 1").click()
        expect(page.locator("[data-id]")).to_have_count(1)
        page.get_by_role("button", name="Updating 2").click()
        expect(page.locator("[data-id]")).to_have_count(2)
        row(page, "pi-2").locator("button").click()
        details = page.get_by_role("dialog")
        for text in ("ankle boot for 3 min, 93.0 % on average", "0.2.0: trying, wave 1 of rollout 0.2.0"):
            expect(details).to_contain_text(text)
        page.keyboard.press("Escape")
        settled = replace(served.snapshot.devices[0], update=None)
        served.show(replace(served.snapshot, devices=(settled, *served.snapshot.devices[1:]), rollouts=()))
        expect(page.get_by_role("article")).to_have_count(0)
        expect(page.get_by_role("button", name="Updating 1")).to_be_visible()


def test_seasons_are_compared_in_a_table(browser: Browser, page_of: Serve) -> None:
    served = page_of(fleets.finished(time.time()), seasons=fleets.earlier_seasons())
    with tab(browser, served.url) as page:
        rows = page.get_by_role("table", name="Each run began").get_by_role("row")
        expect(rows).to_have_count(4)
        expect(rows.nth(2)).to_contain_text("72.0 %+6.0 points")
        expect(rows.nth(3)).to_contain_text("84.2 %+12.2 points")
        page.get_by_text("Class by class").click()
        expect(page.get_by_role("table", name="Share of each class")).to_contain_text("shirt50.0 %60.0 %")


def test_hostile_names_are_shown_as_text(browser: Browser, page_of: Serve) -> None:
    now = time.time()
    one = fleets.device(1, HOSTILE, now=now, stage=HOSTILE, version=HOSTILE, confusion=fleets.confusion())
    one = replace(one, weakest_class=ClassRecall(HOSTILE[:200], 10, 0.1))
    calm = fleets.fleet([one], now=now)
    run = msgspec.structs.replace(calm.run, class_names=(HOSTILE[:200], *fleets.CLASSES[1:]))
    served = page_of(replace(calm, fleet=HOSTILE, run=run))
    for viewport in (DESKTOP, PHONE):
        with tab(browser, served.url, viewport) as page:
            page.on("dialog", lambda dialog: pytest.fail("a script of the wire has run"))
            expect(page.get_by_role("heading", level=1)).to_have_text(HOSTILE)
            button = page.locator("[data-id] button")
            expect(button).to_have_text(HOSTILE)
            assert button.get_attribute("title") == HOSTILE
            served.send("log", [fleets.event("offline", HOSTILE, now, HOSTILE)])
            expect(page.locator(".events li").first).to_contain_text(HOSTILE)
            assert overflow(page) == 0
            button.click()
            expect(page.locator("dialog h2")).to_have_text(HOSTILE)
            assert overflow(page) == 0
            inner = page.locator("dialog").evaluate("(one) => one.scrollWidth - one.clientWidth")
            assert inner == 0
            assert page.locator("bdi", has_text="<script>").count() > 5
            assert page.evaluate("document.scripts.length") == 1


def test_keyboard_alone_filters_devices_and_opens_and_closes_one(browser: Browser, page_of: Serve) -> None:
    served = page_of(fleets.many(time.time(), 60))
    with tab(browser, served.url, reduced_motion="reduce") as page:
        page.get_by_role("searchbox", name="Find devices").focus()
        page.keyboard.type("camera-003")
        expect(page.get_by_role("table", name="Devices")).to_have_attribute("aria-rowcount", "13")
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('[data-id]') !== null"):
                break
        for device in ("camera-0030", "camera-0032"):
            page.keyboard.press("ArrowDown")
            expect(row(page, device).locator("button")).to_be_focused()
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_contain_text("camera-0032")
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(row(page, "camera-0032").locator("button")).to_be_focused()
        page.keyboard.press("End")
        expect(row(page, "camera-0039").locator("button")).to_be_focused()


def test_details_survive_a_reload_and_close_on_going_back(browser: Browser, page_of: Serve) -> None:
    served = page_of(fleets.finished(time.time()))
    with tab(browser, served.url) as page:
        row(page, "pi-1").locator("button").click()
        details = page.get_by_role("dialog")
        for text in (
            "21.5 a minute",
            "48.2 ms",
            "18.0 %",
            "T-shirt/top",
            "Raspberry Pi 5",
            "in service, round 10",
            "0.412",
        ):
            expect(details).to_contain_text(text)
        page.reload()
        expect(details).to_contain_text("21.5 a minute")
        page.go_back()
        expect(details).to_have_count(0)


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_has_no_accessibility_violations(
    browser: Browser, page_of: Serve, viewport: ViewportSize, theme: str
) -> None:
    now = time.time()
    served = page_of(fleets.dead(now))
    with tab(browser, served.url, viewport, theme) as page:
        expect(row(page, "pi-2")).to_be_attached()
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert violations(page) == []
        served.show(fleets.finished(now))
        expect(page.locator(".glance")).to_contain_text("over")
        served.show(fleets.releasing(now))
        expect(page.get_by_role("article", name="Rollout spring")).to_be_visible()
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert violations(page) == []
        row(page, "pi-3").locator("button").click()
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert violations(page) == []
        assert overflow(page) == 0


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_page_without_broker_and_devices_shows_the_connection_error(
    browser: Browser, page_of: Serve, viewport: ViewportSize
) -> None:
    served = page_of(fleets.empty(time.time()), NO_BROKER)
    with tab(browser, served.url, viewport) as page:
        expect(page.locator(".trouble")).to_contain_text("No connection to the broker since")
        expect(page.locator(".trouble")).to_contain_text("connection refused")
        expect(page.locator(".headline")).to_contain_text("has connected yet")
        assert violations(page) == []
        assert overflow(page) == 0
        served.send("broker", fleets.CONNECTED)
        expect(page.locator(".trouble")).to_have_count(0)
        served.show(fleets.training(time.time()))
        expect(page.locator("[data-id]")).to_have_count(3)


def test_page_reports_a_lost_page_server_and_recovers(browser: Browser) -> None:
    now = time.time()
    first = MadeUpPage(fleets.training(now), [], fleets.CONNECTED)
    with first.served(), tab(browser, first.url) as page:
        expect(row(page, "pi-1")).to_be_attached()
        port = int(first.url.rstrip("/").rpartition(":")[2])
        first.stop()
        expect(page.locator(".trouble")).to_contain_text(
            "The page's server has not replied since", timeout=FIVE_SECONDS
        )
        expect(row(page, "pi-1")).to_be_attached()  # the last known state is still there
        second = MadeUpPage(fleets.dead(now), [], fleets.CONNECTED, replace(first.where, port=port))
        with second.served():
            expect(page.locator(".trouble")).to_have_count(0)
            expect(row(page, "pi-2")).to_contain_text("offline for")


def test_curves_and_confusion_matrices_are_available_as_text_and_tables(
    browser: Browser, page_of: Serve
) -> None:
    served = page_of(fleets.training(time.time()))
    with tab(browser, served.url) as page:
        drawing = page.get_by_role("img", name="Accuracy of the fleet over the rounds")
        expect(drawing).to_have_attribute("aria-label", re.compile("adaptive 71.4 %.*majority class 10.0 %"))
        page.get_by_label("with the adaptive accuracy of each of 3 devices").check()
        page.get_by_text("As a table").click()
        expect(page.get_by_role("table", name="Accuracy of the fleet").get_by_role("row")).to_have_count(4)
        expect(page.get_by_role("table", name="Accuracy of the fleet")).to_contain_text("pi-2")
        page.locator("#classes ~ label select").select_option("pi-2")
        matrix = page.get_by_role("table", name="Images, by true class")
        assert matrix.get_by_role("row").nth(1).inner_text().split()[:2] == ["T-shirt/top", "90"]
        served.show(replace(served.snapshot, confusion=fleets.confusion(30)))
        page.locator("#classes ~ label select").select_option("")
        expect(page.get_by_role("img", name="Confusion matrix of the fleet, 30 classes")).to_be_visible()
        expect(page.locator(".mistakes")).to_contain_text("taken for")


def test_thousand_devices_are_filtered_sorted_and_scrolled(browser: Browser, page_of: Serve) -> None:
    served = page_of(fleets.many(time.time()))
    with tab(browser, served.url) as page:
        table = page.get_by_role("table", name="Devices")
        expect(table).to_have_attribute("aria-rowcount", "1003")
        assert page.locator("[data-id]").count() < 60
        expect(page.locator(".devices .heading").first).to_have_text("Need attention: 5 devices")
        page.get_by_role("button", name="Need attention 5").click()
        expect(page.locator("[data-id]")).to_have_count(5)
        page.get_by_role("button", name="All 1,000").click()
        page.get_by_role("button", name="Loss", exact=True).click()
        expect(page.get_by_role("columnheader", name="Loss")).to_have_attribute("aria-sort", "descending")
        page.get_by_label("Sort by").select_option("id")
        page.get_by_role("button", name="ascending").click()
        table.evaluate("(one) => { one.scrollTop = one.scrollHeight; }")
        expect(row(page, "camera-0001")).to_be_visible()
        assert violations(page) == []


@pytest.mark.slow(12)
def test_thousand_devices_scroll_smoothly_during_updates(browser: Browser, page_of: Serve) -> None:
    """A task of 50 ms or more holds a frame up; the median second of scrolling has none."""
    served = page_of(fleets.many(time.time()))
    with tab(browser, served.url) as page:
        expect(page.locator("[data-id]").first).to_be_visible()
        page.locator(".devices").hover()
        with traced(page) as trace:
            began, turn = time.monotonic(), 0
            while (passed := time.monotonic() - began) < 6:
                if 4 * passed >= turn:
                    served.show(after_a_quarter_of_a_second(served.snapshot, turn))
                    turn += 1
                page.mouse.wheel(0, 120)
                page.wait_for_timeout(16)
        print(trace)
        assert trace.drawn > 0
        assert median(trace.longest) < 50


def after_a_quarter_of_a_second(snapshot: FleetSnapshot, turn: int) -> FleetSnapshot:
    """The snapshot after messages of a quarter of the devices."""
    now = time.time()
    moved = [
        replace(one, step=(one.step + 1) % 62, seen=now) if index % 4 == turn % 4 else one
        for index, one in enumerate(snapshot.devices)
    ]
    return replace(snapshot, devices=tuple(moved))
