# SPDX-License-Identifier: Apache-2.0
"""What is on its way to devices, and what their images agree on, folded into the picture of a fleet."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from told_fleets import NOW, PROFILE, RETAINED, TOPICS, device_of, rollout, view_of

from splitee.mqtt.events import Message
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fleet import Capability, CutCost
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.heard import MOST_CUTS
from splitee.protocol.inference import PredictedState, Serving
from splitee.protocol.rollout_progress import devices_by_state
from splitee.protocol.rollouts import DeviceUpdate, Rollouts, Update, Wave
from splitee.protocol.topics import Topics

UPDATE = DeviceUpdate(
    model=Update(installed="barn-6", latest="barn-7", state="downloading", have=1_200_000, size=4_000_000),
    software=Update(installed="0.2.0", latest="0.3.0", state="failed", reason="no space left"),
)
STATE = PredictedState(label="cat", confidence=0.93, since=NOW - 190, time=NOW - 10)
SERVING = Serving(state="online", instance=3, time=NOW)


def device(leaf: str) -> str:
    return TOPICS.device("pi-1", leaf)


def test_what_is_on_its_way_to_a_device_is_in_its_view_and_changes_nothing_else() -> None:
    before = device_of(view_of(RETAINED))
    found = device_of(view_of({**RETAINED, device("update"): UPDATE}))
    assert (found.update, found.version, found.cut) == (UPDATE, before.version, before.cut)
    view = view_of({**RETAINED, device("update"): UPDATE})
    view.take(Message(device("update"), b""), NOW)
    assert device_of(view) == before


def test_an_update_alone_makes_no_device() -> None:
    assert view_of({device("update"): UPDATE}).snapshot().devices == ()


def test_a_state_that_images_agree_on_is_shown_while_the_device_predicts() -> None:
    messages: dict[str, JsonMessage] = {device("serving"): SERVING, device("state"): STATE}
    assert device_of(view_of(messages)).predicted_state == STATE
    gone = {**messages, device("serving"): Serving(state="offline", instance=3)}
    assert device_of(view_of(gone)).predicted_state is None
    view = view_of(messages)
    view.take(Message(device("state"), b""), NOW)
    assert device_of(view).predicted_state is None


@pytest.mark.parametrize("wrong", [0.0, 365 * 86_400.0, -365 * 86_400.0])
def test_how_long_a_state_has_lasted_is_right_where_the_devices_clock_is_wrong(wrong: float) -> None:
    told = replace(STATE, since=STATE.since + wrong, time=STATE.time + wrong)
    view = view_of({device("serving"): SERVING})
    view.take(Message(device("state"), told.encode(), retained=True, age=10), NOW)
    assert device_of(view).predicted_state == STATE
    view.take(Message(device("state"), told.encode()), NOW)
    assert device_of(view).predicted_state == replace(STATE, time=NOW, since=NOW - 180)


def test_a_state_that_begins_after_it_was_said_has_lasted_no_time() -> None:
    view = view_of({device("serving"): SERVING})
    view.take(Message(device("state"), replace(STATE, since=NOW + 1e9).encode()), NOW)
    assert device_of(view).predicted_state == replace(STATE, time=NOW, since=NOW)


def test_rollouts_are_the_fleets_whatever_its_run() -> None:
    told = (rollout("summer"), rollout("spring", "finished"))
    view = view_of({f"{TOPICS.base}/rollouts": Rollouts(rollouts=told)})
    assert view.snapshot().rollouts == told
    view.take(Message(f"{TOPICS.base}/rollouts", b"{"), NOW)
    assert (view.snapshot().rollouts, view.snapshot().malformed) == (told, 1)
    view.take(Message(f"{TOPICS.base}/rollouts", b""), NOW)
    assert view.snapshot().rollouts == ()


def test_devices_of_a_rollout_are_counted_over_its_waves() -> None:
    counts = {"in service": 5, "failed": 1, "asleep": 2, "late": 1, "waiting": 2, "later": 20}
    assert devices_by_state(rollout()) == counts


def test_counts_that_contradict_each_other_are_never_below_nothing() -> None:
    forged = rollout(wave=99, waves=(Wave(1, in_service=9, failed=9, asleep=9),))
    assert devices_by_state(forged)["waiting"] == 0


def test_of_a_profile_only_what_is_shown_is_kept() -> None:
    """A megabyte of each of ten thousand devices would end the process that watches them."""
    names = tuple(f"class {number}" for number in range(10_000))
    cuts = tuple(CutCost(cut=cut, seconds=1.0, bytes=1, memory=1, fits=True) for cut in range(1, 1001))
    can = Capability(network="n", batch_size=1, codec="fp16", machine="board", cores=1, threads=1, cuts=cuts)
    forged = replace(PROFILE, class_names=names, empty_classes=names, capability=can)
    found = device_of(view_of({**RETAINED, device("profile"): forged}))
    assert (found.cut, found.train_samples) == (PROFILE.cut, PROFILE.train_samples)
    assert found.capability == replace(can, cuts=cuts[:MOST_CUTS])


def test_updates_of_other_fleets_are_none_of_this_ones() -> None:
    view = FleetView("lab")
    view.take(Message(Topics("other").device("pi-1", "update"), UPDATE.encode()), NOW)
    assert view.snapshot().empty
