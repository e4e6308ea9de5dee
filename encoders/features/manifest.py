"""Which blocks of a stored layer are safely on disk, told by one appended line each."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any


class Manifest:
    """What a manifest says of every block, read on from where it was read to the last time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None  # inode of what was read
        self._seen = 0
        self._lines: dict[int, dict[str, Any]] = {}
        self._busy = Lock()

    def append(self, line: Mapping[str, Any]) -> None:
        """One line, in one write. It starts on a line of its own whatever a dying writer left behind."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            text = f"\n{json.dumps(line)}\n".encode()
            if os.write(file, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)

    def read(self) -> dict[int, dict[str, Any]]:
        """The last word on every block that was committed and not found damaged since."""
        with self._busy:
            try:
                with self.path.open("rb") as file:
                    found = os.fstat(file.fileno())
                    if found.st_ino != self._file or found.st_size < self._seen:
                        self._file, self._seen, self._lines = found.st_ino, 0, {}
                    file.seek(self._seen)
                    text = file.read()
            except FileNotFoundError:
                self._file, self._seen, self._lines = None, 0, {}
                return {}
            whole, end, _ = text.rpartition(b"\n")  # what follows is being written, or was torn by a kill
            self._seen += len(whole) + len(end)
            for word in whole.splitlines():
                self._take(word)
            return dict(self._lines)

    def _take(self, word: bytes) -> None:
        with suppress(ValueError, KeyError, TypeError, AttributeError):  # empty, or torn
            line = json.loads(word)
            block = int(line["block"])
            if line.get("bad"):
                self._lines.pop(block, None)
            elif block >= 0:
                self._lines[block] = {
                    "start": line["start"],
                    "stop": line["stop"],
                    "sha256": line["sha256"],
                    "skipped": [int(row) for row in line.get("skipped", ())],
                }
