"""A heartbeat in the event loop, which stops when anything on the loop waits or computes."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from .stores import becomes_true

BEAT = 0.005
"""Seconds."""

_BEATS_PER_ANSWER = 4
_LIMIT = 5.0
"""Seconds."""

_TRIES = 3


class Heartbeat:
    """Beats every 5 ms.

    :ivar beats: the number of beats so far
    :ivar longest: the longest time between two beats, in seconds
    :ivar longest_work: the most that the loop's thread computed between two beats, in seconds of
        processor time: unlike the time between beats, it does not depend on what else is running
    :ivar answers: how often :meth:`let_beat` was called
    :ivar has_stopped: whether one of those calls saw no four beats within 5 seconds
    """

    def __init__(self) -> None:
        self.beats = 0
        self.longest = 0.0
        self.longest_work = 0.0
        self.answers = 0
        self.has_stopped = False
        self._times = 0.0, 0.0

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Beat during a block."""

        async def beat() -> None:
            while True:
                await anyio.sleep(BEAT)
                self._beat()

        # Otherwise the collector examines all objects of earlier tests, in the loop's thread too.
        gc.freeze()
        self._times = time.perf_counter(), time.thread_time()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(beat)
                yield
                tasks.cancel_scope.cancel()
        finally:
            gc.unfreeze()
        self._beat()

    def _beat(self) -> None:
        last, last_work = self._times
        self._times = now, work = time.perf_counter(), time.thread_time()
        self.longest = max(self.longest, now - last)
        self.longest_work = max(self.longest_work, work - last_work)
        self.beats += 1

    def let_beat(self) -> None:
        """Return after four more beats, in the thread of a server that is about to answer.

        The answer then takes 20 ms. If the event loop waits for it, there are no beats meanwhile,
        however slow or fast the machine is.
        """
        self.answers += 1
        enough = self.beats + _BEATS_PER_ANSWER
        if not self.has_stopped and not becomes_true(lambda: self.beats >= enough, _LIMIT):
            self.has_stopped = True


async def never_waits(work: Callable[[], Awaitable[None]], in_one_go: float) -> bool:
    """Return whether no two beats were further apart than half of a given time during some work.

    A busy machine delays a beat now and then, so three tries are made. Work that runs on the loop
    delays one in each try.

    :param in_one_go: how long the part of the work that might run on the loop takes, in seconds
    """
    for _ in range(_TRIES):
        heart = Heartbeat()
        async with heart.beating():
            await work()
        if heart.longest < in_one_go / 2:
            return True
    return False
