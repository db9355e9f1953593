# SPDX-License-Identifier: Apache-2.0
"""Labelling in a real browser: by keys, by touch, beside a second browser, and during failures."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from browser import violations
from label_browser import open_page
from labels import contents, not_writable, write_images, write_model
from open_files import open_to_all
from playwright.sync_api import Browser, Page, expect
from sites import served
from waiting import until

from splitee_device.labelling.labeller import Labeller
from splitee_device.labelling.page import LabelPage
from splitee_device.labelling.scores import Scores
from splitee_web.listening import ListenOptions

pytestmark = pytest.mark.slow(5)

HERE = ListenOptions("127.0.0.1", 0)
HOSTILE = "<img src=x onerror=document.title=1>"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """`data` with the classes a and b."""
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path


@contextmanager
def page_of(place: Path, *, model: bool = True) -> Iterator[str]:
    """The page of the images in `new`, served by this process."""
    scores = Scores(write_model(place / "model") if model else None, None, 1)
    with closing(Labeller(place / "data", [place / "new"], scores.guess)) as labeller:
        scores.open(labeller)
        with served(LabelPage(labeller, scores).make_app(HERE), HERE) as url:
            yield url


def tiles(page: Page) -> list[str]:
    """The names of the images that are shown."""
    return page.eval_on_selector_all(".tile", "all => all.map(one => one.title)")


def expect_tiles(page: Page, count: int) -> None:
    expect(page.locator(".tile")).to_have_count(count)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Process:
    """`splitee label` as a process that uses the same port at each start."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._port = 0
        self.start()

    def start(self) -> None:
        command = "from splitee.cli.main import main; main()"
        paths = ["--data", self._place / "data", "--unlabelled", self._place / "new"]
        arguments = ["label", *paths, "--listen", f"127.0.0.1:{self._port}"]
        with (self._place / "log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", command, *map(str, arguments)], stderr=log, env=os.environ
            )
        until(lambda: self._address() is not None, (self._place / "log").read_text)
        self._port = int(str(self._address()).rpartition(":")[2])

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/"

    def _address(self) -> str | None:
        assert self._process.poll() is None, (self._place / "log").read_text()
        found = re.search(r"http://127.0.0.1:\d+", (self._place / "log").read_text())
        return found and found[0]


@pytest.mark.slow(20)
def test_two_hundred_images_are_labelled_by_keys_through_kills_without_loss(
    browser: Browser, place: Path
) -> None:
    write_images(place / "new", 200)
    before = contents(place).keys()
    process = Process(place)
    try:
        with open_page(browser, process.url) as page:
            for pressed in range(200):
                page.wait_for_selector(".tile:focus")
                page.keyboard.press("12"[pressed % 2])
                if pressed in (60, 120):
                    process.kill()
                if pressed in (70, 125):
                    expect(page.get_by_role("alert").first).to_contain_text("does not reply")
                    process.start()
            expect(page.locator("#facts")).to_contain_text("0 images to label")
            expect(page.locator("#facts")).to_contain_text("200 labelled")
            expect(page.locator("#trouble")).to_be_empty()
            expect(page.locator("#to-label")).to_be_focused()
            assert contents(place).keys() == before
            assert len(files(place / "data" / "a")) == len(files(place / "data" / "b")) == 100
            for _ in range(3):
                page.keyboard.press("Backspace")
            expect_tiles(page, 3)
            expect(page.locator(".tile:focus")).to_have_count(1)
    finally:
        process.kill()
    assert contents(place).keys() == before
    assert all(len(where) == 1 for where in contents(place).values())


def test_keys_label_selected_images_add_a_class_and_undo(browser: Browser, place: Path) -> None:
    write_images(place / "new", 12)
    with page_of(place) as url, open_page(browser, url) as page:
        expect_tiles(page, 12)
        page.keyboard.press("Space")
        page.keyboard.press("Shift+ArrowRight")
        page.keyboard.press("Shift+ArrowRight")
        expect(page.locator("#to-label")).to_have_text("To label, 3 selected")
        page.keyboard.press("0")
        expect_tiles(page, 9)
        expect(page.get_by_role("button", name=re.compile("None of these 3"))).to_be_visible()
        page.keyboard.press("+")
        page.keyboard.type("third")
        page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("There is a new class: third.")
        page.keyboard.press("Control+a")
        page.keyboard.press("3")
        expect_tiles(page, 0)
        expect(page.get_by_role("button", name=re.compile("third 9"))).to_be_visible()
        page.keyboard.press("Control+z")
        expect_tiles(page, 9)
        page.keyboard.press("Backspace")
        expect_tiles(page, 12)
    assert files(place / "data" / "third") == []


def test_images_are_labelled_by_touch_on_a_phone(browser: Browser, place: Path) -> None:
    write_images(place / "new", 9)
    with page_of(place) as url, open_page(browser, url, width=400, phone=True) as page:
        expect_tiles(page, 9)
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        for place_of_tile in (0, 2):
            page.locator(".tile").nth(place_of_tile).tap()
        expect(page.locator("#to-label")).to_have_text("To label, 2 selected")
        page.get_by_role("button", name=re.compile("^b 0")).tap()
        expect_tiles(page, 7)
        expect(page.get_by_role("button", name=re.compile("^b 2"))).to_be_visible()
    assert len(files(place / "data" / "b")) == 2


def test_dot_key_labels_each_selected_image_with_its_prediction(browser: Browser, place: Path) -> None:
    write_images(place / "new", 8)
    with page_of(place) as url, open_page(browser, url) as page:
        expect(page.locator(".tile .guess").first).to_contain_text("%")
        guessed = page.eval_on_selector_all(".tile", "all => all.map(one => one.image.guesses[0].label)")
        page.keyboard.press("Control+a")
        page.keyboard.press(".")
        expect_tiles(page, 0)
        until(lambda: len(files(place / "data" / "a")) == guessed.count("a"))
        until(lambda: len(files(place / "data" / "b")) == guessed.count("b"))


