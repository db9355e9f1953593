# SPDX-License-Identifier: Apache-2.0
"""The threshold: its curve over held-out images, its choice, and how the command stores it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from trained import Trained

from splitee.errors import ConfigError, DataError, SpliteeError
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import ClientManifest, read_manifest
from splitee.inference.trunks import TrunkModels
from splitee.protocol.accuracies import ReleasedThreshold
from splitee.samples.storage import SAMPLES, Samples
from splitee_export.calibration import (
    MAX_DROP,
    Calibration,
    HeldOut,
    calibrate,
    choose,
    curve,
    paired_lower,
)
from splitee_export.commands import calibrate as command


@st.composite
def held_out(draw: st.DrawFn) -> HeldOut:
    seed, count = draw(st.integers(0, 1 << 20)), draw(st.integers(1, 300))
    generator = np.random.default_rng(seed)
    ties = draw(st.sampled_from([3, 1000]))
    uncertainty = (generator.integers(0, ties + 1, count) / ties).astype("f4")
    return HeldOut(uncertainty, generator.random(count) < 0.5, generator.random(count) < 0.8)


@given(held_out())
def test_curve_point_has_the_accuracy_and_offload_share_of_its_threshold(images: HeldOut) -> None:
    points = curve(images)
    for point in points:
        local = images.uncertainty <= point.threshold
        right = sum(images.exit_right[local]) + sum(images.offloaded_right[~local])
        assert point.accuracy == pytest.approx(right / len(local))
        assert point.offload_share == pytest.approx((~local).sum() / len(local))
    shares = [point.offload_share for point in points]
    assert shares == sorted(shares, reverse=True)
    assert points[-1].offload_share == 0
    assert points[-1].accuracy == pytest.approx(images.exit_right.mean())


@given(held_out(), st.floats(0, 1))
def test_most_accurate_point_within_the_offload_bound_is_chosen(images: HeldOut, bound: float) -> None:
    chosen = choose(images, max_drop=None, max_offload=bound)
    assert chosen.offload_share <= bound
    assert all(p.accuracy <= chosen.accuracy for p in curve(images) if p.offload_share <= bound)


@pytest.mark.parametrize(("exit_accuracy", "trunk_accuracy", "expected"), [(0.9, 0.5, 0.0), (0.5, 0.9, 1.0)])
def test_much_better_exit_or_trunk_predicts_nearly_all_images(
    exit_accuracy: float, trunk_accuracy: float, expected: float
) -> None:
    world = World(exit_accuracy, trunk_accuracy, 0.0, 0.0)
    chosen = choose(world.draw(np.random.default_rng(0), 1000), max_drop=MAX_DROP, max_offload=None)
    assert chosen.offload_share == pytest.approx(expected, abs=0.1)


@dataclass(frozen=True)
class World:
    """Images of which an exit and a trunk are right with these probabilities at uncertainty 0.5.

    `exit_slope`, `trunk_slope`: by how much they fall from uncertainty 0 to 1. Half of the images are easy or
    hard for both: networks that share their first stages are right about the same images.
    """

    exit: float
    trunk: float
    exit_slope: float
    trunk_slope: float

    def draw(self, generator: np.random.Generator, count: int) -> HeldOut:
        uncertainty = generator.random(count).astype("f4")
        hard_for_exit, own = generator.random((2, count))
        hard_for_trunk = np.where(generator.random(count) < 0.5, hard_for_exit, own)
        return HeldOut(
            uncertainty,
            hard_for_exit < self.exit - self.exit_slope * (uncertainty - 0.5),
            hard_for_trunk < self.trunk - self.trunk_slope * (uncertainty - 0.5),
        )

    def loss(self, threshold: float) -> float:
        """Accuracy of the better of exit and trunk on all such images, less that of adaptive prediction."""
        by_exit = threshold * (self.exit - self.exit_slope * (threshold - 1) / 2)
        by_trunk = (1 - threshold) * (self.trunk - self.trunk_slope * threshold / 2)
        return max(self.exit, self.trunk) - by_exit - by_trunk


@pytest.mark.parametrize(
    "world",
    [
        World(0.60, 0.80, 0.5, 0.2),
        World(0.75, 0.75, 0.5, 0.2),
        World(0.70, 0.73, 0.0, 0.0),
        World(0.73, 0.70, 0.0, 0.0),
        World(0.89, 0.92, 0.2, 0.1),
        World(0.70, 0.72, 0.4, 0.5),
    ],
    ids=["better trunk", "equal", "blind, better trunk", "blind, better exit", "good", "misleading"],
)
def test_threshold_chosen_on_1000_images_loses_at_most_2_points_on_others(world: World) -> None:
    """Within 2 points of the better of exit and trunk, in 95 % of draws.

    "blind": the uncertainty tells nothing; "misleading": it is high where the trunk is even less right.
    """
    generator = np.random.default_rng(1)
    lost = [world.loss(calibrate(world.draw(generator, 1000), 0.5).chosen.threshold) for _ in range(100)]
    assert np.mean(np.array(lost) <= 0.02) >= 0.95


def test_fewer_than_200_images_leave_the_run_threshold() -> None:
    """As 10 % of 300 images of each of three devices: the run's threshold stays."""
    world, generator = World(0.6, 0.8, 0.5, 0.2), np.random.default_rng(2)
    few, enough = world.draw(generator, 90), world.draw(generator, 200)
    right = np.where(few.uncertainty > 0.5, few.offloaded_right, few.exit_right)
    assert calibrate(few, 0.5).chosen == ReleasedThreshold(
        threshold=0.5,
        images=0,
        expected_offload=round(float((few.uncertainty > 0.5).mean()), 6),
        expected_accuracy=round(float(right.mean()), 6),
    )
    assert calibrate(few, 0.5).points == curve(few)
    assert calibrate(enough, 0.5).chosen.images == 200
    empty = HeldOut(np.empty(0, "f4"), np.empty(0, bool), np.empty(0, bool))
    assert calibrate(empty, 0.5) == Calibration(ReleasedThreshold(threshold=0.5))


