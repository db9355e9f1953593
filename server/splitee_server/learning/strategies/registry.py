# SPDX-License-Identifier: Apache-2.0
"""All cooperative strategies by name: a new one is a file beside this one, and a line here.

A strategy's class, and torch with it, is imported when a run needs it: commands only name them.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from splitee.errors import ConfigError
from splitee.protocol.run_spec import RunSpec
from splitee.suggestions import did_you_mean

if TYPE_CHECKING:
    from splitee.networks.split import SplitNetwork
    from splitee_server.learning.strategies.base import Strategy

HERE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class StrategyEntry:
    """A strategy that a run can choose.

    Attributes:
        module, cls: where its class is.
        settings: the fields of RunSpec that concern no other strategy.
        multi_rank: several ranks can train it.
        joint: a step combines a batch of every device.
    """

    module: str
    cls: str
    settings: tuple[str, ...] = ()
    multi_rank: bool = False
    joint: bool = False

    def load(self) -> type[Strategy]:
        found: type[Strategy] = getattr(import_module(self.module), self.cls)
        return found


STRATEGIES: dict[str, StrategyEntry] = {}


def register(
    name: str,
    module: str,
    cls: str,
    settings: tuple[str, ...] = (),
    *,
    multi_rank: bool = False,
    joint: bool = False,
) -> None:
    """Register a strategy under its name, before the commands that offer it are loaded."""
    STRATEGIES[name] = StrategyEntry(module, cls, settings, multi_rank, joint)


register("sequential", f"{HERE}.sequential", "Sequential", settings=("order",))
register(
    "averaging",
    f"{HERE}.averaging",
    "Averaging",
    settings=("aggregation_every", "trunk_momentum"),
    multi_rank=True,
)
register("data-parallel", f"{HERE}.data_parallel", "DataParallel", multi_rank=True, joint=True)


def make_strategy(network: SplitNetwork, spec: RunSpec) -> Strategy:
    """The strategy that a run has chosen; its trunks are made of the layers of `network`.

    Raises:
        ConfigError: there is none of this name.
    """
    if spec.strategy not in STRATEGIES:
        known, meant = ", ".join(STRATEGIES), did_you_mean(spec.strategy, STRATEGIES)
        raise ConfigError(f"strategy {spec.strategy!r}: known are {known}{meant}")
    return STRATEGIES[spec.strategy].load()(network, spec)


def with_setting(setting: str) -> str:
    """The names of the strategies that a RunSpec field of their own concerns, for a flag's help."""
    return ", ".join(name for name, known in STRATEGIES.items() if setting in known.settings)
