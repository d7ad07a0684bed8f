# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.onprem.llm.plugins.module_utils.placement import models


def known_models(given: Any, catalogue: Any, groups: Any, sources: Any) -> list[dict[str, Any]]:
    try:
        return models.known(given, catalogue, groups, sources)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "known_models": known_models,
            "model_targets": models.model_targets,
            "store_models": models.store_models,
            "unread_variants": models.unread_variants,
            "variants_of": models.variants_of,
        }
