# SPDX-License-Identifier: GPL-3.0-or-later
"""The transfer as a systemd unit of the host: started, joined, asked. It outlives whoever started it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ansible_collections.onprem.llm.plugins.module_utils.model_store.status import read, write_json
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import (
    Fleet,
    Model,
    Request,
    Status,
    as_json,
    request_from,
)

UNIT = "model_store.service"
RUN = Path("/run/model_store")
REQUEST, STATUS = "request.json", "status.json"
ACTIVE = ("active", "activating", "reloading")
#: Lines of the journal that are worth showing when a transfer died.
JOURNAL_LINES = 20

#: run(argv) -> (exit status, output and errors together)
Run = Callable[[Sequence[str]], tuple[int, str]]
Begun = Literal["started", "attached", "replaced"]


class UnitError(Exception):
    """systemd refused; the message names the command and what it said."""


def run(argv: Sequence[str]) -> tuple[int, str]:
    """Run a command to its end."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, done.stdout


def covers(running: Request, wanted: Request) -> bool:
    """Whether who works on ``running`` does all of ``wanted``, and in the same way, whatever the tokens are now.

    Models that are done meanwhile are asked for no more; hosts that this run does not reach may still be served.
    """
    theirs = {model.name: _plain(model) for model in running.models}
    return (
        replace(running, models=(), fleet=None) == replace(wanted, models=(), fleet=None)
        and _holds(running.fleet, wanted.fleet)
        and all(theirs.get(model.name) == _plain(model) for model in wanted.models)
    )


def _plain(model: Model) -> tuple[object, ...]:
    """What makes two requests for a model the same; who listed its files does not."""
    sources = tuple(replace(source, token="") for source in model.sources)
    return model.repo, model.revision, model.entry, model.files, sources


def _holds(running: Fleet | None, wanted: Fleet | None) -> bool:
    """Whether the wanted hosts are among those that share already, in the same order: all must decide alike."""
    if running is None or wanted is None:
        return wanted is None
    same = tuple(peer for peer in running.peers if peer in wanted.peers)
    return replace(running, peers=same) == wanted


@dataclass(frozen=True)
class Look:
    """How the transfer of this host stands."""

    status: Status | None
    """What it wrote last; None before its first word."""
    active: bool
    result: str
    """systemd's word for how it ended: success, exit-code, signal, oom-kill, timeout, …"""
    journal: tuple[str, ...] = ()
    """Its last lines, when it ended without saying why."""


class Unit:
    """The one transfer a host can have."""

    def __init__(self, folder: Path = RUN, run: Run = run) -> None:
        self.folder, self._run = folder, run

    def would(self, request: Request, lacking: Collection[str] = ()) -> Begun:
        """What ``start`` would do."""
        return self._judge(request, lacking)[0]

    def start(self, request: Request, lacking: Collection[str] = ()) -> tuple[Begun, str]:
        """Have the request worked on: by the transfer that runs when it does all of it anyway, else by a new one.

        ``lacking``: names of models that are not right here now, whatever that transfer has done with them.
        Gives what was done, and the digest that the status to watch carries.
        """
        begun, running = self._judge(request, lacking)
        if begun == "attached":
            return begun, running
        if begun == "replaced":
            self.stop()
        # No status of an earlier transfer may be taken for this one's.
        (self.folder / STATUS).unlink(missing_ok=True)
        self.folder.mkdir(mode=0o755, exist_ok=True)
        write_json(self.folder / REQUEST, as_json(request), 0o600)
        # One that crashed several times may be started again by hand. Refused where there is nothing to reset.
        self._run(["systemctl", "reset-failed", UNIT])
        self._do("start")
        return begun, request.digest()

    def _judge(self, request: Request, lacking: Collection[str]) -> tuple[Begun, str]:
        """What to do, and the digest of what runs."""
        state = self._show("ActiveState")["ActiveState"]
        if state == "deactivating":
            return "replaced", ""  # its end must not take away the new request
        if state not in ACTIVE:
            return "started", ""
        try:
            running = request_from(json.loads((self.folder / REQUEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            return "replaced", ""
        status = read(self.folder / STATUS)
        seen = {model.name: model.state for model in status.models} if status else {}
        again = any(
            seen.get(model.name) == "failed" or (seen.get(model.name) == "published" and model.name in lacking)
            for model in request.models
        )
        return ("attached" if covers(running, request) and not again else "replaced"), running.digest()

    def stop(self) -> None:
        """End the transfer; what it brought stays."""
        self._do("stop")

    def look(self) -> Look:
        """How it stands."""
        shown = self._show("ActiveState", "Result", "InvocationID")
        active = shown["ActiveState"] in (*ACTIVE, "deactivating")
        found = read(self.folder / STATUS)
        journal: tuple[str, ...] = ()
        if not active and (found is None or found.state not in ("done", "failed")):
            journal = self._journal(shown["InvocationID"])
        return Look(found, active, shown["Result"], journal)

    def _show(self, *names: str) -> dict[str, str]:
        code, output = self._run(["systemctl", "show", UNIT, *(f"--property={name}" for name in names)])
        if code:
            raise UnitError(f"systemctl show {UNIT} failed: {output.strip() or f'exit status {code}'}")
        found = dict(line.split("=", 1) for line in output.splitlines() if "=" in line)
        return {name: found.get(name, "") for name in names}

    def _do(self, verb: str) -> None:
        code, output = self._run(["systemctl", verb, UNIT])
        if code:
            raise UnitError(f"systemctl {verb} {UNIT} failed: {output.strip() or f'exit status {code}'}")

    def _journal(self, invocation: str) -> tuple[str, ...]:
        if not invocation:
            return ()
        these = [f"_SYSTEMD_INVOCATION_ID={invocation}", "+", f"INVOCATION_ID={invocation}"]
        argv = ["journalctl", "--quiet", "--output=cat", f"--lines={JOURNAL_LINES}", *these]
        return tuple(self._run(argv)[1].splitlines())
