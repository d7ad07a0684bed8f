# SPDX-License-Identifier: GPL-3.0-or-later
"""A shape from published figures is close to the one read from the files, whose headers tests/headers.py has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.onprem.llm.plugins.module_utils import gguf
from ansible_collections.onprem.llm.plugins.module_utils.shape import published
from ansible_collections.onprem.llm.plugins.module_utils.shape.classify import shape_of
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

sys.path.insert(0, str(Path(__file__).parents[1]))

import headers

CATALOGUE = yaml.safe_load(Path(__file__).parents[2].joinpath("group_vars/all/catalogue.yml").read_text())["catalogue"]
VARIANTS = [(key, variant) for key, entry in CATALOGUE.items() for variant in entry["variants"]]

#: header -> catalogue entry
PAIRS = {
    "deepseek-r1-ud-iq1_s-legacy": "deepseek-r1",
    "deepseek-r1-ud-q2_k_xl-legacy": "deepseek-r1",
    "deepseek-r1-q4_k_m-legacy": "deepseek-r1",
    "deepseek-r1-q4_k_m-mla": "deepseek-r1",
    "deepseek-v3-0324-ud-q2_k_xl-legacy": "deepseek-v3-0324",
    "deepseek-v3-0324-ud-q2_k_xl-mla": "deepseek-v3-0324",
    "llama-70b-q4_k_m": "deepseek-r1-distill-llama-70b",
    "qwen3-4b-q4_k_m": "qwen3-4b-q4",
    "qwen3-30b-a3b-q4_k_m": "qwen3-30b-a3b",
    "qwen3-235b-a22b-q4_k_m": "qwen3-235b-a22b",
    "gpt-oss-120b-mxfp4": "gpt-oss-120b",
    "qwen3-embedding-0.6b-q8_0": "qwen3-embedding-0.6b",
}
#: What describes the model and its cache: known from the dimensions, so equal.
EXACT = (
    "architecture", "quantisation", "context", "vocabulary", "embedding", "heads", "experts", "experts_used",
    "expert_width", "tied", "attention", "chat_template",
)  # fmt: skip


def from_header(name: str) -> Shape:
    model = headers.MODELS[name]
    tensors = [gguf.Tensor(one.name, one.shape, one.type, 0, one.bytes) for one in headers.tensors(name)]
    metadata: dict[str, Any] = headers.metadata(name)
    return shape_of(metadata, tensors, "header", [model.path.format("")])


def from_figures(name: str, **changes: Any) -> Shape:
    model = headers.MODELS[name]
    variant = {
        "format": "gguf", "quantisation": model.quantisation, "size": int(model.bytes), "legacy": "legacy" in name,
    }  # fmt: skip
    return published.shape(CATALOGUE[PAIRS[name]]["published"], variant | changes)


def kinds(shape: Shape) -> dict[str, int]:
    layers: dict[str, int] = {kind: sum(layer[kind] for layer in shape["layers"]) for kind in published.KINDS}
    return layers | {"embeddings": shape["embeddings"], "output": shape["output"]}


def test_every_header_has_a_catalogue_entry() -> None:
    assert set(PAIRS) == set(headers.NAMES)


@pytest.mark.parametrize("name", headers.NAMES)
def test_close_to_what_the_header_says(name: str) -> None:
    read, figured = from_header(name), from_figures(name)
    assert {key: figured[key] for key in EXACT} == {key: read[key] for key in EXACT}  # type: ignore[literal-required]
    assert [layer["cache"] for layer in figured["layers"]] == [layer["cache"] for layer in read["layers"]]
    assert figured["parameters"] == pytest.approx(read["parameters"], rel=0.002)
    assert figured["weights"] == pytest.approx(read["weights"], rel=0.03)
    for kind, size in kinds(read).items():
        if size > read["weights"] / 1000:
            assert kinds(figured)[kind] == pytest.approx(size, rel=0.1), kind
    assert (figured["basis"], figured["exact"]) == ("published configuration", False)


@pytest.mark.parametrize("name", headers.NAMES)
def test_the_published_size_is_the_total(name: str) -> None:
    size = int(headers.MODELS[name].bytes)
    shape = from_figures(name)
    assert shape["weights"] == pytest.approx(size, rel=1e-6)
    assert shape["weights"] == sum(kinds(shape).values()) == sum(shape["types"].values())


@pytest.mark.parametrize("name", [name for name in headers.NAMES if "ud-" not in name])
def test_without_a_size_the_mix_of_the_quantisation_is_close(name: str) -> None:
    """Not for Unsloth's own: their experts have several types."""
    assert from_figures(name, size=None)["weights"] == pytest.approx(from_header(name)["weights"], rel=0.03)


