# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a transfer is: counted by its threads, written to a file for whoever watches."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import (
    ModelStatus,
    Request,
    Status,
    as_json,
    status_from,
)
from ansible_collections.onprem.llm.plugins.module_utils.transfer import human

#: Seconds over which the rate is taken: long enough to be calm, short enough to follow a line that changes.
WINDOW = 30.0
ACTIVE = ("fetching", "waiting", "verifying")


def read(file: Path) -> Status | None:
    """The status a transfer wrote last; None when there is none yet."""
    try:
        return status_from(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def write_json(file: Path, data: object, mode: int) -> None:
    """Replace a file by JSON at once: a reader sees the old text or the new one. It gets the folder's owner."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.unlink(missing_ok=True)
    # Made with its final mode: a secret is at no moment readable by others.
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as handle:
        os.fchmod(handle.fileno(), mode)
        owner, mine = file.parent.stat(), os.fstat(handle.fileno())
        if (owner.st_uid, owner.st_gid) != (mine.st_uid, mine.st_gid):
            os.fchown(handle.fileno(), owner.st_uid, owner.st_gid)
        json.dump(data, handle, indent=2)
        handle.write("\n")
    os.replace(temporary, file)


def _doing(files: list[str]) -> tuple[str, str]:
    """The state of a model whose files are in these, and the source most of them come from."""
    sources = [what for what in files if what not in ACTIVE]
    if sources:
        return "fetching", max(sources, key=sources.count)
    return next((what for what in ("verifying", "waiting") if what in files), "fetching"), ""


class Report:
    """What the threads of a transfer count. As a context it also writes the status once a second."""

    def __init__(
        self,
        request: Request,
        file: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        every: float = 1.0,
        tell: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """``tell`` hears of what a journal should keep."""
        self._file, self._clock, self._every, self._tell = file, clock, every, tell
        # Re-entrant: a signal's handler runs in the middle of whatever the main thread does.
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._status = Status(request=request.digest(), started=time.time())
        self._models: dict[str, ModelStatus] = {}
        self._sizes: dict[str, dict[str, int]] = {}
        self._here: dict[str, dict[str, int]] = {}
        for model in request.models:
            self._sizes[model.name] = {file.path: file.size for file in model.files}
            self._here[model.name] = {}
            self._models[model.name] = ModelStatus(model.name, total=sum(file.size for file in model.files))
        self._busy: dict[str, dict[str, str]] = {name: {} for name in self._models}
        self.traffic: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Bytes taken from the fleet, and given to it."""
        self._begun = clock()
        self._samples: deque[tuple[float, int]] = deque([(self._begun, 0)])

    # Told by the threads -----------------------------------------------------------------------------

    def here(self, model: str, path: str, size: int) -> None:
        """So many bytes of a file lie here now."""
        with self._lock:
            self._here[model][path] = min(size, self._sizes[model][path])

    def busy(self, model: str, path: str, what: str) -> None:
        """What happens with a file now: the name of the source it comes from, ``fleet``, ``waiting``, ``verifying``,
        or nothing."""
        with self._lock:
            self._busy[model].pop(path, None)
            if what:
                self._busy[model][path] = what

    def arrived(self, count: int) -> None:
        """So many more bytes came from sources."""
        with self._lock:
            self._status.from_hubs += count

    def model(self, name: str, state: str, message: str = "") -> None:
        """What happens with a model now; ``message`` says why it failed."""
        with self._lock:
            status = self._models[name]
            status.state, status.message = state, message
            self._busy[name].clear()
            if state == "published":
                self._here[name] = dict(self._sizes[name])
                self._tell(f"model '{name}': published, {human(status.total)}")

    def state(self, state: str) -> None:
        """What happens with the transfer as a whole."""
        with self._lock:
            self._status.state = state

    def failed(self, why: str) -> None:
        """It ends here; models that are not published go down with it, for the reason given unless they have one."""
        with self._lock:
            self._status.state = "failed"
            for model in self._models.values():
                if model.state not in ("published", "failed"):
                    self.model(model.name, "failed", why)

    def note(self, text: str) -> None:
        """What is worth knowing."""
        self._say(self._status.notes, text)

    def warn(self, text: str) -> None:
        """What is not as it should be, although it goes on."""
        self._say(self._status.warnings, text)

    def _say(self, texts: list[str], text: str) -> None:
        with self._lock:
            if text not in texts:
                texts.append(text)
                self._tell(text)

    # Read --------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """How it stands now, with the rate and what it means for the rest."""
        with self._lock:
            status, now = self._status, self._clock()
            for name, model in self._models.items():
                model.done = sum(self._here[name].values())
                if model.state in ACTIVE:
                    model.state, model.source = _doing(list(self._busy[name].values()))
                else:
                    model.source = ""
            status.models = list(self._models.values())
            open_ = [model for model in status.models if model.state != "failed"]
            status.remaining = sum(model.total - model.done for model in open_)
            status.from_fleet, status.to_fleet = self.traffic()
            arrived = status.from_hubs + status.from_fleet
            self._samples.append((now, arrived))
            while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW:
                self._samples.popleft()
            since, before = self._samples[0]
            status.rate = (arrived - before) / (now - since) if now > since else 0.0
            pace = status.rate
            if status.from_fleet and not self._all_coming():
                # Files come in bursts, between which others fetch them: what counts is how fast it went so far.
                pace = min(pace, arrived / (now - self._begun)) if pace else arrived / (now - self._begun)
            status.eta = status.remaining / pace if pace > 0 else None
            if not status.remaining:
                status.eta = 0.0
            status.updated = time.time()
            return status_from(as_json(status))

    def _all_coming(self) -> bool:
        """Whether the fleet is bringing all that is lacking, so that nothing is waited for."""
        return all(
            self._busy[name].get(path) == "fleet"
            for name, sizes in self._sizes.items()
            for path, size in sizes.items()
            if self._here[name].get(path, 0) < size
        )

    def write(self) -> None:
        """Write the status file, where there is one."""
        if self._file is not None:
            # Under the lock: a thread that writes must not undo what a later one wrote.
            with self._lock:
                write_json(self._file, as_json(self.status()), 0o644)

    def _keep_writing(self) -> None:
        while not self._ended.wait(self._every):
            with suppress(OSError):  # the transfer itself is not to end with it
                self.write()

    def __enter__(self) -> Report:
        self.write()
        self._thread = threading.Thread(target=self._keep_writing, name="status", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self.write()
