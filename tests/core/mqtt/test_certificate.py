# SPDX-License-Identifier: Apache-2.0
"""The end of a client's own certificate: read from its file, and warned of in time."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import pytest

from splitee.errors import ConfigError
from splitee.mqtt.address import TlsFiles
from splitee.mqtt.certificate import DAY, OwnCertificate, own_certificate, warnings
from splitee_broker.authority import Authority, Role

END = datetime(2031, 11, 27, 12, tzinfo=UTC)
START = END - timedelta(days=1825)
CERTIFICATE = OwnCertificate(Path("client.crt"), "pi-1", START, END)


def test_own_certificate_is_read_from_its_file(tmp_path: Path) -> None:
    with closing(Authority(tmp_path / "authority", "barn")) as authority:
        path = tmp_path / "client.crt"
        path.write_bytes(authority.issue("pi-1", Role.DEVICE, 10).certificate)
        found = own_certificate(TlsFiles(certificate=path))
        assert found is not None
        end = authority.issued[-1].until.replace(microsecond=0)
        assert found == OwnCertificate(path, "pi-1", found.start, end)
        assert found.start < datetime.now(UTC)


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (START - timedelta(days=3000), "set it (timedatectl)"),
        (START + timedelta(days=3), "if that is right, set the clock of the broker's machine (timedatectl)"),
        (END + timedelta(days=3), "renew it (splitee broker renew pi-1), or set the clock if that is wrong"),
    ],
    ids=["this clock is behind", "the broker's clock is wrong", "it has ended"],
)
def test_refusal_is_explained_by_clock_or_certificate(now: datetime, words: str) -> None:
    said = CERTIFICATE.explain_refusal(now)
    assert words in said
    assert f"this machine's clock says {now:%Y-%m-%d}" in said


@pytest.mark.parametrize("tls", [None, TlsFiles(), TlsFiles(ca=Path("ca.crt"))])
def test_own_certificate_is_none_without_a_certificate_file(tls: TlsFiles | None) -> None:
    assert own_certificate(tls) is None


def test_missing_or_invalid_certificate_file_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.crt", "No such file"), (tmp_path / "bad.crt", "expected a PEM")):
        (tmp_path / "bad.crt").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        with pytest.raises(ConfigError, match=f"{path}: {reason}"):
            own_certificate(TlsFiles(certificate=path))


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (timedelta(days=30, seconds=1), None),
        (timedelta(days=30), "ends in 30 days, on 2031-11-27"),
        (timedelta(hours=5), "ends in 0 days, on 2031-11-27"),
        (timedelta(0), "has ended"),
        (-timedelta(days=400), "has ended"),
    ],
)
def test_warning_begins_30_days_before_the_certificate_ends(left: timedelta, words: str | None) -> None:
    text = CERTIFICATE.warning(END - left)
    assert (text is None) == (words is None)
    assert text is None or (words or "") in text
    assert text is None or "splitee broker renew pi-1" in text


@pytest.mark.parametrize(
    ("left", "words"), [(timedelta(days=5), "ends in 5 days"), (-timedelta(days=5), "has ended")]
)
def test_first_warning_comes_at_once_if_it_is_due(left: timedelta, words: str) -> None:
    waits: list[float] = []
    first = next(warnings(CERTIFICATE, wait=waits.append, now=lambda: END - left))
    assert words in first
    assert waits == []


def test_warning_is_repeated_daily_once_it_is_due() -> None:
    now = END - timedelta(days=32, hours=-1)  # a day and 23 hours before the first warning

    def wait(seconds: float) -> None:
        nonlocal now
        assert seconds == DAY
        now += timedelta(seconds=seconds)

    said = [
        (text.split(",")[0].rpartition("ends ")[2], now)
        for text in islice(warnings(CERTIFICATE, wait=wait, now=lambda: now), 3)
    ]
    assert [words for words, _ in said] == ["in 29 days", "in 28 days", "in 27 days"]
    assert [time - said[0][1] for _, time in said] == [timedelta(days=day) for day in range(3)]
