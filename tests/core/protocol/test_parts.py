# SPDX-License-Identifier: Apache-2.0
"""Parts: a message is joined from its own parts only, in any order."""

from __future__ import annotations

import random
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.strategies import damaged, messages

from splitee.errors import MalformedMessage
from splitee.protocol.encoding import MAX_PACKED
from splitee.protocol.fleet import DeviceStatus
from splitee.protocol.parts import MAX_OPEN, MAX_PARTS, PART_OVERHEAD, Assembler, split
from splitee.protocol.rounds import RoundDone

LIMIT = 1000
ROOM = LIMIT - PART_OVERHEAD

_numbers = iter(range(1 << 40))


def cut(payload: bytes, limit: int = LIMIT) -> list[bytes]:
    """The parts of `payload` as a message with a new number."""
    return list(split(payload, limit, next(_numbers)))


def join(assembler: Assembler, sender: str, parts: list[bytes]) -> list[bytes]:
    """The messages that these parts complete."""
    return [whole for part in parts if (whole := assembler.add(sender, part)) is not None]


def part(**changes: Any) -> bytes:
    fields = {"message": 1, "index": 0, "count": 2, "size": 8, "data": b"abcd", **changes}
    return msgspec.msgpack.encode(list(fields.values()))


def message(size: int, seed: int = 0) -> bytes:
    return b"\x81" + random.Random(seed).randbytes(size - 1)  # a map, as every packed message is


@pytest.mark.parametrize("size", [1, LIMIT - 1, LIMIT])
def test_message_within_the_limit_is_sent_unchanged(size: int) -> None:
    payload = message(size)
    assert cut(payload) == [payload]
    assert Assembler().add("pi", payload) == payload


@pytest.mark.parametrize("size", [LIMIT + 1, 3 * ROOM - 1, 3 * ROOM, 3 * ROOM + 1, 40 * ROOM + 1])
def test_message_over_the_limit_is_sent_in_the_fewest_parts(size: int) -> None:
    payload = message(size)
    parts = cut(payload)
    assert len(parts) == -(-size // ROOM)
    assert all(len(each) <= LIMIT for each in parts)
    assert join(Assembler(), "pi", parts) == [payload]


@given(
    size=st.integers(1, 5000),
    limit=st.integers(PART_OVERHEAD + 1, 600),
    seed=st.randoms(use_true_random=False),
)
def test_parts_join_in_any_order_and_with_duplicates(size: int, limit: int, seed: random.Random) -> None:
    payload = message(size)
    parts = cut(payload, limit)
    shuffled = parts + seed.choices(parts, k=len(parts) // 2) if len(parts) > 1 else parts
    seed.shuffle(shuffled)
    assert join(Assembler(), "pi", shuffled) == [payload]


def test_part_header_of_the_largest_message_fits_its_overhead() -> None:
    payload = bytes(MAX_PACKED)
    limit = MAX_PACKED // MAX_PARTS + PART_OVERHEAD
    first = next(iter(split(payload, limit, (1 << 61) - 1)))
    assert len(first) <= limit
    assert Assembler().add("pi", first) is None


@pytest.mark.parametrize("index", range(4))
def test_message_is_incomplete_until_its_missing_part_arrives(index: int) -> None:
    parts = cut(message(4 * ROOM))
    missing = parts.pop(index)
    assembler = Assembler()
    assert join(assembler, "pi", parts) == []
    assert assembler.add("pi", missing) == message(4 * ROOM)


@given(
    sizes=st.lists(st.tuples(st.sampled_from("abc"), st.integers(LIMIT + 1, 8 * ROOM)), max_size=MAX_OPEN),
    order=st.randoms(use_true_random=False),
)
def test_parts_of_several_senders_and_messages_may_be_interleaved(
    sizes: list[tuple[str, int]], order: random.Random
) -> None:
    payloads = [(sender, message(size, seed)) for seed, (sender, size) in enumerate(sizes)]
    arrivals = [(sender, each) for sender, payload in payloads for each in cut(payload)]
    order.shuffle(arrivals)
    assembler = Assembler()
    joined = [
        (sender, whole) for sender, each in arrivals if (whole := assembler.add(sender, each)) is not None
    ]
    assert sorted(joined) == sorted(payloads)


def test_part_of_another_sender_does_not_complete_a_message() -> None:
    first, second = split(message(2 * ROOM), LIMIT, 7)
    assembler = Assembler()
    assert assembler.add("a", first) is None
    assert assembler.add("b", second) is None
    assert assembler.add("a", second) == message(2 * ROOM)


def test_repeated_parts_of_a_finished_message_are_ignored() -> None:
    """After a reconnect the broker delivers unacknowledged messages a second time."""
    assembler = Assembler(limit=4 * ROOM, total=4 * ROOM)
    parts = cut(message(4 * ROOM))
    assert len(join(assembler, "pi", parts)) == 1
    assert join(assembler, "pi", parts[:3]) == []
    following = cut(message(3 * ROOM, seed=1))
    assert join(assembler, "pi", [following[0], *parts[:3], *following[1:]]) == [message(3 * ROOM, seed=1)]
    assert join(assembler, "pi", parts) == []


def test_first_of_two_different_parts_of_one_index_is_kept() -> None:
    assembler = Assembler()
    assert assembler.add("pi", part()) is None
    assert assembler.add("pi", part(data=b"wxyz")) is None
    assert assembler.add("pi", part(index=1, data=b"efgh")) == b"abcdefgh"


@pytest.mark.parametrize(
    "contradiction",
    [
        {"index": 1, "count": 3},
        {"index": 1, "size": 9},
        {"index": 2},
        {"index": 1, "data": b"efg"},
        {"index": 1, "data": b"efghi"},
        {"index": 1, "data": bytes(1000)},
    ],
    ids=str,
)
def test_contradictory_part_is_refused_and_its_message_dropped(contradiction: dict[str, Any]) -> None:
    assembler = Assembler()
    assert assembler.add("pi", part()) is None
    with pytest.raises(MalformedMessage, match="Part"):
        assembler.add("pi", part(**contradiction))
    assert assembler.add("pi", part(index=1, data=b"efgh")) is None
    assert assembler.add("pi", part()) == b"abcdefgh"


@pytest.mark.parametrize(
    "broken",
    [
        {"message": -1},
        {"message": (1 << 62) + 1},
        {"index": -1},
        {"index": 2},
        {"index": MAX_PARTS},
        {"count": 0},
        {"count": 1},
        {"count": MAX_PARTS + 1},
        {"count": 1 << 40},
        {"size": 1},
        {"size": 1 << 40},
        {"data": b""},
        {"data": "text"},
        {"data": b"123456789"},
    ],
    ids=str,
)
def test_broken_parts_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match="Part"):
        Assembler().add("pi", part(**broken))


@given(
    damaged(
        st.builds(part, index=st.integers(0, 3), count=st.just(4), data=st.binary(min_size=1, max_size=4))
    )
)
def test_damaged_parts_are_refused_or_kept(payload: bytes) -> None:
    try:
        whole = Assembler().add("pi", payload)
    except MalformedMessage as error:
        assert "\n" not in str(error)
    else:
        assert whole is None or whole == payload


@given(st.binary(max_size=100).map(lambda tail: b"\x95" + tail))
def test_random_parts_are_refused_or_kept(payload: bytes) -> None:
    try:
        assert Assembler().add("pi", payload) is None
    except MalformedMessage as error:
        assert str(error).startswith("Part: ")


def test_part_of_a_message_over_the_size_limit_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="at most 7 B are taken"):
        Assembler(limit=7).add("pi", part())


