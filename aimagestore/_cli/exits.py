"""The exit codes, the messages and codes of errors, and the form of examples."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

from ..errors import (
    AmbiguousImageError,
    BigDataMissingError,
    BigDataUnknownError,
    DigestUnknownError,
    DuplicateImageNamesError,
    ImageStoreError,
    ImageUnknownError,
    LockTimeoutError,
    SizeUnknownError,
    StoreCorruptError,
)

EXIT_CODES = """\
Exit codes:

\b
  0    done
  1    failed, and standard error says why; or cluster doctor found a fault
  2    wrong usage
  3    no such image, item or flag, or an ambiguous prefix
  4    the store is damaged, or a check found something
  5    the store's lock was not free in time
  130  interrupted (Ctrl-C); 143 terminated; 129 the terminal hung up
  141  the reader of the output has closed it, as in | head
"""

_UNKNOWN = (ImageUnknownError, BigDataUnknownError)
_DAMAGED = (
    StoreCorruptError,
    DuplicateImageNamesError,
    BigDataMissingError,
    SizeUnknownError,
    DigestUnknownError,
)
_EXPECTED = (ImageStoreError, ValueError, TypeError, RuntimeError)

# What the library's messages advise, and what that is here.
_NAMES = {
    "force=True": "--force",
    "open the store with a longer lock_timeout": "give a longer --lock-timeout",
    " (open the store with read_only=True to read it)": "",
    "move it with add_names": "move it with tag",
    "or call collect_garbage": "or use gc",
}


def examples_text(*lines: str) -> str:
    """Format the examples at the end of a help."""
    return "\n".join(["Examples:", "", "\b", *(f"  aimagestore {line}" for line in lines)])


class ExitCode(IntEnum):
    """How a command ended."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNKNOWN = 3
    DAMAGED = 4
    LOCKED = 5
    UNREAD = 141


class CommandError(Exception):
    """A command cannot be carried out, for a reason that is not the library's.

    :ivar code: the exit code
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def damage(*errors: type[Exception]) -> Iterator[None]:
    """Report these errors as damage of the store, whose content does not match its records."""
    try:
        yield
    except errors as error:
        raise CommandError(describe(error), ExitCode.DAMAGED) from error


@contextmanager
def usage_errors() -> Iterator[None]:
    """Report a value that is refused as wrong usage."""
    try:
        yield
    except ValueError as error:
        raise CommandError(describe(error), ExitCode.USAGE) from error


def exit_code(error: Exception) -> ExitCode:
    """Return the exit code of a command that failed with an error."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, BrokenPipeError):
        return ExitCode.UNREAD
    if isinstance(error, LockTimeoutError):
        return ExitCode.LOCKED
    if isinstance(error, _UNKNOWN):
        return ExitCode.UNKNOWN
    return ExitCode.DAMAGED if isinstance(error, _DAMAGED) else ExitCode.FAILED


def describe(error: Exception) -> str:
    """Return the message of an error."""
    if isinstance(error, AmbiguousImageError):
        return f"{error}: {', '.join(error.candidates)}"
    if isinstance(error, ImageStoreError | CommandError):
        return _in_words_of_the_program(str(error))
    if isinstance(error, OSError) and error.strerror:
        path = None if error.filename is None else os.fsdecode(error.filename)
        about = "" if path is None else f"{path or repr(path)}: "
        return about + _in_words_of_the_program(error.strerror)
    return str(error) if isinstance(error, _EXPECTED) else f"{type(error).__name__}: {error}"


def _in_words_of_the_program(message: str) -> str:
    """Name options and commands in a message of the library, which names parameters and calls."""
    for name, ours in _NAMES.items():
        message = message.replace(name, ours)
    return message
