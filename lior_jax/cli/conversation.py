"""Chat with a model in the terminal."""

import contextlib
from collections.abc import Callable
from typing import Any

from lior_jax.errors import UserError
from lior_jax.inference.chat import Conversation


def run(conversation: Conversation, ask: Callable[[str], str] = input, show: Callable[..., Any] = print) -> None:
    """Chat until the end of the input or /quit.

    Args:
        ask: shows a prompt and returns a line, as `input` does.
        show: prints text, as `print` does.
    """
    show("Say something; /help lists the commands.")
    while True:
        try:
            line = ask("> ")
        except EOFError:
            show()
            return
        except KeyboardInterrupt:
            show("\n/quit leaves.")
            continue
        if line.strip() == "/quit":
            return
        try:
            if line.startswith("/"):
                show(conversation.command(line[1:].strip()))
            elif line:
                _answer(conversation, line, show)
        except UserError as problem:
            show(problem)
        except KeyboardInterrupt:
            show(" [stopped]")


def _answer(conversation: Conversation, line: str, show: Callable[..., Any]) -> None:
    if said := conversation.engine.replaced(line):
        show(said)
    with contextlib.closing(conversation.reply(line)) as pieces:
        for piece in pieces:
            show(piece, end="", flush=True)
    show()