@pytest.mark.parametrize("name", ["deepseek-r1-q4_k_m-mla", "deepseek-r1-q4_k_m-legacy"])
def test_the_cache_of_deepseek_is_that_of_its_form(name: str) -> None:
    """Two bytes an element: 70,272 bytes per token, or 4.77 MiB."""
    caches = [layer["cache"] for layer in from_figures(name)["layers"]]
    token = 2 * sum(cache["heads"] * (cache["key"] + cache["value"]) for cache in caches)
    assert token == (70_272 if "mla" in name else 4_997_120)


@pytest.mark.parametrize(
    ("entry", "quantisation", "size"),
    [
        # What the publishers' indexes and file lists say. R1's has a layer for predicting two tokens at once.
        ("deepseek-r1", "FP8", 688.6e9),
        ("deepseek-r1-distill-llama-70b", "FP8", 72.7e9),
        ("deepseek-r1-distill-llama-70b", "BF16", 141.1e9),
        ("gpt-oss-120b", "MXFP4", 65.3e9),
    ],
)
def test_safetensors_without_a_size(entry: str, quantisation: str, size: float) -> None:
    shape = published.shape(CATALOGUE[entry]["published"], {"format": "safetensors", "quantisation": quantisation})
    assert shape["weights"] == pytest.approx(size, rel=0.005)


def test_layers_that_no_token_passes_are_weights_but_no_layers() -> None:
    variant = {"format": "safetensors", "quantisation": "FP8", "size": 688_600_000_000}
    shape = published.shape(CATALOGUE["deepseek-r1"]["published"], variant)
    assert len(shape["layers"]) == 61
    assert shape["weights"] == pytest.approx(688.6e9, rel=1e-6)
    assert sum(kinds(shape).values()) == pytest.approx(673e9, rel=0.01)


@pytest.mark.parametrize("quantisation", ["AWQ", "GPTQ-Int4"])
def test_four_bits_leave_the_tables_in_sixteen(quantisation: str) -> None:
    config = CATALOGUE["deepseek-r1-distill-llama-70b"]["published"]
    shape = published.shape(config, {"format": "safetensors", "quantisation": quantisation})
    assert shape["embeddings"] == 2 * 128256 * 8192
    assert 39e9 < shape["weights"] < 41e9


def test_a_size_that_leaves_nothing_for_the_experts_scales_everything() -> None:
    shape = from_figures("qwen3-30b-a3b-q4_k_m", size=1_000_000_000)
    assert shape["weights"] == pytest.approx(1e9, rel=1e-5)
    assert all(size >= 0 for size in kinds(shape).values())


@pytest.mark.parametrize(
    ("config", "variant", "message"),
    [
        ({"head_count": None}, {}, "`published` has no `head_count`. Take it from the model's config.json."),
        ({"block_count": "many"}, {}, "`published` has no `block_count`."),
        (
            {},
            {"quantisation": "NEW_9"},
            "`NEW_9` is no known quantisation of GGUF. Give the variant's `size` in bytes.",
        ),
        (
            {},
            {"format": "safetensors", "quantisation": "NEW_9"},
            "`NEW_9` is no known quantisation of safetensors (FP8, BF16, FP16, F16, AWQ, GPTQ, MXFP4).",
        ),
    ],
)
def test_what_is_missing_is_named(config: dict[str, Any], variant: dict[str, Any], message: str) -> None:
    known = CATALOGUE["qwen3-4b-q4"]["published"]
    with pytest.raises(ValueError) as refusal:
        published.shape(known | config, {"format": "gguf", "quantisation": "Q4_K_M"} | variant)
    assert str(refusal.value).startswith(message)


def test_an_unknown_quantisation_with_a_size_is_good_enough() -> None:
    shape = published.shape(
        CATALOGUE["qwen3-4b-q4"]["published"], {"format": "gguf", "quantisation": "NEW_9", "size": 2_000_000_000}
    )
    assert shape["weights"] == pytest.approx(2e9, rel=1e-6)


@pytest.mark.parametrize(
    ("key", "variant"), VARIANTS, ids=lambda value: value if isinstance(value, str) else value["format"]
)
def test_the_whole_catalogue_can_be_planned_without_network(key: str, variant: dict[str, Any]) -> None:
    """The size given is roughly that of the quantisation given: a slip of a digit or a name would be seen."""
    shape = published.shape(CATALOGUE[key]["published"], variant)
    usual = published.shape(CATALOGUE[key]["published"], {**variant, "size": None})
    assert shape["weights"] == pytest.approx(usual["weights"], rel=0.25)
