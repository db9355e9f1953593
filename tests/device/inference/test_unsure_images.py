# SPDX-License-Identifier: Apache-2.0
"""The store of uncertain images is bounded, keeps a view once, and does no harm when it fails."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from commands import call
from fakes import FakeClock
from labels import write_images

from splitee.errors import ExitCode
from splitee.inference.predictor import Prediction
from splitee.samples.fitting import Pixels, Preparation
from splitee.samples.images import load_image
from splitee_device.inference.unsure_images import Bounds, UnsureImages, kept_guess

EVERY = 10.0
SEEN = Preparation((3, 8, 8))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path / "images", 30)


def prediction(entropy: float) -> Prediction:
    return Prediction("cat", 0.4, entropy, "exit", 1.0)


def offer(store: UnsureImages, path: Path, entropy: float, pixels: Pixels | None = None) -> None:
    seen = load_image(path, SEEN) if pixels is None else pixels
    store.offer(path.name, path, seen, prediction(entropy), 0.5)


def kept(folder: Path) -> list[str]:
    """The images' own names, the oldest first."""
    names = sorted(path.name for path in folder.glob("*.png")) if folder.exists() else []
    return [name.partition("-")[2] for name in names]


def test_most_uncertain_image_of_each_interval_is_kept_with_its_prediction(
    tmp_path: Path, clock: FakeClock, images: list[Path]
) -> None:
    store = UnsureImages(tmp_path / "unsure", Bounds(every=EVERY), clock=clock)
    offer(store, images[0], 0.4)  # below the threshold
    store.tick()
    assert kept(tmp_path / "unsure") == []
    for path, entropy in zip(images[1:4], (0.6, 0.9, 0.7), strict=True):
        offer(store, path, entropy)
    store.tick()
    offer(store, images[4], 0.8)
    store.tick()
    assert kept(tmp_path / "unsure") == ["0002.png"]
    clock.advance(EVERY)
    store.tick()
    assert kept(tmp_path / "unsure") == ["0002.png", "0004.png"]
    [first, _] = sorted((tmp_path / "unsure").glob("*.png"))
    assert first.read_bytes() == images[2].read_bytes()
    guess = kept_guess(first)
    assert guess is not None and (guess.label, guess.entropy) == ("cat", 0.9)
    assert kept_guess(images[0]) is None


def test_image_larger_than_the_store_is_not_kept_and_removes_no_other(
    tmp_path: Path, clock: FakeClock, images: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    store = UnsureImages(tmp_path / "unsure", Bounds(size=images[0].stat().st_size, every=EVERY), clock=clock)
    offer(store, images[0], 0.6)
    store.tick()
    clock.advance(EVERY)
    large = tmp_path / "large.png"
    large.write_bytes(images[1].read_bytes() + bytes(images[0].stat().st_size))
    offer(store, large, 0.9)
    store.tick()
    assert kept(tmp_path / "unsure") == [images[0].name]
    assert "an uncertain image was not kept: it has " in caplog.text


def test_same_view_in_other_light_is_kept_once(tmp_path: Path, clock: FakeClock, images: list[Path]) -> None:
    """The same view, brighter, darker, and with noise."""
    store = UnsureImages(tmp_path / "unsure", Bounds(every=EVERY), clock=clock)
    random = np.random.default_rng(0)
    view = random.integers(60, 180, (3, 32, 32))
    for number in range(30):
        noise = random.integers(-3, 4, view.shape)
        pixels = ((0.5 + number / 60) * view + noise).clip(0, 255).astype(np.uint8)
        offer(store, images[number], 0.9, pixels)
        clock.advance(EVERY)
        store.tick()
    assert kept(tmp_path / "unsure") == ["0000.png"]


def test_oldest_images_are_deleted_beyond_the_bounds_of_count_and_bytes(
    tmp_path: Path, clock: FakeClock, images: list[Path]
) -> None:
    size = max(path.stat().st_size for path in images)
    for bounds in (Bounds(count=5, every=EVERY), Bounds(size=5 * size, every=EVERY)):
        folder = tmp_path / f"unsure-{bounds.count}"
        store = UnsureImages(folder, bounds, clock=clock)
        for path in images[:12]:
            offer(store, path, 0.9)
            clock.advance(EVERY)
            store.tick()
        names = kept(folder)
        assert 5 <= len(names) <= 6
        assert names == [path.name for path in images[12 - len(names) : 12]]
        assert sum(path.stat().st_size for path in folder.glob("*.png")) <= bounds.size
        assert len(list(folder.glob(".*.json"))) == len(names)


def test_owners_files_in_the_folder_stay_and_do_not_count(
    tmp_path: Path, clock: FakeClock, images: list[Path]
) -> None:
    folder = tmp_path / "unsure"
    owned = [*write_images(folder, 5), folder / ".notes.json"]
    owned[-1].write_text("{}")
    store = UnsureImages(folder, Bounds(count=2, every=EVERY), clock=clock)
    for path in images[10:14]:
        offer(store, path, 0.9)
        clock.advance(EVERY)
        store.tick()
    assert kept(folder)[-2:] == ["0012.png", "0013.png"]
    assert len([path for path in folder.glob("*.png") if path not in owned]) == 2
    assert all(path.exists() for path in owned)


def test_image_that_became_a_fifo_is_skipped_without_waiting(
    tmp_path: Path, clock: FakeClock, images: list[Path]
) -> None:
    store = UnsureImages(tmp_path / "unsure", Bounds(every=EVERY), clock=clock)
    fifo = tmp_path / "fifo.png"
    os.mkfifo(fifo)
    offer(store, fifo, 0.9, load_image(images[0], SEEN))
    store.tick()
    assert kept(tmp_path / "unsure") == []


def test_unwritable_folder_is_logged_in_one_line(
    tmp_path: Path, clock: FakeClock, images: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "unsure").write_bytes(b"no folder")
    store = UnsureImages(tmp_path / "unsure", Bounds(every=EVERY), clock=clock)
    offer(store, images[0], 0.9)
    store.tick()
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "an uncertain image was not kept" in record.getMessage()


@pytest.mark.parametrize(
    "name",
    [
        "../../evil.png",
        "camera",
        "\x1b[2J.png",
        "caf\udce9.png",
        "x" * 300 + ".png",
        "\N{SNOWMAN}" + "\u732b" * 80,
    ],
)
def test_hostile_image_names_stay_within_the_folder_and_are_printable(
    tmp_path: Path, clock: FakeClock, images: list[Path], name: str
) -> None:
    store = UnsureImages(tmp_path / "unsure", Bounds(every=EVERY), clock=clock)
    store.offer(name, images[0].read_bytes(), load_image(images[0], SEEN), prediction(0.9), 0.5)
    store.tick()
    [path] = [path for path in (tmp_path / "unsure").iterdir() if not path.name.startswith(".")]
    assert path.name.isprintable()
    assert path.read_bytes() == images[0].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--keep-unsure", "{}/unsure"], "--keep-unsure does nothing without --watch, --camera or --stdin"),
        (["--watch", "{}", "--keep-count", "5"], "--keep-count does nothing without --keep-unsure"),
        (["--watch", "{}", "--keep-unsure", "{}"], "are the same folder"),
    ],
)
def test_conflicting_keep_unsure_flags_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    given = [argument.format(tmp_path) for argument in arguments]
    code, line = call(capsys, "infer", "--id", "pi-1", "--models", str(tmp_path / "models"), *given)
    assert (code, said in line) == (ExitCode.CONFIG, True), line
