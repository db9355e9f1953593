# SPDX-License-Identifier: Apache-2.0
"""`splitee dismiss`: mistakes that are found before a broker is asked."""

from __future__ import annotations

import pytest

from splitee.cli.main import main
from splitee.errors import ExitCode


def test_more_devices_than_the_server_takes_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """The server would reject the request as malformed, and the command would wait for a reply."""
    nobody = ["--broker", "mqtt://127.0.0.1:1", "--connect-timeout", "0.1"]
    with pytest.raises(SystemExit) as leave:
        main(["dismiss", *nobody, *(f"pi-{number}" for number in range(1001))])
    assert leave.value.code == ExitCode.CONFIG
    assert capsys.readouterr().err == "splitee: expected at most 1000 devices at once, got 1001\n"
