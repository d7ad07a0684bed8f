# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def bundled_models(models: Any, placements: Any) -> list[dict[str, Any]]:
    from ansible_collections.onprem.llm.plugins.module_utils import bundle

    try:
        return bundle.bundled_models(models, placements)
    except bundle.BundleError as error:
        raise AnsibleFilterError(str(error)) from error


def bundled_wheels(parts: Any, hosts: Any, systems: Any) -> list[dict[str, str]]:
    from ansible_collections.onprem.llm.plugins.module_utils import bundle

    return [one._asdict() for one in bundle.bundled_wheels(parts, hosts, systems)]


def bundle_lacks(hosts: Any, systems: Any) -> list[str]:
    from ansible_collections.onprem.llm.plugins.module_utils import bundle

    return bundle.lacking(hosts, systems)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"bundled_models": bundled_models, "bundled_wheels": bundled_wheels, "bundle_lacks": bundle_lacks}
