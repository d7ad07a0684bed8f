# SPDX-License-Identifier: GPL-3.0-or-later
"""Safetensors repositories: small ones from the files' headers, large ones from config.json and the total size."""

from __future__ import annotations

import json
import math
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import ranges
from ansible_collections.onprem.llm.plugins.module_utils.shape import safetensors
from ansible_collections.onprem.llm.plugins.module_utils.shape.classify import ShapeError
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape
from ansible_collections.onprem.llm.plugins.module_utils.shape.variants import Reader

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import server

Dims = tuple[int, ...]
BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4, "I32": 4, "U8": 1}
QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
}  # fmt: skip
#: deepseek-ai/DeepSeek-R1, config.json; the total size as its index says.
R1 = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 7168,
    "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "num_attention_heads": 128, "num_key_value_heads": 128,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
    "intermediate_size": 18432, "first_k_dense_replace": 3, "vocab_size": 129280, "max_position_embeddings": 163840,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
}  # fmt: skip
R1_BYTES = 688_586_727_753


def file_of(tensors: dict[str, tuple[str, Dims]], data: bool = True) -> bytes:
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BYTES[dtype]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + bytes(at if data else 0)


def layer(number: int, dtype: str = "BF16") -> dict[str, tuple[str, Dims]]:
    """A layer of QWEN."""
    block = f"model.layers.{number}."
    found: dict[str, tuple[str, Dims]] = {
        block + "input_layernorm.weight": ("BF16", (64,)),
        block + "self_attn.q_proj.weight": (dtype, (128, 64)),
        block + "self_attn.k_proj.weight": (dtype, (64, 64)),
        block + "self_attn.v_proj.weight": (dtype, (64, 64)),
        block + "self_attn.o_proj.weight": (dtype, (64, 128)),
        block + "self_attn.q_norm.weight": ("BF16", (32,)),
        block + "mlp.gate.weight": ("BF16", (4, 64)),
    }
    for expert in range(4):
        for name, shape in (("gate", (32, 64)), ("up", (32, 64)), ("down", (64, 32))):
            found[f"{block}mlp.experts.{expert}.{name}_proj.weight"] = (dtype, shape)
    return found


EMBEDDINGS: dict[str, tuple[str, Dims]] = {"model.embed_tokens.weight": ("BF16", (100, 64))}
OUTPUT: dict[str, tuple[str, Dims]] = {"model.norm.weight": ("BF16", (64,)), "lm_head.weight": ("BF16", (100, 64))}


def repository(folder: Path, config: dict[str, Any], *files: dict[str, tuple[str, Dims]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if len(files) == 1:
        (folder / "model.safetensors").write_bytes(file_of(files[0]))
        return folder
    weights, total = {}, 0
    for number, tensors in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        (folder / name).write_bytes(file_of(tensors))
        weights.update(dict.fromkeys(tensors, name))
        total += sum(math.prod(shape) * BYTES[dtype] for dtype, shape in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weights}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def read(folder: Path) -> Shape:
    return safetensors.read(lambda name: ranges.LocalFile(folder / name))


def test_one_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    shape = read(repository(tmp_path, QWEN, {**EMBEDDINGS, **layer(0), **layer(1), **OUTPUT}))
    assert shape["layers"][1] == {
        "attention": 2 * (64 * 128 * 2 + 64 * 64 * 2 + 32),
        "dense": 0,
        "experts": 2 * 4 * 3 * 32 * 64,
        "shared": 2 * 4 * 64,
        "other": 2 * 64,
        "cache": {"kind": "full", "heads": 2, "key": 32, "value": 32, "window": 0, "state": 0},
    }
    assert (shape["embeddings"], shape["output"], shape["tied"]) == (12800, 12800 + 128, False)
    assert (shape["format"], shape["architecture"], shape["attention"]) == ("safetensors", "Qwen3MoeForCausalLM", "GQA")
    assert (shape["quantisation"], shape["context"], shape["experts"], shape["experts_used"]) == ("BF16", 4096, 4, 2)
    assert shape["weights"] == shape["types"]["BF16"] == 2 * shape["parameters"]
    assert shape["chat_template"] and shape["exact"]
    assert shape["basis"] == "headers of 1 safetensors files"


def test_several_files_with_fp8(tmp_path: Path) -> None:
    config = {**QWEN, "quantization_config": {"quant_method": "fp8"}, "tie_word_embeddings": True}
    shape = read(repository(tmp_path, config, {**EMBEDDINGS, **layer(0, "F8_E4M3")}, layer(1, "F8_E4M3")))
    assert (shape["quantisation"], shape["tied"], shape["output"]) == ("FP8", True, 0)
    assert shape["layers"][0]["experts"] == 4 * 3 * 32 * 64
    assert set(shape["types"]) == {"BF16", "F8_E4M3"}
    assert not shape["chat_template"]


def test_packed_integers_hold_eight_parameters_each(tmp_path: Path) -> None:
    packed: dict[str, tuple[str, Dims]] = {
        "model.layers.0.mlp.gate_proj.qweight": ("I32", (64, 16)),
        "model.layers.0.mlp.gate_proj.scales": ("BF16", (1, 128)),
    }
    config = {**QWEN, "num_hidden_layers": 1, "quantization_config": {"quant_method": "awq", "bits": 4}}
    shape = read(repository(tmp_path, config, packed))
    assert (shape["quantisation"], shape["parameters"], shape["layers"][0]["dense"]) == ("AWQ-INT4", 8192, 4096 + 256)


def test_shared_experts_and_the_router_are_passed_by_every_token() -> None:
    for name in (
        "mlp.shared_experts.up_proj.weight",
        "mlp.shared_expert_gate.weight",
        "mlp.gate.weight",
        "mlp.gate.e_score_correction_bias",
        "block_sparse_moe.gate.weight",
        "mlp.router.weight",
    ):
        assert safetensors.kind_of(name) == "shared", name
    for name in (
        "mlp.experts.3.up_proj.weight",
        "block_sparse_moe.experts.0.w1.weight",
        "mlp.experts.gate_up_proj_blocks",
    ):
        assert safetensors.kind_of(name) == "experts", name
    assert safetensors.kind_of("mlp.gate_proj.weight") == "dense"
    assert safetensors.kind_of("self_attn.kv_a_proj_with_mqa.weight") == "attention"
    assert safetensors.kind_of("post_attention_layernorm.weight") == "other"


def test_r1_from_its_configuration_and_total_size() -> None:
    shape = safetensors.shape_of_total(R1, R1_BYTES, "test", True)
    assert (shape["attention"], shape["quantisation"], len(shape["layers"])) == ("MLA", "FP8", 61)
    assert sum(one["cache"]["heads"] * one["cache"]["key"] * 2 for one in shape["layers"]) == 70_272
    assert shape["weights"] == R1_BYTES and not shape["exact"]
    assert shape["parameters"] == pytest.approx(684.5e9, rel=0.01), "671 and the layer that predicts a second token"
    routed = sum(one["experts"] for one in shape["layers"])
    assert routed == pytest.approx(58 * 256 * 3 * 7168 * 2048, rel=0.01), "a byte each"
    assert shape["layers"][0]["dense"] == pytest.approx(3 * 7168 * 18432, rel=0.01)


def test_a_long_index_is_not_read_whole(tmp_path: Path) -> None:
    root = tmp_path / "hub"
    folder = root / "models/deepseek-ai/DeepSeek-R1"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(R1))
    names = {
        f"model.layers.{n}.mlp.experts.{e}.up_proj.weight": "model-00001-of-000163.safetensors"
        for n in range(61)
        for e in range(256)
    }
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": R1_BYTES}, "weight_map": names}, indent=2)
    )
    with server.running(root) as hub:
        reader = Reader({"hub": {"type": "modelscope", "url": hub.url}}, {})
        variant = {"format": "safetensors", "source": "hub", "repo": "deepseek-ai/DeepSeek-R1", "revision": "master"}
        result = reader.read({**variant, "include": ["*"]})
    assert result["shape"] is not None, result["error"]
    assert result["shape"]["weights"] == R1_BYTES
    assert result["bytes"] < 200_000
    assert result["shape"]["basis"].startswith("config.json and the total size, ")


