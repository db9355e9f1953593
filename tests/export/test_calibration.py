"""The threshold: what a curve says of held-out pictures, and what the command chooses and stores."""

from __future__ import annotations

import shutil
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
from splitee.inference.manifest import ClientManifest, Point, read_manifest
from splitee.inference.trunks import TrunkModels
from splitee.samples.kept import Samples
from splitee_export.calibration import HeldOut, choose, curve
from splitee_export.commands.calibrate import calibrate


@st.composite
def held_out(draw: st.DrawFn) -> HeldOut:
    seed, count = draw(st.integers(0, 1 << 20)), draw(st.integers(1, 300))
    generator = np.random.default_rng(seed)
    ties = draw(st.sampled_from([3, 1000]))
    uncertainty = (generator.integers(0, ties + 1, count) / ties).astype("f4")
    return HeldOut(uncertainty, generator.random(count) < 0.5, generator.random(count) < 0.8)


@given(held_out())
def test_each_point_is_what_its_threshold_gives(pictures: HeldOut) -> None:
    points = curve(pictures)
    for point in points:
        local = pictures.uncertainty <= point.threshold
        right = sum(pictures.exit_right[local]) + sum(pictures.trunk_right[~local])
        assert point.accuracy == pytest.approx(right / len(local))
        assert point.offload_share == pytest.approx((~local).sum() / len(local))
    shares = [point.offload_share for point in points]
    assert shares == sorted(shares, reverse=True)
    assert points[-1].offload_share == 0
    assert points[-1].accuracy == pytest.approx(pictures.exit_right.mean())


@given(held_out(), st.floats(0, 1))
def test_what_is_chosen_keeps_its_bound_and_is_the_best_that_does(pictures: HeldOut, bound: float) -> None:
    points = curve(pictures)
    always = max(points, key=lambda point: point.offload_share)
    chosen = choose(points, max_drop=bound, max_offload=None)
    assert chosen.accuracy >= always.accuracy - bound - 1e-9
    cheaper = [point for point in points if point.offload_share < chosen.offload_share]
    assert all(point.accuracy < always.accuracy - bound for point in cheaper)
    chosen = choose(points, max_drop=None, max_offload=bound)
    assert chosen.offload_share <= bound
    assert all(p.accuracy <= chosen.accuracy for p in points if p.offload_share <= bound)


def test_exactly_one_bound_is_taken() -> None:
    points = [Point(0.0, 0.5, 1.0), Point(1.0, 0.4, 0.0)]
    for bounds in ({"max_drop": 0.1, "max_offload": 0.1}, {"max_drop": None, "max_offload": None}):
        with pytest.raises(ConfigError, match="one of --max-drop and --max-offload"):
            choose(points, **bounds)


@pytest.fixture
def models(trained: Trained, tmp_path: Path) -> Path:
    """`client` of pi-2, which the command changes, and `trunks`."""
    shutil.copytree(trained.model("pi-2"), tmp_path / "models" / "client")
    shutil.copytree(trained.model("server"), tmp_path / "models" / "trunks")
    return tmp_path / "models"


def _run(*arguments: object) -> SpliteeError | str:
    result = CliRunner().invoke(calibrate, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(result.exception, SpliteeError):
        return result.exception
    assert result.exception is None, result.exception
    return result.output


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["entropy", "confidence"])
def test_the_command_stores_threshold_and_curve(models: Path, tmp_path: Path, measure: str) -> None:
    model, plot = models / "client", tmp_path / "curve.svg"
    said = _run(
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
    assert isinstance(said, str) and "chosen: threshold" in said
    assert plot.read_text().lstrip().startswith("<?xml")
    manifest = read_manifest(model, ClientManifest)
    assert manifest.measure == measure
    client, trunks, samples = ClientModel(model), TrunkModels(models / "trunks"), Samples.read(model)
    features, logits = client(samples.held_out)
    local = client.uncertainty(logits) <= manifest.threshold
    entry = trunks.entry("pi-2")
    assert entry is not None
    answers = np.where(local, logits.argmax(1), trunks.logits(entry.trunk, features).argmax(1))
    stored = next(point for point in manifest.calibration if point.threshold == manifest.threshold)
    assert (~local).mean() <= 0.4
    assert stored.offload_share == pytest.approx((~local).mean(), abs=0.02)
    assert stored.accuracy == pytest.approx((answers == samples.labels).mean(), abs=0.02)


@pytest.mark.slow
def test_pictures_in_class_folders_can_be_given(trained: Trained, models: Path, tmp_path: Path) -> None:
    samples, names = Samples.read(models / "client"), trained.data.class_names
    for index in range(30):
        folder = tmp_path / names[samples.labels[index]]
        if "/" in names[samples.labels[index]]:
            continue
        folder.mkdir(exist_ok=True)
        Image.fromarray(samples.held_out[index].transpose(1, 2, 0)).save(folder / f"{index}.png")
    count = len(list(tmp_path.glob("*/*.png")))
    said = _run("--model", models / "client", "--trunk", models / "trunks", "--data", tmp_path)
    assert isinstance(said, str) and said.startswith(f"{count} held-out pictures")


@pytest.mark.slow
def test_what_cannot_be_calibrated_is_named(models: Path, averaged: Trained, tmp_path: Path) -> None:
    model, trunk = ("--model", models / "client"), ("--trunk", models / "trunks")
    elsewhere = averaged.model("server")
    cases: list[tuple[tuple[object, ...], type[SpliteeError], str]] = [
        (model, ConfigError, "one of --trunk DIR and --broker URL"),
        ((*model, *trunk, "--broker", "mqtt://127.0.0.1:1"), ConfigError, "one of --trunk"),
        ((*model, "--trunk", elsewhere), ConfigError, "has no trunk for pi-2"),
        ((*model, *trunk, "--data", tmp_path), DataError, "folders named as the classes"),
        ((*model, *trunk, "--plot", tmp_path / "curve.nothing"), ConfigError, "--plot"),
    ]
    for arguments, kind, words in cases:
        error = _run(*arguments)
        assert isinstance(error, kind) and words in str(error), (arguments, error)
