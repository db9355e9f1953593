# SPDX-License-Identifier: Apache-2.0
"""Images that are added to a folder and removed from it while a device takes part."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from image_folders import png, write_folder, write_parquet

from splitee.samples.images import content_digest
from splitee_device.agent.phase import Superseded
from splitee_device.data.device_images import DeviceImages
from splitee_device.data.division import FILE, Division, keep_division, read_division
from splitee_device.data.images import DeviceData, open_data

SHAPE = (1, 6, 6)
SHARE = 0.2


def opening(root: Path, division: Division | None, share: float = SHARE) -> DeviceData:
    return open_data(str(root), input_shape=SHAPE, holdout=share, division=division)


def images_of(root: Path) -> DeviceImages:
    return DeviceImages(partial(opening, root), None, (root,))


def division_of(images: DeviceImages) -> Division:
    assert images.data.division is not None
    return images.data.division


def add(root: Path, name: str, count: int, first: int = 100) -> set[str]:
    """Adds images; returns their digests."""
    paths = [root / name / f"{number}.png" for number in range(first, first + count)]
    for number, path in enumerate(paths, start=first):
        path.write_bytes(png(number))
    return set(map(content_digest, paths))


def files(root: Path, digests: Iterable[str]) -> list[Path]:
    return [path for path in sorted(root.glob("*/*")) if content_digest(path) in set(digests)]


def test_images_keep_their_use_when_images_are_added_or_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_folder(tmp_path, {"a": 20, "b": 10})
    images = images_of(tmp_path)
    before = division_of(images)
    assert (len(before.held_out), len(before.training)) == (6, 24)
    assert not images.refresh()

    new = add(tmp_path, "a", 10) | add(tmp_path, "b", 20, first=200)
    assert images.refresh()
    after = division_of(images)
    assert before.held_out < after.held_out and before.training < after.training
    assert after.held_out - before.held_out < new
    assert (len(images.data.held_out), len(images.data.train)) == (12, 48)
    assert (
        "images: 30 have come, 0 have gone; from the next round on 48 to train on, 12 held out" in caplog.text
    )

    for path in files(tmp_path, after.training)[:5]:
        path.unlink()
    assert images.refresh()
    assert division_of(images).held_out == after.held_out
    assert len(images.data.train) == 43
    assert not images.refresh()


def test_division_survives_a_restart_unless_the_share_changes(tmp_path: Path) -> None:
    root, state = tmp_path / "images", tmp_path / "state"
    state.mkdir()
    write_folder(root, {"a": 20, "b": 20})
    first = opening(root, read_division(state, SHARE)).division
    assert first is not None
    keep_division(state, first)
    add(root, "a", 40)
    again = opening(root, read_division(state, SHARE)).division
    assert again is not None
    assert first.held_out < again.held_out and first.training < again.training
    assert read_division(state, 0.5) == Division(0.5, seed=0)
    other = opening(root, read_division(state, 0.5), share=0.5)
    assert len(other.held_out) == 40


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"share": "x", "held_out": [], "training": []}'])
def test_damaged_division_is_replaced_by_an_empty_one(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_division(tmp_path, SHARE) == Division(SHARE)
    assert f"{FILE}: " in caplog.text


def test_removed_held_out_images_are_replaced_by_others(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 10, "b": 10})
    images = images_of(tmp_path)
    for path in files(tmp_path, division_of(images).held_out):
        path.unlink()
    assert images.refresh()
    assert sorted(images.data.held_out.labels.tolist()) == [0, 0, 1, 1]
    assert not division_of(images).held_out & division_of(images).training


def test_moved_copied_or_returning_images_keep_their_use(tmp_path: Path) -> None:
    """A label is corrected, an image is removed and returns under another name, a copy is made."""
    root, away = tmp_path / "images", tmp_path / "away.png"
    write_folder(root, {"a": 20, "b": 20})
    images = images_of(root)
    before = division_of(images)
    for number, digests in enumerate((before.held_out, before.training)):
        relabelled, moved, copied = [path for path in files(root, digests) if path.parent.name == "a"][:3]
        relabelled.rename(root / "b" / f"relabelled-{number}.png")
        copied.with_name(f"copy-{number}.png").write_bytes(copied.read_bytes())
        moved.rename(away)
        assert images.refresh()
        away.rename(root / "a" / f"back-{number}.png")
        assert images.refresh()
    after = division_of(images)
    assert (after.held_out, after.training) == (before.held_out, before.training)
    assert (len(images.data.held_out), len(images.data.train)) == (8 + 1, 32 + 1)


def test_copies_of_an_image_have_one_use_from_the_first_opening_on(tmp_path: Path) -> None:
    """Pairs of equal images in one class, and one image in both: a restart must not change their use."""
    write_folder(tmp_path, {"a": 40, "b": 40})
    for path in files(tmp_path, {content_digest(path) for path in (tmp_path / "a").iterdir()}):
        path.with_name(f"{path.stem}-copy.png").write_bytes(path.read_bytes())
    for path in sorted((tmp_path / "b").iterdir())[:20]:
        (tmp_path / "a" / f"{path.stem}-of-b.png").write_bytes(path.read_bytes())
    first = opening(tmp_path, None)
    again = opening(tmp_path, first.division)
    for data in (first, again):
        held_out, train = (
            {content_digest(Path(part.name(number))) for number in range(len(part))}
            for part in (data.held_out, data.train)
        )
        assert held_out and not held_out & train
    assert first.division == again.division
    assert [first.train.name(number) for number in range(len(first.train))] == [
        again.train.name(number) for number in range(len(again.train))
    ]
    assert np.bincount(first.held_out.labels).min() >= 3


def test_division_by_path_of_an_older_version_is_followed(tmp_path: Path) -> None:
    root, state = tmp_path / "images", tmp_path / "state"
    state.mkdir()
    write_folder(root, {"a": 10, "b": 10})
    paths = [f"{path.parent.name}/{path.name}" for path in sorted(root.glob("*/*"))]
    aside = paths[3:6] + paths[12:15]
    content = {"share": SHARE, "held_out": aside, "training": sorted(set(paths) - set(aside))}
    (state / FILE).write_text(json.dumps(content))
    data = opening(root, read_division(state, SHARE))
    assert [Path(data.held_out.name(number)).relative_to(root).as_posix() for number in range(6)] == aside


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_division_does_not_change_with_the_seed_of_a_later_run(tmp_path: Path, kind: str) -> None:
    """The later run may continue from the weights of the first."""
    source, state = tmp_path / "images", tmp_path / "state"
    state.mkdir()
    if kind == "folder":
        write_folder(source, {"a": 20, "b": 20})
    else:
        write_parquet(source, [png(number) for number in range(40)], [0, 1] * 20)
    first, second = (
        open_data(str(source), input_shape=SHAPE, seed=seed, division=read_division(state, 0.1), holdout=0.1)
        for seed in (1, 1)
    )
    assert first.division is not None
    keep_division(state, first.division)
    later = open_data(str(source), input_shape=SHAPE, seed=2, division=read_division(state, 0.1), holdout=0.1)
    shown = [data.held_out.in_memory().images.tobytes() for data in (first, second, later)]
    assert shown[0] == shown[1] == shown[2]


def test_class_with_only_held_out_images_left_has_no_training_images(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 10, "b": 10})
    images = images_of(tmp_path)
    before = division_of(images)
    for path in files(tmp_path, before.training):
        if path.parent.name == "a":
            path.unlink()
    assert images.refresh()
    assert division_of(images).held_out == before.held_out
    assert set(images.data.train.labels.tolist()) == {1}


def test_tick_is_called_while_images_are_read_and_decoded(tmp_path: Path) -> None:
    """A device does not fall silent while it reads a large folder."""
    write_folder(tmp_path, {"a": 80, "b": 80})
    ticks: list[None] = []
    open_data(str(tmp_path), input_shape=SHAPE, tick=lambda: ticks.append(None))
    assert len(ticks) == 3 + 3 + 1  # reading 160 for their digests; decoding 144 and 16


def test_new_images_whose_reading_was_interrupted_are_read_again(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 10, "b": 10})
    is_superseded = False

    def tick() -> None:
        if is_superseded:
            raise Superseded

    def open_with(division: Division | None) -> DeviceData:
        return open_data(str(tmp_path), input_shape=SHAPE, division=division, tick=tick)

    images = DeviceImages(open_with, None, (tmp_path,))
    add(tmp_path, "a", 10)
    is_superseded = True
    with pytest.raises(Superseded):
        images.refresh()
    is_superseded = False
    assert images.refresh()
    assert len(images.data.train) + len(images.data.held_out) == 30
    assert not images.refresh()


def test_irregular_file_is_identified_by_its_path_without_blocking(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a": 10, "b": 10})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert "a/pipe.png" in division_of(images_of(tmp_path)).present


def test_changed_classes_or_a_missing_folder_leave_the_images_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, {"a": 10, "b": 10})
    images = images_of(tmp_path)
    data = images.data
    write_folder(tmp_path, {"c": 3})
    assert not images.refresh()
    assert "classes have changed, which this run cannot follow" in caplog.text
    caplog.clear()
    assert not images.refresh() and not caplog.text, "it is said once"

    tmp_path.rename(tmp_path.with_name("unmounted"))
    assert not images.refresh()
    assert "the images have changed, but what was read before stays in use" in caplog.text
    assert images.data is data


def test_images_added_to_a_test_folder_are_held_out(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", {"a": 10, "b": 10})
    write_folder(tmp_path / "test", {"a": 2, "b": 2})

    def opened(division: Division | None) -> DeviceData:
        return open_data(
            str(tmp_path / "train"), test=str(tmp_path / "test"), input_shape=SHAPE, division=division
        )

    images = DeviceImages(opened, None, (tmp_path / "train", tmp_path / "test"))
    add(tmp_path / "test", "b", 4)
    assert images.refresh()
    assert (len(images.data.train), len(images.data.held_out)) == (20, 8)
