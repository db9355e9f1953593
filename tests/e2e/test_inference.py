# SPDX-License-Identifier: Apache-2.0
"""Adaptive inference between real processes on a real broker: offload, batching, loss of the server."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from fleets import Fleet
from PIL import Image
from trained import CUTS, Trained
from waiting import until

from splitee.cli.link_options import resolve
from splitee.inference.graphs import ClientModel
from splitee.inference.offload import Offload
from splitee.inference.predictor import Prediction, Predictor
from splitee.inference.trunks import TrunkModels
from splitee.inference.uncertainty import Array
from splitee.mqtt.events import Message
from splitee.mqtt.link import Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol import inference, routes
from splitee.protocol.codecs import decode_tensor, encode_tensor
from splitee.protocol.device_meter import DeviceMeter
from splitee.protocol.fleet import ServerStatus
from splitee.protocol.inference import InferReply, InferRequest
from splitee.protocol.rounds import Ack
from splitee.protocol.routes import ACK
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_export.states import ServerState, read_state
from splitee_lab.local.brokers import RestartableBroker, RunningBroker

LONG = 60.0  # seconds
# Prints the modules that the process of `splitee serve` has loaded.
SERVE = """
import sys
from splitee.cli.main import main
try:
    main(["serve", *sys.argv[1:]])
finally:
    print("modules:", *sys.modules, file=sys.stderr)
