# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints and writes what differs; fails when anything does."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.drift import difference
from ansible_collections.onprem.llm.plugins.module_utils.drift import host as probe


def write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    transfer.write_atomically(path, text, mode)


def silent(host: str, result: Mapping[str, Any]) -> list[dict[str, str]]:
    """Why a host did not say what no task looks at."""
    if "differences" in result:
        return []
    said = " ".join(str(result.get("msg") or "it gave no answer").split())
    return [{"host": host, "found_by": "drift: Look where no task looks", "reason": said}]


class ActionModule(ActionBase):
    _requires_connection = False
    _VALID_ARGS = frozenset(("hosts", "checked", "looked", "json", "metrics"))

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result["changed"] = False
        given, display = self._task.args, Display()
        now = datetime.datetime.now(datetime.timezone.utc)
        found, broken = list(given["checked"]["differences"]), list(given["checked"]["not_looked_at"])
        for host, looked in given["looked"].items():
            # That a unit is down is said once, by the task that would start it where there is one.
            told = {one["what"] for one in found if one["host"] == host}
            found += [
                one for one in looked.get("differences") or [] if one["how"] != probe.DOWN or one["what"] not in told
            ]
            broken += silent(host, looked) if host not in {one["host"] for one in broken} else []
        report = difference.report(given["hosts"], found, broken, now.isoformat(timespec="seconds"))
        # On a schedule the list goes into the journal, which more may read than the report.
        hidden = bool(given.get("json") and given.get("metrics"))
        for line in difference.table(report, **({"lines": 0} if hidden else {})):
            colour = {"+": "green", "-": "red"}.get(line.strip()[:1], "normal")
            display.display(line, color=colour)
        # Differences may hold lines of files that not everybody may read; node_exporter reads the metrics.
        texts = {
            "json": (json.dumps(report, indent=2, ensure_ascii=False) + "\n", 0o600),
            "metrics": (difference.metrics(report, now.timestamp()), 0o644),
        }
        for name, (text, mode) in texts.items():
            if given.get(name):
                try:
                    write(Path(given[name]).expanduser(), text, mode)
                except OSError as error:
                    msg = f"drift_{name} '{given[name]}' cannot be written: {error.strerror}"
                    return {**result, "failed": True, "msg": msg, "report": report}
        if report["ok"]:
            return {**result, "report": report}
        where = f" What differs in files is in {given['json']}." if hidden else ""
        return {**result, "failed": True, "msg": f"{difference.headline(report)}. The list is above.{where}"}
