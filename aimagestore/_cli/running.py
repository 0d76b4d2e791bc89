"""Runs a command to its end, to an error, or to a signal."""

from __future__ import annotations

import functools
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec

import anyio
import click

from .exits import ExitCode, describe, examples_text, exit_code
from .options import late_options
from .output import say

logger = logging.getLogger("aimagestore")

_SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "the terminal hung up",
}

P = ParamSpec("P")
Command = Callable[Concatenate[click.Context, P], Awaitable[ExitCode | None]]


def command(name: str, text: str, *examples: str) -> Callable[[Command[P]], click.Command]:
    """Make a command of an async function. It exits with a documented code.

    :param text: its help
    :param examples: the command lines at the end of its help
    """

    def decorate(function: Command[P]) -> click.Command:
        @click.command(name, help=text, epilog=examples_text(*examples))
        @click.pass_context
        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> None:
            try:
                code = anyio.run(_until_signal, functools.partial(function, *args, **options))
            except Exception as error:  # noqa: BLE001 - any error becomes one line on standard error
                code = exit_for(error)
            raise click.exceptions.Exit(code)

        run.params += late_options()
        return run

    return decorate


async def _until_signal(call: Callable[[], Awaitable[ExitCode | None]]) -> int:
    """Make the call, and cancel it when a signal arrives.

    Errors are raised outside of the task group, which would wrap them.
    """
    _enable_collector()
    error: Exception | None = None
    code: int | None = ExitCode.DONE
    received: list[int] = []
    async with anyio.create_task_group() as tasks:

        async def watch(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(*_handled()) as signals:
                task_status.started()
                async for number in signals:
                    received.append(number)
                    tasks.cancel_scope.cancel()

        await tasks.start(watch)
        try:
            code = await call()
        except Exception as caught:  # noqa: BLE001 - raised again below
            error = caught
        tasks.cancel_scope.cancel()
    if received:
        _exit_by(signal.Signals(received[0]))
    if error is not None:
        raise error
    return code or ExitCode.DONE


def _enable_collector() -> None:
    """Turn the garbage collector on, if the program's start has turned it off."""
    if not gc.isenabled():
        gc.freeze()  # what was imported stays
        gc.enable()


def _handled() -> list[signal.Signals]:
    """Return the signals that end a command: those that are not ignored, as by ``nohup``."""
    return [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]


def _exit_by(number: signal.Signals) -> None:
    """Exit at once, though a thread may still wait for input that never comes.

    The store is closed and everything staged is removed by now. A normal exit would wait for the
    thread.
    """
    say(_SIGNALS[number])
    os._exit(128 + number)


def exit_for(error: Exception) -> ExitCode:
    """Report on standard error why a command failed, and return its exit code."""
    code = exit_code(error)
    if code is not ExitCode.UNREAD:  # a reader that has closed the pipe needs no message
        logger.debug("the command failed", exc_info=error)
        say(describe(error))
    return code
