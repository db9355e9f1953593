# SPDX-License-Identifier: Apache-2.0
"""Hostile models get no file, no image, and no more of the machine than a trial may take."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import graphs
import msgspec
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper
from waiting import until

from splitee.errors import ModelError
from splitee.inference.bundle import Bundle
from splitee.inference.predictor import Predictor
from splitee.inference.structure import Structure
from splitee.inference.uncertainty import Array
from splitee.protocol.encoding import unpack
from splitee.samples.storage import SAMPLES, Samples
from splitee_device.inference.model_store import TRIAL, ModelStore
from splitee_device.inference.trial import TrialResult, try_model
from splitee_device.inference.trust import Expected

SECRET = b"-----BEGIN PRIVATE KEY-----"


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def hands_out_pixels(secret: Path) -> ModelProto:
    """A model whose features are the image itself and the bytes of a file."""
    tensor = TensorProto(name="file", data_type=TensorProto.UINT8, dims=[len(SECRET)])
    tensor.data_location = TensorProto.EXTERNAL
    places = {"location": str(secret).lstrip("/"), "offset": "0", "length": str(len(SECRET))}
    for key, value in places.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    nodes = [
        helper.make_node("Flatten", ["pictures"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "v"], ["logits"]),
        helper.make_node("Cast", ["file"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["flat", "axis"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "bytes"], ["spread"]),
        helper.make_node("Concat", ["flat", "spread"], ["features"], axis=1),
    ]
    tensors = [
        graphs.weights("v", graphs.PIXELS, graphs.CLASSES),
        tensor,
        graphs.tensor("zero", np.zeros(1, np.float32)),
        graphs.tensor("axis", np.array([1])),
    ]
    return graphs.graph(nodes, tensors, features=graphs.PIXELS + len(SECRET))


def hands_out_only_pixels() -> ModelProto:
    nodes = [
        helper.make_node("Flatten", ["pictures"], ["features"], axis=1),
        helper.make_node("MatMul", ["features", "v"], ["logits"]),
    ]
    return graphs.graph(nodes, [graphs.weights("v", graphs.PIXELS, 2)], features=graphs.PIXELS)


def test_release_that_reads_a_file_or_uses_pixels_as_features_is_refused(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The honest model stays in service, and the trunk gets its features only."""
    monkeypatch.chdir("/")  # as a service's
    secret = tmp_path / "client.key"
    secret.write_bytes(SECRET)
    images = np.random.default_rng(0).integers(0, 256, (16, *graphs.SHAPE), np.uint8)
    (store.path / SAMPLES).write_bytes(Samples(images, np.zeros(16, np.int64), images).encode())
    honest = store.install(graphs.bundle(), "pi-1")
    hostile = {
        "another file": (hands_out_pixels(secret), graphs.PIXELS + len(SECRET)),
        "differs in more than weights": (hands_out_only_pixels(), graphs.PIXELS),
    }
    for reason, (model, length) in hostile.items():
        with pytest.raises(ModelError, match=reason):
            store.install(graphs.bundle(model, features=length, threshold=0.0), "pi-1")
    assert store.release == honest
    sent: list[Array] = []

    class Trunk:
        def logits(self, features: Array, waited: float = 0.0) -> Array | None:
            sent.append(features)
            return None

    Predictor(store.load(1), threshold=0.0, trunk=Trunk())(images[3])
    assert [features.shape for features in sent] == [(1, graphs.FEATURES)]


def eats_memory() -> ModelProto:
    """A model that makes 32 GiB of zeros."""
    return behind(
        helper.make_node("ConstantOfShape", ["large"], ["zeros"]),
        helper.make_node("ReduceMean", ["zeros"], ["zero"], keepdims=0),
        large=np.array([8, 1 << 30]),
    )


