# SPDX-License-Identifier: Apache-2.0
"""Sources of the initial weights of a run: how they are fitted, and which are refused."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models

from splitee.durable import StateDirectory
from splitee.errors import ConfigError, NetworkError, SpliteeError, StateError
from splitee.networks.split import build_for, build_network
from splitee.protocol.run_spec import RunSpec
from splitee.training.weights import client_model
from splitee_server.learning.fleet_model import Contribution, FleetModel
from splitee_server.learning.initial.begin import open_run, with_weights
from splitee_server.learning.initial.weights import InitialWeights, fit
from splitee_server.rounds.checkpoints import Checkpoints, Committed

SPEC = RunSpec(protocol=1, run="r", network="tiny_networks:tiny", num_classes=10, rounds=2, seed=1)
HEAD = ("classifier.weight", "classifier.bias")


def trained(num_classes: int = 10, seed: int = 9) -> dict[str, Tensor]:
    """Weights that are not those of the run's seed."""
    module = build_network("tiny_networks:tiny", num_classes=num_classes, seed=seed).module
    return dict(module.state_dict())


def load(source: object, spec: RunSpec = SPEC, names: tuple[str, ...] = ()) -> tuple[RunSpec, InitialWeights]:
    spec, found = with_weights(spec, str(source))
    assert found is not None
    return spec, fit(found, build_for(spec), spec, names)


def same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other)


@pytest.mark.parametrize("form", ["a.safetensors", "a.pt", "legacy.pt", "wrapped.pth", "parallel.pt"])
def test_weights_file_in_any_form_gives_all_tensors_of_the_network(tmp_path: Path, form: str) -> None:
    path, tensors = tmp_path / form, trained()
    if form == "a.safetensors":
        save_file(tensors, path)
    elif form == "legacy.pt":  # before torch 1.6
        torch.save(tensors, path, _use_new_zipfile_serialization=False)
    elif form == "wrapped.pth":
        torch.save({"epoch": 3, "state_dict": tensors}, path)
    else:
        prefix = "module." if form == "parallel.pt" else ""
        torch.save({prefix + name: tensor for name, tensor in tensors.items()}, path)
    spec, initial = load(path)
    assert all(same(initial.tensors[name], tensor) for name, tensor in tensors.items())
    assert spec.weights.startswith(f"{form} ") and len(spec.weights) == len(form) + 13
    assert str(tmp_path) not in spec.weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_saved_as_bfloat16_are_taken_with_that_precision(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    tensors = {name: tensor.bfloat16() for name, tensor in trained().items() if tensor.is_floating_point()}
    if suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    spec, initial = load(path)
    assert spec.weights.startswith(f"a{suffix} ")
    assert all(same(initial.tensors[name], tensor.float()) for name, tensor in tensors.items())


def test_only_the_head_is_new_with_another_number_of_classes(tmp_path: Path) -> None:
    tensors = trained(num_classes=7)
    save_file(tensors, tmp_path / "a.safetensors")
    _, initial = load(tmp_path / "a.safetensors")
    fresh = build_for(SPEC).module.state_dict()
    for name, tensor in initial.tensors.items():
        assert same(tensor, fresh[name] if name in HEAD else tensors[name]), name


class Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def spoilt(tmp_path: Path, how: str) -> Path:
    """A weights file that a run cannot begin from."""
    path = tmp_path / ("a.pt" if how.startswith("pt") else "a.safetensors")
    tensors: dict[str, Any] = trained()
    if how == "pt with code":
        torch.save({"first": Code(tmp_path / "ran")}, path)
    elif how == "pt of numbers":
        torch.save({"first": 3}, path)
    elif how == "pt without values":
        torch.save({**tensors, "classifier.weight": tensors["classifier.weight"].to("meta")}, path)
    elif how.startswith("pt"):
        torch.save(tensors, path)
    elif how == "other shape":
        tensors["second.0.weight"] = torch.zeros(9, 4, 3, 3)
    elif how == "lacks one":
        del tensors["hidden.1.bias"]
    elif how == "nan":
        tensors["first.0.weight"] = torch.full((4, 3, 3, 3), float("nan"))
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    if how.endswith("truncated"):
        path.write_bytes(path.read_bytes()[:-100])
    elif how.endswith("empty"):
        path.write_bytes(b"")
    elif how.endswith("noise"):
        path.write_bytes(random.Random(1).randbytes(500))
    elif how.endswith("web page"):
        path.write_bytes(b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n")
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("pt with code", "it holds more than tensors, which could run code and is not loaded"),
        ("pt of numbers", "expected a state_dict"),
        ("pt without values", "classifier.weight is no dense tensor with values"),
        ("pt truncated", "it is damaged, or no weights file"),
        ("pt empty", "it is damaged, or no weights file"),
        ("pt noise", "it is damaged, or no weights file (torch has not saved it)"),
        ("pt web page", "it is damaged, or no weights file (torch has not saved it)"),
        ("truncated", "it is damaged, or no weights file"),
        ("noise", "it is damaged, or no weights file"),
        ("other shape", "is of another network: second.0.weight is 9x4x3x3 there, 8x4x3x3 in this one"),
        ("lacks one", "has no tensor 'hidden.1.bias'"),
        ("nan", "first.0.weight holds a value that is not finite"),
    ],
)
def test_spoilt_weights_file_is_refused_in_one_line(tmp_path: Path, how: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(spoilt(tmp_path, how))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "source",
    [
        "none.pt",
        "none.txt",
        "run:none",
        "https://example.org/a.pt",
        "torchvision",
        "~nobody-has-this-name/a.pt",
        "run:~nobody-has-this-name",
        f"{'a' * 300}.pt",
        f"run:{'a' * 300}",
    ],
)
def test_unavailable_weights_source_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"--weights {source}") as refusal:
        load(source)
    assert "\n" not in str(refusal.value)


