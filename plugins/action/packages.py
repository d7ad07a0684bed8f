# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks dpkg, which knows at once and needs no network, and apt only for what is missing."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from ansible_collections.onprem.llm.plugins.module_utils import packages

SPEC = {"name": {"type": "list", "elements": "str", "required": True}, "policy_rc_d": {"type": "int"}}
#: Seconds. A list that is older names files that an archive has replaced since. Somebody else may install just now: for
#: minutes after the start of a host.
LISTS, LOCK = 86400, 600


class ActionModule(ActionBase):
    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(SPEC)
        # By it drift.yml knows which packages are ours.
        invocation = {"module_args": given}
        said = self._low_level_execute_command(packages.question(given["name"]))
        if not (missing := packages.missing(given["name"], said["stdout"])):
            return {**result, "changed": False, "invocation": invocation}
        arguments = {
            "name": missing,
            "install_recommends": False,
            "cache_valid_time": LISTS,
            "lock_timeout": LOCK,
            "policy_rc_d": given["policy_rc_d"],
        }
        done = self._execute_module("ansible.builtin.apt", arguments, task_vars=task_vars)
        return {**result, **done, "invocation": invocation}
