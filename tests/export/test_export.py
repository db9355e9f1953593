# SPDX-License-Identifier: Apache-2.0
"""Exported graphs predict as torch does, and an export that does not is refused."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from trained import NETWORK, Trained

from splitee.durable import StateDirectory
from splitee.errors import ConfigError, ModelError, NetworkError, SpliteeError, StateError
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import CLIENT, CLIENT_INT8, ClientManifest, TrunkManifest, read_manifest
from splitee.inference.trunks import TrunkModels
from splitee.inference.uncertainty import Array
from splitee.networks.split import build_network
from splitee.protocol.fleet import FleetMetrics, Metrics
from splitee.samples.fitting import Region
from splitee.samples.images import normalize
from splitee.samples.storage import Samples, load_region, save_region
from splitee.training.state import pack_state, unpack_state
from splitee_export.commands.export import export
from splitee_export.graphs import ClientGraph, GraphRunner, client_graph, run_torch, trunk_graph
from splitee_export.models import Int8Policy, export_client, export_trunks
from splitee_export.parity import check_parity
from splitee_export.states import DeviceState, ServerState, read_state

pytestmark = [pytest.mark.slow(4), pytest.mark.xdist_group("exports")]


@pytest.fixture(params=["trained", "averaged"])
def by_strategy(request: pytest.FixtureRequest) -> Trained:
    """Servers' states differ by strategy, devices' do not."""
    by_strategy: Trained = request.getfixturevalue(request.param)
    return by_strategy


def device_state(trained: Trained, device: str = "pi-2") -> DeviceState:
    state = read_state(trained.path / device, NETWORK)
    assert isinstance(state, DeviceState)
    return state


def server_state(trained: Trained) -> ServerState:
    state = read_state(trained.path / "server", NETWORK)
    assert isinstance(state, ServerState)
    return state


def test_exported_device_model_predicts_as_torch_does(trained: Trained, tmp_path: Path) -> None:
    state, samples = device_state(trained), Samples.read(trained.path / "pi-2")
    manifest = export_client(state, samples, tmp_path)
    model = ClientModel(tmp_path, threads=1)
    normalized = normalize(samples.held_out, state.spec.mean, state.spec.std)
    for batch in (slice(0, 1), slice(0, 7), slice(None)):
        expected = run_torch(ClientGraph(state.client, state.exit), normalized[batch])
        for theirs, ours in zip(expected, model(samples.held_out[batch]), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-4)
    assert manifest == read_manifest(tmp_path, ClientManifest)
    assert (manifest.device, manifest.cut, manifest.round) == ("pi-2", 2, 1)
    assert manifest.class_names == trained.data.class_names
    assert manifest.sha256 == {CLIENT: hashlib.sha256((tmp_path / CLIENT).read_bytes()).hexdigest()}
    assert manifest.parity.samples == len(samples.labels) and manifest.parity.inputs == "pictures"
    np.testing.assert_array_equal(Samples.read(tmp_path).held_out, samples.held_out)


def test_exported_trunk_of_each_device_predicts_as_torch_does(by_strategy: Trained, tmp_path: Path) -> None:
    state = server_state(by_strategy)
    manifest = export_trunks(state, tmp_path / "server", [by_strategy.model("pi-2")])
    trunks = TrunkModels(tmp_path / "server", threads=1)
    for device, cut in state.cuts.items():
        entry = trunks.entry(device)
        assert entry is not None and entry.cut == cut
        features = np.abs(np.random.default_rng(cut).standard_normal((5, *entry.feature_shape))).astype("f4")
        expected = run_torch(state.trunks[device], features)[0]
        np.testing.assert_allclose(trunks.logits(entry.trunk, features), expected, atol=1e-5, rtol=1e-4)
    own = "trunk-cut-2.onnx"  # of an averaging server as well, which has just averaged
    assert manifest.devices["pi-2"] == manifest.devices["pi-3"] == own
    assert manifest.trunks[own].parity.inputs == "features"
    assert manifest.trunks[manifest.devices["pi-1"]].parity.inputs == "random"
    assert len(manifest.trunks) == 2
    assert manifest == read_manifest(tmp_path / "server", TrunkManifest)
    assert trunks.entry("stranger") is None


def test_network_with_dropout_and_pooled_branches_exports_for_any_batch_size() -> None:
    network = build_network("tiny_networks:squeezing", num_classes=7, input_shape=(3, 64, 64))
    network.module.eval()
    client, head, trunk = network.client(2).eval(), network.exit_head(2).eval(), network.trunk(2).eval()
    inputs = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype("f4")
    graph = GraphRunner(client_graph(client, head, (3, 64, 64)), "client", 1)
    features, _ = graph(inputs)
    torch_client = ClientGraph(client, head)
    check_parity("client", lambda x: run_torch(torch_client, x), graph, inputs, "random")
    runner = GraphRunner(trunk_graph(trunk, network.stages[1].feature_shape), "trunk", 1)
    check_parity("trunk", lambda x: run_torch(trunk, x), runner, features, "features")


def _logits(inputs: Array) -> list[Array]:
    return [inputs]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: [x + 1e-3],
        lambda x: [x[:, ::-1]],
        lambda x: [x[:, :-1]],
        lambda x: [np.full_like(x, np.nan)],
        lambda x: [x if len(x) == 1 else x + 0.01],
        lambda x: [x if len(x) > 1 else x + 0.01],
    ],
    ids=["off", "other labels", "shape", "nan", "only in batches", "only alone"],
)
def test_parity_check_refuses_a_graph_that_differs_from_torch(wrong: object) -> None:
    inputs = np.random.default_rng(0).standard_normal((40, 5)).astype("f4")
    assert check_parity("x", _logits, _logits, inputs, "random").max_error == 0
    with pytest.raises(ModelError, match="does not predict as torch does"):
        check_parity("x", _logits, wrong, inputs, "random")  # type: ignore[arg-type]


def test_int8_graph_is_used_only_within_its_accuracy_bound(trained: Trained, tmp_path: Path) -> None:
    state, samples = device_state(trained), Samples.read(trained.path / "pi-2")
    manifest = export_client(state, samples, tmp_path / "kept", int8=Int8Policy(max_drop=1.0))
    assert manifest.file == CLIENT_INT8 and set(manifest.sha256) == {CLIENT, CLIENT_INT8}
    fp32, int8 = (ClientModel(tmp_path / "kept", file=name) for name in (CLIENT, CLIENT_INT8))
    (before, _), (after, logits) = fp32(samples.held_out), int8(samples.held_out)
    assert 0 < np.abs(after - before).max() < 0.3 * np.abs(before).max()
    assert manifest.quantization is not None
    accuracy = (logits.argmax(axis=1) == samples.labels).mean()
    assert manifest.quantization.accuracy_int8 == pytest.approx(accuracy)
    refused = export_client(state, samples, tmp_path / "refused", int8=Int8Policy(max_drop=-1.0))
    assert refused.file == CLIENT and not (tmp_path / "refused" / CLIENT_INT8).exists()


def test_benchmark_selects_the_faster_graph(trained: Trained, tmp_path: Path) -> None:
    state, samples = device_state(trained), Samples.read(trained.path / "pi-2")
    manifest = export_client(state, samples, tmp_path, int8=Int8Policy(max_drop=1.0, benchmark=True))
    timed = manifest.quantization
    assert timed is not None and timed.fp32_ms is not None and timed.int8_ms is not None
    assert manifest.file == (CLIENT_INT8 if timed.int8_ms < timed.fp32_ms else CLIENT)


def test_client_model_of_another_run_is_refused_for_export_of_trunks(
    trained: Trained, averaged: Trained, tmp_path: Path
) -> None:
    other = averaged.model("pi-2")
    with pytest.raises(ConfigError, match="in run"):
        export_trunks(server_state(trained), tmp_path / "out", [other])
    assert not (tmp_path / "out").exists()


def _run(*arguments: object) -> SpliteeError | str:
    result = CliRunner().invoke(export, [str(argument) for argument in arguments], standalone_mode=False)
    if isinstance(result.exception, SpliteeError):
        return result.exception
    assert result.exception is None, result.exception
    return result.output


def test_export_command_reports_its_models_and_keeps_the_region(trained: Trained, tmp_path: Path) -> None:
    trusted = ("--network", NETWORK)
    state = Path(shutil.copytree(trained.path / "pi-1", tmp_path / "state"))
    save_region(state, Region(1, 2, 30, 20))
    output = _run("--state", state, "--out", tmp_path / "client", "--int8", *trusted)
    assert isinstance(output, str) and "cut 1" in output and "int8" in output
    assert load_region(tmp_path / "client") == Region(1, 2, 30, 20)
    output = _run(
        "--state",
        trained.path / "server",
        "--out",
        tmp_path / "trunks",
        "--client",
        tmp_path / "client",
        *trusted,
    )
    assert isinstance(output, str) and "trunks for 3 devices" in output


class Cumulative(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.cumsum(1)


def test_network_with_an_operator_unknown_to_devices_is_not_exported() -> None:
    head = build_network("tiny_networks:tiny", num_classes=2).exit_head(1, seed=0)
    features = torch.nn.Sequential(Cumulative(), torch.nn.Conv2d(3, 4, 3, stride=4))
    with pytest.raises(ModelError, match="this network: it needs the operator 'CumSum'"):
        client_graph(features, head, (3, 32, 32))


def test_invalid_exports_are_refused_with_a_reason(trained: Trained, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    empty = StateDirectory(tmp_path / "empty")
    empty.save_facts({"run": "r", "cut": 1, "finished": True})
    empty.close()
    cases: list[tuple[tuple[object, ...], type[SpliteeError], str]] = [
        (("--state", tmp_path / "nothing", *out), StateError, "no state of a device"),
        (("--state", tmp_path / "torn", *out), StateError, "no state of a device"),
        (("--state", tmp_path / "empty", *out), StateError, "no whole round"),
        (("--state", trained.path / "server", *out, "--int8"), ConfigError, "of a server"),
        (
            ("--state", trained.path / "server", *out, "--round", 7),
            StateError,
            "does not hold round 7: it keeps 1",
        ),
        (("--state", trained.path / "server", *out, "--round", "best"), StateError, "no round was evaluated"),
        (
            ("--state", trained.path / "pi-1", *out, "--round", "best"),
            StateError,
            "only a server's state says",
        ),
        (
            ("--state", trained.path / "pi-1", "--out", trained.model("server")),
            ConfigError,
            "holds a server's trunks",
        ),
        (
            ("--state", trained.path / "server", "--out", trained.model("pi-1")),
            ConfigError,
            "holds a device's model",
        ),
        (("--state", trained.path / "pi-1", *out, "--client", tmp_path), ConfigError, "for a server's"),
        (
            ("--state", trained.path / "pi-1", "--out", trained.path / "pi-1"),
            ConfigError,
            "its own directory",
        ),
    ]
    for arguments, kind, words in cases:
        error = _run(*arguments, "--network", NETWORK)
        assert isinstance(error, kind) and words in str(error), (arguments, error)
    assert not (tmp_path / "out").exists()


def test_exported_round_is_selected_by_last_best_or_number(trained: Trained, tmp_path: Path) -> None:
    state = tmp_path / "server"
    shutil.copytree(trained.path / "server", state)
    directory = StateDirectory(state)
    data = directory.load_round(1)
    assert data is not None
    directory.save_round(2, pack_state({**unpack_state(data), "round": 2}))
    directory.close()
    figures = [
        Metrics(
            run="r", round=number, rounds=2, seconds=1.0, devices={}, batches_trained=1, duplicates_dropped=0,
            fleet=FleetMetrics(images=100, adaptive_accuracy=accuracy),
        )
        for number, accuracy in ((1, 0.8), (2, 0.5))
    ]  # fmt: skip
    (state / "history.jsonl").write_bytes(b"".join(line.encode() + b"\n" for line in figures))
    rounds = {wanted: read_state(state, NETWORK, wanted).round for wanted in ("last", "best", "1", "2")}
    assert rounds == {"last": 2, "best": 1, "1": 1, "2": 2}


def test_state_in_use_is_refused(trained: Trained, tmp_path: Path) -> None:
    held = StateDirectory(trained.path / "pi-1")
    try:
        with pytest.raises(StateError, match="in use"):
            read_state(trained.path / "pi-1", NETWORK)
    finally:
        held.close()


@pytest.mark.parametrize("name", ["pi-1", "server"])
@pytest.mark.parametrize("flags", [(), ("--network", "tiny_networks:steady")], ids=["none", "another"])
def test_network_code_of_a_state_does_not_run_unless_the_user_names_it(
    trained: Trained, tmp_path: Path, name: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state directory may be a stranger's, and its module lie beside it on the path."""
    state = Path(shutil.copytree(trained.path / name, tmp_path / "state"))
    (tmp_path / "strangers.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.syspath_prepend(str(tmp_path))
    facts = (state / "run.json").read_text()
    (state / "run.json").write_text(facts.replace(NETWORK, "strangers:network"))
    error = _run("--state", state, "--out", tmp_path / "out", *flags)
    assert isinstance(error, NetworkError)
    assert "its network is the factory 'strangers:network', code that would run here" in str(error)
    assert "run this again with --network strangers:network" in str(error)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


class Call:
    """Pickled, it is a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self._path,)


def test_pickled_call_in_a_state_is_refused_and_not_run(trained: Trained, tmp_path: Path) -> None:
    state = Path(shutil.copytree(trained.path / "pi-1", tmp_path / "state"))
    directory = StateDirectory(state)
    directory.save_round(1, pack_state({"model": Call(tmp_path / "ran")}))
    directory.close()
    error = _run("--state", state, "--out", tmp_path / "out", "--network", NETWORK)
    assert isinstance(error, StateError)
    assert "a state holds more than tensors and plain values" in str(error)
    assert "\n" not in str(error)
    assert not (tmp_path / "ran").exists()
