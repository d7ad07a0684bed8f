# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Callable

# What a filter is made of is imported where it is used: each task with a filter compiles all files of this folder anew.


def lock_with(lock: str, package: str, url: str, sha256: str) -> str:
    from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import verify

    return verify.lock_with(lock, package, url, sha256)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., str]]:
        return {"lock_with": lock_with}