def never_ends() -> ModelProto:
    side = 2000
    products = [
        helper.make_node("MatMul", [f"m{step}", f"m{step}"], [f"m{step + 1}"]) for step in range(2000)
    ]
    return behind(
        helper.make_node("ConstantOfShape", ["square"], ["m0"]),
        *products,
        helper.make_node("ReduceMean", [f"m{len(products)}"], ["zero"], keepdims=0),
        square=np.array([side, side]),
    )


def behind(*nodes: object, **constants: object) -> ModelProto:
    """A sound model whose logits wait for `zero`, which `nodes` compute from `constants`."""
    sound = graphs.sound_nodes()
    sound[3].output[0] = "early"
    added = helper.make_node("Add", ["early", "zero"], ["logits"])
    tensors = [graphs.tensor(name, values) for name, values in constants.items()]
    return graphs.graph([*sound, *nodes, added], [*graphs.sound_tensors(), *tensors])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("make", "seconds", "reason"),
    [
        (eats_memory, 30, "bad_alloc|Failed to allocate|MiB of memory"),
        (never_ends, 4, "(within|more than) 4 s"),
    ],
    ids=["memory", "time"],
)
def test_model_that_takes_too_much_memory_or_time_is_refused_with_the_reason(
    tmp_path: Path, make: Callable[[], ModelProto], seconds: int, reason: str
) -> None:
    data = make().SerializeToString()
    (tmp_path / "client.onnx").write_bytes(data)
    (tmp_path / "manifest.json").write_bytes(graphs.encoded(graphs.manifest(data)))
    with pytest.raises(ModelError, match=reason):
        try_model(tmp_path, "client.onnx", tmp_path / SAMPLES, seconds=seconds)


def test_trial_survives_the_signals_that_stop_the_service(tmp_path: Path) -> None:
    """systemd sends them to every process of a unit, and a terminal does on Ctrl-C."""
    data = graphs.graph().SerializeToString()
    (tmp_path / "client.onnx").write_bytes(data)
    (tmp_path / "manifest.json").write_bytes(graphs.encoded(graphs.manifest(data)))
    workers: list[int] = []

    def send_signals() -> None:
        until(lambda: workers.extend(trials()) or workers)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(workers[0], number)

    sender = threading.Thread(target=send_signals)
    sender.start()
    assert try_model(tmp_path, "client.onnx", tmp_path / SAMPLES).refused == ""
    sender.join()
    assert workers


def trials() -> list[int]:
    """The processes in which this process tries models."""
    children = [
        int(word) for file in Path("/proc/self/task").glob("*/children") for word in file.read_text().split()
    ]
    return [child for child in children if b"trial_worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


CONFINED = """
import os, socket
from splitee_device.machine.confinement import confine
confine(memory=64 << 20, seconds=60)
found = []
for attempt in (lambda: open("/etc/passwd"), socket.socket, lambda: bytearray(1 << 30)):
    try:
        attempt()
    except (OSError, MemoryError) as error:
        found.append(type(error).__name__)
print(*found, os.getuid())
"""


def test_confined_process_is_refused_files_sockets_memory_and_root() -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, check=True)
    *failed, user = done.stdout.split()
    assert failed == ["OSError", "OSError", "MemoryError"]
    assert int(user) == (65534 if os.geteuid() == 0 else os.geteuid())


def test_roll_back_does_not_try_the_earlier_model_again(store: ModelStore) -> None:
    store.install(graphs.bundle(), "pi-1")
    trial = store.current / TRIAL
    first = trial.stat().st_mtime_ns
    store.install(graphs.bundle(graphs.graph(tensors=graphs.sound_tensors(seed=5))), "pi-1")
    assert store.roll_back() and trial.stat().st_mtime_ns == first


OTHER_RELEASES: dict[str, dict[str, object]] = {
    "another network": {"network": "resnet50"},
    "another cut": {"cut": 1},
    "other classes": {"class_names": ("a", "b", "c")},
    "another input": {"input_shape": (3, 16, 16)},
}


