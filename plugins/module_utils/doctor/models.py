# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the published model files were found as they were published when they were last read."""

from __future__ import annotations

from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import Finding, failed, ok
from ansible_collections.onprem.llm.plugins.module_utils.doctor.units import span
from ansible_collections.onprem.llm.plugins.module_utils.model_store.damage import Findings

CHECK = "models.files"


def judge(host: str, found: Findings, now: float) -> Finding:
    """``now``: seconds since the epoch."""
    if found.damaged:
        names = ", ".join(f"{one.repo}/{one.path}" for one in found.damaged[:5])
        more = f" and {len(found.damaged) - 5} more" if len(found.damaged) > 5 else ""
        return failed(
            CHECK,
            host,
            f"damaged on the disk: {names}{more}",
            f"run playbooks/models.yml for {host}: it fetches damaged pieces of what is placed there anew; remove the "
            "folder of a version that is only kept and start model_store-verify.service; then look at the disk",
        )
    if not found.checked:
        return ok(CHECK, host, "verified when they were fetched, not read again yet")
    return ok(CHECK, host, f"read again {span(max(0.0, now - found.checked))} ago, all as published")
