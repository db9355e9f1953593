# SPDX-License-Identifier: Apache-2.0
"""`splitee page` as a process of its own, on a real Mosquitto, as browsers receive it."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError

import pytest
from commands import call
from page_streams import PageStream
from waiting import until
from warm import WarmProcess

from splitee.errors import ExitCode
from splitee.mqtt.link import Link
from splitee.protocol.fleet import DeviceStatus, Profile, ServerStatus
from splitee.protocol.rounds import RoundOpen
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.topics import Topics
from splitee_lab.local.brokers import HOST, RestartableBroker, RunningBroker, free_port

TOKEN = "0123456789abcdef-token"  # noqa: S105 -- made up
RED = 5.0  # seconds within which a dead device is shown as dead
ONLINE = DeviceStatus(state="online", instance=1, doing="training", round=1, step=1, steps=100)
GONE = DeviceStatus(state="offline", instance=1)
PROFILE = Profile(
    protocol=1,
    instance=1,
    version="0.1.0",
    cut=3,
    class_names=("a", "b"),
    train_samples=20,
    held_out_samples=5,
)
RUN = RunSpec(protocol=1, run="r1", network="resnet18", num_classes=2, rounds=5)
OPENED = RoundOpen(run="r1", round=1, attempt=1, phase="train", participants=1)
SERVER = ServerStatus(state="online", instance=1, run="r1", doing="training")


@contextmanager
def page(folder: Path, broker: object, fleet: str, *flags: str) -> Iterator[str]:
    """The URL of a page."""
    log = folder / "page.log"
    link = ("--broker", str(broker), "--fleet", fleet)
    process = WarmProcess(["page", "--listen", "127.0.0.1:0", *link, *flags], log)
    try:
        until(lambda: "http://" in log.read_text(), log.read_text)
        yield re.findall(r"http://\S+", log.read_text())[0]
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def topics(request: pytest.FixtureRequest) -> Topics:
    """The topics of a fleet of the test's own."""
    return Topics(request.node.name[5:69].rstrip("_"))


@pytest.mark.mosquitto
@pytest.mark.slow
def test_dead_device_is_shown_at_once_and_a_reload_has_the_same_state(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], topics: Topics, tmp_path: Path
) -> None:
    status = topics.device("pi-1", "status")
    device = make_link(mosquitto_broker.address, "pi-1-dies")
    server = make_link(mosquitto_broker.address, "page-server")
    server.publish(topics.run, RUN.encode(), retain=True)
    server.publish(topics.round, OPENED.encode(), retain=True)
    server.publish(topics.server_status, SERVER.encode(), retain=True)
    device.publish(topics.device("pi-1", "profile"), PROFILE.encode(), retain=True)
    device.publish(status, ONLINE.encode(), retain=True)
    with page(tmp_path, mosquitto_broker.address, topics.fleet) as url, PageStream(url) as seen:
        until(lambda: seen.devices.get("pi-1", {}).get("online"))
        assert seen.fleet["run"]["run"] == "r1" and seen.broker["connected"]
        server.publish(topics.device("pi-1", "metrics"), b"{no message", retain=True)
        device.publish(status, GONE.encode(), retain=True)  # its last will
        died = time.monotonic()
        until(lambda: seen.devices["pi-1"]["online"] is False, long=RED)
        assert time.monotonic() - died < RED
        until(lambda: "offline" in seen.kinds("pi-1"))
        assert seen.devices["pi-1"]["cut"] == 3
        until(lambda: seen.fleet["malformed"] == 1)
        with PageStream(url) as reloaded:
            assert reloaded.names[0] == "whole"
            assert (reloaded.fleet, reloaded.devices) == (seen.fleet, seen.devices)
            assert (reloaded.log, reloaded.broker) == (seen.log, seen.broker)
        with urllib.request.urlopen(f"{url}api/fleet", timeout=30) as reply:  # noqa: S310
            state = json.load(reply)
        assert state["fleet"]["devices"] == list(seen.devices.values())
        server.publish(status, b"", retain=True)
        server.publish(topics.device("pi-1", "profile"), b"", retain=True)
        until(lambda: not seen.devices)


@pytest.mark.mosquitto
@pytest.mark.slow
def test_page_shows_a_server_that_dies_and_comes_back(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], topics: Topics, tmp_path: Path
) -> None:
    dead = ServerStatus(state="offline", instance=1)
    server = make_link(mosquitto_broker.address, "server-dies")
    server.publish(topics.run, RUN.encode(), retain=True)
    server.publish(topics.server_status, SERVER.encode(), retain=True)
    with page(tmp_path, mosquitto_broker.address, topics.fleet) as url, PageStream(url) as seen:
        until(lambda: (seen.fleet["server"] or {}).get("state") == "online")
        until(lambda: seen.fleet["run"] is not None)
        time_to_settle = make_link(mosquitto_broker.address, "joins-late")
        late = topics.device("pi-9", "status")
        until(lambda: _said(time_to_settle, late, seen))  # what comes after the retained burst is news
        server.publish(topics.server_status, dead.encode(), retain=True)
        until(lambda: seen.fleet["server"]["state"] == "offline", long=RED)
        assert seen.fleet["run"]["run"] == "r1", "the page goes on with what it knows"
        again = make_link(mosquitto_broker.address, "server-again")
        again.publish(topics.server_status, ServerStatus(state="online", instance=2, run="r1").encode())
        until(lambda: seen.fleet["server"]["instance"] == 2)
        until(lambda: seen.kinds()[-2:] == ["server-offline", "server-online"], seen.kinds)


