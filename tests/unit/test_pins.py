# SPDX-License-Identifier: GPL-3.0-or-later
"""Placements pinned in the inventory: refused before any host is asked, with a sentence that says the way out."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.placement import pins

CHAT: dict[str, Any] = {"name": "chat", "variants": [{"quantisation": "Q8_0"}, {"quantisation": "Q4_K_M"}]}
VECTORS: dict[str, Any] = {"name": "vectors", "variants": [{"quantisation": ""}]}
GROUPS = {"inference": ["gpu1", "gpu2"], "llamacpp": ["gpu1"]}


def pin(**change: Any) -> dict[str, Any]:
    return {"model": "chat", "host": "gpu1", "engine": "llamacpp", "port": 9101, **change}


def test_good_pins() -> None:
    given = [pin(), pin(model="vectors", port=9102)]
    assert pins.check(given, [CHAT, VECTORS], GROUPS) == []


def test_a_pin_needs_only_a_model_and_a_host() -> None:
    assert pins.check([{"model": "chat", "host": "gpu2"}], [CHAT], GROUPS) == []


def test_one_port_on_two_hosts_is_fine() -> None:
    groups = {"inference": ["gpu1", "gpu2"], "llamacpp": ["gpu1", "gpu2"]}
    assert pins.check([pin(), pin(host="gpu2")], [CHAT], groups) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([pin(), {"model": "chat"}], "placements: entry 2 ({'model': 'chat'}) has no host."),
        (
            [pin(), pin(model="cat", port=9102)],
            "placements: 'cat' on 'gpu1': there is no such model in `models` (there: chat).",
        ),
        (
            [pin(host="gpu9")],
            "placements: 'chat' on 'gpu9': the host is no member of the group inference (members: gpu1, gpu2). "
            "Add it there, or place the model on a member.",
        ),
        (
            [pin(host="gpu2")],
            "placements: 'chat' on 'gpu2': the engine is llamacpp, but the host is no member of the group llamacpp. "
            "Add it to that group in the inventory's hosts.yml, or pin an engine it has.",
        ),
        (
            [pin(engine="vllm")],
            "placements: 'chat' on 'gpu1': there is no role for the engine 'vllm'. Known: llamacpp, ollama, "
            "ktransformers, ktransformers-classic.",
        ),
        ([pin(port=80)], "placements: 'chat' on 'gpu1': the port is 80. Use a number from 1024 to 65535."),
        ([pin(port="x")], "placements: 'chat' on 'gpu1': the port is 'x'. Use a number from 1024 to 65535."),
        ([pin(port=65536)], "placements: 'chat' on 'gpu1': the port is 65536. Use a number from 1024 to 65535."),
        # Two models on one port.
        (
            [pin(), pin(model="vectors")],
            "placements: 'vectors' on 'gpu1': port 9101 is taken by 'chat' on the same host. "
            "Give each model of a host its own port.",
        ),
        (
            [pin(), pin(port=9102)],
            "placements: 'chat' on 'gpu1': pinned twice. One host serves a model once; put both entries together.",
        ),
        (
            [pin(gpu=2)],
            "placements: 'chat' on 'gpu1': unknown gpu. A pin may have: model, host, engine, port, quantisation, "
            "context, parallel, threads, threads_batch, numa, flags.",
        ),
        (
            [pin(flags=["--mlock"])],
            "placements: 'chat' on 'gpu1': flags is ['--mlock']. Write a map of options without dashes, "
            "e.g. {cache-ram: 0}.",
        ),
        (
            [pin(numa=5)],
            "placements: 'chat' on 'gpu1': numa is 5. Write distribute, interleave, none or "
            "{policy: bind, nodes: [0]}.",
        ),
        (
            [pin(flags={"host": "0.0.0.0", "api-key": "x", "threads": 4})],
            "placements: 'chat' on 'gpu1': the flags host, api-key are set by the role, so that door, firewall and "
            "service agree. Leave them out; a port is pinned as `port`.",
        ),
        (
            [pin(flags={"stop": ["<|im_end|>", "\n\n"], "threads": 4})],
            "placements: 'chat' on 'gpu1': the flags stop hold a line break or another control character, and an "
            "engine's options are one line of a file. Leave such values out, or send them with each request.",
        ),
        (
            [pin(quantisation="Q2_K")],
            "placements: 'chat' on 'gpu1': there is no variant 'Q2_K'. There are: Q8_0, Q4_K_M.",
        ),
    ],
)
def test_pins_are_refused(given: list[Any], problem: str) -> None:
    placed = {str(p.get("model")) for p in given}
    models = [CHAT] + ([VECTORS] if "vectors" in placed else [])
    problems = pins.check(given, models, GROUPS)
    assert problem in problems
    # A host outside inference is outside llamacpp too, and is told both.
    assert len(problems) == (2 if "gpu9" in problem else 1), problems
