"""Worker pools: how many threads they start, and when a thread is free again."""

from __future__ import annotations

import threading

from aimagestore._engine.workers import WorkerPool


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