def _said(link: Link, topic: str, seen: PageStream) -> bool:
    """Devices that come one after the other, until one is reported as new."""
    name = f"pi-{len(seen.devices) + 10}"
    link.publish(topic.replace("pi-9", name), ONLINE.encode())
    until(lambda: name in seen.devices)
    return any(event["kind"] == "came" for event in seen.log)


@pytest.mark.mosquitto
@pytest.mark.slow
def test_page_follows_a_broker_that_starts_late_dies_and_restarts(
    make_broker: Callable[..., RestartableBroker],
    topics: Topics,
    tmp_path: Path,
    make_link: Callable[..., Link],
) -> None:
    own = make_broker()
    own.kill()
    own.stop()
    with page(tmp_path, own.address, topics.fleet) as url, PageStream(url) as seen:
        assert seen.broker["connected"] is False
        until(lambda: "no broker at" in seen.broker["text"], lambda: seen.broker)
        began = seen.broker["since"]
        own.start()
        until(lambda: seen.broker["connected"])
        assert seen.broker["since"] > began
        link = make_link(own.address, "a-device")
        link.publish(topics.device("pi-1", "status"), ONLINE.encode(), retain=True)
        until(lambda: "pi-1" in seen.devices)
        own.kill()
        until(lambda: not seen.broker["connected"])
        assert seen.devices["pi-1"]["online"], "as last heard; the broker's word stands above it"
        own.stop()
        own.start()
        until(lambda: seen.broker["connected"])
        until(lambda: seen.kinds() == ["broker-offline", "broker-online"], lambda: seen.log)


@pytest.mark.mosquitto
@pytest.mark.slow
def test_page_shows_that_the_broker_refuses_its_identity(
    make_broker: Callable[..., RestartableBroker], topics: Topics, tmp_path: Path
) -> None:
    own = make_broker("mosquitto", "allow_anonymous false\n")
    with page(tmp_path, own.address, topics.fleet) as url, PageStream(url) as seen:
        until(lambda: "not authorized" in seen.broker["text"].lower(), lambda: seen.broker)
        assert seen.broker["connected"] is False


@pytest.mark.mosquitto
@pytest.mark.slow
def test_hostile_device_names_are_dropped_and_texts_are_kept_as_text(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], topics: Topics, tmp_path: Path
) -> None:
    link = make_link(mosquitto_broker.address, "hostile")
    evil = "</script><script>alert(1)</script>\u202e\u2028\r\n\ndata: {}\n\nevent: gone\ndata: "
    for name in ("<script>", "pi 1", "..", "x" * 65, "\u202eabc"):
        link.publish(topics.device(name, "status"), ONLINE.encode(), retain=True)
    doing = ServerStatus(state="online", instance=1, run="r1", doing=evil + "x" * 200)
    link.publish(topics.server_status, doing.encode(), retain=True)
    link.publish(topics.device("pi-1", "status"), ONLINE.encode(), retain=True)
    with page(tmp_path, mosquitto_broker.address, topics.fleet) as url, PageStream(url) as seen:
        until(lambda: "pi-1" in seen.devices and seen.fleet["server"])
        assert list(seen.devices) == ["pi-1"]
        assert seen.fleet["server"]["doing"] == doing.doing
        link.publish(topics.server_status, ServerStatus(state="online", instance=2, doing=evil).encode())
        until(lambda: seen.fleet["server"]["instance"] == 2)
        assert set(seen.names) <= {"whole", "fleet", "devices", "log", "broker"}
        with urllib.request.urlopen(f"{url}api/fleet", timeout=30) as reply:  # noqa: S310
            assert reply.headers["Content-Type"].startswith("application/json")
            assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.mosquitto
@pytest.mark.slow
def test_page_publishes_no_messages(
    mosquitto_broker: RunningBroker, make_link: Callable[..., Link], topics: Topics, tmp_path: Path
) -> None:
    listener = make_link(mosquitto_broker.address, "listens", f"{topics.base}/#", "splitee/+/page/#")
    with page(tmp_path, mosquitto_broker.address, topics.fleet) as url, PageStream(url) as seen:
        until(lambda: seen.broker["connected"])
    assert listener.receive(0.5) is None


def test_port_in_use_open_address_and_missing_ca_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with socket.create_server((HOST, 0)) as taken:
        code, line = call(capsys, "page", "--listen", f"{HOST}:{taken.getsockname()[1]}")
    assert (code, "the port is in use" in line) == (ExitCode.CONFIG, True)
    code, line = call(capsys, "page", "--listen", "0.0.0.0:0")
    assert (code, "needs --token-file" in line) == (ExitCode.CONFIG, True)
    ca = ("--broker", "mqtts://127.0.0.1:1", "--ca", str(tmp_path / "absent"))
    code, line = call(capsys, "page", "--listen", f"{HOST}:{free_port()}", *ca)
    assert (code, "absent" in line) == (ExitCode.CONFIG, True)


@pytest.mark.mosquitto
@pytest.mark.slow
def test_page_requires_its_token_for_all_fleet_data(
    mosquitto_broker: RunningBroker, topics: Topics, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with page(tmp_path, mosquitto_broker.address, topics.fleet, "--token-file", str(token)) as url:
        for path in ("events", "api/fleet", ""):
            with pytest.raises(HTTPError, match="401"):
                urllib.request.urlopen(url + path, timeout=30)  # noqa: S310
