# SPDX-License-Identifier: Apache-2.0
"""Models on their way to a device: fetched in parts, tried, switched, refused, rolled back."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image
from trained import Trained
from warm import WarmProcess

from splitee.errors import ExitCode, MalformedMessage, ModelError
from splitee.inference.bundle import pack_bundle
from splitee.inference.graphs import ClientModel
from splitee.inference.manifest import CLIENT, ClientManifest, read_manifest, write_manifest
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.protocol.fleet_view import DeviceView, FleetView
from splitee.protocol.gate import Gate
from splitee.protocol.inference import ModelOffer, ModelReport, PredictionReport, ReleasePart, ReleaseWant
from splitee.protocol.topics import Topics
from splitee.samples.storage import Samples
from splitee_device.inference.delivery import Delivery
from splitee_device.inference.model_installer import ModelInstaller
from splitee_device.inference.model_store import ModelStore
from splitee_lab.local.brokers import RunningBroker
from splitee_server.release import plans
from splitee_server.release.local_rollouts import LocalRollouts
from splitee_server.release.plans import AT_ONCE
from splitee_server.release.releases import ROUTES
from splitee_server.release.rollout import Standing
from splitee_server.release.rollout_store import RolloutStore

LONG = 60.0  # seconds


@pytest.fixture(scope="module")
def models(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of pi-2, `first` and `second`, and one of pi-1, `other`."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(trained.model("pi-2"), models / "first")
    shutil.copytree(trained.model("pi-1"), models / "other")
    changed(models / "first", models / "second", lambda weights: weights * 1.001)
    return models


def changed(model: Path, to: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A model whose first weights differ, with a manifest that says so."""
    shutil.copytree(model, to)
    graph = onnx.load(to / CLIENT)
    first = next(value for value in graph.graph.initializer if len(value.dims) == 4)
    weights = change(numpy_helper.to_array(first)).astype(np.float32)
    first.CopyFrom(numpy_helper.from_array(weights, first.name))
    (to / CLIENT).write_bytes(graph.SerializeToString())
    digest = hashlib.sha256((to / CLIENT).read_bytes()).hexdigest()
    write_manifest(to, msgspec.structs.replace(read_manifest(to, ClientManifest), sha256={CLIENT: digest}))
    return to


def sha(model: Path) -> str:
    return hashlib.sha256(pack_bundle(model)).hexdigest()


def in_service(shelf: ModelStore) -> str:
    """The digest of the graph that predicts."""
    return next(iter(ClientModel(shelf.current).manifest.sha256.values()))


@pytest.fixture
def shelf(models: Path, tmp_path: Path) -> ModelStore:
    """A store with the first model in service."""
    shelf = ModelStore(tmp_path / "models")
    shelf.adopt(models / "first")
    return shelf


def test_restart_with_the_first_model_keeps_the_released_one(models: Path, shelf: ModelStore) -> None:
    release = shelf.install(pack_bundle(models / "second"), "pi-2")
    assert shelf.adopt(models / "first") == release == ModelStore(shelf.path).release
    assert shelf.adopt(models / "second") == release, "its owner's word, and in service already"
    assert shelf.adopt(models / "first") == sha(models / "first"), "its owner names another one"


def test_sound_model_is_installed_and_rolled_back(models: Path, shelf: ModelStore) -> None:
    first, second = sha(models / "first"), sha(models / "second")
    assert shelf.release == first
    assert shelf.install(pack_bundle(models / "second"), "pi-2") == second == shelf.release
    assert in_service(shelf) == read_manifest(models / "second", ClientManifest).sha256[CLIENT]
    assert shelf.roll_back() == first == shelf.release
    assert in_service(shelf) == read_manifest(models / "first", ClientManifest).sha256[CLIENT]
    assert shelf.roll_back() == second
    assert {path.name for path in (shelf.path / "releases").iterdir()} == {first, second}


