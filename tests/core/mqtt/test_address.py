# SPDX-License-Identifier: Apache-2.0
"""Broker addresses: what is read, what is refused, and that a password is never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitee.errors import ConfigError
from splitee.mqtt.address import BrokerAddress, TlsFiles


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883)),
        ("mqtts://broker", BrokerAddress("broker", 8883, tls=True)),
        ("mqtt://10.0.0.7:1884/", BrokerAddress("10.0.0.7", 1884)),
        ("mqtt://[::1]:1884", BrokerAddress("::1", 1884)),
        ("mqtts://pi:s%40cret@broker:1", BrokerAddress("broker", 1, True, "pi", "s@cret")),
        ("mqtt://pi@broker", BrokerAddress("broker", 1883, username="pi")),
        ("mqtt://pi:a%2Fb%23c%25d:e@broker", BrokerAddress("broker", 1883, False, "pi", "a/b#c%d:e")),
        ("ws://broker", BrokerAddress("broker", 80, path="/mqtt")),
        ("wss://broker", BrokerAddress("broker", 443, tls=True, path="/mqtt")),
        ("ws://broker:9001/", BrokerAddress("broker", 9001, path="/")),
        ("wss://pi:x@[::1]:8084/a/b", BrokerAddress("::1", 8084, True, "pi", "x", "/a/b")),
        ("ws://broker?key=1", BrokerAddress("broker", 80, path="/mqtt?key=1")),
    ],
)
def test_address_is_parsed_from_its_url(text: str, address: BrokerAddress) -> None:
    assert BrokerAddress.parse(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "broker",
        "broker:1883",
        "http://broker",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://broker:0",
        "mqtt://broker:65536",
        "mqtt://broker:port",
        "mqtt://broker/fleet",
        "mqtt://broker?tls=1",
        "mqtt://[::1",
        "ws://",
        "ws://broker:0/mqtt",
        "wss://broker:port/mqtt",
        "mqtt://bro..ker",
        "mqtt://.local",
        f"wss://{64 * 'x'}.org",
    ],
)
def test_malformed_address_is_refused_with_the_expected_form(text: str) -> None:
    with pytest.raises(ConfigError, match="expected mqtt://HOST:PORT"):
        BrokerAddress.parse(text)


@pytest.mark.parametrize("path", ["/a#b", "/a b", "/caf\u00e9"])
def test_websocket_path_with_forbidden_characters_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="expected a path in ASCII, percent-encoded, without #"):
        BrokerAddress.parse(f"ws://broker{path}")


@pytest.mark.parametrize("scheme", ["mqtt", "wss"])
@pytest.mark.parametrize(
    "password", ["sec/ret", "sec@ret", "sec#ret", "sec?ret", "sec%ret", "123/4", "#/@?%"]
)
def test_unencoded_password_is_refused_with_the_encoding_but_not_shown(scheme: str, password: str) -> None:
    with pytest.raises(ConfigError) as error:
        BrokerAddress.parse(f"{scheme}://pi:{password}@broker:1883")
    line = str(error.value)
    assert "percent-encode what a user name or password has of / as %2F, @ %40, # %23, ? %3F, % %25" in line
    assert not any(word in line for word in ("sec", "ret", "123", "\n"))


@pytest.mark.parametrize(
    "text",
    ["mqtt://pi:secret", "http://pi:secret@broker", "mqtt://pi:secret@broker:x", "mqtt://pi:secret@broker/p"],
)
def test_error_of_an_address_shows_no_password(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        BrokerAddress.parse(text)
    assert "secret" not in str(error.value)


def test_text_and_repr_of_an_address_show_no_password() -> None:
    websocket = BrokerAddress.parse("wss://pi:secret@broker/mqtt?token=secret")
    assert str(websocket) == "wss://pi@broker:443/mqtt"
    assert "secret" not in repr(websocket)
    address = BrokerAddress.parse("mqtts://pi:secret@[::1]:1884")
    assert str(address) == "mqtts://pi@[::1]:1884"
    assert "secret" not in repr(address)


def test_tls_file_that_the_system_does_not_open_is_refused_with_its_reason(tmp_path: Path) -> None:
    loop = tmp_path / "loop.pem"
    loop.symlink_to(loop)
    for path, reason in ((Path(300 * "x"), "File name too long"), (loop, "no such file")):
        with pytest.raises(ConfigError, match=f"TLS file {path}: {reason}"):
            TlsFiles(ca=path).context()


def test_tls_files_that_are_missing_invalid_or_unpaired_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "ca.txt"
    text.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem: no such file"):
        TlsFiles(ca=tmp_path / "ca.pem").context()
    with pytest.raises(ConfigError, match=r"ca\.txt: expected PEM"):
        TlsFiles(ca=text).context()
    with pytest.raises(ConfigError, match=r"ca\.txt.*its own key"):
        TlsFiles(certificate=text).context()
    with pytest.raises(ConfigError, match="without its certificate"):
        TlsFiles(key=text).context()
