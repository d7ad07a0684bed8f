# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a host with one plain command whether its files are as wanted. Only where one may not be, the module is sent."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.onprem.llm.plugins.module_utils import config_files


class ActionModule(ActionBase):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        if asked := config_files.question(self._task.args):
            command, answer = asked
            said = self._low_level_execute_command(command)
            if said["rc"] == 0 and said["stdout_lines"] == answer:
                # As the module's: by it drift.yml knows which files are ours.
                files = [{"path": file["path"]} for file in self._task.args["files"]]
                invocation = {"module_args": {"files": files}}
                return {**result, "changed": False, "paths": [], "diff": [], "invocation": invocation}
        return {**result, **self._execute_module(task_vars=task_vars)}
