# SPDX-License-Identifier: GPL-3.0-or-later
"""The site's models: completed from the catalogue or refused, with a sentence that says the way out."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.placement import models as site_models

FILES: dict[str, Any] = {
    "repo": "o/chat",
    "revision": "master",
    "source": "hub",
    "include": ["Q4/*"],
    "entry": "Q4/m-00001-of-00002.gguf",
}
CHAT: dict[str, Any] = {"name": "chat", "kind": "chat", **FILES, "context": 4096}
VECTORS: dict[str, Any] = {**CHAT, "name": "vectors", "kind": "embedding", "dimensions": 128}
GROUPS = {"inference": ["gpu1", "gpu2", "cpu1"], "llamacpp": ["gpu1"], "big": ["gpu2", "web1"]}
DONE = {
    "name": "chat",
    "kind": "chat",
    "context": 4096,
    "engine": "auto",
    "hosts": ["gpu1", "gpu2", "cpu1"],
    "variants": [{"format": "gguf", "quantisation": "", **FILES}],
}
TWO = {
    "kind": "chat",
    "variants": [
        {**FILES, "format": "safetensors", "quantisation": "FP8", "repo": "o/full"},
        {**FILES, "quantisation": "Q4_K_M"},
    ],
}


def without(model: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in keys}


def resolved(entry: dict[str, Any], catalogue: dict[str, Any] | None = None) -> dict[str, Any]:
    found, problems = site_models.resolve([entry], catalogue or {}, GROUPS)
    assert problems == []
    return found[0]


def test_a_models_own_files_are_its_only_variant() -> None:
    assert resolved(CHAT) == DONE


def test_what_the_site_says_wins_over_the_catalogue() -> None:
    catalogue = {"known": without(CHAT, "name")}
    assert resolved({"name": "chat", "catalogue": "known"}, catalogue) == DONE
    changed = resolved({"name": "chat", "catalogue": "known", "context": 8192, "revision": "b" * 40}, catalogue)
    assert (changed["context"], changed["variants"][0]["revision"]) == (8192, "b" * 40)


def test_files_of_the_site_count_for_every_variant() -> None:
    found = resolved({"name": "chat", "catalogue": "two", "source": "nas"}, {"two": TWO})["variants"]
    assert [(one["quantisation"], one["format"], one["source"], one["repo"]) for one in found] == [
        ("FP8", "safetensors", "nas", "o/full"),
        ("Q4_K_M", "gguf", "nas", "o/chat"),
    ]


def test_a_quantisation_beside_the_name_chooses_a_variant() -> None:
    found = resolved({"name": "chat", "catalogue": "two", "quantisation": "Q4_K_M"}, {"two": TWO})["variants"]
    assert [one["quantisation"] for one in found] == ["Q4_K_M"]


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("inference", ["gpu1", "gpu2", "cpu1"]),
        ("big", ["gpu2"]),
        ("cpu1", ["cpu1"]),
        (["cpu1", "big"], ["gpu2", "cpu1"]),
    ],
)
def test_hosts_are_groups_and_names(hosts: Any, expected: list[str]) -> None:
    assert resolved({**CHAT, "hosts": hosts})["hosts"] == expected


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        (
            [{"name": "chat", "catalogue": "gpt"}],
            "models: 'chat' names the catalogue entry 'gpt', which does not exist (catalogue: a, b).",
        ),
        (
            [without(CHAT, "source")],
            "models: 'chat' has no source. Set it there, or name a catalogue entry that has it.",
        ),
        (
            [without(CHAT, "repo", "entry")],
            "models: 'chat' has no repo, entry. Set it there, or name a catalogue entry that has it.",
        ),
        (
            [{**TWO, "name": "chat", "repo": ""}],
            "models: 'chat' (FP8) has no repo. Set it there, or name a catalogue entry that has it.",
        ),
        (
            [without(CHAT, "name")],
            "models: 'number 1' has no name. Set it there, or name a catalogue entry that has it.",
        ),
        (
            [{**CHAT, "name": "My Model"}],
            "models: the name 'My Model' cannot be the name of a service. Use small letters, digits and . _ -",
        ),
        ([{**CHAT, "kind": "image"}], "models: 'chat' is of kind 'image'. Known: chat, embedding."),
        ([{**CHAT, "format": "onnx"}], "models: 'chat' is in the format 'onnx'. Known: gguf, safetensors."),
        (
            [without(VECTORS, "dimensions")],
            "models: 'vectors' is an embedding model without `dimensions`, the length of its vectors.",
        ),
        (
            [{**CHAT, "parallel": "4"}],
            "models: 'chat' has `parallel: 4`. Use a whole number from 1, or leave it to the plan.",
        ),
        (
            [{**CHAT, "context": 0}],
            "models: 'chat' has `context: 0`. Use a whole number from 1, or leave it to the plan.",
        ),
        (
            [{**TWO, "name": "chat", "quantisation": "Q2_K"}],
            "models: 'chat' has no variant of the quantisation 'Q2_K'. It has: FP8, Q4_K_M.",
        ),
        (
            [{**CHAT, "hosts": ["gpu1", "gpu9"]}],
            "models: 'chat' wants the host 'gpu9', which is no member of the group inference "
            "(members: gpu1, gpu2, cpu1). Add it there, or name a member or a group.",
        ),
        ([CHAT, CHAT], "models: the name 'chat' is used twice. Applications ask for a model by its name."),
    ],
)
def test_models_are_refused(models: list[Any], problem: str) -> None:
    assert site_models.resolve(models, {"b": {}, "a": {}}, GROUPS)[1] == [problem]


def test_an_empty_catalogue_is_called_empty() -> None:
    assert "(catalogue: empty)" in site_models.resolve([{"name": "x", "catalogue": "y"}], {}, GROUPS)[1][0]


def test_variants_without_a_source_of_the_site_are_left_out() -> None:
    model = resolved({"name": "chat", "variants": [{**FILES, "source": "far"}, FILES], "kind": "chat"})
    kept, problems = site_models.with_known_sources([model], {"hub": {}})
    assert [one["source"] for one in kept[0]["variants"]] == ["hub"]
    assert problems == []
    assert site_models.with_known_sources([model], {"nas": {}})[1] == [
        "models: 'chat' comes from the source 'far' and 'hub', which is not in `model_sources` (there: nas). "
        "Add it there, or choose one that is."
    ]


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)- models: 'one'.*kind 'x'.*- models: 'two'.*the source 'hub'"):
        site_models.known([{**CHAT, "name": "one", "kind": "x"}, {**CHAT, "name": "two"}], {}, GROUPS, {})


def test_each_file_is_read_once_by_the_first_host_that_may_serve_it() -> None:
    two = [resolved(CHAT), resolved({**CHAT, "name": "again"}), resolved({**CHAT, "name": "far", "hosts": "cpu1"})]
    assert len(site_models.variants_of(two, "gpu1")) == 1
    assert site_models.variants_of(two, "gpu2") == []
    assert len(site_models.variants_of(two, "cpu1")) == 1


def test_endpoints_are_in_the_order_of_models() -> None:
    addresses = {"gpu1": "192.0.2.1", "gpu2": "192.0.2.2"}
    placed = [
        {"model": "vectors", "host": "gpu2", "port": 9102, "slots": 4},
        {"model": "chat", "host": "gpu1", "port": 9101, "slots": 4},
        {"model": "chat", "host": "gpu2", "port": 9101, "slots": 4},
    ]
    assert site_models.endpoints(placed, [CHAT, VECTORS], addresses, {}) == [
        {
            "model": "chat",
            "kind": "chat",
            "dimensions": None,
            "servers": [
                {"host": "gpu1", "address": "192.0.2.1", "port": 9101, "slots": 4},
                {"host": "gpu2", "address": "192.0.2.2", "port": 9101, "slots": 4},
            ],
        },
        {
            "model": "vectors",
            "kind": "embedding",
            "dimensions": 128,
            "servers": [{"host": "gpu2", "address": "192.0.2.2", "port": 9102, "slots": 4}],
        },
    ]


def test_what_one_host_could_read_no_other_is_asked_for() -> None:
    """A mirror is asked for the rest; each file once."""
    two = [resolved(CHAT), resolved({**CHAT, "name": "again"})]
    (wanted,) = site_models.unread_variants(two, [])
    key = site_models.variant_key(wanted)
    assert site_models.unread_variants(two, [{"key": key, "shape": None}]) == [wanted]
    assert site_models.unread_variants(two, [{"key": key, "shape": None}, {"key": key, "shape": {"layers": []}}]) == []


# --- what a store holds


def placed(model: str, **variant: Any) -> dict[str, Any]:
    return {"model": model, "variant": {**FILES, "quantisation": "Q4", **variant}}


def test_a_store_holds_the_files_of_each_placement_once() -> None:
    held = site_models.store_models([placed("chat"), placed("chat"), placed("vectors")])
    assert [model["name"] for model in held] == ["chat", "vectors"]
    assert {**held[0], "quantisation": ""} == {**FILES, "quantisation": "", "name": "chat"}


def test_companions_are_models_of_their_own() -> None:
    companion = {"repo": "deep/R1", "revision": "main"}
    chosen = {"repo": "deep/Tok", "revision": "c1", "source": "other", "include": ["tok*"], "exclude": []}
    held = site_models.store_models([placed("chat", companions=[companion, chosen])])
    assert [model["name"] for model in held] == ["chat", "chat--R1", "chat--Tok"]
    assert held[1] == {
        "name": "chat--R1",
        "repo": "deep/R1",
        "revision": "main",
        "source": "hub",
        "include": [],
        "exclude": ["*.safetensors"],
        "entry": "",
    }
    assert held[2] == {**chosen, "name": "chat--Tok", "entry": ""}


def test_each_of_them_has_a_pointer_to_its_folder() -> None:
    assert site_models.model_targets([placed("chat", companions=[{"repo": "deep/R1", "revision": "main"}])], "/m") == {
        "chat": f"/m/{FILES['repo']}/{FILES['revision']}",
        "chat--R1": "/m/deep/R1/main",
    }


def test_other_files_under_the_same_name_get_a_longer_one() -> None:
    """A mirror holds what several hosts serve under one name in different qualities."""
    held = site_models.store_models(
        [placed("chat"), placed("chat", include=["Q8/*"], quantisation="Q8"), placed("chat")]
    )
    assert [model["name"] for model in held] == ["chat", "chat--Q8"]


@pytest.mark.parametrize("companion", [{"repo": "o/m"}, {"revision": "main"}, "o/m"])
def test_a_companion_has_repository_and_revision(companion: Any) -> None:
    _, problems = site_models.resolve([{**CHAT, "companions": [companion]}], {}, GROUPS)
    assert problems == [
        "models: 'chat' has `companions` without repo and revision. Each is a repository: "
        "{repo: OWNER/NAME, revision: …}."
    ]
