# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def facts_problem(found: Any, path: str) -> str:
    from ansible_collections.onprem.llm.plugins.module_utils import local_facts

    # Ansible gives an error's text instead of the content where it could not read it.
    try:
        if found not in (None, "", {}):
            local_facts.parse(found if isinstance(found, str) else json.dumps(found), path)
    except local_facts.LocalFactsError as error:
        return str(error)
    return ""


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"facts_problem": facts_problem}