def test_torchvision_weights_of_an_unknown_network_are_refused_with_the_nearest_names() -> None:
    with pytest.raises(NetworkError, match="unknown network 'resnet19'; nearest: resnet"):
        load("torchvision", replace(SPEC, network="resnet19"))


def test_torchvision_weights_are_read_from_the_cache_with_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = replace(SPEC, network="squeezenet1_1")
    with pytest.raises(ConfigError) as refusal:
        monkeypatch.setattr("torch.hub.download_url_to_file", no_internet)
        load("torchvision", spec)
    file = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    assert str(file) in str(refusal.value) and "no internet" in str(refusal.value)
    file.parent.mkdir(parents=True, exist_ok=True)
    published = models.squeezenet1_1(num_classes=1000).state_dict()
    torch.save(published, file)
    spec, initial = load("torchvision", spec)
    assert (spec.mean, spec.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert initial.tensors["classifier.1.weight"].shape[0] == 10
    assert same(initial.tensors["features.0.weight"], published["features.0.weight"])


def no_internet(*_arguments: object, **_settings: object) -> None:
    raise OSError("no internet")


def earlier_run(path: Path, *, holds: bool = True) -> RunSpec:
    """The state of a server whose run has trained two devices, cut at 1 and 3."""
    spec = replace(SPEC, run="spring", mean=(0.25,), std=(0.125,))
    network = build_for(spec)
    model, given = FleetModel(spec, network), {}
    for cut in (1, 3):
        model.join(f"pi-{cut}", cut, 10)
        weights = {
            name: one.clone() + cut for name, one in client_model(network, cut, spec).state_dict().items()
        }
        given[f"pi-{cut}"] = Contribution(weights if holds else None)
        model.train(
            f"pi-{cut}",
            torch.ones(4, *model.feature_shape(cut)),
            torch.arange(4),
            round_number=1,
            step=0,
            steps=1,
        )
    model.commit(1, given)
    directory = StateDirectory(path)
    store = Checkpoints(directory)
    store.open(spec, fresh=True)
    names = tuple("abcdefghij")
    facts = {"members": [], "weights_sha256": "0" * 64, "duplicates": 0, "seconds": 0.0}
    store.save(Committed(round=1, class_names=names, **facts, **model.state()))  # type: ignore[arg-type]
    directory.close()
    return spec


def test_earlier_run_gives_weights_classes_exits_and_normalisation(tmp_path: Path) -> None:
    earlier_run(tmp_path / "spring")
    spec, initial = load(f"run:{tmp_path / 'spring'}")
    assert (spec.mean, spec.std) == ((0.25,), (0.125,))
    assert spec.weights.startswith("run:spring ")
    assert initial.class_names == tuple("abcdefghij")
    assert sorted(initial.exits) == [1, 3]
    network = build_for(spec)
    initial.load_into(network)
    first = FleetModel(spec, network, initial)
    first.join("new", 3, 10)
    client = first.initial_client("new")
    assert same(client["exit.linear.weight"], initial.exits[3]["linear.weight"])
    assert same(client["client.first.0.weight"], initial.tensors["first.0.weight"])
    assert not same(
        client["exit.linear.weight"], client_model(network, 3, spec).state_dict()["exit.linear.weight"]
    )


def test_other_class_names_are_logged_and_reset_head_and_exits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earlier_run(tmp_path / "spring")
    _, initial = load(f"run:{tmp_path / 'spring'}", names=(*"abcdefghi", "glass"))
    assert initial.exits == {} and initial.class_names == ()
    assert same(initial.tensors["classifier.bias"], build_for(SPEC).module.state_dict()["classifier.bias"])
    assert "(new: glass; gone: j)" in caplog.text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"network": "tiny_networks:steady"}, "it trained tiny_networks:tiny"),
        ({}, "holds no client networks"),
    ],
)
def test_earlier_run_that_does_not_fit_is_refused(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    earlier_run(tmp_path / "spring", holds=bool(changed))
    with pytest.raises(ConfigError, match=words):
        load(f"run:{tmp_path / 'spring'}", replace(SPEC, **changed))


@pytest.mark.parametrize("text", ["weights", "fleet/1", "0.5", "0.5/0", "0.5,0.5/0.5", "2/0.5"])
def test_invalid_normalisation_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--normalize"):
        with_weights(replace(SPEC, normalize=text), None)


def test_run_begins_from_a_file_whose_name_is_not_valid_text(tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9.pt")  # in Latin-1
    torch.save(trained(), source)
    directory = StateDirectory(tmp_path / "state")
    for _ in range(2):
        spec, _, _ = open_run(SPEC, str(source), Checkpoints(directory), class_names=(), fresh=False)
        assert spec.weights.startswith("caf\\udce9.pt ")
    directory.close()


def test_resumed_run_keeps_its_initial_weights_without_the_source_file(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    save_file(trained(), source)

    def begin(**changed: Any) -> tuple[RunSpec, InitialWeights | None]:
        directory = StateDirectory(tmp_path / "state")
        try:
            given = {"source": str(source), **changed}
            spec, _, initial = open_run(
                SPEC, checkpoints=Checkpoints(directory), class_names=(), fresh=False, **given
            )
            return spec, initial
        finally:
            directory.close()

    spec, initial = begin()
    source.unlink()
    resumed, again = begin()
    assert resumed == spec and initial is not None and again is not None
    assert all(same(again.tensors[name], tensor) for name, tensor in initial.tensors.items())
    with pytest.raises(StateError, match="with other settings"):
        begin(source=None)
    kept = tmp_path / "state" / "weights.state"
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(SpliteeError, match="are damaged: --fresh starts over"):
        begin()
