# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.onprem.llm.plugins.module_utils import bundle


def bundled_models(models: Any, placements: Any) -> list[dict[str, Any]]:
    try:
        return bundle.bundled_models(models, placements)
    except bundle.BundleError as error:
        raise AnsibleFilterError(str(error)) from error


def bundled_wheels(parts: Any, hosts: Any, systems: Any) -> list[dict[str, str]]:
    return [one._asdict() for one in bundle.bundled_wheels(parts, hosts, systems)]


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "bundled_models": bundled_models,
            "bundled_wheels": bundled_wheels,
            "bundle_lacks": bundle.lacking,
        }
