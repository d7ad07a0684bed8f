# SPDX-License-Identifier: GPL-3.0-or-later
"""The headers of real models that other tests read: sizes, counts and names as published."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from gguf.constants import MODEL_ARCH_NAMES, MODEL_TENSORS, TENSOR_NAMES

from ansible_collections.onprem.llm.plugins.module_utils import gguf

sys.path.insert(0, str(Path(__file__).parents[1]))

import headers

GIB = 2**30


@pytest.mark.parametrize("name", headers.NAMES)
def test_size_is_the_published_one(name: str) -> None:
    """Weights only: the tokenizer of a small model is one part in a hundred of its file."""
    size = sum(tensor.bytes for tensor in headers.tensors(name))
    assert size == pytest.approx(headers.MODELS[name].bytes, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gib", "types"),
    [
        # What the loader printed for these files (sources: headers.py).
        (
            "deepseek-r1-ud-iq1_s-legacy",
            130.60,
            {"F32": 361, "Q4_K": 190, "Q5_K": 116, "Q6_K": 184, "IQ2_XXS": 6, "IQ1_S": 168},
        ),
        (
            "deepseek-r1-ud-q2_k_xl-legacy",
            211.03,
            {"F32": 361, "Q2_K": 171, "Q3_K": 3, "Q4_K": 306, "Q6_K": 184},
        ),
        ("deepseek-r1-q4_k_m-legacy", 376.65, {"F32": 361, "Q4_K": 606, "Q6_K": 58}),
        ("gpt-oss-120b-mxfp4", 59.02, {"F32": 433, "Q8_0": 146, "MXFP4": 108}),
    ],
)
def test_types_are_those_a_loader_counted(name: str, gib: float, types: dict[str, int]) -> None:
    tensors = headers.tensors(name)
    assert Counter(tensor.type.name for tensor in tensors) == types
    assert round(sum(tensor.bytes for tensor in tensors) / GIB, 2) == gib


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("deepseek-r1-ud-iq1_s-legacy", [49.3, 49.4, 41.5]),
        ("deepseek-r1-ud-q2_k_xl-legacy", [49.8, 50.0, 50.0, 50.0, 26.8]),
    ],
)
def test_parts_are_as_long_as_published(tmp_path: Path, name: str, parts: list[float]) -> None:
    files = headers.write(name, tmp_path, sparse=True)
    assert [round(file.stat().st_size / 1e9, 1) for file in files] == parts
    assert sum(file.stat().st_blocks * 512 for file in files) < 1 << 20


@pytest.mark.parametrize("name", headers.NAMES)
def test_our_reader_accepts_the_whole_set(tmp_path: Path, name: str) -> None:
    files = headers.write(name, tmp_path, sparse=True)
    read = gguf.check_set({file.name: file for file in files})
    first, model = read[files[0].name], headers.MODELS[name]
    assert first.architecture == model.architecture
    assert first.metadata[f"{model.architecture}.block_count"] == model.config["block_count"]
    assert sum(header.tensor_count for header in read.values()) == len(headers.tensors(name))
    assert "tokenizer.ggml.tokens" not in first.metadata


def test_the_legacy_form_lacks_what_describes_the_compressed_cache() -> None:
    legacy, now = (headers.metadata(f"deepseek-r1-{name}") for name in ("ud-iq1_s-legacy", "q4_k_m-mla"))
    assert not [key for key in legacy if key.endswith("_mla")]
    assert legacy["deepseek2.attention.head_count_kv"] == 128
    assert now["deepseek2.attention.head_count_kv"] == 1
    assert now["deepseek2.attention.key_length"] == 576
    split = [tensor.name for tensor in headers.tensors("deepseek-r1-q4_k_m-mla")]
    assert "blk.0.attn_kv_b.weight" not in split
    assert "blk.0.attn_k_b.weight" in split


@pytest.mark.parametrize("name", headers.NAMES)
def test_names_are_those_of_the_architecture(name: str) -> None:
    architecture = {text: one for one, text in MODEL_ARCH_NAMES.items()}[headers.MODELS[name].architecture]
    known = {TENSOR_NAMES[one].replace("{bid}", "N") for one in MODEL_TENSORS[architecture]}
    found = {
        ".".join("N" if word.isdigit() else word for word in one.name.split(".")[:-1]) for one in headers.tensors(name)
    }
    assert found <= known


def test_a_vocabulary_makes_a_header_of_several_megabytes(tmp_path: Path) -> None:
    name = "deepseek-r1-ud-iq1_s-legacy"
    small, large = (headers.write(name, tmp_path / str(full), vocabulary=full)[0] for full in (False, True))
    assert small.stat().st_size < 100_000
    assert 4e6 < large.stat().st_size < 8e6
    assert large.read_bytes() == headers.write(name, tmp_path / "again", vocabulary=True)[0].read_bytes()
