"""Completes words in bash, which splits them at a colon."""

from __future__ import annotations

import os

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    add_completion_class,
    split_arg_string,
)


@add_completion_class
class Bash(BashComplete):
    """Joins the words that bash has split at a colon.

    bash replaces only what comes after the last colon of the word to complete.
    """

    _kept = ""
    """The rest of that word."""

    def get_completion_args(self) -> tuple[list[str], str]:
        place = int(os.environ["COMP_CWORD"])
        words = [*split_arg_string(os.environ["COMP_WORDS"]), ""][: place + 1]
        joined: list[str] = []
        for number, word in enumerate(words):
            if number > 1 and ":" in (word, words[number - 1]):
                joined[-1] += word
            else:
                joined.append(word)
        if ":" in words[place - 1 :]:
            before, colon, _ = joined[-1].rpartition(":")
            self._kept = before + colon
        return joined[1:-1], joined[-1]

    def format_completion(self, item: CompletionItem) -> str:
        item.value = item.value.removeprefix(self._kept)
        return super().format_completion(item)
