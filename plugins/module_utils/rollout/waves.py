# SPDX-License-Identifier: GPL-3.0-or-later
"""In which groups the hosts that owe a switch carry it out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any


class BatchError(ValueError):
    """The size of a batch is neither a number nor a share."""


def batch(text: str | int, hosts: int) -> int:
    """How many of so many hosts ``text`` means: ``4``, or ``25%`` rounded up. At least one."""
    share = str(text).strip()
    try:
        number = math.ceil(hosts * float(share[:-1]) / 100) if share.endswith("%") else int(share)
    except ValueError:
        number = 0
    if number < 1 and hosts:
        raise BatchError(
            f'rollout_batch is "{text}": say a number of hosts (2) or a share of them ("25%"), at least one'
        )
    return number


def waves(owed: Sequence[Sequence[dict[str, Any]]]) -> list[int]:
    """Numbers of hosts, one wave after the other, for hosts in the order of ``owed``.

    ``owed``: per host its switches, each with the size of a ``batch`` and ``restarts``, the services it replaces, each
    with its ``model`` (empty: unknown). The first wave is one host. No wave has all hosts of a model, unless it has
    one only.
    """
    models = [{service["model"] for switch in host for service in switch["restarts"]} - {""} for host in owed]
    serve = Counter(model for host in models for model in host)
    size = batch(next((switch["batch"] for host in owed for switch in host), 1), len(owed))
    found: list[int] = []
    inside: Counter[str] = Counter()
    for host in models:
        full = not found or len(found) == 1 or found[-1] >= size
        if full or any(1 < serve[model] == inside[model] + 1 for model in host):
            found.append(0)
            inside.clear()
        found[-1] += 1
        inside.update(host)
    return found
