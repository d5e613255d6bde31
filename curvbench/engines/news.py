"""What a cell tells the process that runs it: lines of JSON on a socket, among which there may be rubbish.

A cell can write to every descriptor that it inherits, and close it. So nothing that comes from it is unpickled, what is
no message is passed over, and the cell writes only while the descriptor is still the socket.
"""

from __future__ import annotations

import contextlib
import json
import os
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple

_PIECE = 2**16  # bytes per read
_LONGEST = 2**20  # bytes of a line: what goes on for longer is rubbish
_PIECES = 64  # per look, so that a cell that never stops telling does not hold up the others

Kind = Literal["report", "loaded", "done", "failed", "ended"]
_LENGTHS: dict[str, int] = {"report": 1, "loaded": 1, "done": 2, "failed": 2, "ended": 0}


class Message(NamedTuple):
    """A message and its texts.

    They are a report, the name of a record of libraries, status and reason that are written (``done``) or not
    (``failed``), or nothing: the cell has ended.
    """

    kind: Kind
    texts: list[str]


class Teller:
    """The cell's end."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self._descriptor = pipe.fileno()
        self._identity = _identity(self._descriptor)

    def tell(self, kind: Kind, *texts: str) -> None:
        """Send a message; without a listener, or a socket, this does nothing."""
        content = memoryview(f"\n{json.dumps([kind, *texts])}\n".encode())  # begins a line: rubbish may stand before
        with contextlib.suppress(OSError):
            while content and _identity(self._descriptor) == self._identity:
                content = content[os.write(self._descriptor, content) :]


class Listener:
    """The end of the process that runs the cell, which never waits."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        self.pipe = pipe
        os.set_blocking(pipe.fileno(), False)
        self._rest = b""

    def messages(self) -> list[Message]:
        """The messages since the last call; at the end the pipe is closed."""
        *lines, rest = (self._rest + self._bytes()).split(b"\n")
        self._rest = rest if len(rest) < _LONGEST else b""
        return [message for line in lines if (message := _message(line))]

    def _bytes(self) -> bytes:
        pieces: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while not self.pipe.closed and len(pieces) < _PIECES:
                pieces.append(self._piece())
        return b"".join(pieces)

    def _piece(self) -> bytes:
        try:
            piece = os.read(self.pipe.fileno(), _PIECE)
        except ConnectionResetError:
            piece = b""
        if not piece:
            self.pipe.close()
        return piece


def _message(line: bytes) -> Message | None:
    """The message of a line. None means that it is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, list) or not content or not all(isinstance(text, str) for text in content):
        return None
    kind, *texts = content
    return Message(kind, texts) if _LENGTHS.get(kind) == len(texts) else None


def _identity(descriptor: int) -> tuple[int, int]:
    stat = os.fstat(descriptor)
    return stat.st_dev, stat.st_ino
