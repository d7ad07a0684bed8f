# SPDX-License-Identifier: GPL-3.0-or-later
"""Write GGUF files of 0.3-3 GB with random weights, of any tensor type, at disk speed.

Speed does not depend on what the weights say, as long as their scales are ordinary numbers: the blocks' bytes are
random and only the scales are set. Smaller files would live in the processor's cache and prove nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

#: Where a block keeps its half-precision scales, in bytes (ggml-common.h of llama.cpp).
SCALES = {
    "Q4_0": (0,), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_NL": (0,), "IQ4_XS": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,),
    "IQ1_S": (0,),
}  # fmt: skip
PATTERN = 16 << 20  # bytes of random data; longer tensors repeat it


@dataclass(frozen=True)
class Model:
    """A transformer with grouped-query attention, dense or with experts, every matrix of one or two types."""

    name: str
    type: str
    embedding: int
    layers: int
    width: int
    """Of the feed-forward network, or of one expert."""
    heads: int
    kv_heads: int
    vocabulary: int = 32000
    experts: int = 0
    used: int = 0
    wide: str = ""
    """Type of the value, down and output matrices where it differs, as K_M mixtures have it."""

    @property
    def architecture(self) -> str:
        return "qwen3moe" if self.experts else "llama"

    def tensors(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, dimensions (rows last read first) and type."""
        d, head, wide = self.embedding, 128, self.wide or self.type
        found: list[tuple[str, tuple[int, ...], str]] = [
            ("token_embd.weight", (self.vocabulary, d), self.type),
            ("output_norm.weight", (d,), "F32"),
            ("output.weight", (self.vocabulary, d), wide),
        ]
        for i in range(self.layers):
            at = f"blk.{i}."
            found += [
                (at + "attn_norm.weight", (d,), "F32"),
                (at + "ffn_norm.weight", (d,), "F32"),
                (at + "attn_q.weight", (self.heads * head, d), self.type),
                (at + "attn_k.weight", (self.kv_heads * head, d), self.type),
                (at + "attn_v.weight", (self.kv_heads * head, d), wide),
                (at + "attn_output.weight", (d, self.heads * head), self.type),
            ]
            if self.experts:
                e = self.experts
                found += [
                    (at + "attn_q_norm.weight", (head,), "F32"),
                    (at + "attn_k_norm.weight", (head,), "F32"),
                    (at + "ffn_gate_inp.weight", (e, d), "F32"),
                    (at + "ffn_gate_exps.weight", (e, self.width, d), self.type),
                    (at + "ffn_up_exps.weight", (e, self.width, d), self.type),
                    (at + "ffn_down_exps.weight", (e, d, self.width), wide),
                ]
            else:
                found += [
                    (at + "ffn_gate.weight", (self.width, d), self.type),
                    (at + "ffn_up.weight", (self.width, d), self.type),
                    (at + "ffn_down.weight", (d, self.width), wide),
                ]
        return found


def pattern(name: str) -> bytes:
    """Random blocks of a type, their scales set to ordinary numbers."""
    random = np.random.default_rng(1)
    if name in ("F32", "F16"):
        kind = np.float32 if name == "F32" else np.float16
        return (random.standard_normal(PATTERN // 4) * 0.02).astype(kind).tobytes()
    if name == "BF16":
        values = (random.standard_normal(PATTERN // 4) * 0.02).astype(np.float32)
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
    blocks = random.integers(0, 256, (PATTERN // size, size), dtype=np.uint8)
    if name == "MXFP4":
        blocks[:, 0] = 120  # an exponent: 2^-7
    for at in SCALES.get(name, ()):
        blocks[:, at : at + 2] = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
    return blocks.tobytes()


def write(model: Model, folder: Path) -> Path:
    """The model's file; kept when it is there already."""
    path = folder / f"{model.name}.gguf"
    if path.exists():
        return path
    temporary = path.with_suffix(".part")
    writer = gguf.GGUFWriter(temporary, model.architecture)
    writer.add_name(model.name)
    writer.add_context_length(4096)
    writer.add_embedding_length(model.embedding)
    writer.add_block_count(model.layers)
    writer.add_feed_forward_length(model.width)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(128)
    writer.add_value_length(128)
    writer.add_rope_dimension_count(128)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(model.vocabulary)
    writer.add_tokenizer_model("no_vocab")
    if model.experts:
        writer.add_expert_count(model.experts)
        writer.add_expert_used_count(model.used)
        writer.add_expert_feed_forward_length(model.width)
    tensors = model.tensors()
    for name, dimensions, kind in tensors:
        quantised = gguf.GGMLQuantizationType[kind]
        elements, size = gguf.GGML_QUANT_SIZES[quantised]
        stored = (*dimensions[:-1], dimensions[-1] // elements * size)
        length = int(np.prod(stored, dtype=np.int64))
        if kind in ("F32", "F16"):
            dtype: np.dtype[np.generic] = np.dtype(np.float32 if kind == "F32" else np.float16)
            writer.add_tensor_info(name, dimensions, dtype, length)
        else:
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), length, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    patterns = {kind: pattern(kind) for _, _, kind in tensors}
    with open(temporary, "ab") as file:
        file.write(b"\0" * (-file.tell() % 32))
        for _name, dimensions, kind in tensors:
            elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
            left = int(np.prod(dimensions, dtype=np.int64)) // elements * size
            written = left
            source = patterns[kind]
            while left > 0:
                file.write(source[:left])
                left -= len(source)
            file.write(b"\0" * (-written % 32))
    os.replace(temporary, path)
    return path