def _flip(bundle: bytes) -> bytes:
    return bundle[: len(bundle) // 2] + bytes([bundle[len(bundle) // 2] ^ 1]) + bundle[len(bundle) // 2 + 1 :]


REFUSED: dict[str, Callable[[Path, Path], bytes]] = {
    "a flipped bit": lambda models, _: _flip(pack_bundle(models / "second")),
    "truncated": lambda models, _: pack_bundle(models / "second")[:-100],
    "empty": lambda models, _: b"",
    "no bundle": lambda models, _: msgspec.msgpack.encode({"manifest": 1}),
    "of another device": lambda models, _: pack_bundle(models / "other"),
    "worse": lambda models, path: pack_bundle(
        changed(models / "first", path / "worse", lambda weights: -5 * weights)
    ),
    "not finite": lambda models, path: pack_bundle(
        changed(models / "first", path / "nan", lambda weights: weights * np.nan)
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_unsound_model_is_refused_and_the_old_one_stays(
    models: Path, shelf: ModelStore, tmp_path: Path, kind: str
) -> None:
    if kind == "worse":  # than a model that is always right
        samples = Samples.read(shelf.path)
        labels = ClientModel(shelf.current)(samples.held_out)[1].argmax(axis=1)
        right = Samples(samples.held_out, labels, samples.training)
        (shelf.path / "samples.npz").write_bytes(right.encode())
    with pytest.raises(ModelError):
        shelf.install(REFUSED[kind](models, tmp_path), "pi-2")
    assert shelf.release == sha(models / "first")
    assert [path.name for path in (shelf.path / "releases").iterdir()] == [shelf.release]
    ClientModel(shelf.current)


@pytest.mark.parametrize(("losses", "taken"), [(5, True), (6, False)])
def test_release_is_refused_only_if_it_is_worse_beyond_chance(
    models: Path, shelf: ModelStore, tmp_path: Path, losses: int, taken: bool
) -> None:
    """With a chance below 2.5 %: 5 lost images and none gained are 3.1 %, 6 are 1.6 %."""
    other = changed(models / "first", tmp_path / "other", lambda weights: -5 * weights)
    samples = Samples.read(shelf.path)
    before, after = (
        ClientModel(model)(samples.held_out)[1].argmax(axis=1) for model in (shelf.current, other)
    )
    lost = np.flatnonzero(before != after)[:losses]
    labels = np.array([min({0, 1, 2} - set(pair)) for pair in zip(before, after, strict=True)])  # neither's
    labels[lost] = before[lost]
    (shelf.path / "samples.npz").write_bytes(Samples(samples.held_out, labels, samples.training).encode())
    if taken:
        assert shelf.install(pack_bundle(other), "pi-2") == shelf.release
        return
    with pytest.raises(
        ModelError, match=r"right in 0\.0%, the one in .*: 6 are lost and 0 gained, .* of 0\.016"
    ):
        shelf.install(pack_bundle(other), "pi-2")


def test_damaged_model_is_replaced_by_the_previous_one(models: Path, shelf: ModelStore) -> None:
    shelf.install(pack_bundle(models / "second"), "pi-2")
    (shelf.current / CLIENT).write_bytes(b"torn by a power cut")
    assert shelf.load().manifest.sha256 == read_manifest(models / "first", ClientManifest).sha256
    assert shelf.release == sha(models / "first")


def test_sound_model_replaces_a_damaged_one_in_service(models: Path, shelf: ModelStore) -> None:
    (shelf.current / CLIENT).write_bytes(b"torn by a power cut")
    assert shelf.install(pack_bundle(models / "second"), "pi-2") == shelf.release
    ClientModel(shelf.current)


def spoil(shelf: ModelStore) -> None:
    """Damage the model in service, as a worn card does."""
    (shelf.current / CLIENT).write_bytes(b"spoilt")


def test_damaged_model_is_restored_from_the_copy_of_its_owner(models: Path, shelf: ModelStore) -> None:
    spoil(shelf)
    assert shelf.adopt(models / "first") == sha(models / "first")
    assert in_service(shelf) == read_manifest(models / "first", ClientManifest).sha256[CLIENT]
    with pytest.raises(ModelError, match="keeps no model from before"):
        shelf.roll_back()


def test_store_of_damaged_models_serves_none_until_an_install(models: Path, shelf: ModelStore) -> None:
    shelf.install(pack_bundle(models / "second"), "pi-2")
    spoil(shelf)
    shelf.roll_back()
    spoil(shelf)
    with pytest.raises(ModelError, match="is damaged"):
        shelf.load()
    assert ModelStore(shelf.path).release is None
    assert shelf.install(pack_bundle(models / "second"), "pi-2") == sha(models / "second") == shelf.release
    shelf.load()


def test_restart_with_the_same_model_writes_no_file(models: Path, shelf: ModelStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in shelf.path.rglob("*")}
    shelf.adopt(models / "first")
    assert {path: path.stat().st_mtime_ns for path in shelf.path.rglob("*")} == before


def test_infer_release_and_serve_do_not_import_torch() -> None:
    modules = "splitee_device.commands.infer, splitee_server.commands.release, splitee_server.commands.serve"
    script = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=LONG).returncode == 0


def test_rollback_without_a_previous_model_and_load_without_a_file_raise(shelf: ModelStore) -> None:
    with pytest.raises(ModelError, match="keeps no model"):
        shelf.roll_back()
    (shelf.current / CLIENT).unlink()
    with pytest.raises(ModelError, match="No such file"):
        shelf.load()


class Pair:
    """A device's side and a server's on a real broker, in this process."""

    def __init__(
        self, broker: RunningBroker, fleet: str, make_link: Callable[..., Link], shelf: ModelStore
    ) -> None:
        self.topics = Topics(fleet)
        self.shelf = shelf
        self.device_link = make_link(broker.address, f"{fleet}-device", max_packet=4096)
        self.server_link = make_link(broker.address, f"{fleet}-server", max_packet=4096)
        self.delivery = Delivery(self.device_link, self.topics, "pi-2", ModelInstaller(shelf, "pi-2"))
        self.server = LocalRollouts(
            self.server_link, self.topics, RolloutStore(shelf.path.parent / "releases")
        )
        self.parts: list[ReleasePart] = []

    def offer(self, model: Path) -> None:
        self.server.releases.begin(plans.models([model], self.topics.fleet, None), "a", AT_ONCE)

    @property
    def outcome(self) -> Standing:
        rollout = self.server.releases.rollouts.find("a")
        assert rollout is not None
        return rollout.record.devices["pi-2"]

    @property
    def is_over(self) -> bool:
        return not self.server.releases.rollouts.undecided("a")

    def run(self, until: Callable[[], bool], spoil: bool = False) -> None:
        deadline = time.monotonic() + LONG
        while not until():
            assert time.monotonic() < deadline
            self.server.receive(0.01)
            event = self.device_link.receive(0.01)
            if isinstance(event, Message):
                if event.topic.endswith("model-part"):
                    part = ReleasePart.decode(event.payload)
                    self.parts.append(part)
                    if spoil:
                        part = msgspec.structs.replace(part, data=bytes(len(part.data)))
                    event = Message(event.topic, part.encode())
                self.delivery.handle(event)


@pytest.fixture
def pair(
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    shelf: ModelStore,
    request: pytest.FixtureRequest,
) -> Pair:
    fleet = "".join(character for character in request.node.name if character.isalnum())[:60]
    return Pair(mosquitto_broker, fleet, make_link, shelf)


def test_release_is_fetched_in_parts_and_reported(models: Path, pair: Pair) -> None:
    pair.offer(models / "second")
    pair.run(lambda: pair.is_over)
    assert pair.outcome.state == "in service"
    assert pair.shelf.release == sha(models / "second")
    assert len(pair.parts) == -(-len(pack_bundle(models / "second")) // (pair.server_link.max_packet - 256))
    assert not list(pair.shelf.path.glob("*.incoming"))


def test_new_process_resumes_an_interrupted_download(models: Path, pair: Pair) -> None:
    pair.offer(models / "second")
    pair.run(lambda: len(pair.parts) == 2)
    fetched = pair.parts[-1].offset + len(pair.parts[-1].data)
    pair.delivery = Delivery(
        pair.device_link, pair.topics, "pi-2", ModelInstaller(ModelStore(pair.shelf.path), "pi-2")
    )
    pair.parts.clear()
    pair.run(lambda: pair.is_over)
    assert min(part.offset for part in pair.parts if part.offset) >= fetched
    assert sum(part.offset == 0 for part in pair.parts) == 0
    assert pair.shelf.release == sha(models / "second")


def test_download_that_is_damaged_twice_is_refused(models: Path, pair: Pair) -> None:
    pair.offer(models / "second")
    pair.run(lambda: pair.is_over, spoil=True)
    assert pair.outcome.state == "failed"
    assert sum(part.offset == 0 for part in pair.parts) == 2
    assert pair.shelf.release == sha(models / "first")


def test_messages_of_a_hostile_sender_are_rejected(models: Path, pair: Pair) -> None:
    release = "a" * 64
    hostile = [
        ("inbox/model", b"{"),
        ("inbox/model", ModelOffer(release=release, size=10).encode().replace(b"aaaa", b"../.")),
        ("inbox/model", b'{"release":"' + b"a" * 64 + b'","size":99999999999}'),
        ("inbox/model", ModelOffer(release=release, size=10).encode()),
        ("inbox/model-part", b"\xc1"),
        ("inbox/model-part", ReleasePart(release=release, offset=0, data=b"x" * 11).encode()),
        ("inbox/model-part", ReleasePart(release="b" * 64, offset=0, data=b"x").encode()),
        ("inbox/model-part", ReleasePart(release=release, offset=5, data=b"x").encode()),
    ]
    for leaf, payload in hostile:
        pair.delivery.handle(Message(pair.topics.device("pi-2", leaf), payload))
    assert pair.delivery.rejected == 5
    assert pair.shelf.release == sha(models / "first")
    assert not [path for path in pair.shelf.path.glob("*.incoming") if path.stat().st_size]
    pair.offer(models / "second")
    pair.run(lambda: pair.outcome.state == "offered")
    for want in (
        ReleaseWant(release=release, offset=0),
        ReleaseWant(release=sha(models / "second"), offset=1 << 20),
    ):
        topic = pair.topics.device("pi-2", "model-want")
        received = Gate(pair.topics, ROUTES).read(Message(topic, want.encode()))
        assert received is not None
        with pytest.raises(MalformedMessage, match="not offered"):
            pair.server.releases.handle(received)


Run = Callable[..., WarmProcess]


@pytest.fixture
def splitee(mosquitto_broker: RunningBroker, tmp_path: Path) -> Iterator[Run]:
    """`splitee(command, ...)`: a process whose log is `tmp_path / COMMAND.log`."""
    running = []

    def start(command: str, *arguments: object) -> WarmProcess:
        environment = {**os.environ, "SPLITEE_BROKER": str(mosquitto_broker.address)}
        words = [command, *map(str, arguments)]
        process = WarmProcess(words, tmp_path / f"{command}.log", environment)
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


def test_service_predicts_takes_releases_and_rolls_back(
    trained: Trained,
    models: Path,
    splitee: Run,
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    tmp_path: Path,
) -> None:
    topics, watched, shelf = Topics("service"), tmp_path / "watched", tmp_path / "models"
    watched.mkdir()
    image = Image.fromarray(trained.data.held_out.images[0].transpose(1, 2, 0))
    image.save(watched / "old.png")
    predictions, reports = topics.device("pi-2", "predictions"), topics.device("pi-2", "model")
    view = FleetView(topics.fleet)
    link = make_link(mosquitto_broker.address, "watches-service", predictions, *view.filters)
    flags = ("--fleet", "service", "--id", "pi-2", "--models", shelf, "--watch", watched)
    service = splitee("infer", *flags, "--threshold", 1)
    log = tmp_path / "infer.log"

    def next_message() -> Message:
        while True:
            event = link.receive(LONG)
            assert event is not None, log.read_text()
            if isinstance(event, Message):
                assert b".png" not in event.payload or event.topic == predictions, "no file's name is shown"
                view.take(event, time.time())
                return event

    def wait_for(topic: str) -> bytes:
        while True:
            message = next_message()
            if message.topic == topic and not message.retained:
                return message.payload

    def see(condition: Callable[[DeviceView], bool]) -> DeviceView:
        """The device once its state by the retained messages meets the condition."""
        while not (devices := view.snapshot().devices) or not condition(devices[0]):
            next_message()
        return devices[0]

    def predicted(name: str) -> PredictionReport:
        (watched / "broken.png").write_bytes(b"no image")
        image.save(tmp_path / name)
        shutil.copy(tmp_path / name, watched / name)
        return PredictionReport.decode(wait_for(predictions))

    assert splitee("release", models / "first", "--fleet", "service").wait(LONG) == 0
    assert ModelReport.decode(wait_for(reports)).release == sha(models / "first")
    prediction = predicted("one.png")
    labels = ClientModel(models / "first")(trained.data.held_out.images[:1])[1].argmax(axis=1)
    assert (prediction.image, prediction.label) == ("one.png", trained.data.class_names[labels[0]])
    seen = see(lambda device: device.serving is not None and bool(device.serving.last))
    assert (seen.online, seen.doing) == (True, "serving")
    assert seen.serving is not None
    assert seen.serving.last[0].label == prediction.label
    assert (seen.serving.per_minute, seen.serving.offloaded_share) == (1.0, 0.0)
    manifest = read_manifest(models / "first", ClientManifest)
    model = seen.model
    assert model is not None
    assert (model.release, model.state) == (sha(models / "first"), "in service")
    assert (model.run, model.round) == (manifest.run, manifest.round)
    assert model.since == pytest.approx(time.time(), abs=LONG)
    assert splitee("release", models / "second", "--fleet", "service").wait(LONG) == 0
    assert predicted("two.png").image == "two.png"
    worse = changed(models / "first", tmp_path / "nan", lambda weights: weights * np.nan)
    assert splitee("release", worse, "--fleet", "service").wait(LONG) == ExitCode.MODEL
    assert ModelStore(shelf).release == sha(models / "second")
    model = see(lambda device: device.model is not None and device.model.state == "failed").model
    assert model is not None
    assert model.serves is not None
    assert (model.release, model.serves.release) == (sha(worse), sha(models / "second"))
    assert model.reason
    assert splitee("rollback", "--models", shelf).wait(LONG) == 0
    while ModelReport.decode(wait_for(reports)).release != sha(models / "first"):
        pass
    assert predicted("three.png").image == "three.png"
    service.send_signal(signal.SIGTERM)
    assert service.wait(LONG) == 0
    assert see(lambda device: not device.online).serving is None
    again = splitee("infer", *flags)
    see(lambda device: device.online)
    again.kill()
    assert see(lambda device: not device.online).serving is None, "the broker has said its last will"
    assert "broken.png" in log.read_text() and "Traceback" not in log.read_text()
