# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def known_models(given: Any, catalogue: Any, groups: Any, sources: Any) -> list[dict[str, Any]]:
    from ansible_collections.onprem.llm.plugins.module_utils.placement import models

    try:
        return models.known(given, catalogue, groups, sources)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


def model_targets(placements: Any, models_dir: str) -> dict[str, str]:
    from ansible_collections.onprem.llm.plugins.module_utils.placement import models

    return models.model_targets(placements, models_dir)


def store_models(placements: Any) -> list[dict[str, Any]]:
    from ansible_collections.onprem.llm.plugins.module_utils.placement import models

    return models.store_models(placements)


def unread_variants(models: Any, headers: Any) -> list[dict[str, Any]]:
    from ansible_collections.onprem.llm.plugins.module_utils.placement import models as known

    return known.unread_variants(models, headers)


def variants_of(models: Any, host: str) -> list[dict[str, Any]]:
    from ansible_collections.onprem.llm.plugins.module_utils.placement import models as known

    return known.variants_of(models, host)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "known_models": known_models,
            "model_targets": model_targets,
            "store_models": store_models,
            "unread_variants": unread_variants,
            "variants_of": variants_of,
        }