def test_paired_interval_agrees_with_a_published_example() -> None:
    """Two surveys of 1,600 people (Agresti, Categorical Data Analysis): 4.0 points, 2.1 at least."""
    (lower,) = paired_lower(np.array([150]), np.array([86]), 1600)
    assert lower == pytest.approx(0.021, abs=5e-4)


def test_choice_needs_exactly_one_bound() -> None:
    images = HeldOut(np.array([0.1, 0.9], "f4"), np.array([True, False]), np.array([True, True]))
    for bounds in ({"max_drop": 0.1, "max_offload": 0.1}, {"max_drop": None, "max_offload": None}):
        with pytest.raises(ConfigError, match="one of --max-drop and --max-offload"):
            choose(images, **bounds)


@pytest.fixture
def models(trained: Trained, tmp_path: Path) -> Path:
    """`client` of pi-2, which the command changes, with 240 held-out images, and `trunks`."""
    client = tmp_path / "models" / "client"
    shutil.copytree(trained.model("pi-2"), client)
    kept = Samples.read(client)
    places = np.arange(240) % len(kept.labels)
    more = replace(kept, held_out=kept.held_out[places], labels=kept.labels[places])
    (client / SAMPLES).write_bytes(more.encode())
    shutil.copytree(trained.model("server"), tmp_path / "models" / "trunks")
    return tmp_path / "models"


def _run(*arguments: object) -> SpliteeError | str:
    result = CliRunner().invoke(
        command.calibrate, [str(argument) for argument in arguments], standalone_mode=False
    )
    if isinstance(result.exception, SpliteeError):
        return result.exception
    assert result.exception is None, result.exception
    return result.output


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["entropy", "confidence"])
def test_calibrate_command_stores_threshold_and_curve(models: Path, tmp_path: Path, measure: str) -> None:
    model, plot = models / "client", tmp_path / "curve.svg"
    output = _run(
        "--model",
        model,
        "--trunk",
        models / "trunks",
        "--max-offload",
        0.4,
        "--measure",
        measure,
        "--plot",
        plot,
    )
    assert isinstance(output, str) and "chosen: threshold" in output
    assert plot.read_text().lstrip().startswith("<?xml")
    manifest = read_manifest(model, ClientManifest)
    assert manifest.measure == measure
    assert manifest.threshold_images == 240
    client, trunks, samples = ClientModel(model), TrunkModels(models / "trunks"), Samples.read(model)
    features, logits = client(samples.held_out)
    local = client.uncertainty(logits) <= manifest.threshold
    entry = trunks.entry("pi-2")
    assert entry is not None
    predictions = np.where(local, logits.argmax(1), trunks.logits(entry.trunk, features).argmax(1))
    stored = next(point for point in manifest.calibration if point.threshold == manifest.threshold)
    assert (~local).mean() <= 0.4
    assert manifest.expected_offload == stored.offload_share
    assert stored.offload_share == pytest.approx((~local).mean(), abs=0.02)
    assert stored.accuracy == pytest.approx((predictions == samples.labels).mean(), abs=0.02)


@pytest.mark.slow
def test_calibrate_command_reads_images_from_class_folders(
    trained: Trained, models: Path, tmp_path: Path
) -> None:
    samples, names = Samples.read(models / "client"), trained.data.class_names
    for index in range(240):
        folder = tmp_path / names[samples.labels[index]]
        if "/" in names[samples.labels[index]]:
            continue
        folder.mkdir(exist_ok=True)
        Image.fromarray(samples.held_out[index].transpose(1, 2, 0)).save(folder / f"{index}.png")
    count = len(list(tmp_path.glob("*/*.png")))
    output = _run("--model", models / "client", "--trunk", models / "trunks", "--data", tmp_path)
    assert isinstance(output, str) and output.startswith(f"{count} images held out")


@pytest.mark.slow
def test_invalid_calibrations_are_refused_with_a_reason_and_change_nothing(
    models: Path, trained: Trained, averaged: Trained, tmp_path: Path
) -> None:
    few = trained.model("pi-2")
    model, trunk = ("--model", models / "client"), ("--trunk", models / "trunks")
    elsewhere = averaged.model("server")
    cases: list[tuple[tuple[object, ...], type[SpliteeError], str]] = [
        (model, ConfigError, "one of --trunk DIR and --broker URL"),
        ((*model, *trunk, "--broker", "mqtt://127.0.0.1:1"), ConfigError, "one of --trunk"),
        ((*model, "--trunk", elsewhere), ConfigError, "has no trunk for pi-2"),
        ((*model, *trunk, "--data", tmp_path), DataError, "folders named as the classes"),
        (
            ("--model", few, *trunk),
            DataError,
            "96 images held out, a threshold is chosen on 200 or more: give more with --data; 0.500 stays",
        ),
        ((*model, *trunk, "--plot", tmp_path / "curve.nothing"), ConfigError, "--plot"),
    ]
    before = (models / "client" / "manifest.json").read_bytes()
    for arguments, kind, words in cases:
        error = _run(*arguments)
        assert isinstance(error, kind) and words in str(error), (arguments, error)
    assert (models / "client" / "manifest.json").read_bytes() == before