def test_image_is_labelled_by_key_in_the_large_view(browser: Browser, place: Path) -> None:
    write_images(place / "new", 3)
    with page_of(place) as url, open_page(browser, url) as page:
        expect_tiles(page, 3)
        page.keyboard.press("Enter")
        page.keyboard.press("1")
        expect_tiles(page, 2)
        expect(page.locator("#large-name")).to_contain_text(tiles(page)[0])
        page.keyboard.press("Escape")
        expect(page.locator(".tile:focus")).to_have_count(1)


def test_second_browser_shows_label_and_undo_of_the_first(browser: Browser, place: Path) -> None:
    write_images(place / "new", 6)
    with page_of(place) as url, open_page(browser, url) as one, open_page(browser, url) as other:
        expect_tiles(one, 6)
        expect_tiles(other, 6)
        one.keyboard.press("1")
        expect_tiles(other, 5)
        expect(other.get_by_role("status")).to_contain_text("labelled a in another browser")
        expect(other.locator(".tile:focus")).to_have_count(1)
        one.keyboard.press("Backspace")
        expect_tiles(other, 6)
        expect(other.get_by_role("status")).to_contain_text("Undone in another browser")


def test_image_deleted_while_shown_is_reported_and_removed(browser: Browser, place: Path) -> None:
    paths = write_images(place / "new", 4)
    with page_of(place) as url, open_page(browser, url) as page:
        expect_tiles(page, 4)
        page.wait_for_selector(".tile:focus")
        next(path for path in paths if path.name == tiles(page)[0]).unlink()
        expect(page.get_by_role("status")).to_contain_text("no longer there")
        expect_tiles(page, 3)
        expect(page.locator(".tile:focus")).to_have_count(1)
        page.keyboard.press("1")
        expect_tiles(page, 2)


def test_unwritable_folder_is_reported_and_its_images_are_kept(browser: Browser, public_path: Path) -> None:
    for name in "ab":
        (public_path / "data" / name).mkdir(parents=True)
    write_images(public_path / "new", 3)
    write_model(public_path / "model")
    open_to_all(public_path)
    before = contents(public_path)
    with page_of(public_path) as url, open_page(browser, url) as page:
        expect_tiles(page, 3)
        with not_writable(public_path / "data"):
            page.keyboard.press("1")
            expect(page.locator("#trouble")).to_contain_text("1 image stays where it was: cannot write")
            expect_tiles(page, 3)
        assert contents(public_path) == before
        page.keyboard.press("1")
        expect_tiles(page, 2)
        expect(page.locator("#trouble")).to_be_empty()


@pytest.mark.parametrize("hostile", [HOSTILE, "\u202egnp.evil", "x" * 190])
def test_hostile_names_are_shown_as_plain_text(browser: Browser, place: Path, hostile: str) -> None:
    (place / "data" / hostile).mkdir()
    write_images(place / "data" / hostile, 6)
    write_images(place / "data" / "a", 6)
    write_images(place / "new", 1, start=50, name=f"{hostile[:100]}.png")
    with page_of(place) as url:
        for width in (1300, 400):
            with open_page(browser, url, width=width) as page:
                expect_tiles(page, 1)
                page.click("#measure")
                page.click("summary")
                assert page.title() == "Label images"
                assert page.locator("img[src=x]").count() == 0
                assert "\u202e" not in page.inner_text("body")
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                page.keyboard.press("Escape")
        with open_page(browser, url) as page:
            expect_tiles(page, 1)
            at = page.eval_on_selector_all(
                "#classes button", "all => all.findIndex(one => one.title.length > 5)"
            )
            page.locator("#classes button").nth(at).click()
            expect_tiles(page, 0)
    assert len(files(place / "data" / hostile)) == 7


def test_learning_curve_is_drawn_and_labels_are_exported(browser: Browser, place: Path) -> None:
    for name in "ab":
        write_images(place / "data" / name, 12, start=ord(name) * 100)
    write_images(place / "new", 1)
    with page_of(place, model=False) as url, open_page(browser, url, theme="dark") as page:
        page.click("#measure")
        page.click("summary")
        expect(page.locator("#enough svg")).to_be_visible()
        page.select_option("#enough select", "1")
        expect(page.locator("#enough svg .class")).to_have_count(1)
        expect(page.locator("#enough")).to_contain_text("the next 50 labels would add")
        with page.expect_download() as download:
            page.get_by_text("Export labels.csv").click()
        assert len(Path(download.value.path()).read_text().splitlines()) == 25


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 400])
def test_page_has_no_accessibility_violations(browser: Browser, place: Path, width: int, theme: str) -> None:
    """By axe-core: names, contrast, roles; with images selected, a dialog open, and no image left."""
    for name in "ab":
        write_images(place / "data" / name, 6, start=ord(name) * 100)
    write_images(place / "new", 4)
    (place / "new" / "broken.png").write_bytes(b"none")
    with page_of(place) as url, open_page(browser, url, width=width, theme=theme) as page:
        expect(page.locator(".unreadable")).to_have_count(1)
        page.keyboard.press("Space")
        page.click("#measure")
        page.click("summary")
        assert violations(page) == []
        page.keyboard.press("?")
        assert violations(page) == []
        page.keyboard.press("Escape")
        page.keyboard.press("Control+a")
        page.keyboard.press("0")
        expect_tiles(page, 0)
        assert violations(page) == []