"""


class Serving:
    """A `splitee serve` process."""

    def __init__(self, broker: str, fleet: str, model: Path, log: Path, *flags: str) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVE, "--model", model, "--broker", broker, "--fleet", fleet, *flags],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )

    def wait_until_ready(self) -> None:
        until(lambda: "serving run" in self.log.read_text(), self.log.read_text)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        return self.process.wait(LONG)


Serve = Callable[..., Serving]


@pytest.fixture
def serve(trained: Trained, mosquitto_broker: RunningBroker, tmp_path: Path) -> Iterator[Serve]:
    """`serve(fleet, ...)`: a server that is ready."""
    running: list[Serving] = []

    def start(fleet: str, *flags: str) -> Serving:
        address, log = str(mosquitto_broker.address), tmp_path / f"{len(running)}.log"
        server = Serving(address, fleet, trained.model("server"), log, *flags)
        running.append(server)
        server.wait_until_ready()
        return server

    yield start
    for server in running:
        if server.process.poll() is None:
            server.stop()


Devices = Callable[..., AbstractContextManager[tuple[Predictor, Offload]]]


@pytest.fixture
def device(trained: Trained, mosquitto_broker: RunningBroker) -> Devices:
    """`device(fleet, ID)`: a predictor that offloads whenever it can."""

    @contextmanager
    def open_device(
        fleet: str,
        name: str = "pi-2",
        timeout: float = 5.0,
        broker: RunningBroker = mosquitto_broker,
        meter: DeviceMeter | None = None,
    ) -> Iterator[tuple[Predictor, Offload]]:
        model = ClientModel(trained.model(name), threads=1)
        offload = Offload(options(broker, fleet), model.manifest, timeout=timeout, meter=meter)
        offload.open()
        try:
            yield Predictor(model, threshold=0.0, trunk=offload), offload
        finally:
            offload.close()

    return open_device


def options(broker: RunningBroker, fleet: str) -> LinkOptions:
    return resolve(str(broker.address), fleet, 10.0)


def test_offloaded_images_are_predicted_by_the_trunk_of_each_cut(
    trained: Trained, serve: Serve, device: Devices
) -> None:
    server = serve("each")
    trunks = TrunkModels(trained.model("server"), threads=1)
    images = trained.data.held_out.images[:10]
    for name in CUTS:
        model = ClientModel(trained.model(name), threads=1)
        entry = trunks.entry(name)
        assert entry is not None
        expected = trunks.logits(entry.trunk, model(images)[0]).argmax(axis=1)
        meter = DeviceMeter(Topics("each"))
        with device("each", name, meter=meter) as (predictor, offload):
            predictions = [predictor(image) for image in images]
        assert [prediction.source for prediction in predictions] == ["trunk"] * 10
        assert [prediction.label for prediction in predictions] == [
            trained.data.class_names[label] for label in expected
        ]
        assert offload.offloaded == 10 and offload.sent > 10 * 2 * np.prod(entry.feature_shape)
        traffic = meter.traffic()
        assert traffic.up.offload == traffic.up.payload == offload.sent > traffic.down.offload > 10 * 4
    assert server.stop() == 0
    loaded = set(server.log.read_text().partition("modules: ")[2].split())
    assert "onnxruntime" in loaded
    assert not {"torch", "torchvision", "onnx"} & loaded


def test_predict_command_offloads_uncertain_images_only(
    trained: Trained,
    serve: Serve,
    device: Devices,
    mosquitto_broker: RunningBroker,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    serve("command")
    for index in range(6):
        image = trained.data.held_out.images[index].transpose(1, 2, 0)
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    model = ClientModel(trained.model("pi-1"), threads=1)
    uncertainties = model.uncertainty(model(trained.data.held_out.images[:6])[1])
    threshold = float(np.sort(uncertainties)[2:4].mean())
    flags = ("--json", "--threshold", threshold, "--timeout", 10, "--fleet", "command")
    where = ("--broker", mosquitto_broker.address, "--model", trained.model("pi-1"))
    with device("command", "pi-1") as (running, _):  # the same device, which goes on
        before = running(trained.data.held_out.images[0])
        done = warm.run("predict", *flags, *where, tmp_path)
        after = running(trained.data.held_out.images[0])
    assert (before.source, after.source) == ("trunk", "trunk")
    assert "connection lost" not in caplog.text + done.stderr
    assert done.returncode == 0, done.stderr
    sources = [json.loads(line)["source"] for line in done.stdout.splitlines()]
    assert sources == ["exit" if uncertainty <= threshold else "trunk" for uncertainty in uncertainties]
    assert sorted(set(sources)) == ["exit", "trunk"]


def test_home_assistant_discovers_a_device_that_only_predicts(
    trained: Trained,
    serve: Serve,
    mosquitto_broker: RunningBroker,
    make_link: Callable[..., Link],
    tmp_path: Path,
) -> None:
    topics, prefix = Topics("found"), "found-home"
    link = make_link(mosquitto_broker.address, "predicts-alone", f"{prefix}/#")
    predicts = inference.Serving(state="online", instance=1).encode()
    link.publish(routes.SERVING.topic(topics, "pi-7"), predicts, retain=True)
    kept, home = ("--releases", str(tmp_path / "kept")), ("--home-assistant", "--home-assistant-classes")
    first = serve("found", *kept, *home, "--home-assistant-prefix", prefix)
    said = await_payload(link, topics.discovery(prefix, "pi-7"))
    shown = json.loads(said)["components"]
    names = {one["name"] for one in shown.values() if one["platform"] == "binary_sensor"}
    assert "status" not in shown and names == set(trained.data.class_names)
    link.publish(f"{prefix}/status", b"online")
    assert await_payload(link, topics.discovery(prefix, "pi-7")) == said
    assert first.stop() == 0
    assert serve("found", *kept).stop() == 0
    assert await_payload(link, topics.discovery(prefix, "pi-7")) == b""


def await_payload(link: Link, topic: str) -> bytes:
    while True:
        event = link.receive(LONG)
        assert event is not None, f"nothing on {topic}"
        if isinstance(event, Message) and event.topic == topic:
            return event.payload


def test_images_of_a_batch_are_offloaded_in_one_request(
    trained: Trained, serve: Serve, device: Devices
) -> None:
    serve("batch")
    images = trained.data.held_out.images[:8]
    with device("batch") as (predictor, offload):
        single = [predictor(image) for image in images]
        sent = offload.sent
        batch = predictor.batch(images)
    assert [each.source for each in batch] == ["trunk"] * 8
    assert [each.label for each in batch] == [each.label for each in single]
    assert offload.offloaded == 16
    assert offload.sent - sent < sent, "one envelope instead of eight"


def test_requests_that_arrive_together_share_a_forward_pass(
    trained: Trained, serve: Serve, mosquitto_broker: RunningBroker, make_link: Callable[..., Link]
) -> None:
    server, topics = serve("together"), Topics("together")
    inbox = topics.device("pi-2", "inbox/answer")
    link = make_link(mosquitto_broker.address, "requests-together", inbox, topics.server_status)
    model = ClientModel(trained.model("pi-2"), threads=1)
    features = model(trained.data.held_out.images[:12])[0]
    os.kill(server.process.pid, signal.SIGSTOP)
    correlations = [secrets.token_bytes(16) for _ in range(12)]
    for correlation, sample in zip(correlations, features, strict=True):
        request = InferRequest(run=trained.spec.run, cut=2, features=encode_tensor("fp32", sample[None]))
        link.publish(
            topics.device("pi-2", "infer"), request.encode(), response_topic=inbox, correlation=correlation
        )
    assert link.flush(LONG)
    os.kill(server.process.pid, signal.SIGCONT)
    replies: dict[bytes, InferReply] = {}
    while len(replies) < 12:
        event = link.receive(LONG)
        assert event is not None
        if isinstance(event, Message) and event.topic == inbox and event.correlation is not None:
            replies[event.correlation] = InferReply.decode(event.payload)
    entry = (trunks := TrunkModels(trained.model("server"), threads=1)).entry("pi-2")
    assert entry is not None
    expected = trunks.logits(entry.trunk, features)
    for correlation, logits in zip(correlations, expected, strict=True):
        replied = replies[correlation].logits
        assert replied is not None
        np.testing.assert_allclose(decode_tensor(replied)[0], logits, atol=1e-4)
    assert max(reply.together for reply in replies.values()) > 1
    server.stop()
    while True:  # the server's last counts
        event = link.receive(LONG)
        assert event is not None
        if isinstance(event, Message) and event.topic == topics.server_status:
            doing = ServerStatus.decode(event.payload).doing.split()
            if doing and doing[1] == "12":
                assert doing[:3] == ["serving:", "12", "requests"] and int(doing[4]) < 12
                break


def refused(
    topics: Topics, link: Link, request: bytes, reply_to: str | None, device: str = "pi-2"
) -> str | None:
    """The error that the server replies; None without a reply, though it serves."""
    correlation = secrets.token_bytes(8)
    link.publish(topics.device(device, "infer"), request, response_topic=reply_to, correlation=correlation)
    good = secrets.token_bytes(8)
    link.publish(
        topics.device("pi-2", "infer"),
        b"not a request",
        response_topic=topics.device("pi-2", "inbox/answer"),
        correlation=good,
    )
    error = None
    while True:
        event = link.receive(LONG)
        assert event is not None
        if isinstance(event, Message) and event.topic.endswith("/infer"):
            continue
        if isinstance(event, Message) and event.correlation == correlation:
            error = InferReply.decode(event.payload).error
        elif isinstance(event, Message) and event.correlation == good:
            return error


def test_invalid_requests_are_refused_with_a_reason_or_ignored(
    trained: Trained, serve: Serve, mosquitto_broker: RunningBroker, make_link: Callable[..., Link]
) -> None:
    serve("refused")
    topics = Topics("refused")
    link = make_link(mosquitto_broker.address, "requests-wrongly", "splitee/v1/refused/#", "elsewhere/#")
    own = topics.device("pi-2", "inbox/answer")

    def request(run: str = trained.spec.run, cut: int = 2, shape: tuple[int, ...] = (1, 72)) -> bytes:
        return InferRequest(
            run=run, cut=cut, features=encode_tensor("fp32", np.ones(shape, np.float32))
        ).encode()

    assert "features of cut 1" in str(refused(topics, link, request(cut=1, shape=(1, 196)), own))
    assert "of run other" in str(refused(topics, link, request(run="other"), own))
    assert "expected (72,)" in str(refused(topics, link, request(shape=(1, 8, 3, 3)), own))
    assert "at most 64" in str(refused(topics, link, request(shape=(65, 72)), own))
    assert "InferRequest" in str(refused(topics, link, b"\xc1", own))
    stranger = topics.device("stranger", "inbox/answer")
    assert "no trunk for stranger" in str(refused(topics, link, request(), stranger, "stranger"))
    for elsewhere in ("elsewhere/x", topics.commit, topics.device("pi-1", "inbox/plan"), None):
        assert refused(topics, link, request(), elsewhere) is None
    link.publish(topics.device("pi-2", "infer"), request(), response_topic=own, correlation=b"sound")
    while not (isinstance(event := link.receive(LONG), Message) and event.topic == own):
        assert event is not None
    assert event.correlation == b"sound" and InferReply.decode(event.payload).error == ""


@pytest.mark.parametrize("loss", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_predictions_fall_back_to_the_exit_when_the_server_is_lost(
    trained: Trained, serve: Serve, device: Devices, loss: signal.Signals
) -> None:
    fleet, timeout, count = f"loss-{int(loss)}", 1.0, 1000
    server = serve(fleet)
    images = trained.data.held_out.images
    predictions: list[Prediction] = []
    with device(fleet, timeout=timeout) as (predictor, _):
        for index in range(count):
            if index == count // 2:
                os.kill(server.process.pid, loss)
            predictions.append(predictor(images[index % len(images)]))
    sources = [prediction.source for prediction in predictions]
    assert len(predictions) == count
    assert sources[: count // 2] == ["trunk"] * (count // 2)
    assert set(sources[-100:]) == {"local-fallback"}
    slowest = max(prediction.milliseconds for prediction in predictions)
    assert slowest <= 1000 * timeout + 250, f"{slowest} ms"  # the exit's own time, on a busy machine
    model = ClientModel(trained.model("pi-2"), threads=1)
    labels = model(images)[1].argmax(axis=1)
    for index, prediction in enumerate(predictions):
        if prediction.source == "local-fallback":
            assert prediction.label == trained.data.class_names[labels[index % len(images)]]


def test_offload_resumes_when_the_server_comes_back(serve: Serve, device: Devices, trained: Trained) -> None:
    first = serve("back")
    image = trained.data.held_out.images[0]
    with device("back") as (predictor, _):
        assert predictor(image).source == "trunk"
        first.stop()
        until(lambda: predictor(image).source == "local-fallback")
        serve("back")
        until(lambda: predictor(image).source == "trunk")


def test_offload_begins_when_a_late_broker_comes_up(
    trained: Trained, device: Devices, make_broker: Callable[..., RestartableBroker], tmp_path: Path
) -> None:
    broker = make_broker()
    broker.stop()
    assert broker.broker is not None
    image = trained.data.held_out.images[0]
    with device("late", timeout=0.5, broker=broker.broker) as (predictor, _):
        assert predictor(image).source == "local-fallback"
        broker.start()
        server = Serving(str(broker.address), "late", trained.model("server"), tmp_path / "late.log")
        try:
            until(lambda: predictor(image).source == "trunk")
        finally:
            server.stop()


def test_parallel_devices_get_their_own_predictions(trained: Trained, serve: Serve, device: Devices) -> None:
    serve("parallel")
    images = trained.data.held_out.images[:30]
    trunks = TrunkModels(trained.model("server"), threads=1)
    predictions: dict[str, list[Prediction]] = {}

    def work(name: str) -> None:
        with device("parallel", name, timeout=20.0) as (predictor, _):
            predictions[name] = [predictor(image) for image in images]

    threads = [threading.Thread(target=work, args=(name,)) for name in CUTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    for name in CUTS:
        entry, model = trunks.entry(name), ClientModel(trained.model(name), threads=1)
        assert entry is not None
        labels = trunks.logits(entry.trunk, model(images)[0]).argmax(axis=1)
        assert [prediction.label for prediction in predictions[name]] == [
            trained.data.class_names[label] for label in labels
        ]
        assert {prediction.source for prediction in predictions[name]} == {"trunk"}


@pytest.mark.parametrize("strategy", ["sequential", "averaging"])
def test_training_server_predicts_with_the_trunk_of_its_last_commit(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], tmp_path: Path, strategy: str
) -> None:
    """The requests come while it trains the next round, which has changed that trunk already."""
    name, topics = f"training-{strategy}", Topics(f"training-{strategy}")
    inbox, acks = topics.device("pi-2", "inbox/answer"), ACK.topic(topics, "pi-2")
    link = make_link(mosquitto_broker.address, f"requests-{strategy}", inbox, acks, topics.run)
    features = np.ones((2, 72), np.float32)
    replies: dict[int, InferReply] = {}  # to the request in each round
    with Fleet(str(mosquitto_broker.address), name, tmp_path) as fleet:
        fleet.server("--strategy", strategy, rounds=2)
        fleet.three_devices()
        run, requested = "", set[int]()
        while 2 not in replies:
            event = link.receive(LONG)
            assert event is not None, fleet.log("server")
            assert isinstance(event, Message)
            if event.topic == topics.run:
                run = RunSpec.decode(event.payload).run
            elif event.topic == inbox and event.correlation is not None:
                replies[event.correlation[0]] = InferReply.decode(event.payload)
            elif event.topic == acks:
                ack = Ack.decode(event.payload)
                if ack.phase == "train" and ack.step > 0 and ack.round not in requested:
                    requested.add(ack.round)
                    request = InferRequest(run=run, cut=2, features=encode_tensor("fp16", features)).encode()
                    link.publish(
                        topics.device("pi-2", "infer"),
                        request,
                        response_topic=inbox,
                        correlation=bytes([ack.round]),
                    )
        assert fleet.wait() == [0, 0, 0, 0], fleet.log("server")
    assert replies[1].logits is not None or "no trunk" in replies[1].error
    reply = replies[2]
    assert reply.logits is not None
    committed = {number: logits_of(tmp_path / "server", number, features) for number in (1, 2)}
    np.testing.assert_allclose(decode_tensor(reply.logits), committed[reply.round], atol=1e-4)
    assert np.abs(committed[2] - committed[1]).max() > 1e-3


def logits_of(state: Path, number: int, features: Array) -> Array:
    """Logits (B, classes) of pi-2's trunk as a server has committed it in a round."""
    found = read_state(state, "tiny_networks:tiny", str(number))
    assert isinstance(found, ServerState)
    with torch.inference_mode():
        logits: Array = found.trunks["pi-2"](torch.from_numpy(features)).numpy()
    return logits
