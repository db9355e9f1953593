# SPDX-License-Identifier: Apache-2.0
"""A user's mistakes: one clear line, the documented exit code, no stack trace, nothing lost."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from commands import call
from fleets import Fleet, await_message, in_one_process, offer
from msgspec.structs import replace
from PIL import Image
from waiting import until

from splitee.errors import ExitCode
from splitee.mqtt.link import Link
from splitee.protocol.fleet import DeviceStatus, ErrorReport, Profile
from splitee.protocol.parts import Part
from splitee.protocol.rounds import Features
from splitee.protocol.routes import MAX_REQUEST
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import RestartableBroker, RunningBroker

SPEC = RunSpec(protocol=1, run="r", network="resnet18", num_classes=10, rounds=1)


def write_images(folder: Path, count: int, *, broken: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        data = io.BytesIO()
        Image.fromarray(np.full((32, 32), number % 256, np.uint8)).save(data, "PNG")
        content = data.getvalue()
        (folder / f"{number:03}.png").write_bytes(content[:40] if number < broken else content)


@pytest.fixture
def server_flags(tmp_path: Path) -> tuple[str, ...]:
    return "server", "--state", str(tmp_path / "server"), "--connect-timeout", "2"


@pytest.fixture
def device_flags(tmp_path: Path) -> tuple[str, ...]:
    return "device", "--id", "pi-1", "--state", str(tmp_path / "pi-1"), "--connect-timeout", "1"


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"mqtt://127.0.0.1:{free.getsockname()[1]}"


def test_unknown_network_is_refused_with_the_nearest_name(
    capsys: pytest.CaptureFixture[str], server_flags: tuple[str, ...]
) -> None:
    code, line = call(capsys, *server_flags, "--network", "resnet19")
    assert code == ExitCode.NETWORK
    assert "resnet18" in line


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--sample", "2", "--missing", "skip", "--quorum", "3"), "no round could have its quorum"),
        (("--sample", "0"), "all, a whole number from 1, or a share from 1% to 100%"),
        (("--evaluated-by", "all"), "--evaluated-by does nothing without --sample"),
        (("--steps", "time:60", "--soft-labels", "1"), "--soft-labels does not go with --steps time:60"),
        (("--steps", "time:60", "--order", "device"), "--order device does not go with --steps time:60"),
        (
            ("--steps", "time:60", "--strategy", "data-parallel"),
            "--strategy data-parallel does not go with --steps time:60",
        ),
    ],
)
def test_invalid_settings_of_a_round_are_refused(
    capsys: pytest.CaptureFixture[str], server_flags: tuple[str, ...], flags: tuple[str, ...], says: str
) -> None:
    code, line = call(capsys, *server_flags, *flags)
    assert code == ExitCode.CONFIG
    assert says in line


def test_unreachable_broker_is_reported_with_its_address(
    capsys: pytest.CaptureFixture[str], server_flags: tuple[str, ...], device_flags: tuple[str, ...]
) -> None:
    address = closed_port()
    for flags in (server_flags, (*device_flags, "--data", "builtin:fashion-mnist")):
        code, line = call(capsys, *flags, "--broker", address)
        assert code == ExitCode.UNREACHABLE
        assert address in line


@pytest.mark.mosquitto
def test_refusal_by_the_broker_is_reported(
    capsys: pytest.CaptureFixture[str],
    device_flags: tuple[str, ...],
    make_broker: Callable[..., RestartableBroker],
) -> None:
    broker = make_broker(settings="allow_anonymous false\n")
    flags = (*device_flags, "--data", "builtin:fashion-mnist", "--broker", str(broker.address))
    code, line = call(capsys, *flags)
    assert code == ExitCode.REFUSED
    assert "not authorized" in line.lower()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "no such"),
        (lambda folder: folder.mkdir(), "class"),
        (
            lambda folder: Image.new("RGB", (9, 9)).save(folder, "JPEG"),
            "is a single image, which is no data set",
        ),
        (lambda folder: folder.write_text("a,b\n"), "cannot be read as a parquet file; expected dir"),
        (lambda folder: write_images(folder / "one", 5), "one class"),
        (
            lambda folder: [write_images(folder / name, 4, broken=4) for name in ("cat", "dog")],
            "none of its 8 images can be read",
        ),
    ],
    ids=["missing", "empty", "image", "text", "one class", "all unreadable"],
)
def test_bad_data_is_refused(
    capsys: pytest.CaptureFixture[str],
    device_flags: tuple[str, ...],
    tmp_path: Path,
    make: Callable[[Path], object],
    words: str,
    broker: RunningBroker,
) -> None:
    folder = tmp_path / "images"
    make(folder)
    topics = Topics(f"data-{tmp_path.name}".replace("[", "-").replace("]", ""))
    offer(broker.address, topics, SPEC)
    flags = (*device_flags, "--data", str(folder), "--broker", str(broker.address), "--fleet", topics.fleet)
    code, line = call(capsys, *flags)
    assert code == ExitCode.DATA
    assert words in line.lower()


@pytest.mark.parametrize(
    ("offered", "flags", "expected", "words"),
    [
        pytest.param({}, ("--cut", "10"), ExitCode.NETWORK, "1..9", id="a-cut-out-of-range"),
        pytest.param(
            {"network": "os:abort"}, (), ExitCode.NETWORK, "--network os:abort", id="code-on-the-wire"
        ),
        pytest.param({"protocol": 2}, (), ExitCode.VERSION, "protocol 2", id="another-version"),
    ],
)
def test_run_with_wrong_cut_network_or_version_is_refused(
    capsys: pytest.CaptureFixture[str],
    device_flags: tuple[str, ...],
    broker: RunningBroker,
    request: pytest.FixtureRequest,
    offered: dict[str, Any],
    flags: tuple[str, ...],
    expected: ExitCode,
    words: str,
) -> None:
    topics = Topics(request.node.callspec.id)
    offer(broker.address, topics, replace(SPEC, **offered))
    where = ("--broker", str(broker.address), "--fleet", topics.fleet)
    code, line = call(capsys, *device_flags, "--data", "builtin:fashion-mnist", *where, *flags)
    assert code == expected
    assert words in line


def test_cut_out_of_range_is_refused_before_images_are_decoded(
    capsys: pytest.CaptureFixture[str], device_flags: tuple[str, ...], broker: RunningBroker, tmp_path: Path
) -> None:
    """None of these images can be decoded."""
    for name in ("cat", "dog"):
        write_images(tmp_path / "images" / name, 4, broken=4)
    topics = Topics("cut-before-images")
    offer(broker.address, topics, SPEC)
    where = ("--broker", str(broker.address), "--fleet", topics.fleet, "--data", str(tmp_path / "images"))
    code, line = call(capsys, *device_flags, *where, "--cut", "99")
    assert (code, "cut 99 is out of range" in line) == (ExitCode.NETWORK, True), line


def test_server_refuses_wrong_devices_and_a_second_server_and_trains_on(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """A device of another version, other class names, a second server; then the fleet trains as usual."""
    topics = Topics("refusals")
    stranger = Link(mosquitto_broker.address, "stranger")
    stranger.subscribe(topics.device("old", "inbox/error"), topics.server_status)
    stranger.open(5)
    with Fleet(str(mosquitto_broker.address), "refusals", tmp_path) as fleet:
        fleet.server(devices=2, rounds=1)
        await_message(stranger, topics.server_status)
        stranger.publish(topics.device("old", "status"), DeviceStatus(state="online", instance=5).encode())
        profile = Profile(
            protocol=99,
            instance=5,
            version="9.9",
            cut=1,
            class_names=("a", "b"),
            train_samples=10,
            held_out_samples=2,
        )
        stranger.publish(topics.device("old", "profile"), profile.encode())
        report = ErrorReport.decode(await_message(stranger, topics.device("old", "inbox/error")))
        assert (report.code, report.fatal, report.instance) == (ExitCode.VERSION, True, 5)
        assert "protocol 99" in report.message

        fleet.server(name="second")
        assert fleet.wait("second") == [ExitCode.ID_IN_USE]
        assert "another server serves fleet 'refusals'" in fleet.log("second")

        for name in ("cat", "dog"):
            write_images(tmp_path / "others" / name, 20)
        fleet.device("pi-2", 2, "--data", str(tmp_path / "others"), "--limit", "30")
        fleet.device("pi-1", 2)
        until(lambda: "the devices' classes differ (" in fleet.log("server"))
        fleet.device("pi-3", 2)  # with pi-1 more than half of the two that are waited for
        assert fleet.wait("pi-2") == [ExitCode.REJECTED]
        assert "the classes [cat, dog], the fleet [" in fleet.log("pi-2")
        assert fleet.wait("pi-1", "pi-3", "server") == [0, 0, 0]
    stranger.close()


def test_older_of_two_devices_with_one_id_ends(broker: RunningBroker, tmp_path: Path) -> None:
    topics = Topics("one-id")
    watcher = Link(broker.address, "watcher")
    watcher.subscribe(topics.device("twin", "profile"))
    watcher.open(5)
    with Fleet(str(broker.address), "one-id", tmp_path) as fleet:
        fleet.server(devices=2, rounds=1)
        fleet.device("twin", 2, process="first")
        await_message(watcher, topics.device("twin", "profile"))
        fleet.device("twin", 2, process="second")
        assert fleet.wait("first", timeout=60) == [ExitCode.ID_IN_USE]
        assert "another process has started with the id 'twin'" in fleet.log("first")
        assert fleet.processes["second"].poll() is None
    watcher.close()


def test_garbage_on_every_topic_is_counted_and_changes_no_weights(
    mosquitto_broker: RunningBroker, tmp_path: Path
) -> None:
    """Malformed, truncated, oversized and foreign messages are counted; the weights are the same."""
    topics = Topics("garbage")
    with Fleet(str(mosquitto_broker.address), topics.fleet, tmp_path) as fleet:
        fleet.server("--quarantine-after", "0", rounds=2)
        fleet.three_devices()
        disturb(mosquitto_broker, topics)
        assert fleet.wait() == [0, 0, 0, 0]
        report = fleet.report()
        log = fleet.log("server")
    assert report["rejected"] > 50
    assert f"{topics.device('pi-1', 'features')} rejected: of run 'another', this is " in log
    assert (
        f"{topics.device('pi-1', 'infer')} rejected: Part: of a message of {MAX_REQUEST + 1} B, at most"
        in log
    )
    assert report["weights_sha256"] == in_one_process("sequential", "step", rounds=2)


def disturb(broker: RunningBroker, topics: Topics) -> None:
    """Publish garbage as soon as the fleet trains."""
    link = Link(broker.address, "vandal")
    link.subscribe(topics.device("pi-1", "features"))
    link.open(5)
    sample = await_message(link, topics.device("pi-1", "features"))
    foreign = replace(Features.decode(sample), run="another").encode()
    link.publish(topics.device("pi-1", "features"), foreign)  # first: only the first ten are logged
    part = Part(message=1, index=0, count=2, size=MAX_REQUEST + 1, data=b"x")
    link.publish(topics.device("pi-1", "infer"), msgspec.msgpack.encode(part))
    bad = [
        b"",
        b"\xff" * 50,
        sample[:-7],
        sample + b"x",
        foreign,
        b"\xc1",
        b"[" * 100_000,
        b"{}",
        b"\x95\x01",
    ]
    for leaf in ("features", "round-done", "profile", "status", "sync"):
        for payload in bad:
            link.publish(topics.device("pi-1", leaf), payload)
            link.publish(topics.device("nobody", leaf), payload)
    for leaf in ("inbox/ack", "inbox/plan", "inbox/error"):
        for payload in bad:
            link.publish(topics.device("pi-1", leaf), payload)
    for topic in (topics.run, topics.round, topics.commit, topics.server_status):
        for payload in bad[1:]:
            link.publish(topic, payload)
    link.flush(10)
    link.close()
