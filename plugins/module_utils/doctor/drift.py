# SPDX-License-Identifier: GPL-3.0-or-later
"""What the last look for drift found, from its report on the control host."""

from __future__ import annotations

import json
from datetime import datetime

from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import Finding, ok, warning
from ansible_collections.onprem.llm.plugins.module_utils.doctor.units import span
from ansible_collections.onprem.llm.plugins.module_utils.drift.difference import headline

CHECK = "host.drift"
# A look each night, and one that may fail to come.
STALE = 3 * 86400.0


def judge(host: str, path: str, text: str | None, now: float) -> Finding:
    """``text`` is the report, ``None`` where nobody has looked yet; ``now`` is in seconds since the epoch."""
    unit = "onprem-llm-drift"
    if text is None:
        return warning(
            CHECK, host, "nobody has looked for drift yet", f"systemctl start {unit} on {host}, or wait for its timer"
        )
    try:
        report = json.loads(text)
        age = now - datetime.fromisoformat(report["time"]).timestamp()
        said = f"{headline(report)}, looked {span(max(age, 0.0))} ago"
    except (ValueError, KeyError, TypeError) as error:
        return warning(
            CHECK, host, f"{path} is no report: {error!r}", f"systemctl start {unit} on {host} writes it anew"
        )
    if age > STALE:
        return warning(CHECK, host, said, f"journalctl -u {unit} on {host} says why no look came to its end since")
    if not report["ok"]:
        return warning(
            CHECK,
            host,
            said,
            f"playbooks/drift.yml lists it, as does {path} on {host}; site.yml puts right what a task names",
        )
    return ok(CHECK, host, said)
