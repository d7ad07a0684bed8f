# SPDX-License-Identifier: GPL-3.0-or-later
"""Models and the placements pinned in the inventory: completed or refused, with a sentence that says the way out."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.placement import pins

CHAT: dict[str, Any] = {
    "name": "chat",
    "kind": "chat",
    "repo": "o/chat",
    "revision": "master",
    "source": "hub",
    "include": ["Q4/*"],
    "entry": "Q4/m-00001-of-00002.gguf",
    "context": 4096,
}
VECTORS: dict[str, Any] = {**CHAT, "name": "vectors", "kind": "embedding", "dimensions": 128}
GROUPS = {"inference": ["gpu1", "gpu2"], "llamacpp": ["gpu1"]}


def without(model: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in keys}


def pin(**change: Any) -> dict[str, Any]:
    return {"model": "chat", "host": "gpu1", "engine": "llamacpp", "port": 9101, **change}


@pytest.mark.parametrize(
    ("models", "catalogue", "resolved"),
    [
        ([CHAT, VECTORS], {}, [CHAT, VECTORS]),
        ([{"name": "chat", "catalogue": "known"}], {"known": without(CHAT, "name")}, [CHAT]),
        # What the site says wins.
        (
            [{"name": "chat", "catalogue": "known", "context": 8192}],
            {"known": without(CHAT, "name")},
            [{**CHAT, "context": 8192}],
        ),
        ([], {}, []),
    ],
)
def test_models_are_completed(models: list[Any], catalogue: dict[str, Any], resolved: list[Any]) -> None:
    assert pins.resolve_models(models, catalogue) == (resolved, [])


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        (
            [{"name": "chat", "catalogue": "gpt"}],
            "models: 'chat' names the catalogue entry 'gpt', which does not exist (catalogue: a, b).",
        ),
        # A model without a source.
        (
            [without(CHAT, "source")],
            "models: 'chat' has no source. Set it there, or name a catalogue entry that has it.",
        ),
        (
            [without(CHAT, "repo", "entry")],
            "models: 'chat' has no repo, entry. Set it there, or name a catalogue entry that has it.",
        ),
        (
            [without(CHAT, "name")],
            "models: 'number 1' has no name. Set it there, or name a catalogue entry that has it.",
        ),
        ([{**CHAT, "kind": "image"}], "models: 'chat' is of kind 'image'. Known: chat, embedding."),
        (
            [without(VECTORS, "dimensions")],
            "models: 'vectors' is an embedding model without `dimensions`, the length of its vectors.",
        ),
        ([CHAT, CHAT], "models: the name 'chat' is used twice. Applications ask for a model by its name."),
    ],
)
def test_models_are_refused(models: list[Any], problem: str) -> None:
    assert pins.resolve_models(models, {"b": {}, "a": {}})[1] == [problem]


def test_an_empty_catalogue_is_called_empty() -> None:
    assert "(catalogue: empty)" in pins.resolve_models([{"name": "x", "catalogue": "y"}], {})[1][0]


def test_good_pins() -> None:
    given = [pin(), pin(model="vectors", port=9102)]
    assert pins.check_pins(given, [CHAT, VECTORS], GROUPS) == []


def test_one_port_on_two_hosts_is_fine() -> None:
    groups = {"inference": ["gpu1", "gpu2"], "llamacpp": ["gpu1", "gpu2"]}
    assert pins.check_pins([pin(), pin(host="gpu2")], [CHAT], groups) == []


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([pin(), {"model": "chat"}], "placements: entry 2 ({'model': 'chat'}) has no host, engine, port."),
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
            "placements: 'chat' on 'gpu1': there is no role for the engine 'vllm'. Known: llamacpp.",
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
            [],
            "models: 'chat' has no placement, so nothing would serve it. "
            "Add an entry to `placements`, or take the model out.",
        ),
    ],
)
def test_pins_are_refused(given: list[Any], problem: str) -> None:
    placed = {str(p.get("model")) for p in given}
    models = [CHAT] + ([VECTORS] if "vectors" in placed else [])
    problems = pins.check_pins(given, models, GROUPS)
    assert problem in problems
    # A host outside inference is outside llamacpp too, and is told both.
    assert len(problems) == (2 if "gpu9" in problem else 1)


@pytest.mark.parametrize(
    ("model", "flags", "expected"),
    [
        (CHAT, {}, {"parallel": 1, "ctx-size": 4096}),
        (without(CHAT, "context"), {}, {"parallel": 1}),
        (CHAT, {"parallel": 4, "ctx-size": 16384, "numa": "distribute"}, None),
        (
            VECTORS,
            {},
            {
                "parallel": 1,
                "ctx-size": 4096,
                "embedding": True,
                "pooling": "mean",
                "batch-size": 4096,
                "ubatch-size": 4096,
            },
        ),
        (
            {**without(VECTORS, "context"), "pooling": "last"},
            {},
            {"parallel": 1, "embedding": True, "pooling": "last"},
        ),
    ],
)
def test_a_pin_is_completed(model: dict[str, Any], flags: dict[str, Any], expected: dict[str, Any] | None) -> None:
    done = pins.complete(pin(flags=flags, port="9101"), model, "/srv/llm/served")
    assert done["flags"] == (flags if expected is None else expected)
    assert done["port"] == 9101
    assert done["model_path"] == f"/srv/llm/served/{model['name']}/Q4/m-00001-of-00002.gguf"
    assert done["source"] == "o/chat@master"


def test_endpoints_are_in_the_order_of_models() -> None:
    groups_addresses = {"gpu1": "192.0.2.1", "gpu2": "192.0.2.2"}
    placed = [
        pins.complete(p, m, "/s")
        for p, m in [
            (pin(host="gpu2", model="vectors", port=9102), VECTORS),
            (pin(), CHAT),
            (pin(host="gpu2"), CHAT),
        ]
    ]
    assert pins.endpoints(placed, [CHAT, VECTORS], groups_addresses) == [
        {
            "model": "chat",
            "kind": "chat",
            "dimensions": None,
            "servers": [
                {"host": "gpu1", "address": "192.0.2.1", "port": 9101},
                {"host": "gpu2", "address": "192.0.2.2", "port": 9101},
            ],
        },
        {
            "model": "vectors",
            "kind": "embedding",
            "dimensions": 128,
            "servers": [{"host": "gpu2", "address": "192.0.2.2", "port": 9102}],
        },
    ]
