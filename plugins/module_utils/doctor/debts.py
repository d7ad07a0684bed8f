# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host is still owed, as its local facts say."""

from __future__ import annotations

from ansible_collections.onprem.llm.plugins.module_utils import local_facts
from ansible_collections.onprem.llm.plugins.module_utils.doctor.finding import Finding, failed, ok, warning


def judge(host: str, path: str, text: str | None) -> list[Finding]:
    """``text`` is the file's content, ``None`` where there is none: then nothing is owed."""
    try:
        facts = local_facts.parse(text, path) if text is not None else local_facts.empty()
    except local_facts.LocalFactsError as error:
        return [failed("host.facts", host, str(error).split(". ")[0] + ".", str(error).split(". ", 1)[1])]
    found = [
        warning(
            f"host.{debt['what']}",
            host,
            f"{debt['component']} is owed a {debt['what']}: {debt['why']}",
            local_facts.REMEDIES.get(debt["what"], "run site.yml"),
        )
        for debt in facts["debts"]
    ]
    return found or [ok("host.debts", host, "nothing is owed")]
