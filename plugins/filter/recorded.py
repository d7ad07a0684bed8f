# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def recorded_machines(text: str) -> dict[str, Any]:
    from ansible_collections.onprem.llm.plugins.module_utils.hardware.recorded import from_record, records

    try:
        return {record["id"]: from_record(record) for record in records(text)}
    except ValueError as error:
        raise AnsibleFilterError(f"plan_hardware: {error}") from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"recorded_machines": recorded_machines}
