# SPDX-License-Identifier: Apache-2.0
"""A hub with a wrong clock excludes no other device, and issues no certificate that has expired."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from splitee.errors import CertificateRevoked, StateError
from splitee.mqtt.link import Link
from splitee_broker import authority

from .conftest import DEADLINE, FLEET, HOST, Fleet, files, run_broker

SetClock = Callable[[timedelta], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Puts the authority's clock forward, or back."""

    def put(by: timedelta) -> None:
        class Clock(datetime):
            @staticmethod
            def now(zone: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(zone) + by

        monkeypatch.setattr(authority, "datetime", Clock)

    return put


def is_let_in(fleet: Fleet, folder: Path) -> bool:
    link = Link(fleet.address, folder.name, tls=files(folder))
    try:
        link.open(DEADLINE)
    except CertificateRevoked:
        return False
    finally:
        link.close()
    return True


@pytest.mark.mosquitto
@pytest.mark.slow
@pytest.mark.parametrize("by", [timedelta(days=30), timedelta(days=-30 * 365)])
def test_revocation_by_a_wrong_clock_excludes_the_revoked_device_only(
    fleet: Fleet, set_clock: SetClock, by: timedelta
) -> None:
    lost, kept = fleet.device(f"lost{by.days}"), fleet.device("kept")
    set_clock(by)
    assert run_broker("revoke-device", lost.name, directory=fleet.directory).exception is None
    fleet.reload()
    until = time.monotonic() + DEADLINE
    while is_let_in(fleet, lost):
        assert time.monotonic() < until, "the revoked one gets in"
    assert is_let_in(fleet, kept)


@pytest.mark.mosquitto
@pytest.mark.slow
def test_certificate_issued_by_a_clock_ahead_is_valid_at_once(fleet: Fleet, set_clock: SetClock) -> None:
    set_clock(timedelta(days=30))
    assert is_let_in(fleet, fleet.device("early"))


def test_issuing_is_refused_if_the_clock_is_before_the_authority_was_made(
    tmp_path: Path, set_clock: SetClock
) -> None:
    assert run_broker("init", "--fleet", FLEET, "--name", HOST, directory=tmp_path).exception is None
    before = (tmp_path / "authority" / "ledger.json").read_bytes()
    set_clock(timedelta(days=-2))
    error = run_broker("add-device", "pi-1", directory=tmp_path).exception
    assert isinstance(error, StateError)
    assert "this machine's clock is behind: the authority was made after" in str(error)
    assert (tmp_path / "authority" / "ledger.json").read_bytes() == before
