# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers of real models: GGUF files with metadata and tensor table, but without the weights.

Dimensions are those of the published config.json files; names and their order within a layer are those of
llama.cpp's converter. The mix of tensor types is what llama.cpp's quantizer chooses (``q4_k_m``) or what loader
logs in public issues list per type; where neither is known it is approximated to the published size, and said.
The data behind the header is missing (``sparse`` makes the file as long as the real one, of zeros).
"""

from __future__ import annotations

import functools
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf.constants import GGML_QUANT_SIZES
from gguf.constants import GGMLQuantizationType as T

Value = int | float | bool | str | list[int] | list[str]
Mix = Callable[[str, int, int], T]
"""(tensor without "blk.N.", layer or -1, layers) -> type of a matrix. Vectors, routers and biases are F32."""


@dataclass(frozen=True)
class Model:
    architecture: str
    title: str
    config: Mapping[str, Value]
    """Metadata keys without the architecture in front."""
    vocabulary: int
    mix: Mix
    quantisation: str
    file_type: int
    """llama.cpp's number of the mix."""
    bytes: float
    """Published size of all parts."""
    path: str
    """In the publisher's repository; {} is the part."""
    tied: bool = False
    merges: int = 0
    chat: bool = True


def q4_k_m(name: str, layer: int, layers: int) -> T:
    """llama.cpp's Q4_K_M (llama_tensor_get_type): more bits for values and down projections of some layers."""
    if name in ("output.weight", "tied"):
        return T.Q6_K
    more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    if name.startswith(("attn_v.", "ffn_down")) and more:
        return T.Q6_K
    return T.Q5_0 if name == "attn_k_b.weight" else T.Q4_K  # rows of 128 are no multiple of 256


def q4_k_m_70b(name: str, layer: int, layers: int) -> T:
    """Of 70B models, where eight query heads share a value head, the value matrices get at least Q5_K."""
    found = q4_k_m(name, layer, layers)
    return T.Q5_K if name == "attn_v.weight" and found == T.Q4_K else found


def q8_0(name: str, layer: int, layers: int) -> T:
    return T.Q8_0


def mxfp4(name: str, layer: int, layers: int) -> T:
    """433 F32, 146 Q8_0, 108 MXFP4 tensors, 59.02 GiB in two parts (ggml-org/llama.cpp#15253)."""
    return T.MXFP4 if "_exps" in name else T.Q8_0


def _unsloth(name: str) -> T:
    """What Unsloth's dynamic quantizations of January 2025 share: only the experts differ."""
    if name == "output.weight" or name.startswith(("attn_kv", "ffn_down")):
        return T.Q6_K
    return T.Q4_K


def ud_iq1_s(name: str, layer: int, layers: int) -> T:
    """361 F32, 190 Q4_K, 116 Q5_K, 184 Q6_K, 6 IQ2_XXS, 168 IQ1_S tensors, 130.60 GiB (gpustack/gpustack#1107)."""
    if "_exps" in name:
        return T.IQ2_XXS if name.startswith("ffn_down") and layer < 9 else T.IQ1_S
    return T.Q5_K if name.startswith(("ffn_gate_shexp", "ffn_up_shexp")) else _unsloth(name)


def ud_q2_k_xl(name: str, layer: int, layers: int) -> T:
    """361 F32, 171 Q2_K, 3 Q3_K, 306 Q4_K, 184 Q6_K tensors (ikawrakow/ik_llama.cpp#259)."""
    if "_exps" in name:
        return T.Q3_K if name.startswith("ffn_down") and layer < 6 else T.Q2_K
    return _unsloth(name)


def ud_q2_k_xl_0324(name: str, layer: int, layers: int) -> T:
    """Approximated to the published 248 GB, with the card's "down_proj in MoE mixture of 3.5/2.71bit"."""
    if "_exps" in name:
        return T.Q3_K if name.startswith("ffn_down") else T.Q2_K
    return T.Q5_0 if name == "attn_k_b.weight" else _unsloth(name)