@given(messages(RoundDone) | messages(DeviceStatus))
def test_whole_message_is_not_mistaken_for_a_part(sent: RoundDone | DeviceStatus) -> None:
    assert Assembler().add("pi", sent.encode()) == sent.encode()


def test_number_of_unfinished_messages_of_a_sender_is_limited() -> None:
    assembler = Assembler()
    unfinished = [cut(message(2 * ROOM, seed)) for seed in range(MAX_OPEN + 1)]
    for parts in unfinished:
        assert assembler.add("pi", parts[0]) is None
    assert assembler.add("pi", unfinished[0][1]) is None  # the oldest was dropped; this part opens it again
    assert assembler.add("pi", unfinished[-1][1]) == message(2 * ROOM, MAX_OPEN)


def test_unfinished_bytes_of_a_sender_are_limited() -> None:
    assembler = Assembler(limit=4 * ROOM)
    old, new = cut(message(4 * ROOM, 1)), cut(message(4 * ROOM, 2))
    assert join(assembler, "pi", old[:3] + new[:3]) == []
    assert assembler.add("pi", old[3]) is None
    assert assembler.add("pi", new[3]) == message(4 * ROOM, 2)


def test_sender_with_most_bytes_loses_its_message_at_the_total_limit() -> None:
    assembler = Assembler(limit=4 * ROOM, total=5 * ROOM)
    modest, greedy, last = (cut(message(4 * ROOM, seed)) for seed in range(3))
    assert join(assembler, "modest", modest[:2]) == []
    assert join(assembler, "greedy", greedy[:3]) == []
    assert assembler.add("last", last[0]) is None
    assert assembler.add("greedy", greedy[3]) is None
    assert join(assembler, "modest", modest[2:]) == [message(4 * ROOM, 0)]
    assert join(assembler, "last", last[1:]) == [message(4 * ROOM, 2)]


def test_forget_drops_the_unfinished_messages_of_one_sender() -> None:
    assembler = Assembler()
    mine, other = cut(message(2 * ROOM, 1)), cut(message(2 * ROOM, 2))
    assembler.add("pi", mine[0])
    assembler.add("other", other[0])
    assembler.forget("pi")
    assembler.forget("nobody")
    assert assembler.add("pi", mine[1]) is None
    assert assembler.add("other", other[1]) == message(2 * ROOM, 2)


@pytest.mark.slow
def test_flood_of_one_byte_parts_takes_bounded_memory() -> None:
    """Parts of one byte, of messages that announce the maximum: the worst case of a sender."""
    assembler = Assembler(limit=1 << 16)
    tracemalloc.start()
    try:
        for number in range(MAX_OPEN + 2):
            for index in range(0, MAX_PARTS, 4):
                assembler.add(
                    "pi", part(message=number, index=index, count=MAX_PARTS, size=1 << 16, data=b"x")
                )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MAX_OPEN * MAX_PARTS * 256


@pytest.mark.parametrize(
    ("size", "limit"), [(LIMIT + 1, PART_OVERHEAD), (LIMIT + 1, 1), (MAX_PARTS + 100, PART_OVERHEAD + 1)]
)
def test_split_refuses_a_limit_that_is_too_small(size: int, limit: int) -> None:
    with pytest.raises(ValueError, match=f"a limit of {limit} bytes"):
        cut(message(size), limit)


def test_split_refuses_a_message_over_the_maximum_size() -> None:
    with pytest.raises(ValueError, match=f"at most {MAX_PACKED}"):
        cut(bytes(MAX_PACKED + 1), 1 << 20)
