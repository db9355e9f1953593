"""`splitee device --cut auto`: the answer of `splitee profile`, for the run that the fleet's server opens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from msgspec.structs import replace

from splitee.codecs import AUTO, DEFAULT
from splitee.durable import StateDirectory
from splitee.errors import NoCutFits, SpliteeError
from splitee.link_options import LinkOptions
from splitee.messages import Capability, CutCost, RunSpec
from splitee.training import steps_a_round
from splitee_device import hardware
from splitee_device.choice import Preference, choose
from splitee_device.costs import Measured
from splitee_device.link_test import open_echo
from splitee_device.measured_store import MeasuredStore
from splitee_device.predict_cost import CutRow, LinkSpeed, Work, payload_bytes, predict
from splitee_device.probe import measure_cuts

RESERVE = 64 << 20  # bytes that stay free

log = logging.getLogger(__name__)


class CutType(click.ParamType[int | None]):
    """A stage's number, or `auto`, which is None."""

    name = "cut"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value == "auto" or value is None:
            return None
        try:
            return int(value)
        except ValueError:
            self.fail(f"expected auto or the number of a stage, got {value!r}", param, ctx)


@dataclass(frozen=True)
class AutoCut:
    """How a device chooses its cut by itself. `budget`: seconds to measure for; `samples`: it trains on."""

    options: LinkOptions
    device: str
    samples: int
    threads: int
    prefer: Preference
    budget: float

    def choose(
        self, spec: RunSpec, state: StateDirectory, tick: Callable[[], None], *, fresh: bool
    ) -> tuple[int, Capability | None]:
        """The cut for a run, and what was measured.

        A measurement in `state` is used again; an unfinished run in it keeps its cut, unless it is forgotten
        (`fresh`). `tick` is called twice a second while it takes.

        Raises:
            NoCutFits: with what would help.
        """
        if spec.codec == AUTO:  # which depends on the cut, and is chosen once that is known
            spec = replace(spec, codec=DEFAULT)
        store = MeasuredStore(state.path)
        held = None if fresh else _cut_of_run(state, spec)
        measured = store.load(spec, self.threads)
        if measured is None:
            if held is not None:
                return held, None
            measured = self._measure(spec, store, tick)
        work = Work(self.samples, steps_a_round(spec, self.samples), RESERVE, link=self._link(measured))
        rows = predict(measured, work)
        if held is not None:
            return held, _capability(measured, rows, work.link, "this run has been trained at it so far")
        choice = choose(rows, self.prefer, measured, work)
        if choice.cut is None:
            raise NoCutFits(choice.reason)
        log.info("%s", choice.reason)
        return choice.cut, _capability(measured, rows, work.link, choice.reason)

    def _measure(self, spec: RunSpec, store: MeasuredStore, tick: Callable[[], None]) -> Measured:
        log.info("measuring which cut suits this device, for at most %.0f s", self.budget)
        measured = measure_cuts(spec, threads=self.threads, budget=self.budget, tick=tick)
        store.save(measured)
        return measured

    def _link(self, measured: Measured) -> LinkSpeed | None:
        try:
            with open_echo(self.options, self.device) as echo:
                return echo.speed(payload_bytes(measured))
        except SpliteeError as error:  # a device trains without knowing its link as well
            log.warning("link not measured: %s", error)
            return None


def _cut_of_run(state: StateDirectory, spec: RunSpec) -> int | None:
    held = state.facts() or {}
    cut = held.get("cut")
    same = held.get("run") == spec.run and not held.get("finished", False)
    return cut if same and isinstance(cut, int) else None


def _capability(
    measured: Measured, rows: tuple[CutRow, ...], link: LinkSpeed | None, reason: str
) -> Capability:
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
            CutCost(row.cut, row.step + row.encoding, row.payload, row.needed, row.fits) for row in rows
        ),
    )
