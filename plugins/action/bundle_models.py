# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetches model files into a folder of the controller, and says how far it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.onprem.llm.plugins.module_utils import hubs, transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import asked, progress, sources, store
from ansible_collections.onprem.llm.plugins.module_utils.model_store.curl import Curl, MissingError
from ansible_collections.onprem.llm.plugins.module_utils.model_store.fetch import fetch
from ansible_collections.onprem.llm.plugins.module_utils.model_store.status import Report
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Request, StoreError

#: Seconds between two lines.
LINE = 7.0
HOST = "bundle"
DEFAULTS = {
    "tokens": {},
    "parallel": 4,
    "rate_limit": 0,
    "proxy": "",
    "no_proxy": "",
    "attempts": Request.attempts,
    "stall_seconds": Request.stall_seconds,
    "minimum_rate": Request.minimum_rate,
}


def transport(request: Request) -> transfer.Transport | None:
    """libcurl where this machine has it; it is faster, but the bytes are the same."""
    try:
        return Curl(
            rate_limit=request.rate_limit,
            proxy=request.proxy,
            no_proxy=request.no_proxy,
            stall_seconds=request.stall_seconds,
            minimum_rate=request.minimum_rate,
        )
    except MissingError:
        if request.rate_limit or request.proxy:
            raise
        return None


@contextmanager
def told(report: Report) -> Iterator[None]:
    """Meanwhile a line now and then."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(LINE):
            if line := progress.line(HOST, report.status()):
                Display().display(line)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def missing(request: Request) -> list[Model]:
    """The models that are not complete in the folder."""
    return [model for model in request.models if store.present(Path(request.store), model) is None]


def bring(request: Request, models: Sequence[Model]) -> dict[str, Any]:
    """Fetch these models; what the module answers."""
    if not models:
        return {"changed": False, "fetched": [], "transferred": 0}
    through = transport(request)
    listed: list[Model] = []
    away: dict[str, Exception] = {}
    for model in models:
        found, warnings = sources.listing(model, through, away=away)
        listed.append(found)
        for warning in warnings:
            Display().warning(warning)
    request = replace(request, models=tuple(listed))
    report = Report(request)
    with told(report):
        fetch(request, report, findings=Path(request.store) / ".damage.json", transport=through)
    status = report.status()
    for note in status.notes:
        Display().display(note)
    Display().display(progress.last_line(HOST, replace(status, state="done")))
    return {"changed": True, "fetched": [model.name for model in models], "transferred": status.from_hubs}


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset(("store", "models", "sources", *DEFAULTS))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        os.umask(0o022)
        try:
            return {**result, **self._fetch({**DEFAULTS, **self._task.args, "fleet": None})}
        except (StoreError, MissingError, transfer.TransferError, hubs.HubError, OSError) as error:
            return {**result, "failed": True, "msg": str(error)}

    def _fetch(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        request = asked.request(settings)
        folder = Path(request.store)
        lacking = missing(request)
        if not lacking or self._task.check_mode:
            return {"changed": bool(lacking), "fetched": [model.name for model in lacking], "transferred": 0}
        with transfer.alone(folder, folder / store.STAGING):
            # Another run may just have brought them.
            return bring(request, missing(request))
