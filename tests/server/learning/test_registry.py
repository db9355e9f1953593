# SPDX-License-Identifier: Apache-2.0
"""Strategies by name: unknown names are refused, and what a strategy declares is true."""

from __future__ import annotations

import pytest
from commands import call

from splitee.errors import ConfigError, ExitCode
from splitee.networks.split import build_network
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.strategies.base import Strategy
from splitee_server.learning.strategies.registry import STRATEGIES, make_strategy, with_setting


def spec(strategy: str) -> RunSpec:
    network = "tiny_networks:tiny"
    return RunSpec(protocol=1, run="r", network=network, num_classes=10, rounds=1, strategy=strategy)


def test_run_with_an_unknown_strategy_is_decoded_but_not_trained() -> None:
    run = RunSpec.decode(spec("fedavg").encode())
    with pytest.raises(ConfigError, match="strategy 'fedavg': known are sequential, averaging"):
        make_strategy(build_network(run.network, num_classes=10), run)


@pytest.mark.parametrize("command", [("server", "--state", "s"), ("demo",), ("simulate", "--out", "o")])
def test_commands_refuse_an_unknown_strategy(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = call(capsys, *command, "--strategy", "fedavg")
    assert code == ExitCode.CONFIG
    assert "fedavg" in line and "sequential" in line and "averaging" in line


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategy_settings_are_fields_of_the_run_spec(name: str) -> None:
    assert issubclass(STRATEGIES[name].load(), Strategy)
    assert set(STRATEGIES[name].settings) <= set(RunSpec.__struct_fields__)


def test_with_setting_lists_the_strategies_that_have_the_setting() -> None:
    assert with_setting("order") == "sequential"
    assert with_setting("aggregation_every") == "averaging"
    assert with_setting("seed") == ""


@pytest.mark.parametrize("name", STRATEGIES)
def test_shared_with_is_equal_only_for_devices_that_share_trunk_tensors(name: str) -> None:
    network = build_network("tiny_networks:tiny", num_classes=10)
    strategy = make_strategy(network, spec(name))
    cuts = {"a": 1, "b": 2, "c": 2}
    for device, cut in cuts.items():
        strategy.join(device, cut)
    for one in cuts:
        for other in cuts:
            ours, theirs = (strategy.trunk(device).state_dict() for device in (one, other))
            pointers = [{key: tensor.data_ptr() for key, tensor in found.items()} for found in (ours, theirs)]
            is_shared = strategy.shared_with(one) == strategy.shared_with(other)
            assert is_shared == (pointers[0] == pointers[1])
