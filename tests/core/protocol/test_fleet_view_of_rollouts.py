# SPDX-License-Identifier: Apache-2.0
"""Updates, rollouts and predicted states in the view of a fleet."""

from __future__ import annotations

import tracemalloc

import pytest
from msgspec.structs import replace
from retained_fleet import NOW, PROFILE, RETAINED, TOPICS, device_of, rollout, view_of

from splitee.mqtt.events import Message
from splitee.protocol.encoding import JsonMessage
from splitee.protocol.fleet import Capability, CutCost, Profile
from splitee.protocol.fleet_view import FleetView
from splitee.protocol.inference import PredictedState, Serving
from splitee.protocol.last_received import MOST_CUTS
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


def test_update_is_in_the_device_view_until_it_is_cleared() -> None:
    before = device_of(view_of(RETAINED))
    found = device_of(view_of({**RETAINED, device("update"): UPDATE}))
    assert (found.update, found.version, found.cut) == (UPDATE, before.version, before.cut)
    view = view_of({**RETAINED, device("update"): UPDATE})
    view.take(Message(device("update"), b""), NOW)
    assert device_of(view) == before


def test_update_alone_does_not_create_a_device() -> None:
    assert view_of({device("update"): UPDATE}).snapshot().devices == ()


def test_predicted_state_is_shown_while_the_device_serves() -> None:
    messages: dict[str, JsonMessage] = {device("serving"): SERVING, device("state"): STATE}
    assert device_of(view_of(messages)).predicted_state == STATE
    ended = {**messages, device("serving"): Serving(state="offline", instance=3)}
    assert device_of(view_of(ended)).predicted_state is None
    view = view_of(messages)
    view.take(Message(device("state"), b""), NOW)
    assert device_of(view).predicted_state is None


@pytest.mark.parametrize("wrong", [0.0, 365 * 86_400.0, -365 * 86_400.0])
def test_predicted_state_times_are_corrected_for_a_wrong_device_clock(wrong: float) -> None:
    shifted = replace(STATE, since=STATE.since + wrong, time=STATE.time + wrong)
    view = view_of({device("serving"): SERVING})
    view.take(Message(device("state"), shifted.encode(), retained=True, age=10), NOW)
    assert device_of(view).predicted_state == STATE
    view.take(Message(device("state"), shifted.encode()), NOW)
    assert device_of(view).predicted_state == replace(STATE, time=NOW, since=NOW - 180)


def test_predicted_state_that_begins_after_its_message_begins_now() -> None:
    view = view_of({device("serving"): SERVING})
    view.take(Message(device("state"), replace(STATE, since=NOW + 1e9).encode()), NOW)
    assert device_of(view).predicted_state == replace(STATE, time=NOW, since=NOW)


def test_rollouts_are_shown_until_they_are_cleared() -> None:
    rollouts = (rollout("summer"), rollout("spring", "finished"))
    view = view_of({f"{TOPICS.base}/rollouts": Rollouts(rollouts=rollouts)})
    assert view.snapshot().rollouts == rollouts
    view.take(Message(f"{TOPICS.base}/rollouts", b"{"), NOW)
    assert (view.snapshot().rollouts, view.snapshot().malformed) == (rollouts, 1)
    view.take(Message(f"{TOPICS.base}/rollouts", b""), NOW)
    assert view.snapshot().rollouts == ()


def test_devices_of_a_rollout_are_counted_by_state_over_its_waves() -> None:
    counts = {"in service": 5, "failed": 1, "asleep": 2, "late": 1, "waiting": 2, "later": 20}
    assert devices_by_state(rollout()) == counts


def test_waiting_devices_are_not_negative_if_counts_are_inconsistent() -> None:
    forged = rollout(wave=99, waves=(Wave(1, in_service=9, failed=9, asleep=9),))
    assert devices_by_state(forged)["waiting"] == 0


def large_profile() -> Profile:
    """A profile of a megabyte in memory, within the bounds of its fields."""
    names = tuple(f"class {number}" for number in range(10_000))
    cuts = tuple(CutCost(cut=cut, seconds=1.0, bytes=1, memory=1, fits=True) for cut in range(1, 1001))
    can = Capability(network="n", batch_size=1, codec="fp16", machine="board", cores=1, threads=1, cuts=cuts)
    return replace(PROFILE, class_names=names, empty_classes=names, capability=can)


def test_view_limits_the_cuts_of_a_profile() -> None:
    forged = large_profile()
    found = device_of(view_of({**RETAINED, device("profile"): forged}))
    assert (found.cut, found.train_samples) == (PROFILE.cut, PROFILE.train_samples)
    assert forged.capability is not None
    assert found.capability == replace(forged.capability, cuts=forged.capability.cuts[:MOST_CUTS])


def test_view_keeps_a_small_part_of_a_large_profile() -> None:
    """Without its class names and most of its cuts; ten thousand devices may publish such profiles."""
    view, payload = FleetView("lab"), large_profile().encode()
    tracemalloc.start()
    try:
        for number in range(5):
            view.take(Message(TOPICS.device(f"pi-{number}", "profile"), payload, retained=True), NOW)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(view.snapshot().devices) == 5
    assert kept < 5 * 50_000


def test_updates_of_other_fleets_are_ignored() -> None:
    view = view_of({**RETAINED, device("update"): UPDATE})
    before = view.snapshot()
    other = replace(UPDATE, model=replace(UPDATE.model, have=1_300_000))
    view.take(Message(Topics("other").device("pi-1", "update"), other.encode(), retained=True), NOW)
    assert view.snapshot() == before