DEEPSEEK: dict[str, Value] = {
    "block_count": 61, "context_length": 163840, "embedding_length": 7168, "feed_forward_length": 18432,
    "attention.head_count": 128, "attention.head_count_kv": 128, "rope.freq_base": 10000.0,
    "attention.layer_norm_rms_epsilon": 1e-6, "expert_used_count": 8, "leading_dense_block_count": 3,
    "vocab_size": 129280, "attention.q_lora_rank": 1536, "attention.kv_lora_rank": 512,
    "attention.key_length": 192, "attention.value_length": 128, "expert_feed_forward_length": 2048,
    "expert_count": 256, "expert_shared_count": 1, "expert_weights_scale": 2.5, "expert_weights_norm": True,
    "expert_gating_func": 2, "rope.dimension_count": 64, "rope.scaling.type": "yarn", "rope.scaling.factor": 40.0,
    "rope.scaling.original_context_length": 4096, "rope.scaling.yarn_log_multiplier": 0.1,
}  # fmt: skip
#: Since llama.cpp#12801 (April 2025) the compressed cache is described, and attn_kv_b is split in two.
DEEPSEEK_MLA = DEEPSEEK | {
    "attention.head_count_kv": 1, "attention.key_length": 576, "attention.value_length": 512,
    "attention.key_length_mla": 192, "attention.value_length_mla": 128,
}  # fmt: skip
LLAMA_70B: dict[str, Value] = {
    "block_count": 80, "context_length": 131072, "embedding_length": 8192, "feed_forward_length": 28672,
    "attention.head_count": 64, "attention.head_count_kv": 8, "rope.freq_base": 500000.0,
    "attention.layer_norm_rms_epsilon": 1e-5, "attention.key_length": 128, "attention.value_length": 128,
    "vocab_size": 128256, "rope.dimension_count": 128,
}  # fmt: skip
QWEN3: dict[str, Value] = {
    "rope.freq_base": 1000000.0, "attention.layer_norm_rms_epsilon": 1e-6, "attention.key_length": 128,
    "attention.value_length": 128, "context_length": 40960,
}  # fmt: skip
QWEN3_4B = QWEN3 | {
    "block_count": 36, "embedding_length": 2560, "feed_forward_length": 9728, "attention.head_count": 32,
    "attention.head_count_kv": 8,
}  # fmt: skip
QWEN3_EMBEDDING = QWEN3 | {
    "block_count": 28, "context_length": 32768, "embedding_length": 1024, "feed_forward_length": 3072,
    "attention.head_count": 16, "attention.head_count_kv": 8, "pooling_type": 3,
}  # fmt: skip
QWEN3_30B = QWEN3 | {
    "block_count": 48, "embedding_length": 2048, "feed_forward_length": 6144, "attention.head_count": 32,
    "attention.head_count_kv": 4, "expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 768,
}  # fmt: skip
QWEN3_235B = QWEN3 | {
    "block_count": 94, "embedding_length": 4096, "feed_forward_length": 12288, "attention.head_count": 64,
    "attention.head_count_kv": 4, "expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 1536,
}  # fmt: skip
GPT_OSS_120B: dict[str, Value] = {
    "block_count": 36, "context_length": 131072, "embedding_length": 2880, "feed_forward_length": 2880,
    "attention.head_count": 64, "attention.head_count_kv": 8, "rope.freq_base": 150000.0,
    "attention.layer_norm_rms_epsilon": 1e-5, "expert_count": 128, "expert_used_count": 4,
    "attention.key_length": 64, "attention.value_length": 64, "attention.sliding_window": 128,
    "expert_feed_forward_length": 2880, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
    "rope.scaling.original_context_length": 4096,
}  # fmt: skip

GIB = 2**30
#: What the publishers split at; the parts come out as published (R1 UD-IQ1_S: 49.3, 49.4 and 41.5 GB).
PART_LIMIT = 50 * 10**9
_R1 = functools.partial(Model, "deepseek2", "DeepSeek R1 BF16", vocabulary=129280, merges=127741)
_V3 = functools.partial(
    Model, "deepseek2", "Deepseek-V3-0324", vocabulary=129280, mix=ud_q2_k_xl_0324, quantisation="UD-Q2_K_XL",
    file_type=10, bytes=248e9, path="UD-Q2_K_XL/DeepSeek-V3-0324-UD-Q2_K_XL{}.gguf", merges=127741,
)  # fmt: skip
_QWEN = functools.partial(Model, vocabulary=151936, merges=151387)

