# SPDX-License-Identifier: GPL-3.0-or-later
"""From headers to what memory and speed depend on: figures, and what a layer remembers."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gguf as reference
import pytest

from ansible_collections.onprem.llm.plugins.module_utils import gguf, ranges
from ansible_collections.onprem.llm.plugins.module_utils.shape.classify import (
    FILE_TYPES,
    ShapeError,
    kind_of,
    quantisation_of,
    shape_of,
)
from ansible_collections.onprem.llm.plugins.module_utils.shape.read import parts_of, read_shape
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Cache, Shape

sys.path.insert(0, str(Path(__file__).parents[1]))

import headers
import tiny_models


def of_header(name: str, folder: Path) -> Shape:
    paths = headers.write(name, folder)
    return read_shape(
        lambda part: ranges.LocalFile(folder / part), [str(p.relative_to(folder)) for p in paths], complete=False
    )


def per_token(shape: Shape, element: int = 2) -> int:
    """Bytes of the cache per token, all layers."""
    return sum(c["heads"] * (c["key"] + c["value"]) * element for c in (layer["cache"] for layer in shape["layers"]))


def of_tiny(architecture: str, folder: Path, **changes: int) -> Shape:
    path = tiny_models.write(architecture, folder / "m.gguf", **changes)
    header = gguf.read_header(path)
    return shape_of(header.metadata, header.tensors, "test")


def kinds(shape: Shape) -> list[str]:
    return [layer["cache"]["kind"] for layer in shape["layers"]]


# --- the figures of real models

R1_LAYERS = 61


@pytest.mark.parametrize(
    ("name", "attention", "bytes_per_token", "quantisation"),
    [
        ("deepseek-r1-q4_k_m-mla", "MLA", 70_272, "Q4_K_M"),
        ("deepseek-r1-ud-iq1_s-legacy", "legacy MLA", R1_LAYERS * 128 * 320 * 2, "UD-IQ1_S"),
        ("llama-70b-q4_k_m", "GQA", 320 << 10, "Q4_K_M"),
        ("qwen3-235b-a22b-q4_k_m", "GQA", 188 << 10, "Q4_K_M"),
        ("gpt-oss-120b-mxfp4", "sliding window", 72 << 10, "MXFP4"),
    ],
)
def test_what_a_token_costs(tmp_path: Path, name: str, attention: str, bytes_per_token: int, quantisation: str) -> None:
    shape = of_header(name, tmp_path)
    assert (shape["attention"], per_token(shape), shape["quantisation"]) == (attention, bytes_per_token, quantisation)


def test_the_legacy_cache_of_r1_is_4_77_mib_per_token(tmp_path: Path) -> None:
    assert round(per_token(of_header("deepseek-r1-ud-iq1_s-legacy", tmp_path)) / 2**20, 2) == 4.77


@pytest.mark.parametrize("name", headers.NAMES)
def test_no_byte_is_lost_or_counted_twice(tmp_path: Path, name: str) -> None:
    shape, tensors = of_header(name, tmp_path), headers.tensors(name)
    assert shape["weights"] == sum(tensor.bytes for tensor in tensors)
    by_type = Counter[str]()
    for tensor in tensors:
        by_type[tensor.type.name] += tensor.bytes
    assert shape["types"] == dict(by_type)
    counted = shape["embeddings"] + shape["output"]
    for layer in shape["layers"]:
        counted += sum(layer[part] for part in ("attention", "dense", "experts", "shared", "other"))  # type: ignore[literal-required]
    left = sum(tensor.bytes for tensor in tensors if tensor.name == "rope_freqs.weight")
    assert counted == shape["weights"] - left


def test_r1_is_described(tmp_path: Path) -> None:
    shape = of_header("deepseek-r1-ud-iq1_s-legacy", tmp_path)
    assert (len(shape["layers"]), shape["experts"], shape["experts_used"], shape["expert_width"]) == (61, 256, 8, 2048)
    assert (shape["context"], shape["vocabulary"], shape["embedding"], shape["heads"]) == (163840, 129280, 7168, 128)
    assert shape["parameters"] == pytest.approx(671e9, rel=1e-3)
    assert shape["chat_template"] and shape["exact"] and not shape["tied"]
    assert shape["layers"][0]["experts"] == 0 and shape["layers"][0]["dense"] > 0
    assert shape["layers"][3]["dense"] == 0 and shape["layers"][3]["shared"] > 0
    routed = sum(layer["experts"] for layer in shape["layers"])
    assert 0.9 < routed / shape["weights"] < 0.95
    first = "DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf"
    assert shape["basis"] == f"header of {first} (3 files)"


def test_a_tied_table_counts_once(tmp_path: Path) -> None:
    shape = of_header("qwen3-4b-q4_k_m", tmp_path)
    assert shape["tied"] and shape["output"] == 2560 * 4, "the norm is all there is of the output"


# --- what a layer remembers, by architecture


@pytest.mark.parametrize(
    ("architecture", "attention", "remembers"),
    [
        ("llama", "MHA", {"kind": "full", "heads": 4, "key": 16, "value": 16}),
        ("qwen3moe", "GQA", {"kind": "full", "heads": 2, "key": 32, "value": 32}),
        ("deepseek2", "MLA", {"kind": "mla", "heads": 1, "key": 64, "value": 0}),
        ("deepseek2-legacy", "legacy MLA", {"kind": "full", "heads": 4, "key": 64, "value": 32}),
        ("bert", "none", {"kind": "none", "heads": 0, "key": 0, "value": 0}),
    ],
)
def test_small_files(tmp_path: Path, architecture: str, attention: str, remembers: dict[str, Any]) -> None:
    shape = of_tiny(architecture, tmp_path)
    assert shape["attention"] == attention
    for layer in shape["layers"]:
        assert {**layer["cache"], **remembers} == layer["cache"]
    assert shape["weights"] == tiny_models.size(architecture)


def test_gemma_looks_back_everywhere_in_each_sixth_layer(tmp_path: Path) -> None:
    shape = of_tiny("gemma3", tmp_path)
    assert kinds(shape) == ["sliding"] * 5 + ["full"]
    assert shape["layers"][0]["cache"]["window"] == 256 and shape["tied"]


def test_gpt_oss_alternates(tmp_path: Path) -> None:
    shape = of_tiny("gpt-oss", tmp_path)
    assert kinds(shape) == ["sliding", "full"] * 2
    assert all(layer["experts"] and layer["shared"] for layer in shape["layers"])


def made(architecture: str, names: list[list[str]], **metadata: Any) -> Shape:
    """A Shape of a model with two heads of 8 and layers of the named tensors, one byte each."""
    given = {"general.architecture": architecture, f"{architecture}.block_count": len(names)}
    given |= {f"{architecture}.embedding_length": 16, f"{architecture}.attention.head_count": 2}
    given |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in metadata.items()}
    tensors = [
        gguf.Tensor(f"blk.{number}.{name}", (1,), 24, 0, 1) for number, layer in enumerate(names) for name in layer
    ]
    return shape_of(given, tensors, "test")


FULL = ["attn_q.weight", "attn_k.weight", "attn_v.weight", "ffn_up.weight"]
LINEAR = ["attn_qkv.weight", "attn_gate.weight", "ssm_conv1d.weight", "ssm_out.weight", "ffn_up.weight"]


def remembered(shape: Shape, layer: int) -> Cache:
    return shape["layers"][layer]["cache"]


def test_a_window_counts_only_where_the_engine_uses_it() -> None:
    assert kinds(made("phi3", [FULL] * 2, attention__sliding_window=512)) == ["full"] * 2
    assert kinds(made("gemma2", [FULL] * 4)) == ["sliding", "full"] * 2, "4096 without being told"
    assert kinds(made("cohere2moe", [FULL] * 4, attention__sliding_window=9)) == [
        "full",
        "sliding",
        "sliding",
        "sliding",
    ]


def test_a_pattern_in_the_file_counts_more_than_the_architecture() -> None:
    pattern = (True, True, False, True)
    shape = made("mimo2", [FULL] * 4, attention__sliding_window=128, attention__sliding_window_pattern=pattern)
    assert kinds(shape) == ["sliding", "sliding", "full", "sliding"]
    shape = made("gemma3", [FULL] * 4, attention__sliding_window=128, attention__sliding_window_pattern=2)
    assert kinds(shape) == ["sliding", "full"] * 2


def test_sliding_layers_may_have_shorter_heads() -> None:
    window = {"attention__sliding_window": 128, "attention__key_length_swa": 4, "attention__value_length_swa": 5}
    shape = made("gemma4", [FULL] * 2, attention__sliding_window_pattern=(True, False), **window)
    assert [(remembered(shape, layer)["key"], remembered(shape, layer)["value"]) for layer in (0, 1)] == [
        (4, 5),
        (8, 8),
    ]


def test_layers_that_borrow_keys_have_none_of_their_own() -> None:
    assert kinds(made("gemma3n", [FULL] * 3, attention__shared_kv_layers=1)) == ["full", "full", "none"]


def test_linear_attention_is_a_state_of_fixed_size() -> None:
    ssm = {"ssm__conv_kernel": 4, "ssm__inner_size": 64, "ssm__state_size": 16, "ssm__group_count": 2}
    shape = made("qwen3next", [LINEAR, LINEAR, FULL], attention__head_count_kv=1, **ssm)
    assert shape["attention"] == "hybrid" and kinds(shape) == ["recurrent", "recurrent", "full"]
    assert remembered(shape, 0)["state"] == 4 * (3 * (64 + 2 * 2 * 16) + 16 * 64)
    assert remembered(shape, 2)["heads"] == 1 and remembered(shape, 2)["state"] == 0


def test_layers_without_attention_remember_nothing() -> None:
    shape = made("nemotron_h", [["ssm_in.weight"], FULL, ["ffn_up.weight"]], attention__head_count_kv=(0, 2, 0))
    assert kinds(shape) == ["none", "full", "none"], "without ssm figures the state is none"
    shape = made("deci", [FULL, FULL], attention__head_count_kv=(0, 2))
    assert kinds(shape) == ["none", "full"]


def test_heads_may_differ_by_layer() -> None:
    shape = made("openelm", [FULL, FULL], attention__head_count=(4, 8), attention__head_count_kv=(1, 2))
    assert [remembered(shape, layer)["heads"] for layer in (0, 1)] == [1, 2]
    assert shape["heads"] == 8


def test_layers_that_predict_further_tokens_weigh_but_do_not_run() -> None:
    shape = made("glm4moe", [FULL, FULL, FULL], nextn_predict_layers=1)
    assert len(shape["layers"]) == 2 and shape["weights"] == 12


def test_sparse_attention_keeps_a_second_key() -> None:
    mla = {"attention__kv_lora_rank": 512, "attention__key_length_mla": 192, "attention__value_length_mla": 128}
    tensors = ["attn_kv_a_mqa.weight", "indexer.attn_k.weight"]
    shape = made("deepseek32", [tensors], rope__dimension_count=64, attention__indexer__key_length=128, **mla)
    assert remembered(shape, 0) == {"kind": "mla", "heads": 1, "key": 704, "value": 0, "window": 0, "state": 0}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("attn_q.weight", "attention"),
        ("attn_norm.weight", "other"),
        ("attn_sinks.weight", "attention"),
        ("ssm_a", "attention"),
        ("ffn_gate.weight", "dense"),
        ("ffn_norm.weight", "other"),
        ("ffn_gate_exps.weight", "experts"),
        ("ffn_gate_up_exps.weight", "experts"),
        ("ffn_down_exps.bias", "experts"),
        ("ffn_up.7.weight", "experts"),
        ("ffn_gate_shexp.weight", "shared"),
        ("ffn_gate_inp.weight", "shared"),
        ("ffn_gate_inp_shexp.weight", "shared"),
        ("exp_probs_b.bias", "shared"),
        ("layer_output_norm.weight", "other"),
        ("nextn.eh_proj.weight", "other"),
    ],
)
def test_what_reads_a_tensor(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("files", "metadata", "said"),
    [
        (["Q4_K_M/DeepSeek-V3-0324-Q4_K_M-00001-of-00009.gguf"], {}, "Q4_K_M"),
        (["DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf"], {"general.file_type": 24}, "UD-IQ1_S"),
        (["m-UD-Q2_K_XL.gguf"], {"general.file_type": 10}, "UD-Q2_K_XL"),
        (["gpt-oss-20b-mxfp4.gguf"], {}, "MXFP4"),
        (["tiny-rag-f16.gguf"], {}, "F16"),
        (["Kimi-K2-UD-TQ1_0.gguf"], {}, "UD-TQ1_0"),
        (["model.gguf"], {"general.file_type": 15}, "Q4_K_M"),
        (["model.gguf"], {"general.file_type": 1024}, "Q6_K"),
    ],
)
def test_quantisation_as_publishers_name_it(files: list[str], metadata: dict[str, Any], said: str) -> None:
    assert quantisation_of(metadata, {"F32": 1, "Q6_K": 100}, files) == said


def test_the_file_types_are_those_of_the_reference() -> None:
    theirs = {int(kind): kind.name for kind in reference.LlamaFileType if kind.name != "GUESSED"}
    assert {number: name.removeprefix("MOSTLY_").removeprefix("ALL_") for number, name in theirs.items()} == FILE_TYPES


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"block_count": 0}, "the header: llama.block_count leaves 0 layers, 1 to 4096 are read"),
        ({"block_count": 2**31}, "llama.block_count leaves 2147483648 layers"),
        ({"block_count": "many"}, "the header: llama.block_count is 'many', not a usable whole number"),
        ({"attention__head_count_kv": (1,)}, "llama.attention.head_count_kv has 1 values for 2 layers"),
        ({"attention__key_length": -1}, "llama.attention.key_length is -1, not a usable whole number"),
        ({"context_length": 1.5}, "llama.context_length is 1.5"),
        ({"expert_count": 8}, "llama.expert_used_count is 0 of 8 experts, no engine can load it; 1 to 8 are possible."),
        ({"expert_count": 8, "expert_used_count": 9}, "llama.expert_used_count is 9 of 8 experts"),
    ],
)
def test_nonsense_is_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError) as refusal:
        made("llama", [FULL, FULL], **metadata)
    assert message in str(refusal.value)


@pytest.mark.parametrize("tensors", [[], [gguf.Tensor("v.blk.0.attn_q.weight", (1,), 24, 0, 1)]])
def test_files_without_the_layers_weights_are_no_model(tensors: list[gguf.Tensor]) -> None:
    """A vocabulary alone, or the part that sees pictures."""
    metadata = {"general.architecture": "llama", "llama.block_count": 2, "llama.attention.head_count": 2}
    with pytest.raises(
        ShapeError, match=r"the header: 2 layers and no weights in them\. .*name the files of the whole"
    ):
        shape_of(metadata, tensors, "test")


def test_a_model_without_architecture() -> None:
    with pytest.raises(ShapeError, match="architecture is missing, no engine can load it"):
        shape_of({}, [], "test")


# --- files that belong together


def test_the_parts_are_known_from_the_name_of_one() -> None:
    assert parts_of("a/m-Q4-00002-of-00003.gguf") == [f"a/m-Q4-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    assert parts_of("a/m-Q4.gguf") == ["a/m-Q4.gguf"]
    assert parts_of("m-00001-of-99999.gguf") == ["m-00001-of-99999.gguf"]


def test_a_missing_part_is_named_with_the_model_it_lacks(tmp_path: Path) -> None:
    paths = headers.write("deepseek-r1-ud-iq1_s-legacy", tmp_path)
    paths[1].unlink()
    with pytest.raises(ShapeError) as refusal:
        read_shape(lambda part: ranges.LocalFile(paths[0].parent / part), parts_of(paths[0].name), complete=False)
    assert str(refusal.value) == (f"{paths[1]}: No such file or directory; it is part 2 of 3 of {paths[0].name}")


def test_a_part_of_another_model_is_named(tmp_path: Path) -> None:
    paths = headers.write("deepseek-r1-ud-iq1_s-legacy", tmp_path)
    others = headers.write("deepseek-r1-ud-q2_k_xl-legacy", tmp_path / "other")
    paths[2].write_bytes(others[2].read_bytes())
    with pytest.raises(ShapeError) as refusal:
        read_shape(lambda part: ranges.LocalFile(paths[0].parent / part), parts_of(paths[0].name), complete=False)
    assert f"{paths[2].name}: the header says part 3 of 5, the name says 3 of 3" in str(refusal.value)
