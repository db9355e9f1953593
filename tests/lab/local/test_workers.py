# SPDX-License-Identifier: Apache-2.0
"""Jobs in processes: messages arrive in order, a dead process is reported, none outlives the work."""

from __future__ import annotations

import multiprocessing

import pytest
from counting import Count, count, count_through_an_interrupt, die_within_a_message, threads

from splitee.errors import ChildFailed
from splitee_lab.local.workers import run_in_workers


def test_messages_of_each_job_arrive_in_order() -> None:
    received: dict[int, list[int]] = {}
    with run_in_workers([Count(3), Count(0), Count(5)], count, workers=2) as updates:
        for job, number in updates:
            received.setdefault(job.to, []).append(number)
    assert received == {3: [1, 2, 3], 5: [1, 2, 3, 4, 5]}
    assert multiprocessing.active_children() == []


def test_process_that_dies_is_reported_with_its_job() -> None:
    with (
        pytest.raises(ChildFailed, match="the count to -1 ended with status 3 before its result"),
        run_in_workers([Count(-1)], count, workers=1) as updates,
    ):
        list(updates)
    assert multiprocessing.active_children() == []


def test_process_that_dies_within_a_message_is_reported_with_its_job() -> None:
    with (
        pytest.raises(ChildFailed, match="the count to 1 ended with status 3 before its result"),
        run_in_workers([Count(1)], die_within_a_message, workers=1) as updates,
    ):
        list(updates)
    assert multiprocessing.active_children() == []


def test_leaving_the_context_early_ends_the_processes() -> None:
    with run_in_workers([Count(10**9), Count(10**9)], count, workers=2) as updates:
        assert next(updates)[1] == 1
    assert multiprocessing.active_children() == []


def test_worker_process_has_one_thread() -> None:
    with run_in_workers([Count(1)], threads, workers=4) as updates:
        assert [number for _, number in updates] == [1]


def test_worker_process_ignores_an_interrupt() -> None:
    with run_in_workers([Count(1)], count_through_an_interrupt, workers=1) as updates:
        assert [number for _, number in updates] == [1]
