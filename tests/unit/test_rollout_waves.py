# SPDX-License-Identifier: GPL-3.0-or-later
"""Waves: one host first, then batches, never all hosts of a model."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.rollout import waves


def host(*models: str, batch: str | int = "25%") -> list[dict[str, Any]]:
    return [{"batch": batch, "restarts": [{"model": model} for model in models]}]


@pytest.mark.parametrize(
    ("owed", "sizes"),
    [
        ([], []),
        ([host("a")], [1]),
        ([host("a")] * 3, [1, 1, 1]),
        ([host("a")] * 8, [1, 2, 2, 2, 1]),
        ([host("a", batch="50%")] * 8, [1, 4, 3]),
        ([host("a", batch=100)] * 8, [1, 7]),
        # The second and third are all that serve b.
        ([host("a", batch=100), host("b", batch=100), host("b", batch=100), host("a", batch=100)], [1, 1, 2]),
        # Two that take something away of which nobody knows what it served.
        ([host("a", batch=100), host("", batch=100), host("", batch=100)], [1, 2]),
        # A switch that replaces nothing needs its turn too.
        ([host(batch=2)] * 3, [1, 2]),
    ],
)
def test_sizes(owed: list[list[dict[str, Any]]], sizes: list[int]) -> None:
    assert waves.waves(owed) == sizes


def test_no_wave_has_all_hosts_of_a_model() -> None:
    chance = random.Random(6)
    for _ in range(300):
        owed = [host(*chance.sample("abcd", chance.randint(0, 3)), batch="70%") for _ in range(chance.randint(1, 12))]
        sizes = waves.waves(owed)
        assert sum(sizes) == len(owed) and sizes[0] == 1
        models = [{service["model"] for service in switches[0]["restarts"]} for switches in owed]
        start = 0
        for size in sizes:
            inside = models[start : start + size]
            for model in set().union(*inside):
                total = sum(model in one for one in models)
                assert total == 1 or sum(model in one for one in inside) < total
            start += size


@pytest.mark.parametrize("batch", ["0", "0%", "-1", "some", "", "25 percent"])
def test_a_batch_that_is_none(batch: str) -> None:
    with pytest.raises(waves.BatchError, match="rollout_batch"):
        waves.waves([host("a", batch=batch)])
