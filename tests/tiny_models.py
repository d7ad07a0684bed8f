# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes GGUF files with random weights that llama.cpp loads and runs: tiny ones, or as large as a test needs.

    write("llama", path)                                      a tiny file (under 2 MB), weights as F32
    write("llama", path, scale=32, layers=16, dtype="Q4_K")   0.43 GB: embedding 2048, feed-forward 5120
    write("qwen3moe", path, scale=16, experts=64, dtype="Q8_0")  0.44 GB: embedding 1024, experts 512 wide
    write("deepseek2", path, data=False, **dimensions)        only the header and a hole: for tools that read no weights

Everything is in DIMENSIONS and may be given to ``write`` by name. A real model is the same call with its own figures.
Also a program:  tiny_models.py FOLDER [ARCHITECTURE...]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Type -> (elements per block, bytes per block, where its half-precision scales lie, what one step of it is worth
#: in standard deviations of the weights). Blocks are random bytes but for their scales.
BLOCKS: dict[str, tuple[int, int, tuple[int, ...], float]] = {
    "Q8_0": (32, 34, (0,), 1 / 74),
    "Q4_0": (32, 18, (0,), 1 / 4.6),
    "Q4_K": (256, 144, (0, 2), 1 / 160),
    "Q6_K": (256, 210, (208,), 1 / 1300),
    "MXFP4": (32, 17, (), 0),
}


@dataclass(frozen=True)
class Dimensions:
    """What a model's figures are. ``scale`` widens a model; see ``dimensions``."""

    embedding: int = 64
    feed_forward: int = 160
    expert_width: int = 32
    vocabulary: int = 264
    """At least 264: three special tokens, 256 bytes, five merges; more are filled up with names."""
    layers: int = 2
    heads: int = 4
    head: int = 16
    """Length of a head; MLA has rope, nope and value instead."""
    group: int = 1
    """Query heads per key and value head."""
    context: int = 2048
    experts: int = 0
    experts_used: int = 0
    shared_experts: int = 0
    dense_layers: int = 0
    """First layers without experts."""
    window: int = 0
    convolution: int = 0
    """Tokens a layer's short convolution spans; every third layer has attention instead."""
    q_rank: int = 0
    kv_rank: int = 0
    rope: int = 0
    nope: int = 0
    value: int = 0

    @property
    def kv_heads(self) -> int:
        return self.heads // self.group

    def convolves(self, layer: int) -> bool:
        return self.convolution > 0 and layer % 3 != 2


_MOE = Dimensions(layers=4, feed_forward=128, experts=8, experts_used=2)
_MLA = replace(_MOE, dense_layers=1, shared_experts=1, q_rank=32, kv_rank=32, rope=32, nope=32, value=32)
DIMENSIONS: dict[str, Dimensions] = {
    "llama": Dimensions(),
    "qwen3moe": replace(_MOE, head=32, group=2),
    "deepseek2": _MLA,
    # As converted before April 2025: the compressed cache cannot be used.
    "deepseek2-legacy": _MLA,
    "bert": Dimensions(context=512),
    "gemma3": Dimensions(layers=6, head=32, group=2, window=256),
    "gpt-oss": replace(_MOE, head=32, group=2, window=128),
    # Hybrid: two layers with a short convolution, which keep a state of fixed size, then one with attention.
    "lfm2": Dimensions(layers=6, head=16, group=2, convolution=3),
}


_R1 = (
    {"embedding": 7168, "feed_forward": 18432, "layers": 61, "heads": 128, "vocabulary": 129280, "context": 163840}
    | {"experts": 256, "experts_used": 8, "expert_width": 2048, "shared_experts": 1, "dense_layers": 3}
    | {"q_rank": 1536, "kv_rank": 512, "rope": 64, "nope": 128, "value": 128}
)
#: The figures of published models, of one type throughout: architecture, type, figures. For files without data.
PUBLISHED: dict[str, tuple[str, str, dict[str, int]]] = {
    "llama-8b": (
        "llama",
        "Q4_K",
        {"embedding": 4096, "feed_forward": 14336, "layers": 32, "heads": 32, "head": 128, "group": 4}
        | {"vocabulary": 128256, "context": 131072},
    ),
    "llama-70b": (
        "llama",
        "Q4_K",
        {"embedding": 8192, "feed_forward": 28672, "layers": 80, "heads": 64, "head": 128, "group": 8}
        | {"vocabulary": 128256, "context": 131072},
    ),
    "qwen3-30b-a3b": (
        "qwen3moe",
        "Q4_K",
        {"embedding": 2048, "feed_forward": 6144, "layers": 48, "heads": 32, "head": 128, "group": 8}
        | {"vocabulary": 151936, "context": 131072, "experts": 128, "experts_used": 8, "expert_width": 768},
    ),
    "qwen3-235b-a22b": (
        "qwen3moe",
        "Q4_K",
        {"embedding": 4096, "feed_forward": 12288, "layers": 94, "heads": 64, "head": 128, "group": 16}
        | {"vocabulary": 151936, "context": 131072, "experts": 128, "experts_used": 8, "expert_width": 1536},
    ),
    "gpt-oss-120b": (
        "gpt-oss",
        "MXFP4",
        {"embedding": 2880, "feed_forward": 2880, "layers": 36, "heads": 64, "head": 64, "group": 8, "window": 128}
        | {"vocabulary": 201088, "context": 131072, "experts": 128, "experts_used": 4, "expert_width": 2880},
    ),
    "deepseek-r1": ("deepseek2", "Q8_0", _R1),
    "deepseek-r1-legacy": ("deepseek2-legacy", "Q8_0", _R1),
    "gemma3-27b": (
        "gemma3",
        "Q4_K",
        {"embedding": 5376, "feed_forward": 21504, "layers": 62, "heads": 32, "head": 128, "group": 2}
        | {"window": 1024, "vocabulary": 262208, "context": 131072},
    ),
    "bert-large": (
        "bert",
        "F16",
        {"embedding": 1024, "feed_forward": 4096, "layers": 24, "heads": 16, "head": 64}
        | {"vocabulary": 30522, "context": 512},
    ),
}


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    """Outermost first, as in numpy."""
    dtype: str
    constant: float | None = None
    """All elements, where it is no random matrix."""

    @property
    def nbytes(self) -> int:
        elements = int(np.prod(self.shape))
        per_block, size = BLOCKS[self.dtype][:2] if self.dtype in BLOCKS else (1, 2 if self.dtype == "F16" else 4)
        if self.shape[-1] % per_block:
            raise ValueError(f"{self.name}: rows of {self.shape[-1]} are no multiple of {per_block} ({self.dtype})")
        return elements // per_block * size

    def data(self, rng: np.random.Generator) -> np.ndarray:
        """The content; as bytes where the type has blocks."""
        if self.constant is not None:
            return np.full(self.shape, self.constant, np.float32)
        deviation = self.shape[-1] ** -0.5
        if self.dtype not in BLOCKS:
            kind = np.float16 if self.dtype == "F16" else np.float32
            return (rng.standard_normal(self.shape, np.float32) * deviation).astype(kind)
        per_block, size, scales, step = BLOCKS[self.dtype]
        blocks = np.frombuffer(rng.bytes(self.nbytes), np.uint8).reshape(-1, size).copy()
        for at in scales:
            blocks[:, at : at + 2] = np.frombuffer(np.float16(deviation * step).tobytes(), np.uint8)
        if not scales:  # MXFP4: one exponent, biased by 127
            blocks[:, 0] = 127 + int(np.log2(deviation / 3))
        return blocks.reshape(*self.shape[:-1], self.shape[-1] // per_block * size)


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    code = dict(zip([*printable, *others], [*printable, *range(256, 256 + len(others))], strict=True))
    return [chr(code[byte]) for byte in range(256)]


def add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("Ġ", "the")]
    tokens = special + byte_characters() + ["".join(pair) for pair in merges]
    tokens += [f"<unused{number}>" for number in range(vocabulary - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_merges([" ".join(pair) for pair in merges])
    types = [gguf.TokenType.NORMAL] * len(tokens)
    types[:3] = [gguf.TokenType.CONTROL] * 3
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)


def add_word_pieces(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """BERT's tokenizer: one letter is one token."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    tokens += [f"▁{letter}" for letter in letters] + letters
    tokens += [f"▁unused{number}" for number in range(vocabulary - len(tokens))]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 5 + [gguf.TokenType.NORMAL] * (len(tokens) - 5))
    writer.add_token_type_count(2)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(3)
    writer.add_unk_token_id(1)
    writer.add_sep_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(4)


def dimensions(arch: str, scale: int = 1, **changes: int) -> Dimensions:
    """The figures of a file of ``write``: widths times ``scale``, heads longer (up to 128) and then more of them;
    ``changes`` are fields of Dimensions as they shall be."""
    base = DIMENSIONS[arch]
    head = min(128, base.head * scale)
    return replace(
        base,
        **{
            "embedding": base.embedding * scale,
            "feed_forward": base.feed_forward * scale,
            "expert_width": base.expert_width * scale,
            "head": head,
            "heads": base.heads * scale if base.kv_rank else base.heads * base.head * scale // head,
            "q_rank": base.q_rank * scale,
            "kv_rank": min(512, base.kv_rank * scale),
            **changes,
        },
    )


def write_published(name: str, folder: Path, **changes: int) -> Path:
    """The header of a published model's size, and a hole for its weights: a few MB of disk. NAME.gguf in the folder;
    ``changes`` as in ``write``."""
    arch, dtype, figures = PUBLISHED[name]
    return write(arch, folder / f"{name}.gguf", dtype=dtype, data=False, **{**figures, **changes})


def add_metadata(writer: gguf.GGUFWriter, arch: str, d: Dimensions) -> None:
    writer.add_name(f"random-{arch}")
    writer.add_context_length(d.context)
    writer.add_embedding_length(d.embedding)
    writer.add_block_count(d.layers)
    writer.add_feed_forward_length(d.feed_forward)
    writer.add_head_count(d.heads)
    if d.convolution:
        writer.add_head_count_kv([0 if d.convolves(layer) else d.kv_heads for layer in range(d.layers)])
        writer.add_shortconv_l_cache(d.convolution)
    else:
        writer.add_head_count_kv(1 if arch == "deepseek2" else d.kv_heads)
    writer.add_vocab_size(d.vocabulary)
    if arch == "bert":
        writer.add_layer_norm_eps(1e-12)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.CLS)
        return
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if d.experts:
        writer.add_expert_count(d.experts)
        writer.add_expert_used_count(d.experts_used)
        writer.add_expert_feed_forward_length(d.expert_width)
    if d.window:
        writer.add_sliding_window(d.window)
    if not d.kv_rank:
        writer.add_key_length(d.head)
        writer.add_value_length(d.head)
        writer.add_rope_dimension_count(d.head)
        return
    writer.add_leading_dense_block_count(d.dense_layers)
    writer.add_q_lora_rank(d.q_rank)
    writer.add_kv_lora_rank(d.kv_rank)
    writer.add_rope_dimension_count(d.rope)
    writer.add_expert_shared_count(d.shared_experts)
    writer.add_expert_weights_scale(2.5)
    writer.add_expert_weights_norm(True)
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if arch == "deepseek2-legacy":
        writer.add_key_length(d.nope + d.rope)
        writer.add_value_length(d.value)
    else:
        writer.add_key_length(d.kv_rank + d.rope)
        writer.add_value_length(d.kv_rank)
        writer.add_key_length_mla(d.nope + d.rope)
        writer.add_value_length_mla(d.value)


def tensors(arch: str, d: Dimensions, dtype: str) -> Iterator[Tensor]:
    """All tensors, in the order of the file."""

    def matrix(name: str, *shape: int) -> Tensor:
        return Tensor(f"{name}.weight", shape, dtype)

    def vector(name: str, *shape: int, value: float = 0.0) -> Tensor:
        return Tensor(name, shape, "F32", value)

    def norm(name: str, length: int) -> Tensor:
        return vector(f"{name}.weight", length, value=1.0)

    def biased(name: str, *shape: int) -> Iterator[Tensor]:
        yield matrix(name, *shape)
        yield vector(f"{name}.bias", *shape[:-1])

    def full_norm(name: str) -> Iterator[Tensor]:
        yield norm(name, d.embedding)
        yield vector(f"{name}.bias", d.embedding)

    width, heads, kv = d.embedding, d.heads * d.head, d.kv_heads * d.head
    if arch == "bert":
        yield matrix("token_embd", d.vocabulary, width)
        yield matrix("token_types", 2, width)
        yield Tensor("position_embd.weight", (d.context, width), "F32")
        yield from full_norm("token_embd_norm")
        for layer in range(d.layers):
            block = f"blk.{layer}."
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                yield from biased(block + name, width, width)
            yield from full_norm(block + "attn_output_norm")
            yield from biased(block + "ffn_up", d.feed_forward, width)
            yield from biased(block + "ffn_down", width, d.feed_forward)
            yield from full_norm(block + "layer_output_norm")
        return

    yield matrix("token_embd", d.vocabulary, width)
    yield norm("token_embd_norm" if arch == "lfm2" else "output_norm", width)
    if arch not in ("gemma3", "lfm2"):
        yield matrix("output", d.vocabulary, width)
    project = biased if arch == "gpt-oss" else lambda *given: iter([matrix(*given)])
    for layer in range(d.layers):
        block = f"blk.{layer}."
        yield norm(block + "attn_norm", width)
        yield norm(block + ("post_attention_norm" if arch == "gpt-oss" else "ffn_norm"), width)
        if d.kv_rank:
            yield matrix(block + "attn_q_a", d.q_rank, width)
            yield norm(block + "attn_q_a_norm", d.q_rank)
            yield matrix(block + "attn_q_b", d.heads * (d.nope + d.rope), d.q_rank)
            yield matrix(block + "attn_kv_a_mqa", d.kv_rank + d.rope, width)
            yield norm(block + "attn_kv_a_norm", d.kv_rank)
            if arch == "deepseek2-legacy":
                yield matrix(block + "attn_kv_b", d.heads * (d.nope + d.value), d.kv_rank)
            else:
                yield matrix(block + "attn_k_b", d.heads, d.kv_rank, d.nope)
                yield matrix(block + "attn_v_b", d.heads, d.value, d.kv_rank)
            yield matrix(block + "attn_output", width, d.heads * d.value)
        elif d.convolves(layer):
            yield Tensor(block + "shortconv.conv.weight", (width, d.convolution), "F32")
            yield matrix(block + "shortconv.in_proj", 3 * width, width)
            yield matrix(block + "shortconv.out_proj", width, width)
        else:
            yield from project(block + "attn_q", heads, width)
            yield from project(block + "attn_k", kv, width)
            yield from project(block + "attn_v", kv, width)
            yield from project(block + "attn_output", width, heads)
        if arch in ("qwen3moe", "gemma3") or (arch == "lfm2" and not d.convolves(layer)):
            yield norm(block + "attn_q_norm", d.head)
            yield norm(block + "attn_k_norm", d.head)
        if arch == "gemma3":
            yield norm(block + "post_attention_norm", width)
            yield norm(block + "post_ffw_norm", width)
        if arch == "gpt-oss":
            yield vector(block + "attn_sinks.weight", d.heads)
        if not d.experts or layer < d.dense_layers:
            yield matrix(block + "ffn_gate", d.feed_forward, width)
            yield matrix(block + "ffn_up", d.feed_forward, width)
            yield matrix(block + "ffn_down", width, d.feed_forward)
            continue
        # The router stays in full precision in published files.
        yield Tensor(block + "ffn_gate_inp.weight", (d.experts, width), "F32")
        if arch == "gpt-oss":
            yield vector(block + "ffn_gate_inp.bias", d.experts)
        yield from project(block + "ffn_gate_exps", d.experts, d.expert_width, width)
        yield from project(block + "ffn_up_exps", d.experts, d.expert_width, width)
        yield from project(block + "ffn_down_exps", d.experts, width, d.expert_width)
        if d.shared_experts:
            shared = d.expert_width * d.shared_experts
            yield vector(block + "exp_probs_b.bias", d.experts)
            yield matrix(block + "ffn_gate_shexp", shared, width)
            yield matrix(block + "ffn_up_shexp", shared, width)
            yield matrix(block + "ffn_down_shexp", width, shared)


def size(arch: str, *, scale: int = 1, dtype: str = "F32", **changes: int) -> int:
    """Bytes of the weights of the file ``write`` would write."""
    return sum(tensor.nbytes for tensor in tensors(arch, dimensions(arch, scale, **changes), dtype))


def write(
    arch: str, path: Path | str, *, scale: int = 1, dtype: str = "F32", data: bool = True, **changes: int
) -> Path:
    """Write one file; the same call gives the same bytes. About a second per GB.

    arch: a key of DIMENSIONS. scale and changes: see ``dimensions``. dtype: of all matrices: F32, F16, or a key of
    BLOCKS. data=False leaves a hole where the weights would be, so that a file of any size takes no disk. A width its
    blocks do not divide raises ValueError.
    """
    d = dimensions(arch, scale, **changes)
    found = list(tensors(arch, d, dtype))
    writer = gguf.GGUFWriter(path, arch.removesuffix("-legacy"))
    add_metadata(writer, arch, d)
    types = {"F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_M", "MXFP4": "MOSTLY_MXFP4_MOE"}
    writer.add_file_type(gguf.LlamaFileType[types.get(dtype, f"MOSTLY_{dtype}")])
    (add_word_pieces if arch == "bert" else add_tokenizer)(writer, d.vocabulary)
    for tensor in found:
        shape: tuple[int, ...] = tensor.shape
        kind, raw = np.dtype(np.float32), gguf.GGMLQuantizationType[tensor.dtype]
        if tensor.dtype in BLOCKS:
            per_block, block = BLOCKS[tensor.dtype][:2]
            kind, shape = np.dtype(np.uint8), (*shape[:-1], shape[-1] // per_block * block)
        writer.add_tensor_info(tensor.name, shape, kind, tensor.nbytes, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if data:
        rng = np.random.default_rng(0)
        for tensor in found:
            writer.write_tensor_data(tensor.data(rng))
    writer.close()
    if not data:
        padded = sum(-(-tensor.nbytes // 32) * 32 for tensor in found)
        start = Path(path).stat().st_size
        os.truncate(path, -(-start // 32) * 32 + padded)
    return Path(path)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or DIMENSIONS:
        written = write(name, folder / f"tiny-{name}-f32.gguf")
        print(f"{written}: {written.stat().st_size} bytes")