#: name -> model. Sizes: the publishers' file lists and cards (GB), or loaders' logs (GiB).
MODELS: dict[str, Model] = {
    "deepseek-r1-ud-iq1_s-legacy": _R1(
        DEEPSEEK, mix=ud_iq1_s, quantisation="UD-IQ1_S", file_type=24, bytes=140.2e9,
        path="DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S{}.gguf",
    ),
    "deepseek-r1-ud-q2_k_xl-legacy": _R1(
        DEEPSEEK, mix=ud_q2_k_xl, quantisation="UD-Q2_K_XL", file_type=10, bytes=227e9,
        path="DeepSeek-R1-UD-Q2_K_XL/DeepSeek-R1-UD-Q2_K_XL{}.gguf",
    ),
    "deepseek-r1-q4_k_m-legacy": _R1(
        DEEPSEEK, mix=q4_k_m, quantisation="Q4_K_M", file_type=15, bytes=376.65 * GIB,
        path="DeepSeek-R1-Q4_K_M/DeepSeek-R1-Q4_K_M{}.gguf",
    ),
    # As a converter of today writes the same weights.
    "deepseek-r1-q4_k_m-mla": _R1(
        DEEPSEEK_MLA, mix=q4_k_m, quantisation="Q4_K_M", file_type=15, bytes=404.4e9,
        path="Q4_K_M/DeepSeek-R1-Q4_K_M{}.gguf",
    ),
    "deepseek-v3-0324-ud-q2_k_xl-legacy": _V3(DEEPSEEK),
    "deepseek-v3-0324-ud-q2_k_xl-mla": _V3(DEEPSEEK_MLA),
    "llama-70b-q4_k_m": Model(
        "llama", "DeepSeek R1 Distill Llama 70B", LLAMA_70B, 128256, q4_k_m_70b, "Q4_K_M", 15, 42.5e9,
        "DeepSeek-R1-Distill-Llama-70B-Q4_K_M{}.gguf", merges=280147,
    ),
    "qwen3-4b-q4_k_m": _QWEN(
        "qwen3", "Qwen3 4B", QWEN3_4B, mix=q4_k_m, quantisation="Q4_K_M", file_type=15, bytes=2_497_280_256,
        path="Qwen3-4B-Q4_K_M{}.gguf", tied=True,
    ),
    "qwen3-30b-a3b-q4_k_m": _QWEN(
        "qwen3moe", "Qwen3 30B A3B", QWEN3_30B, mix=q4_k_m, quantisation="Q4_K_M", file_type=15, bytes=18.6e9,
        path="Qwen3-30B-A3B-Q4_K_M{}.gguf",
    ),
    # No file list was seen; the size is what the mix gives.
    "qwen3-235b-a22b-q4_k_m": _QWEN(
        "qwen3moe", "Qwen3 235B A22B", QWEN3_235B, mix=q4_k_m, quantisation="Q4_K_M", file_type=15, bytes=142.2e9,
        path="Q4_K_M/Qwen3-235B-A22B-Q4_K_M{}.gguf",
    ),
    "gpt-oss-120b-mxfp4": Model(
        "gpt-oss", "Openai_Gpt Oss 120b", GPT_OSS_120B, 201088, mxfp4, "MXFP4", 38, 59.02 * GIB,
        "gpt-oss-120b-MXFP4{}.gguf", merges=446189,
    ),
    "qwen3-embedding-0.6b-q8_0": Model(
        "qwen3", "Qwen3 Embedding 0.6B", QWEN3_EMBEDDING, 151669, q8_0, "Q8_0", 7, 639_150_592,
        "Qwen3-Embedding-0.6B-Q8_0{}.gguf", tied=True, merges=151387, chat=False,
    ),
}  # fmt: skip
NAMES = tuple(MODELS)

Shape = tuple[int, ...]


