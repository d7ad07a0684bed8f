# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows how far the transfer on a host is, in the output of an ordinary run."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.onprem.llm.plugins.module_utils.model_store import progress
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Status, status_from
from ansible_collections.onprem.llm.plugins.module_utils.model_store.unit import RUN, STATUS, UNIT

#: Ansible loads this before it forks: its workers have no terminal of their own.
TERMINAL = sys.stdout.isatty()
#: Seconds between two looks at a host, and the least between two lines about it.
LOOK, LINE = 2.5, 7.0
#: Seconds a host may not answer. Its transfer goes on meanwhile.
PATIENCE = 120.0
# The state first: a transfer writes its last status before it ends.
COMMAND = f"systemctl show --property=ActiveState --value {UNIT}; cat {RUN / STATUS}"


class ActionModule(ActionBase):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        host = str((task_vars or {}).get("inventory_hostname", ""))
        if self._task.args.get("state") == "watched" and not self._task.check_mode:
            gone = self._watch(host, str(self._task.args.get("request") or ""))
            if gone:
                return {**result, "failed": True, "msg": gone}
        result = {**result, **self._execute_module(task_vars=task_vars)}
        for note in result.get("notes") or ():
            Display().display(f"{host}: {note}")
        return result

    def _watch(self, host: str, request: str) -> str:
        """Print how far it is until it ends; a sentence when it can be watched no longer."""
        asked = self._task.args.get("progress") or "auto"
        lines = {"auto": "lines" if TERMINAL else "ends"}.get(asked, asked)
        display = Display()
        said, begun = 0.0, False
        while True:
            active, status = self._look(host)
            if status is not None and status.request == request:
                ended = status.state != "running"
                if not begun and lines in ("lines", "ends"):
                    display.display(progress.first_line(host, status))
                begun = True
                if lines == "json" and (ended or time.monotonic() - said >= LINE):
                    display.display(progress.json_line(host, status))
                    said = time.monotonic()
                elif lines == "lines" and not ended and time.monotonic() - said >= LINE:
                    if told := progress.line(host, status):
                        display.display(told)
                    said = time.monotonic()
                if ended:
                    if lines in ("lines", "ends"):
                        display.display(progress.last_line(host, status))
                    return ""
            elif status is not None and request:
                return (
                    "Another run has replaced the transfer on this host by its own. What was fetched stays. "
                    "Let that run finish, then run again."
                )
            if active not in ("active", "activating", "reloading", "deactivating"):
                return ""
            time.sleep(LOOK)

    def _look(self, host: str) -> tuple[str, Status | None]:
        """The unit's state and its status. Without root and without a module: it is done thousands of times."""
        since = time.monotonic()
        while True:
            try:
                answer = self._low_level_execute_command(COMMAND, sudoable=False)
                break
            except AnsibleConnectionFailure:
                if time.monotonic() - since > PATIENCE:
                    raise
                Display().display(f"{host}: does not answer; its transfer goes on by itself", color="yellow")
                time.sleep(LINE)
        active, _, text = answer["stdout"].lstrip().partition("\n")
        try:
            return active.strip(), status_from(json.loads(text)) if text.strip() else None
        except (TypeError, KeyError, AttributeError, ValueError):
            return active.strip(), None