@pytest.mark.parametrize("kind", OTHER_RELEASES)
def test_release_may_change_weights_but_not_network_cut_classes_or_input(
    store: ModelStore, kind: str
) -> None:
    first = store.install(graphs.bundle(), "pi-1")
    other = graphs.graph(tensors=graphs.sound_tensors(seed=5))
    with pytest.raises(ModelError, match="splitee trust --forget"):
        store.install(graphs.bundle(other, **OTHER_RELEASES[kind]), "pi-1")
    assert store.release == first
    assert store.install(graphs.bundle(other), "pi-1") == store.release != first


def test_forgotten_trust_is_set_by_the_next_release(store: ModelStore) -> None:
    store.install(graphs.bundle(), "pi-1")
    store.trust.forget()
    store.install(graphs.bundle(cut=1, network="resnet50"), "pi-1")
    assert (store.trust.read().network, list(store.trust.read().graphs)) == ("resnet50", [1])


def test_model_in_service_is_trusted_when_the_trust_file_is_missing(store: ModelStore) -> None:
    store.install(graphs.bundle(), "pi-1")
    (store.path / "trust.json").unlink()
    (store.current / TRIAL).unlink()
    with pytest.raises(ModelError, match="where this device was never cut"):
        store.install(graphs.bundle(cut=1), "pi-1")


def test_release_is_refused_while_the_trust_file_cannot_be_read(store: ModelStore) -> None:
    (store.path / "trust.json").write_bytes(b'{"network":')
    with pytest.raises(ModelError, match=r"trust\.json cannot be read .* no release is taken"):
        store.install(graphs.bundle(), "pi-1")


def test_trained_device_takes_only_its_own_cuts_of_its_own_network(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models", Expected("resnet18", graphs.SHAPE, frozenset({2, 3})))
    for refused in (graphs.bundle(cut=1), graphs.bundle(network="resnet50")):
        with pytest.raises(ModelError):
            store.install(refused, "pi-1")
    for cut in (3, 2):
        store.install(graphs.bundle(cut=cut), "pi-1")
    assert sorted(store.trust.read().graphs) == [2, 3]


def test_release_with_other_classes_needs_a_device_whose_folders_have_them(tmp_path: Path) -> None:
    two, three = (
        ModelStore(tmp_path / "models", Expected("resnet18", graphs.SHAPE, frozenset({3}), names))
        for names in (("a", "b"), ("a", "b", "c"))
    )
    two.install(graphs.bundle(), "pi-1")
    grown = graphs.graph(classes=3)
    for store, names in ((two, ("a", "b", "c")), (three, ("a", "b", "x"))):
        with pytest.raises(ModelError, match="splitee trust --forget"):
            store.install(graphs.bundle(grown, class_names=names), "pi-1")
    three.install(graphs.bundle(grown, class_names=("a", "b", "c")), "pi-1")
    assert (three.trust.read().classes, list(three.trust.read().graphs)) == (3, [3])
    with pytest.raises(ModelError, match="splitee trust --forget"):
        three.install(graphs.bundle(graphs.graph(tensors=graphs.sound_tensors(seed=5))), "pi-1")


@pytest.mark.parametrize("name", [TRIAL, "manifest.json", "trust.json"])
def test_graph_named_like_a_file_of_the_store_is_refused(store: ModelStore, name: str) -> None:
    """The store keeps a trial's outcome beside the graph; a release must not bring its own."""
    structure = Structure(layers="0" * 64, exact="0" * 64, is_int8=False)
    claim = msgspec.json.encode({"images": "", "tried": TrialResult(structure=structure)})
    honest = unpack(graphs.bundle(), Bundle)
    manifest = msgspec.json.decode(honest.manifest)
    manifest |= {"file": name, "sha256": {name: hashlib.sha256(claim).hexdigest()}}
    with pytest.raises(ModelError, match="refused"):
        store.install(msgspec.msgpack.encode(Bundle(msgspec.json.encode(manifest), claim)), "pi-1")
    assert store.release is None