def _deepseek2(config: Mapping[str, Value], layer: int) -> Iterator[tuple[str, Shape]]:
    embedding, heads, rank = 7168, 128, 512
    yield "attn_kv_a_mqa.weight", (embedding, rank + 64)
    yield "attn_kv_a_norm.weight", (rank,)
    if "attention.key_length_mla" in config:
        yield "attn_k_b.weight", (128, rank, heads)
        yield "attn_v_b.weight", (rank, 128, heads)
    else:
        yield "attn_kv_b.weight", (rank, heads * (128 + 128))
    yield "attn_norm.weight", (embedding,)
    yield "attn_output.weight", (heads * 128, embedding)
    yield "attn_q_a.weight", (embedding, 1536)
    yield "attn_q_a_norm.weight", (1536,)
    yield "attn_q_b.weight", (1536, heads * 192)
    if layer < 3:
        yield from _dense("", embedding, 18432)
    else:
        yield "exp_probs_b.bias", (256,)
        yield "ffn_gate_inp.weight", (embedding, 256)
        yield from _dense("_exps", embedding, 2048, 256)
        yield from _dense("_shexp", embedding, 2048)
    yield "ffn_norm.weight", (embedding,)


def _dense(suffix: str, embedding: int, width: int, experts: int = 0) -> Iterator[tuple[str, Shape]]:
    more = (experts,) if experts else ()
    yield f"ffn_down{suffix}.weight", (width, embedding, *more)
    yield f"ffn_gate{suffix}.weight", (embedding, width, *more)
    yield f"ffn_up{suffix}.weight", (embedding, width, *more)


def _gqa(config: Mapping[str, Value], layer: int, norms: bool = False) -> Iterator[tuple[str, Shape]]:
    """Llama and Qwen3, dense or with experts in every layer."""
    embedding, head = int(str(config["embedding_length"])), int(str(config["attention.key_length"]))
    queries, keys = (head * int(str(config[f"attention.head_count{kind}"])) for kind in ("", "_kv"))
    yield "attn_k.weight", (embedding, keys)
    if norms:
        yield "attn_k_norm.weight", (head,)
    yield "attn_norm.weight", (embedding,)
    yield "attn_output.weight", (queries, embedding)
    yield "attn_q.weight", (embedding, queries)
    if norms:
        yield "attn_q_norm.weight", (head,)
    yield "attn_v.weight", (embedding, keys)
    experts = config.get("expert_count")
    if isinstance(experts, int):
        yield "ffn_gate_inp.weight", (embedding, experts)
        yield from _dense("_exps", embedding, int(str(config["expert_feed_forward_length"])), experts)
    else:
        yield from _dense("", embedding, int(str(config["feed_forward_length"])))
    yield "ffn_norm.weight", (embedding,)


def _gpt_oss(config: Mapping[str, Value], layer: int) -> Iterator[tuple[str, Shape]]:
    embedding, experts = 2880, 128
    for name, rows, columns in [("k", embedding, 512), ("output", 4096, embedding), ("q", embedding, 4096)]:
        yield f"attn_{name}.bias", (columns,)
        yield f"attn_{name}.weight", (rows, columns)
    yield "attn_norm.weight", (embedding,)
    yield "attn_sinks.weight", (64,)
    yield "attn_v.bias", (512,)
    yield "attn_v.weight", (embedding, 512)
    for name in ("down", "gate", "up"):
        yield f"ffn_{name}_exps.bias", (embedding, experts)
        yield f"ffn_{name}_exps.weight", (embedding, embedding, experts)
    yield "ffn_gate_inp.bias", (experts,)
    yield "ffn_gate_inp.weight", (embedding, experts)
    yield "post_attention_norm.weight", (embedding,)


LAYERS: dict[str, Callable[[Mapping[str, Value], int], Iterator[tuple[str, Shape]]]] = {
    "deepseek2": _deepseek2,
    "llama": _gqa,
    "qwen3": functools.partial(_gqa, norms=True),
    "qwen3moe": functools.partial(_gqa, norms=True),
    "gpt-oss": _gpt_oss,
}


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: Shape
    """As in the file: the first dimension is the one that lies together."""
    type: T

    @property
    def bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // block * size


