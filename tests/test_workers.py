"""Worker pools: how many threads they start, and when a thread is free again."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from aimagestore._engine.workers import WorkerPool, call_all


def test_a_thread_is_free_before_its_caller_learns_of_the_end() -> None:
    name = "aimagestore sequential test"
    pool = WorkerPool(8, name)
    numbers = iter(range(20))
    is_over = threading.Event()

    def call_again(_: object) -> None:
        if next(numbers, None) is None:
            is_over.set()
            return
        may_end = threading.Event()

        def call() -> None:
            assert may_end.wait(20)

        # Called back in the thread of the call, as it ends: before that takes another.
        pool.submit(call).add_done_callback(call_again)
        may_end.set()

    try:
        call_again(None)
        assert is_over.wait(20)
        assert [thread.name for thread in threading.enumerate()].count(name) == 1
    finally:
        pool.shutdown()


def test_calls_at_the_same_time_have_threads_of_their_own_up_to_the_limit() -> None:
    pool = WorkerPool(3, "aimagestore test")
    together = threading.Barrier(3)

    def meet() -> int:
        together.wait(20)
        return threading.get_ident()

    try:
        calls = [pool.submit(meet) for _ in range(6)]
        assert len({call.result(20) for call in calls}) == 3
    finally:
        pool.shutdown()


def test_calls_are_made_at_the_same_time_and_all_have_ended_at_the_return() -> None:
    pool = WorkerPool(2, "aimagestore test")
    together = threading.Barrier(3)
    ended: list[int] = []

    def call(number: int) -> None:
        together.wait(20)
        ended.append(number)

    try:
        call_all([partial(call, number) for number in range(6)], pool)
        assert sorted(ended) == [*range(6)]
    finally:
        pool.shutdown()


@pytest.mark.parametrize("fails_in_helper", [True, False])
def test_an_error_of_one_call_is_raised_when_the_others_have_ended(fails_in_helper: bool) -> None:
    pool = WorkerPool(1, "aimagestore test")
    together = threading.Barrier(2)
    has_raised = threading.Event()
    ended: list[int] = []
    here = threading.get_ident()

    def call() -> None:
        together.wait(20)
        if (threading.get_ident() != here) is fails_in_helper:
            has_raised.set()
            raise OSError("no space")
        assert has_raised.wait(20)
        ended.append(1)

    try:
        with pytest.raises(OSError, match="no space"):
            call_all([call, call], pool)
        assert ended == [1]
    finally:
        pool.shutdown()


def test_calls_are_made_here_when_the_helpers_were_shut_down() -> None:
    pool = WorkerPool(1, "aimagestore test")
    pool.shutdown()
    threads: list[int] = []
    call_all([lambda: threads.append(threading.get_ident())] * 4, pool)
    assert threads == [threading.get_ident()] * 4
