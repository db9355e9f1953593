"""All cooperative strategies by name: a new one is a file beside this one, and a line here."""

from __future__ import annotations

from splitee.errors import ConfigError
from splitee.networks.split import SplitNetwork
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.strategies.averaging import Averaging
from splitee_server.learning.strategies.base import Strategy
from splitee_server.learning.strategies.sequential import Sequential

STRATEGIES: dict[str, type[Strategy]] = {}


def register(strategy: type[Strategy]) -> None:
    """Makes a strategy known by its name, before the commands that offer it are loaded."""
    STRATEGIES[strategy.name] = strategy


register(Sequential)
register(Averaging)


def make_strategy(network: SplitNetwork, spec: RunSpec) -> Strategy:
    """The strategy that a run asks for; its trunks are made of the layers of `network`.

    Raises:
        ConfigError: there is none of this name.
    """
    if spec.strategy not in STRATEGIES:
        raise ConfigError(f"strategy {spec.strategy!r}: known are {', '.join(STRATEGIES)}")
    return STRATEGIES[spec.strategy](network, spec)


def with_setting(setting: str) -> str:
    """The names of the strategies that a RunSpec field of their own concerns, for a flag's help."""
    return ", ".join(name for name, strategy in STRATEGIES.items() if setting in strategy.settings)
