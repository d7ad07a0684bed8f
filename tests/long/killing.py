# SPDX-License-Identifier: GPL-3.0-or-later
"""A run of a playbook that can be watched, and ended by SIGKILL at a chosen moment."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

BANNER = re.compile(r"(?:TASK|RUNNING HANDLER) \[(.*)\] \*")


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``, also those that have made themselves leaders of a session."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parents.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


class Run:
    """Starts at once. ``tasks`` grows while it runs: name of each task, and seconds from the first one."""

    def __init__(self, command: Sequence[str], env: dict[str, str], cwd: Path) -> None:
        self.tasks: list[tuple[str, float]] = []
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            # Every task shows itself when it begins, also one that turns out to be skipped.
            env=env
            | {"PYTHONUNBUFFERED": "1", "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "true", "ANSIBLE_DISPLAY_OK_HOSTS": "true"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        start = 0.0
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            banner = BANNER.match(line)
            if banner:
                start = start or time.monotonic()
                with self._changed:
                    self.tasks.append((banner[1], time.monotonic() - start))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def reaches(self, condition: Callable[[list[tuple[str, float]]], bool], timeout: float = 1800) -> bool:
        """Wait until the tasks begun so far fulfil the condition; False when the run ended before."""
        with self._changed:
            self._changed.wait_for(lambda: condition(self.tasks) or self._ended, timeout)
            return condition(self.tasks)

    def goes_on(self, seconds: float) -> None:
        """Let it run on for so long, at most until the next task begins."""
        with self._changed:
            count = len(self.tasks)
            self._changed.wait_for(lambda: len(self.tasks) > count or self._ended, seconds)

    def kill(self, everything: bool) -> str:
        """SIGKILL to the run alone, or to all its processes at once. Returns the task it was in."""
        doing = self.tasks[-1][0] if self.tasks else ""
        pids = [self.process.pid, *(descendants(self.process.pid) if everything else [])]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        return doing

    def wait(self, timeout: float = 1800) -> int:
        code = self.process.wait(timeout)
        self._reader.join(10)
        return code
