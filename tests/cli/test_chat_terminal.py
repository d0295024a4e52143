"""A chat in a terminal: keys that a pipe does not have, lines longer than the screen, and a file that is no text."""

import os
import re
import select
import string
import subprocess
import sys
import time

import pytest

from lior_jax.data.tokenizer import CharTokenizer
from lior_jax.inference import Engine
from tests.oracles import SMALL, model_config, random_params

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")
fcntl, termios, struct = (pytest.importorskip(name) for name in ("fcntl", "termios", "struct"))

# The terminal must be the process's own, for Ctrl-C to reach it.
START = """import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.SIG_DFL)  # which jobs in the background are started without
os.execv(sys.executable, sys.argv[1:])"""
CTRL_C, CTRL_D = b"\x03", b"\x04"
ESCAPES = r"\x1b\[[?0-9;]*[A-Za-z]"
ALPHABET = string.ascii_uppercase + string.digits + "abcdefgh .\n"
SAID = r"[A-Z0-9a-h .\r\n]"


class Terminal:
    """A program in a terminal of 40 columns."""

    def __init__(self, *command):
        self.screen, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        words = [sys.executable, "-c", START, sys.executable, *map(str, command)]
        environ = os.environ | {"TERM": "xterm", "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(words, stdin=other, stdout=other, stderr=other, start_new_session=True, env=environ)
        os.close(other)
        self.shown = ""

    def type(self, keys):
        os.write(self.screen, keys if isinstance(keys, bytes) else f"{keys}\n".encode())

    def until(self, pattern, seconds=60):
        """What is shown until the pattern has come, and not before."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < end, f"{pattern!r} did not come after {self.shown[-500:]!r}"
            if select.select([self.screen], [], [], 1)[0]:
                try:
                    self.shown = re.sub(ESCAPES, "", self.shown + os.read(self.screen, 4096).decode(errors="replace"))
                except OSError:  # the program has ended
                    assert re.search(pattern, self.shown), self.shown
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def press(self, key, pattern, seconds=60):
        """Press a key until the pattern comes: while a prompt is being drawn, Ctrl-C is lost on Python's readline."""
        for _ in range(seconds // 5):
            self.type(key)
            try:
                return self.until(pattern, 5)
            except AssertionError:
                continue
        return self.until(pattern, 1)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.fixture
def chat(tmp_path):
    """With a model that goes on and on, and knows few characters."""
    config = model_config(**SMALL | {"vocab_size": len(ALPHABET)})
    Engine(random_params(config, scale=0.1), config, CharTokenizer(ALPHABET)).export(tmp_path / "weights")
    terminal = Terminal("infer.py", "--checkpoint", tmp_path / "weights", "--chat", "--stop", "abababab", "--max-tokens", 10**6)
    terminal.until("the commands.\r\n> ")
    yield terminal
    terminal.close()


def test_a_talk_in_a_terminal(chat, tmp_path):
    # An answer is stopped, and the talk goes on.
    chat.type("abc")
    chat.until(f"abc\r\n{SAID}{{100}}")
    chat.type(CTRL_C)
    assert "Traceback" not in chat.until(r"\[stopped\]\r\n> ")

    # What it said so far can be explained, within 100 columns.
    chat.type("/explain 3")
    lines = chat.until(r"and \d+ tokens more\r\n> ").splitlines()
    assert any("retrieved from" in line for line in lines)
    assert max(map(len, lines)) <= 100

    # A long line, and an answer to it that wraps by itself: nothing is put in where the screen ends.
    chat.type("a" * 90)
    chat.until("a\r\n")
    answer = chat.until(f"{SAID}{{600}}")
    chat.type(CTRL_C)
    answer += chat.until(r"(?=\^C| \[stopped\])")
    assert re.fullmatch(f"{SAID}*", answer)
    assert max(map(len, answer.split("\r\n"))) > 40
    chat.until(r"\[stopped\]\r\n> ")

    # Files and lines that the model has no characters for, and a file that is no text.
    (tmp_path / "notes.txt").write_text("abc é " * 100)
    (tmp_path / "latin.txt").write_bytes("abc é".encode("latin-1"))
    for typed, told in (
        (f"/remember {tmp_path}/notes.txt", "'é' is not among"),
        (f"/remember {tmp_path}/latin.txt", "is not UTF-8"),
        ("xyz", "'x' is not among"),
        ("/explain ten", "takes a number"),
    ):
        chat.type(typed)
        said = chat.until(rf"{told}.*\r\n> ")
        assert "Traceback" not in said

    # Ctrl-C at the prompt, the way out, and another.
    chat.press(CTRL_C, "/quit leaves.\r\n> ")
    chat.type(CTRL_D)
    assert chat.process.wait(60) == 0
