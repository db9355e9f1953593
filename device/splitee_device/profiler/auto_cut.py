# SPDX-License-Identifier: Apache-2.0
"""`splitee device --cut auto` and `--adapt-cut`: the choice of `splitee profile` for the fleet's run."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from msgspec.structs import replace

from splitee.cli.bounds import OutOfBounds, given
from splitee.durable import StateDirectory
from splitee.errors import NoCutFits, SpliteeError
from splitee.mqtt.options import LinkOptions
from splitee.protocol.codecs import AUTO, DEFAULT
from splitee.protocol.fleet import Capability, CutCost
from splitee.protocol.run_spec import RunSpec
from splitee.training.epochs import steps_per_round
from splitee_device.machine import hardware
from splitee_device.profiler.choice import Preference
from splitee_device.profiler.cost_model import LinkSpeed, Work, payload_bytes
from splitee_device.profiler.costs import Measured
from splitee_device.profiler.forecast import Forecast
from splitee_device.profiler.link_speed import open_echo
from splitee_device.profiler.probe import measure_cuts
from splitee_device.profiler.store import MeasuredStore

RESERVE = 64 << 20  # bytes to keep free

log = logging.getLogger(__name__)


class CutType(click.ParamType[int | None]):
    """A stage's number, or `auto`, which is None."""

    name = "cut"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto" or value is None:
            return None
        if re.fullmatch("[1-9][0-9]{0,3}", str(value)):
            return int(value)
        raise OutOfBounds(f"{given(value, param, ctx)}: auto, or the number of a stage from 1 on", ctx, param)


@dataclass(frozen=True)
class ChosenCut:
    """The cut with which a device begins a run, and the costs of other cuts if they were measured."""

    cut: int
    capability: Capability | None = None
    forecast: Forecast | None = None


@dataclass(frozen=True)
class AutoCut:
    """How a device chooses its cut by itself.

    Args:
        samples: number of its training images.
        budget: seconds to measure for.
        memory: bytes that training may use, if that is less than available.
        first: the cut to begin with; None: the chosen one.
        lowest: lowest cut that may be chosen.
        adapts: it may want another cut later, and needs to know the costs of all.
    """

    options: LinkOptions
    device: str
    samples: int
    threads: int
    prefer: Preference
    budget: float
    memory: int | None = None
    first: int | None = None
    lowest: int = 1
    adapts: bool = False

    def choose(
        self, spec: RunSpec, state: StateDirectory, tick: Callable[[], None], *, fresh: bool
    ) -> ChosenCut:
        """The cut for a run, and what was measured.

        A measurement in `state` is reused. A run in it keeps its cut, unless `fresh` discards it; also a
        finished one, which may have got more rounds.
        `tick` is called twice a second meanwhile.

        Raises:
            NoCutFits: with advice on what would help.
        """
        if spec.codec == AUTO:  # the codec depends on the cut, and is chosen after it
            spec = replace(spec, codec=DEFAULT)
        store = MeasuredStore(state.path)
        stored = None if fresh else _cut_of_run(state, spec)
        measured = store.load(spec, self.threads)
        if measured is None:
            if stored is not None and not self.adapts:
                return ChosenCut(stored)
            measured = self._measure(spec, store, tick)
        measured = replace(measured, available=hardware.least(self.memory, measured.available))
        work = Work(
            self.samples,
            steps_per_round(spec, self.samples),
            RESERVE,
            link=self._link(measured),
            lowest_cut=self.lowest,
        )
        forecast = Forecast(measured, work, self.prefer)
        choice = forecast.choose()
        cut, reason = choice.cut, choice.reason
        if stored is not None:
            cut, reason = stored, "this run has been trained at it so far"
        elif self.first is not None:
            cut, reason = self.first, "as --cut says"
        if cut is None:
            raise NoCutFits(reason)
        words = choice.reason if cut == choice.cut else f"cut {cut}: {reason}; measured: {choice.reason}"
        log.info("%s", words)
        return ChosenCut(cut, _capability(forecast, reason), forecast if measured.costs else None)

    def _measure(self, spec: RunSpec, store: MeasuredStore, tick: Callable[[], None]) -> Measured:
        log.info("measuring which cut suits this device, for at most %.0f s", self.budget)
        measured = measure_cuts(spec, threads=self.threads, budget=self.budget, memory=self.memory, tick=tick)
        store.save(measured)
        return measured

    def _link(self, measured: Measured) -> LinkSpeed | None:
        try:
            with open_echo(self.options, self.device) as echo:
                return echo.speed(payload_bytes(measured))
        except SpliteeError as error:  # a device can train without knowing its link
            log.warning("link not measured: %s", error)
            return None


def _cut_of_run(state: StateDirectory, spec: RunSpec) -> int | None:
    stored = state.facts() or {}
    cut = stored.get("cut")
    return cut if stored.get("run") == spec.run and isinstance(cut, int) else None


def _capability(forecast: Forecast, reason: str) -> Capability:
    measured, link = forecast.measured, forecast.work.link
    facts = hardware.facts(observe=0)
    machine = facts["model"].value or facts["cpu"].value or facts["architecture"].value or "unknown"
    return Capability(
        network=measured.spec.network,
        batch_size=measured.spec.batch_size,
        codec=measured.spec.codec,
        machine=str(machine)[:200],
        cores=measured.cores,
        threads=measured.threads,
        memory=measured.available,
        upload=link.upload if link else None,
        round_trip=link.round_trip if link else None,
        reason=reason[:1000],
        cuts=tuple(
            CutCost(row.cut, row.compute, row.payload, row.needed, row.fits) for row in forecast.rows()
        ),
    )
