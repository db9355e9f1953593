# SPDX-License-Identifier: Apache-2.0
"""The server's durable state: the run, its last committed rounds, every round's metrics, the report."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from splitee.durable import StateDirectory, write_atomically
from splitee.errors import StateError
from splitee.protocol import fields
from splitee.protocol.fleet import Metrics
from splitee.protocol.run_spec import RunSpec
from splitee.protocol.seasons import Seasons
from splitee.training.commit_files import CommitFiles
from splitee.training.history import HISTORY, Course
from splitee.validation_errors import format_error
from splitee_server.members.traffic import StoredTraffic
from splitee_server.rounds.class_report import EVALUATION, ClassReport
from splitee_server.rounds.history import History
from splitee_server.rounds.seasons import SEASONS, seasons_before

DISMISSED = "dismissed.json"
TRAFFIC = "traffic.json"
REPORT = "report.json"
FIRST_WEIGHTS = "weights.state"  # the run's initial weights, if they do not come from the seed
FILES = (
    DISMISSED,
    TRAFFIC,
    REPORT,
    FIRST_WEIGHTS,
    SEASONS,
    EVALUATION,
    HISTORY,
)  # of a run, beside its rounds
# Fields of RunSpec that are no settings, and the one that may be changed.
FOLLOWING = ("run", "class_names", "frozen", "exit_cuts", "settled", "fused", "mean", "std", "rounds")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Committed:
    """A committed round as it is stored; only the strategy reads `strategy`."""

    round: int
    strategy: dict[str, Any]
    clients: dict[str, Any]  # client networks and exits that the round collected, by device
    members: list[dict[str, Any]]
    class_names: tuple[str, ...]
    weights_sha256: str
    duplicates: int
    seconds: float
    soft_labels: dict[str, Any] = field(default_factory=dict)  # that devices learn from next, by device
    trunks: dict[str, Any] = field(default_factory=dict)  # by name, as `NamedTrunks` reads them
    trunk_of: dict[str, str] = field(default_factory=dict)  # by device
    left_out: list[str] = field(default_factory=list)  # devices that the next round does not train with
    samples: dict[str, int] = field(default_factory=dict)  # that trunks were trained on in it, by device
    fresh: bool = False  # BatchNorm's statistics have been recomputed
    server_momentum: dict[str, Any] = field(default_factory=dict)  # tensors by name
    class_mix: dict[str, Any] = field(default_factory=dict)  # labels of each class so far, by device
    outdated: list[str] = field(default_factory=list)  # devices whose networks are of an earlier round


class Checkpoints:
    """Files of one run in a state directory.

    Attributes:
        saves: number of commits that this process has saved; a round with statistics is saved twice.
    """

    def __init__(self, directory: StateDirectory) -> None:
        self._directory = directory
        self._released = 0
        self.saves = 0
        self._begin()

    def _begin(self) -> None:
        self._rounds = CommitFiles(self._directory)
        self._history = History(self.path)

    @property
    def path(self) -> Path:
        return self._directory.path

    def begun(self) -> RunSpec | None:
        """The stored run; None: there is none.

        Raises:
            StateError: another version of splitee wrote it, or its settings cannot be read; its rounds may
                still be there.
        """
        facts = self._directory.facts()
        if facts is None and (self.path / "run.json").exists():
            raise StateError(
                f"{self.path}: run.json is damaged or cannot be read: restore it, or --fresh starts over"
            )
        try:
            return None if facts is None else msgspec.convert(facts, RunSpec)
        except msgspec.ValidationError as error:
            raise StateError(
                f"{self.path}: run.json is not of this release "
                f"({format_error(error, facts)}): --fresh starts over"
            ) from None

    def open(
        self, spec: RunSpec, *, fresh: bool, weights: bytes | None = None, seasons: Seasons | None = None
    ) -> RunSpec:
        """The run to serve: the stored one if its settings are those of `spec`, else `spec` itself.

        Args:
            weights: initial weights of a new run; they are durable before the run is.
            seasons: from which these weights come; None: from no earlier run.

        Raises:
            StateError: the directory holds a run with other settings, with more rounds committed, or that
                cannot be read.
        """
        stored = None if fresh else self.begun()
        if stored is None:
            self._directory.clear(*FILES)
            self._begin()
            if weights is not None:
                self._directory.save(FIRST_WEIGHTS, weights)
            if seasons is not None:
                write_atomically(self.path / SEASONS, seasons.encode())
            self.settle(spec)
            return spec
        changed = [
            f"{name} {getattr(stored, name)!r} there, {getattr(spec, name)!r} here"
            for name in spec.__struct_fields__
            if name not in FOLLOWING and getattr(stored, name) != getattr(spec, name)
        ]
        if changed:
            raise StateError(
                f"{self.path} holds run {stored.run} with other settings ({'; '.join(changed)}): "
                "--fresh starts over, another --state keeps it"
            )
        self._history.repair()
        return self._with_rounds(stored, spec.rounds)

    def _with_rounds(self, stored: RunSpec, rounds: int) -> RunSpec:
        """The stored run with `rounds` rounds, durably. Raises StateError: more are committed."""
        if rounds == stored.rounds:
            return stored
        committed = self.newest()
        if rounds < committed:
            raise StateError(
                f"--rounds {rounds}: {committed} rounds of run {stored.run} are committed in {self.path}: "
                f"give at least {committed}, or --fresh starts over"
            )
        spec = msgspec.structs.replace(stored, rounds=rounds)
        self.settle(spec)
        log.info(
            "run %s has %d rounds now, before %d: from round %d on the learning rate is that of a run of %d",
            spec.run,
            rounds,
            stored.rounds,
            committed + 1,
            rounds,
        )
        return spec

    def settle(self, spec: RunSpec) -> None:
        """Save `spec` as the run's settings; durable when this returns."""
        self._directory.save_facts(json.loads(spec.encode()))

    def seasons(self) -> Seasons | None:
        """The earlier runs from which the weights come; None: there are none, or the file is damaged."""
        seasons = seasons_before(self.path)
        run = self.begun()
        return Seasons(run=run.run, seasons=seasons) if run is not None and seasons else None

    def dismissed(self) -> list[str]:
        """The dismissed devices. Raises StateError: the file of their names is damaged."""
        path = self.path / DISMISSED
        try:
            return msgspec.json.decode(path.read_bytes(), type=list[fields.Name])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise StateError(f"{path}: expected a list of devices ({error}); mend or remove it") from None

    def save_dismissed(self, devices: Iterable[str]) -> None:
        """Save the dismissed devices; durable when this returns, and announced only after that."""
        write_atomically(self.path / DISMISSED, msgspec.json.encode(sorted(devices)) + b"\n")

    def traffic(self) -> StoredTraffic | None:
        """The bytes counted so far; None: none were, or the file is damaged."""
        path = self.path / TRAFFIC
        try:
            return msgspec.json.decode(path.read_bytes(), type=StoredTraffic)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            log.warning("%s is damaged (%s): bytes are counted from here on", path, error)
            return None

    def write_traffic(self, traffic: StoredTraffic) -> None:
        write_atomically(self.path / TRAFFIC, msgspec.json.encode(traffic) + b"\n")

    def first_weights(self) -> bytes | None:
        """The initial weights of the run; None: they follow from the seed, or the file is damaged."""
        return self._directory.load(FIRST_WEIGHTS)

    def save(self, committed: Committed, *, changes_follow: bool = True) -> None:
        """Save a commit; durable when this returns, and published only after that. The best round is kept.

        If the round has been saved before, only its changes are written.

        Args:
            changes_follow: the round is likely to be saved once more.
        """
        self._rounds.save(committed.round, vars(committed), changes_follow=changes_follow)
        self.saves += 1
        best = self.course(committed.round).best
        self._directory.prune(committed.round, keep=best.round if best is not None else 0)

    def newest(self) -> int:
        """The last committed round; 0 before the first."""
        return next(iter(self._directory.rounds()), 0)

    def release(self, number: int) -> None:
        """Use the trunks of round `number` for offloaded images from now on."""
        self._released = number

    def serving_round(self) -> int:
        """The round whose trunks predict offloaded images: the last one, until one is released."""
        return self._released or self.newest()

    def load(self, upto: int | None = None) -> Committed | None:
        """The newest committed round up to `upto` with an undamaged file; None: there is none."""
        for number in self._directory.rounds():
            if upto is not None and number > upto:
                continue
            state = self._rounds.load(number)
            if state is not None:
                return Committed(**state)
        return None

    def add_metrics(self, metrics: Metrics) -> None:
        """Add the metrics of an evaluated round, or further ones."""
        self._history.add(metrics)

    def history(self) -> Iterator[Metrics]:
        """The evaluated rounds, as they are in history.jsonl."""
        return self._history.all()

    def evaluated(self, number: int) -> Metrics | None:
        """The metrics of round `number`; None: it was not evaluated."""
        return self._history.evaluated(number)

    def course(self, committed: int) -> Course:
        """How rounds 1..`committed` went; its `best` is without devices."""
        return self._history.course(committed)

    def fleet_history(self, committed: int) -> list[Metrics]:
        """The evaluated ones of rounds 1..`committed`, in their order, each once and without devices."""
        return self._history.of_fleet(committed)

    def evaluation(self) -> ClassReport | None:
        """The last evaluated round, class by class; None: there is none, or another version wrote it."""
        try:
            return msgspec.json.decode((self.path / EVALUATION).read_bytes(), type=ClassReport)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def write_evaluation(self, report: ClassReport) -> None:
        """evaluation.json: the last evaluated round, class by class."""
        write_atomically(self.path / EVALUATION, msgspec.json.encode(report) + b"\n")

    def write_report(self, report: dict[str, Any]) -> None:
        write_atomically(
            self.path / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
        )