def test_kinds_of_layers_as_the_configuration_lists_them(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "linear_attention", "full_attention"]
    linear = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    config = {**QWEN, "num_hidden_layers": 3, "layer_types": kinds, "sliding_window": 128, **linear}
    config |= {"linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}
    shape = safetensors.shape_of_total({"text_config": config}, 10**9, "test", True)
    assert [one["cache"]["kind"] for one in shape["layers"]] == ["sliding", "recurrent", "full"]
    assert shape["layers"][1]["cache"]["state"] == 4 * (4 * 8 * 8 + 3 * (2 * 2 * 8 + 4 * 8))
    assert shape["attention"] == "hybrid"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes: truncated, or no safetensors file"),
        (
            struct.pack("<Q", 2**60) + b"{}",
            "its header claims 1152921504606846976 bytes of 10; at most 4194304 are read",
        ),
        (b"<!DOCTYPE html><title>Sign in</title>", "its header claims 5789751444030890300 bytes"),
        (struct.pack("<Q", 8) + b"not json" + bytes(9), "its header is not JSON"),
        (struct.pack("<Q", 2) + b"[]" + bytes(9), "its header holds no object"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "the entry of tensor 'a' is unusable"),
        (file_of(EMBEDDINGS, data=False), "tensor 'model.embed_tokens.weight' ends at byte"),
    ],
)
def test_a_damaged_file(tmp_path: Path, data: bytes, message: str) -> None:
    repository(tmp_path, QWEN, EMBEDDINGS)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ShapeError) as refusal:
        read(tmp_path)
    said = str(refusal.value)
    assert said.startswith(f"{tmp_path}/model.safetensors: ") and message in said


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "config.json holds no object"),
        ("<html>", "config.json is not JSON"),
        (json.dumps({**QWEN, "num_hidden_layers": 10**9}), "num_hidden_layers is 1000000000, 1 to 4096 are read"),
        (json.dumps({**QWEN, "hidden_size": "wide"}), "config.json: hidden_size is 'wide', not a usable whole number"),
    ],
)
def test_an_unusable_configuration(tmp_path: Path, config: str, message: str) -> None:
    repository(tmp_path, QWEN, {**EMBEDDINGS, **layer(0)})
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ShapeError) as refusal:
        read(tmp_path)
    assert message in str(refusal.value)


def test_an_index_that_leads_elsewhere(tmp_path: Path) -> None:
    repository(tmp_path, QWEN, EMBEDDINGS, OUTPUT)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(ShapeError, match=r"names files that are no safetensors files beside it: ../../etc/passwd"):
        read(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ranges.RangeError, match=r"config.json: No such file or directory"):
        read(tmp_path)
    repository(tmp_path, QWEN, EMBEDDINGS)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ranges.RangeError, match=r"model.safetensors: No such file or directory"):
        read(tmp_path)
