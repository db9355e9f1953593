# SPDX-License-Identifier: Apache-2.0
"""A device in its fleet's run, from the announcement on, against a scripted server."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from fakes import FakeClock, FakePort
from image_folders import write_folder
from msgspec.structs import replace
from scripted_device import ONE_ROUND, SPEC
from scripted_server import DEVICE, TOPICS, ScriptedServer

from splitee.durable import StateDirectory
from splitee.errors import ExitCode, SpliteeError
from splitee.mqtt.options import LinkOptions
from splitee.protocol import routes
from splitee_device.agent.session import Session
from splitee_device.capture.options import CaptureOptions
from splitee_device.inference.agreement_options import AgreementOptions
from splitee_device.inference.options import ServingOptions
from splitee_device.participate import take_part
from splitee_device.settings import DeviceSettings


def test_fresh_discards_another_run_also_when_the_rounds_change_before_the_state_is_open(
    tmp_path: Path,
) -> None:
    write_folder(tmp_path / "images", {"a": 4, "b": 4})
    port = FakePort(FakeClock())
    server = ScriptedServer(port, SPEC, ONE_ROUND, samples=6)
    server.open_run()
    server.send(routes.RUN, replace(SPEC, rounds=1))  # received while the device reads its images
    directory = StateDirectory(tmp_path / "state")
    directory.save_facts({"run": "an-earlier-run", "network": SPEC.network, "cut": 1, "finished": False})
    directory.save_round(9, b"of the earlier run")
    session = Session(port, TOPICS, DEVICE, 1, clock=port.clock)
    take_part(session, TOPICS, directory, settings_of(port, tmp_path / "images"))
    facts = directory.facts() or {}
    assert (facts["run"], facts["spec"]["rounds"], directory.rounds()) == (SPEC.run, 1, [1])
    directory.close()


def test_budget_too_short_to_measure_a_cut_is_no_setting_that_is_wrong(tmp_path: Path) -> None:
    """A restart may have more time, so a service is started again; `splitee profile` ends with the same."""
    write_folder(tmp_path / "images", {"a": 4, "b": 4})
    port = FakePort(FakeClock())
    ScriptedServer(port, SPEC, ONE_ROUND).open_run()
    directory = StateDirectory(tmp_path / "state")
    session = Session(port, TOPICS, DEVICE, 1, clock=port.clock)
    settings = dataclasses.replace(settings_of(port, tmp_path / "images"), cut=None, budget=0.01)
    with pytest.raises(SpliteeError, match=r"--budget 0\.01 seconds are too short") as refused:
        take_part(session, TOPICS, directory, settings)
    assert refused.value.exit_code is ExitCode.NO_CUT
    assert not ExitCode.NO_CUT.is_final
    directory.close()


def settings_of(port: FakePort, data: Path) -> DeviceSettings:
    """Of `splitee device --cut 1 --fresh`."""
    return DeviceSettings(
        device=DEVICE,
        link=LinkOptions(port.address, TOPICS.fleet, None, None),
        data=str(data),
        test=None,
        workers=0,
        shard=None,
        holdout=0.25,
        limit=None,
        network=SPEC.network,
        cut=1,
        lowest_cut=None,
        prefer="fastest",
        memory=None,
        adapt_cut=False,
        adapt_after=3,
        budget=60,
        fresh=True,
        cache=0,
        threads=1,
        precision="fp32",
        stay=False,
        baseline=False,
        serving=ServingOptions(CaptureOptions(), 1),
        agreement=AgreementOptions(),
    )
