# SPDX-License-Identifier: GPL-3.0-or-later
"""What is installed on a host that is in the group no more: it runs on, and nobody looks after it."""

from __future__ import annotations

import glob
from collections.abc import Mapping

from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import Finding, warning


def judge(host: str, marks: Mapping[str, str]) -> list[Finding]:
    """marks: role -> pattern of a file that only that role writes, of roles that this host shall not have."""
    return [
        warning(
            f"host.{role}",
            host,
            f"{role} is installed, and the host is not in its group: what it serves runs on as it was",
            f"put {host} into it again, or take it away: playbooks/uninstall.yml -e uninstall={role} --limit {host}",
        )
        for role, mark in sorted(marks.items())
        if glob.glob(mark)
    ]
