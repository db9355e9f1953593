# SPDX-License-Identifier: Apache-2.0
"""How ranks begin: they meet, compare their settings, and take their roles."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial

import msgspec

from splitee.cli.plain_text import plain
from splitee.cli.signals import Stopped
from splitee.errors import ConfigError, RankLost, SpliteeError, Unwinding
from splitee.mqtt.address import BrokerAddress, TlsFiles
from splitee.mqtt.link import INBOX_BYTES, SESSION_EXPIRY, Link
from splitee.mqtt.options import LinkOptions
from splitee.protocol.routes import latest_key
from splitee.protocol.sender_limits import SenderLimits
from splitee.protocol.topics import Topics
from splitee_server.learning.initial.weights import InitialWeights
from splitee_server.ranks.assignment import LaneAssignment, RankAssignment
from splitee_server.ranks.brokers import SeveralBrokers
from splitee_server.ranks.group import Group
from splitee_server.ranks.leader import Leader
from splitee_server.ranks.messages import Begin, orders
from splitee_server.ranks.place import Place
from splitee_server.ranks.ranks import ALONE, Ranks
from splitee_server.ranks.trainer import Trainer
from splitee_server.rounds.policy import Policy
from splitee_server.rounds.windows import gathered, queue_events

SHOWN = 60  # characters of a setting

log = logging.getLogger(__name__)


@contextmanager
def rank_group(place: Place | None, settings: Mapping[str, object]) -> Iterator[Group | None]:
    """The group of the ranks, all with the same `settings`; None: this process is the only one.

    If a rank fails, its line also ends the others.

    Raises:
        ConfigError: the ranks were started with different settings.
        RankLost: one of them is gone.
    """
    if place is None:
        yield None
        return
    group = Group.join(place)
    try:
        compare_settings(group, settings)
        yield group
    except Unwinding:
        raise
    except Exception as error:
        line = str(error) if isinstance(error, SpliteeError) else f"{type(error).__name__}: {error}"
        group.fail(line)
        raise
    finally:
        group.close()


def compare_settings(group: Group, settings: Mapping[str, object]) -> None:
    """Raises ConfigError: another rank has different settings; the error names the first."""
    own = {name: plain(str(value)) for name, value in settings.items()}
    for rank, data in enumerate(group.exchange("settings", msgspec.json.encode(own))):
        other = msgspec.json.decode(data, type=dict[str, str])
        for name in sorted(own.keys() | other.keys()):
            if own.get(name) != other.get(name):
                raise ConfigError(
                    f"the ranks' settings differ: {name} is {str(own.get(name))[:SHOWN]} for rank "
                    f"{group.rank}, {str(other.get(name))[:SHOWN]} for rank {rank}: start all with the same"
                )


def leading_port(
    addresses: Sequence[BrokerAddress],
    client: str,
    tls: TlsFiles | None,
    topics: Topics,
    limits: SenderLimits,
    policy: Policy,
    will: tuple[str, bytes],
) -> Link | SeveralBrokers:
    """Rank 0's port to all devices, whichever broker they use; not open yet."""
    links = [
        Link(
            address,
            client,
            session_expiry=SESSION_EXPIRY,
            will=will,
            tls=tls,
            capacity=queue_events(policy.devices),
            capacity_bytes=INBOX_BYTES + policy.memory,
            key=partial(latest_key, topics),
            admits=limits.admits,
            read_delay=gathered(policy.devices),
        )
        for address in dict.fromkeys(addresses)
    ]
    return links[0] if len(links) == 1 else SeveralBrokers(links, topics)


def links_of(port: Link | SeveralBrokers) -> Sequence[Link]:
    """The port's links, one per broker."""
    return port.links if isinstance(port, SeveralBrokers) else [port]


def lead(
    group: Group | None,
    port: Link | SeveralBrokers,
    topics: Topics,
    addresses: Sequence[BrokerAddress],
    client: str,
    initial: InitialWeights | None,
    *,
    joint: bool,
) -> Ranks:
    """Tell the other ranks to begin; returns rank 0's view of them.

    Args:
        group: None: there are no others.
        joint: a step combines a batch of every device.
        addresses: of each rank's broker.
        client: this process's client id at the brokers.
        initial: the run's initial weights; None: they come from the seed.
    """
    if group is None:
        return ALONE

    def bound(device: str) -> list[int] | None:
        broker = port.broker_of(device) if isinstance(port, SeveralBrokers) else None
        return None if broker is None else [rank for rank, at in enumerate(addresses) if at == broker]

    assignment = LaneAssignment(group.size) if joint else RankAssignment(group.size, bound)
    leader = Leader(group, port, topics, assignment)
    leader.begin(client, initial)
    return leader


def train(group: Group, link: LinkOptions, policy: Policy, stop: threading.Event) -> None:
    """The work of a rank other than 0, until the run ends or the process receives a signal to stop."""
    topics, limits = Topics(link.fleet), SenderLimits(Topics(link.fleet))

    def begun() -> Begin | None:
        if stop.is_set():
            raise Stopped
        begin = next(map(orders.decode, group.new_messages(0)), None)
        assert begin is None or isinstance(begin, Begin)
        return begin

    try:
        begin = group.wait_for(begun, "rank 0 does not begin")
        initial = InitialWeights.decode(group.receive(0)) if begin.initial else None
        connection = Link(
            link.address,
            f"{begin.client}-rank-{group.rank}",
            session_expiry=SESSION_EXPIRY,
            tls=link.tls,
            capacity=queue_events(policy.devices),
            capacity_bytes=INBOX_BYTES + policy.memory,
            admits=limits.admits,
            read_delay=gathered(policy.devices),
        )
        connection.open(link.connect_timeout, stop.is_set)
        with closing(connection):
            log.info("rank %d of %d: trains for the devices that rank 0 gives it", group.rank, group.size)
            Trainer(group, connection, topics, policy, initial, stop=stop.is_set, limits=limits).run()
    except (Stopped, RankLost):
        if not stop.is_set():
            raise
        group.leave()
        log.info("rank %d: stopped", group.rank)
