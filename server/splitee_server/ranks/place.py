# SPDX-License-Identifier: Apache-2.0
"""The rank of a process in its server, as torchrun sets it, and the settings that several ranks refuse."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from splitee.errors import ConfigError
from splitee.mqtt.address import BrokerAddress
from splitee.protocol.run_spec import RunSpec
from splitee_server.learning.strategies.registry import STRATEGIES


@dataclass(frozen=True)
class Place:
    """This process's place among the ranks.

    `on_one_machine`: all ranks were started by one torchrun.
    """

    rank: int
    size: int
    on_one_machine: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Place | None:
        """The place that torchrun has set; None: this process is the whole server.

        Raises:
            ConfigError: the variables are not those that torchrun sets.
        """
        if "WORLD_SIZE" not in environment:
            return None
        try:
            size, rank = int(environment["WORLD_SIZE"]), int(environment["RANK"])
            host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"WORLD_SIZE is set, but not all that torchrun sets with it ({error}): start the ranks by "
                "torchrun, or unset it"
            ) from None
        if not 0 <= rank < size:
            raise ConfigError(f"RANK {rank} of WORLD_SIZE {size}: expected 0..{size - 1}, as torchrun has it")
        if not host or not 0 <= port < 1 << 16:
            raise ConfigError(
                f"MASTER_ADDR {host!r} and MASTER_PORT {port} with WORLD_SIZE {size}: expected a host and a "
                "port, as torchrun has them"
            )
        return cls(rank, size, environment.get("LOCAL_WORLD_SIZE") == str(size)) if size > 1 else None


def place_in(spec: RunSpec, devices: int, resident: int) -> Place | None:
    """This process's place among the ranks of a run; None: it is the whole server.

    Raises:
        ConfigError: several ranks cannot serve this run; or as `Place.of`.
    """
    place = Place.of()
    if place is None:
        return None
    if not STRATEGIES[spec.strategy].multi_rank:
        able = " or ".join(name for name, known in STRATEGIES.items() if known.multi_rank)
        raise ConfigError(
            f"--strategy {spec.strategy} trains one trunk by the batches of all devices in turn, which "
            f"{place.size} ranks cannot share: take --strategy {able}, or start one rank"
        )
    if spec.aggregation_every:
        raise ConfigError(
            f"--aggregation-every {spec.aggregation_every} averages trunks within a round, which "
            f"{place.size} ranks do after rounds only: leave it out, or start one rank"
        )
    if spec.round_seconds:
        raise ConfigError(
            f"--steps time:{spec.round_seconds:g} measures when batches arrive at one process, but "
            f"{place.size} ranks share them: give a number of steps, or start one rank"
        )
    if resident:
        raise ConfigError(
            f"--resident {resident} is for one process: {place.size} ranks have their devices' trunks in "
            "memory, each a part of them; leave it out, or start one rank"
        )
    if devices < place.size:
        raise ConfigError(
            f"--devices {devices}: {place.size} ranks would have no device each; start at most {devices}"
        )
    return place


def brokers_of_ranks(
    urls: str | None, own: BrokerAddress, place: Place | None, spec: RunSpec
) -> Sequence[BrokerAddress]:
    """The broker of each rank, by default `own`; one without an account gets that of `own`.

    Raises:
        ConfigError: there are not as many as ranks, one is malformed, or ranks of this run need the same.
    """
    size = 1 if place is None else place.size
    if urls is None:
        return [own] * size
    named = [BrokerAddress.parse(url.strip()) for url in urls.split(",")]
    if len(named) != size:
        raise ConfigError(
            f"--brokers names {len(named)} brokers for {size} ranks: expected one per rank, in order"
        )
    if STRATEGIES[spec.strategy].joint and len(set(named)) > 1:
        raise ConfigError(
            f"--brokers names several brokers, but --strategy {spec.strategy} deals devices by the order of "
            "its sums, not by their brokers: give all ranks one, or take --strategy averaging"
        )
    if own.username is not None:
        named = [
            replace(one, username=own.username, password=own.password) if one.username is None else one
            for one in named
        ]
    return named