def tensors(name: str) -> list[Tensor]:
    """All tensors of a model, in the order of its files."""
    model = MODELS[name]
    layers, embedding = int(str(model.config["block_count"])), int(str(model.config["embedding_length"]))

    def typed(short: str, shape: Shape, layer: int) -> Tensor:
        full = f"blk.{layer}.{short}" if layer >= 0 else short
        if len(shape) == 1 or "ffn_gate_inp" in short or short.endswith(".bias"):
            return Tensor(full, shape, T.F32)
        return Tensor(full, shape, model.mix("tied" if model.tied and layer < 0 else short, layer, layers))

    found = [] if model.tied else [typed("output.weight", (embedding, model.vocabulary), -1)]
    found.append(typed("output_norm.weight", (embedding,), -1))
    if model.architecture == "llama":
        found.append(typed("rope_freqs.weight", (64,), -1))
    # A tied table serves as the output matrix, so it gets the output's type.
    found.append(typed("token_embd.weight", (embedding, model.vocabulary), -1))
    for layer in range(layers):
        found += [typed(short, shape, layer) for short, shape in LAYERS[model.architecture](model.config, layer)]
    return found


def metadata(name: str, vocabulary: bool = False) -> dict[str, Value]:
    """Of the first part. ``vocabulary`` adds tokens, types and merges of the real number and usual length."""
    model = MODELS[name]
    found: dict[str, Value] = {
        "general.architecture": model.architecture, "general.type": "model", "general.name": model.title,
    }  # fmt: skip
    found |= {f"{model.architecture}.{key}": value for key, value in model.config.items()}
    found["tokenizer.ggml.model"] = "gpt2"
    if vocabulary:
        found["tokenizer.ggml.tokens"] = [f"Ġ{number:x}" for number in range(model.vocabulary)]
        found["tokenizer.ggml.token_type"] = [1] * model.vocabulary
        found["tokenizer.ggml.merges"] = [f"Ġ{number:x} {number % 4096:x}" for number in range(model.merges)]
    found["tokenizer.ggml.bos_token_id"] = 0
    if model.chat:
        found["tokenizer.chat_template"] = "{% for message in messages %}{{ message.content }}{% endfor %}"
    return found | {"general.quantization_version": 2, "general.file_type": model.file_type}


def write(name: str, folder: Path, *, vocabulary: bool = False, sparse: bool = False) -> list[Path]:
    """Write the part or parts under ``folder``, named as published. Each ends where its data would begin."""
    model, written = MODELS[name], []
    groups = _split(tensors(name))
    for number, group in enumerate(groups):
        pairs = metadata(name, vocabulary) if number == 0 else {}
        part = ""
        if len(groups) > 1:
            total = sum(len(one) for one in groups)
            pairs |= {"split.no": number, "split.count": len(groups), "split.tensors.count": total}
            part = f"-{number + 1:05d}-of-{len(groups):05d}"
        path = folder / model.path.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        header, data = _header(pairs, group)
        path.write_bytes(header)
        if sparse:
            os.truncate(path, len(header) + data)
        written.append(path)
    return written


def _split(all_tensors: list[Tensor]) -> list[list[Tensor]]:
    """As llama-gguf-split does: in order, a new part where the next tensor would pass the limit."""
    groups: list[list[Tensor]] = [[]]
    size = 0
    for tensor in all_tensors:
        size += tensor.bytes
        if size > PART_LIMIT:
            groups.append([])
            size = tensor.bytes
        groups[-1].append(tensor)
    return groups


def _header(pairs: Mapping[str, Value], group: list[Tensor]) -> tuple[bytes, int]:
    """The header, filled up to where the data begins, and how many bytes of data the tensors take."""
    out, offset = [b"GGUF", struct.pack("<IQQ", 3, len(group), len(pairs))], 0
    for key, value in pairs.items():
        out += [_string(key), _value(key, value)]
    for tensor in group:
        out.append(_string(tensor.name) + struct.pack("<I", len(tensor.shape)))
        out.append(struct.pack(f"<{len(tensor.shape)}QIQ", *tensor.shape, tensor.type, offset))
        offset += -(-tensor.bytes // 32) * 32
    header = b"".join(out)
    return header + bytes(-len(header) % 32), offset


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> bytes:
    """With its type in front: u16 and i32 where split keys have them, else u32, f32, bool, string or an array."""
    if key in ("split.no", "split.count"):
        return struct.pack("<IH", 2, value)
    if key == "split.tensors.count":
        return struct.pack("<Ii", 5, value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_string(str(one)) for one in value)
    return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)
