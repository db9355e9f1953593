# SPDX-License-Identifier: Apache-2.0
"""Ranks over torchrun's store: order of messages, comparison of settings, end after a failed rank."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakes import FakeClock
from torch.distributed import HashStore  # type: ignore[attr-defined]

from splitee.errors import ConfigError, RankLost
from splitee.mqtt.address import BrokerAddress
from splitee.mqtt.options import LinkOptions
from splitee_server.ranks.begin import compare_settings, train
from splitee_server.ranks.group import CHECK_EVERY, Group, meet
from splitee_server.ranks.heartbeats import LOST_AFTER
from splitee_server.ranks.messages import Begin, encode
from splitee_server.ranks.place import Place
from splitee_server.rounds.policy import Policy


@pytest.fixture
def groups() -> Callable[[int], list[Group]]:
    """Groups of a number of ranks in this process, with one store and one clock."""

    def make(size: int) -> list[Group]:
        store, clock = HashStore(), FakeClock()
        return [Group(Place(rank, size), store, clock) for rank in range(size)]

    return make


def test_messages_are_received_once_and_in_order(groups: Callable[[int], list[Group]]) -> None:
    one, two, three = groups(3)
    assert list(two.new_messages(0)) == []
    one.post(1, b"first")
    one.post(1, b"\xff\x00second")
    one.post(2, b"other")
    three.post(1, b"of three")
    assert list(two.new_messages(0)) == [b"first", b"\xff\x00second"]
    one.post(1, b"third")
    assert list(two.new_messages(0)) == [b"third"]
    assert list(two.new_messages(2)) == [b"of three"]
    assert list(three.new_messages(0)) == [b"other"]


def test_failed_rank_ends_another_with_its_error(groups: Callable[[int], list[Group]]) -> None:
    one, two, three = groups(3)
    two.fail("no broker at mqtt://b:1883")
    three.fail("another rank is gone")  # as a consequence
    with pytest.raises(RankLost, match=r"^rank 1: no broker at mqtt://b:1883$"):
        list(one.new_messages(1))


def test_stopped_rank_is_reported_to_another(groups: Callable[[int], list[Group]]) -> None:
    one, two = groups(2)
    stop = threading.Event()
    stop.set()
    link = LinkOptions(BrokerAddress("127.0.0.1", 1), "barn", 0.1, None)
    train(two, link, Policy(devices=2, quorum=1), stop)
    with pytest.raises(RankLost, match=r"^rank 1: it was asked to stop$"):
        one.check_ranks()


def test_rank_can_be_stopped_while_it_tries_to_reach_its_broker(
    groups: Callable[[int], list[Group]],
) -> None:
    one, two = groups(2)
    one.post(1, encode(Begin("splitee-barn-server", initial=False)))
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as pool:
        link = LinkOptions(BrokerAddress(*silent.getsockname()), "barn", 8.0, None)
        ended = pool.submit(train, two, link, Policy(devices=2, quorum=1), stop)
        connection, _ = silent.accept()
        stop.set()
        connection.close()
        ended.result()  # not BrokerUnreachable
    with pytest.raises(RankLost, match=r"^rank 1: it was asked to stop$"):
        one.check_ranks()


def test_rank_without_a_sign_of_life_counts_as_lost() -> None:
    store, clock = HashStore(), FakeClock()
    one, two = (Group(Place(rank, 2), store, clock) for rank in range(2))

    def look_for(seconds: float) -> None:
        for _ in range(int(seconds / CHECK_EVERY)):
            one.check_ranks()
            clock.advance(CHECK_EVERY)

    look_for(LOST_AFTER)
    two.heartbeats.start()  # one sign, on a thread, whatever `two` works on
    two.heartbeats.stop()
    look_for(LOST_AFTER)
    with pytest.raises(RankLost, match=r"^rank 1 has given no sign of life for 60 s$"):
        look_for(3 * CHECK_EVERY)


def test_ranks_with_the_same_settings_agree(groups: Callable[[int], list[Group]]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda group: compare_settings(group, {"rounds": 3, "fleet": "a"}), groups(3)))
        file = {"weights": "caf\udce9.pt"}  # a name in Latin-1
        list(pool.map(lambda group: compare_settings(group, file), groups(2)))


def test_ranks_with_different_settings_are_refused_with_the_difference(
    groups: Callable[[int], list[Group]],
) -> None:
    def refusal_of(group: Group) -> str:
        with pytest.raises(ConfigError) as refused:
            compare_settings(group, {"fleet": "a", "rounds": 4 if group.rank else 5})
        return str(refused.value)

    with ThreadPoolExecutor() as pool:
        first, second = pool.map(refusal_of, groups(2))
    assert first == (
        "the ranks' settings differ: rounds is 5 for rank 0, 4 for rank 1: start all with the same"
    )
    assert "4 for rank 1, 5 for rank 0" in second


def test_ranks_meet_in_a_store_with_entries_of_earlier_ranks() -> None:
    """Twice in one store, as torchrun restarts all ranks after one has died."""
    store = HashStore()
    store.set("hello/2", "of a rank that died before rank 0 came")
    meetings = []
    for _ in range(2):
        with ThreadPoolExecutor(3) as pool:
            met = [pool.submit(meet, store, rank, 3) for rank in (0, 1)]
            met.append(pool.submit(meet, store, 2, 3))
            [meeting] = {one.result(30) for one in met}
        meetings.append(meeting)
    assert meetings[0] != meetings[1]
