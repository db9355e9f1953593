# SPDX-License-Identifier: Apache-2.0
"""States sent between two processes: values, types and order in memory are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import warm  # noqa: F401  modules that the other process then has loaded
from torch import distributed
from torch.distributed import FileStore  # type: ignore[attr-defined]

from splitee_lab.local.forked import start
from splitee_server.ranks.group import Group
from splitee_server.ranks.place import Place
from splitee_server.ranks.state_transfer import receive_state, send_state


def joined(rank: int, meeting: Path, shares_memory: bool) -> Group:
    """A rank that shares its memory, or sends everything over the network."""
    init = meeting.with_suffix(".gloo").as_uri()
    distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    group = Group(Place(rank, 2), FileStore(str(meeting), 2))
    if shares_memory:
        group.share_memory()
    return group


def send_back(meeting: Path, shares_memory: bool) -> None:
    """Run the other process, with two states, as the second one needs more room than the first."""
    group = joined(1, meeting, shares_memory)
    for _ in range(2):
        send_state(group, [0], receive_state(group, 0))
    assert group.receive(0) == b"read"
    group.close()


@pytest.fixture(params=[False, True], ids=["sent", "in-shared-memory"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
    meeting = tmp_path / "meeting", request.param
    other = start(send_back, *meeting)
    made = joined(0, *meeting)
    yield made
    assert ("memfd:splitee-rank" in Path("/proc/self/maps").read_text()) == request.param
    made.close()
    other.join(60)
    assert other.exitcode == 0


def test_state_arrives_as_it_was_sent(group: Group) -> None:
    values = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    state: dict[str, Any] = {
        "at": [1, 2, 3],
        "sums": [
            {
                "plain": values,
                "channels-last": values.to(memory_format=torch.channels_last),
                "with-gaps": values[:, ::2],
                "parameter": torch.nn.Parameter(values),
            },
            {"counter": torch.tensor(7), "wide": values.double(), "nothing": torch.empty(0)},
        ],
        "weights": {"plain": 8.0},
    }
    send_state(group, [1], {"small": torch.ones(2)})
    assert receive_state(group, 1)["small"].tolist() == [1, 1]
    send_state(group, [1], state)
    found = receive_state(group, 1)
    assert (found["at"], found["weights"]) == (state["at"], state["weights"])
    for sent, came in zip(state["sums"], found["sums"], strict=True):
        assert sent.keys() == came.keys()
        assert all(torch.equal(tensor, came[name]) for name, tensor in sent.items())
        assert all(tensor.dtype == came[name].dtype for name, tensor in sent.items())
    group.send(1, b"read")
    assert found["sums"][0]["channels-last"].is_contiguous(memory_format=torch.channels_last)


def test_sent_tensors_can_be_changed_and_sent_again_in_place(group: Group) -> None:
    places = send_state(group, [1], {"weights": torch.zeros(1000)})
    receive_state(group, 1)
    places["weights"].fill_(1)
    again = send_state(group, [1], places)
    assert again["weights"].data_ptr() == places["weights"].data_ptr()
    assert receive_state(group, 1)["weights"].tolist() == [1] * 1000
    group.send(1, b"read")
