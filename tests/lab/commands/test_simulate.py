# SPDX-License-Identifier: Apache-2.0
"""`splitee simulate`: a table and files of every method and seed; invalid options are refused in one line."""

from __future__ import annotations

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import warm
from click.testing import CliRunner
from once import made_once
from safetensors.torch import save_file
from torchvision.datasets import STL10
from waiting import until

from splitee.cli.main import splitee
from splitee.errors import ConfigError, DataError, ExitCode, NetworkError, StateError
from splitee.networks.split import build_network
from splitee_lab.methods.registry import BASELINES, METHODS, STRATEGIES
from splitee_lab.presets import FOLDER, NAMES

pytestmark = pytest.mark.slow(4)

TINY = ("--network", "tiny_networks:tiny", "--samples", "240", "--test-samples", "60", "--workers", "2")
SMALL = (*TINY, "--clients", "3", "--cuts", "1,3", "--rounds", "2", "--client-averaging", "none")


def simulate(*arguments: str) -> str:
    """Run the command and return its output; its error is raised."""
    result = CliRunner().invoke(splitee, ["simulate", *arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def results(out: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((out / "results.json").read_text())
    return {method["method"]: method for method in found["methods"]}


@pytest.fixture(scope="session")
def all_methods(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Every method with two seeds: the folder and the output."""

    def make(path: Path) -> None:
        every = "--strategy", ",".join(STRATEGIES), "--baselines", ",".join(BASELINES)
        printed = simulate(*SMALL, "--seeds", "1,2", *every, "--out", str(path / "out"))
        (path / "printed").write_text(printed)

    made = made_once(tmp_path_factory, "simulated", make)
    return made / "out", (made / "printed").read_text()


def test_every_method_has_a_mean_and_a_spread(all_methods: tuple[Path, str]) -> None:
    out, printed = all_methods
    found = results(out)
    assert list(found) == list(METHODS)
    for name, method in found.items():
        assert method["seeds"] == [1, 2]
        figure = method["accuracy"] or method["exit_accuracy"]
        assert 0 <= figure["mean"] <= 1
        assert figure["spread"] >= 0
        assert [point["round"] for point in method["course"]] == [1, 2]
        assert f"{name} " in printed
    assert found["sequential"]["exit_accuracy"] == found["alone-exit"]["exit_accuracy"]
    assert [cut["cut"] for cut in found["averaging"]["by_cut"]] == [1, 3]
    assert found["fedavg"]["compute_share"]["mean"] == 1
    assert 0 < found["sequential"]["compute_share"]["mean"] < 1
    assert found["centralized"]["macs"]["mean"] == 0


def test_page_shows_all_plots_and_loads_no_other_resources(all_methods: tuple[Path, str]) -> None:
    page = (all_methods[0] / "report.html").read_text()
    assert page.count("<svg ") == 5
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "<script" not in page
    assert all(f">{name}</th>" in page for name in METHODS)
    assert page.count(">trunk over fedavg</td>") == len(STRATEGIES)


def test_stored_results_are_reused_and_a_new_seed_is_added(all_methods: tuple[Path, str]) -> None:
    out, _ = all_methods
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
    assert len(before) == 2 * len(METHODS)
    printed = simulate(*SMALL, "--seeds", "1,2,3", "--baselines", "fedavg", "--out", str(out))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    ran = [line.split(":")[0] for line in printed.splitlines() if "-seed" in line]
    assert sorted(ran) == ["averaging-seed3", "fedavg-seed3", "sequential-seed3"]
    assert results(out)["fedavg"]["seeds"] == [1, 2, 3]


def test_folder_with_results_of_other_settings_is_refused(all_methods: tuple[Path, str]) -> None:
    with pytest.raises(
        StateError, match=r"sequential-seed1\.json is of other settings \(order 'step' there, "
    ):
        simulate(*SMALL, "--order", "device", "--out", str(all_methods[0]))


def test_seed_decides_the_results_for_any_number_of_processes(
    all_methods: tuple[Path, str], tmp_path: Path
) -> None:
    simulate(*SMALL, "--seeds", "2", "--workers", "1", "--baselines", "splitfed", "--out", str(tmp_path))
    for name in ("sequential-seed2.json", "averaging-seed2.json", "splitfed-seed2.json"):
        one, other = (json.loads((out / "parts" / name).read_text()) for out in (all_methods[0], tmp_path))
        assert one["rounds"] == other["rounds"], name


def test_clients_with_too_few_images_are_reported_and_left_out(tmp_path: Path) -> None:
    printed = simulate(
        *TINY, "--clients", "8", "--cuts", "2", "--rounds", "1", "--partition", "dirichlet:0.02",
        "--strategy", "sequential", "--baselines", "fedavg", "--out", str(tmp_path),
    )  # fmt: skip
    assert "takes no part" in printed
    assert "of one class only" in printed
    part = json.loads((tmp_path / "parts" / "fedavg-seed1.json").read_text())
    assert 0 < len(part["clients"]) < 8
    assert sum(client["samples"] for client in part["clients"].values()) >= 240 - 8


def test_each_of_several_partitions_has_a_folder_and_a_table(tmp_path: Path) -> None:
    flags = ("--partition", "iid,shards:2", "--baselines", "fedavg,alone-exit,centralized")
    printed = simulate(*SMALL, *flags, "--strategy", "averaging", "--out", str(tmp_path))
    for name, folder in (("iid", tmp_path / "iid"), ("shards:2", tmp_path / "shards-2")):
        assert f"{name}: report: {folder / 'report.html'}" in printed
        lines = (folder / "table.md").read_text().splitlines()
        heads = [line for line in lines if line.startswith((f"| {name} |", "| method |"))]
        assert len(heads) == 2
        assert sum(line.startswith("| averaging | trunk ") for line in lines) == 2
        targets = json.loads((folder / "results.json").read_text())["targets"]
        assert {target["method"] for target in targets} == {"averaging"}
        assert len(targets) == 6
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "line"),
    [
        (("--partition", "dirichlet:0"), ConfigError, "expected ALPHA above 0"),
        (("--partition", "iid,"), ConfigError, "expected a partition as iid, "),
        (("--partition", "even"), ConfigError, "expected a partition as iid, "),
        (("--clients", "241"), DataError, "240 training images cannot be dealt to 241 clients"),
        (("--cuts", "1,4"), NetworkError, "cut 4 is out of range"),
        (("--network", "resnet81"), NetworkError, "resnet18"),
        (("--data", "builtin:nothing"), DataError, "unknown data set builtin:nothing"),
        (("--strategy", "", "--baselines", ""), ConfigError, "nothing to run"),
        (("--hostile", "1:sleep"), ConfigError, "expected COUNT:KIND with one of flip-labels, "),
        (("--hostile", "0:noise"), ConfigError, "expected COUNT:KIND"),
        (("--sample", "2"), ConfigError, "--sample is for strategies"),
        (("--sample", "0%"), click.UsageError, "a share from 1% to 100%"),
        (("--sample-by", "uniform"), ConfigError, "--sample-by does nothing without --sample"),
        (("--steps", "time:60"), ConfigError, "simulated devices have no speed"),
        (("--hostile", "1:noise"), ConfigError, "--hostile is for strategies"),
        (("--hostile", "3:noise", "--baselines", ""), ConfigError, "expected an honest client, of 3"),
        (("--batch-size", "1"), click.BadParameter, "--batch-size 1: from 2 to 4096"),
    ],
)
def test_invalid_options_are_refused_before_training(
    arguments: tuple[str, ...], error: type[Exception], line: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=line):
        simulate(*SMALL, *arguments, "--out", str(tmp_path))
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("flag", ["--seeds", "--cuts", "--strategy", "--baselines"])
def test_invalid_list_is_refused_with_its_flag(flag: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=rf"^{flag} x.*: (some of|whole numbers)"):
        simulate(*SMALL, flag, "x,y", "--out", str(tmp_path))


def test_accuracies_cover_honest_clients_only_and_the_report_states_it(tmp_path: Path) -> None:
    flags = ("--hostile", "1:constant", "--baselines", "", "--strategy", "sequential", "--out", str(tmp_path))
    said = "Hostile clients: 1:constant. Accuracies are means over the honest ones."
    assert said in simulate(*SMALL, *flags)
    assert (tmp_path / "table.md").read_text().startswith(said)
    assert "mean over the honest clients" in (tmp_path / "report.html").read_text()
    part = json.loads((tmp_path / "parts" / "sequential-seed1.json").read_text())
    assert sorted(part["rounds"][-1]["accuracies"]) == ["client-2", "client-3"]
    assert sorted(part["clients"]) == ["client-1", "client-2", "client-3"]


def test_killed_comparison_keeps_finished_results_and_continues(tmp_path: Path) -> None:
    flags = ["--seeds", "1,2,3", "--strategy", "sequential", "--baselines", ""]
    process = warm.WarmProcess(["simulate", *SMALL, *flags, "--out", str(tmp_path)], tmp_path / "log")
    until(lambda: ": accuracy " in (tmp_path / "log").read_text(), process.poll)
    process.kill()
    process.wait(30)
    lines = (tmp_path / "log").read_text().splitlines()
    stored = next(line.partition(":")[0] for line in lines if ": accuracy " in line)
    assert (tmp_path / "parts" / f"{stored}.json").exists()
    printed = simulate(*SMALL, *flags, "--out", str(tmp_path))
    assert f"{stored}:" not in printed
    assert results(tmp_path)["sequential"]["seeds"] == [1, 2, 3]


def test_precision_is_stored_as_a_setting_of_the_run(tmp_path: Path) -> None:
    flags = ("--strategy", "averaging", "--baselines", "", "--precision", "bf16", "--out", str(tmp_path))
    simulate(*SMALL, *flags)
    part = json.loads((tmp_path / "parts" / "averaging-seed1.json").read_text())
    assert part["job"]["run"]["precision"] == "bf16"
    with pytest.raises(StateError, match="precision 'bf16' there, 'fp32' here"):
        simulate(*SMALL, *flags, "--precision", "fp32")


@pytest.mark.parametrize("name", NAMES)
def test_protocol_sets_only_options_that_are_not_given_elsewhere(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('codec = "int8"\nrounds = 7\n')
    seeds = ", ".join(tomllib.loads((FOLDER / f"{name}.toml").read_text())["seeds"].split(","))
    flags = ["--config", str(file), "--protocol", name, "--clients", "2", "--out", str(tmp_path)]
    for order in (flags, [*flags[2:], *flags[:2]]):
        shown = CliRunner().invoke(splitee, ["config", "simulate", *order], standalone_mode=False)
        rows = dict(line.split(maxsplit=1) for line in shown.output.splitlines())
        assert rows["--clients"].startswith("2 ")
        assert rows["--rounds"].startswith("7 ")
        assert rows["--codec"].startswith("int8 ")
        assert rows["--seeds"].startswith(f"{seeds} ")


@pytest.mark.parametrize("name", NAMES)
def test_settings_of_each_protocol_are_valid(name: str, tmp_path: Path) -> None:
    """Its network and cuts are checked before the images, which are too few here."""
    with pytest.raises(DataError, match="3 training images cannot be dealt to"):
        simulate("--protocol", name, "--samples", "3", "--out", str(tmp_path))


def test_unknown_protocol_is_refused_with_the_known_names() -> None:
    process = warm.run("simulate", "--protocol", "large")
    assert process.returncode == ExitCode.CONFIG
    assert all(name in process.stderr for name in NAMES)


def test_weights_freeze_and_normalize_are_checked_and_stored_as_settings_of_the_run(tmp_path: Path) -> None:
    """They are stored with the results, so that results of other weights are not mixed with them."""
    paths = [tmp_path / f"{seed}.safetensors" for seed in (7, 8)]
    for seed, path in enumerate(paths):
        save_file(build_network("tiny_networks:tiny", num_classes=10, seed=seed).module.state_dict(), path)
    settings = (*SMALL, "--baselines", "", "--strategy", "sequential", "--out", str(tmp_path / "out"))
    options = ("--freeze", "auto", "--normalize", "fleet", "--weights")
    simulate(*settings, *options, str(paths[0]))
    run = json.loads((tmp_path / "out" / "parts" / "sequential-seed1.json").read_text())["job"]["run"]
    assert run["weights"].startswith("7.safetensors ")
    assert (run["freeze"], run["normalize"]) == ("auto", "fleet")
    with pytest.raises(StateError, match=r"of other settings \(weights '7\.safetensors "):
        simulate(*settings, *options, str(paths[1]))
    with pytest.raises(StateError, match=r"normalize 'fleet' there, '0\.5/0\.5' here"):
        simulate(*settings, *options, str(paths[0]), "--normalize", "0.5/0.5")
    with pytest.raises(NetworkError, match="--freeze 4 is beyond the deepest cut"):
        simulate(*settings, "--freeze", "4")
    with pytest.raises(ConfigError, match="--normalize half"):
        simulate(*settings, "--normalize", "half")


@pytest.mark.slow(5)
def test_simulation_reads_stl10_as_torchvision_stores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A made-up copy: 30 training and 20 test images; their checksums replace the real ones."""
    folder = tmp_path / "data" / STL10.base_folder
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("test", 20), ("unlabeled", 1)):
        random.integers(0, 256, (count, 3, 96, 96), np.uint8).tofile(folder / f"{part}_X.bin")
        (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")
    (folder / STL10.class_names_file).write_text("\n".join(f"class-{number}" for number in range(10)))
    checked = [
        [name, hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()]
        for name, _ in (*STL10.train_list, *STL10.test_list)
    ]
    monkeypatch.setattr(STL10, "train_list", checked[: len(STL10.train_list)])
    monkeypatch.setattr(STL10, "test_list", checked[len(STL10.train_list) :])
    short = ("--rounds", "1", "--steps", "1", "--batch-size", "2", "--clients", "3", "--workers", "1")
    few = ("--test-samples", "4")
    one = ("--seeds", "1", "--partition", "iid", "--strategy", "sequential", "--baselines", "")
    data = ("--data", f"torchvision:STL10:{tmp_path / 'data'}")
    printed = simulate("--protocol", "paper-stl10", *data, *short, *few, *one, "--out", str(tmp_path / "out"))
    assert "sequential" in printed
