# SPDX-License-Identifier: GPL-3.0-or-later
"""What a model's files hold, as far as memory and speed depend on it. Sizes are bytes."""

from __future__ import annotations

from typing import TypedDict

#: GGUF's pooling_type (llama.h, enum llama_pooling_type) -> what llama-server's --pooling calls it.
POOLING = {1: "mean", 2: "cls", 3: "last", 4: "rank"}


class Cache(TypedDict):
    """What one layer remembers of a conversation."""

    kind: str
    """full, sliding, mla (one compressed vector per token), recurrent (a state of fixed size) or none."""
    heads: int
    """Key and value heads; 1 for mla."""
    key: int
    """Elements of a key per head."""
    value: int
    """Elements of a value per head; 0 for mla, which keeps keys only."""
    window: int
    """Tokens a sliding layer looks back; else 0."""
    state: int
    """Bytes of a recurrent layer's state per conversation; else 0."""


class Layer(TypedDict):
    """Bytes of the weights of one layer, by what reads them."""

    attention: int
    dense: int
    """A feed-forward network every token passes."""
    experts: int
    """All routed experts together; a token passes experts_used of experts."""
    shared: int
    """Experts every token passes, and the router."""
    other: int
    """Norms and whatever else."""
    cache: Cache


class Shape(TypedDict):
    format: str
    """gguf or safetensors."""
    architecture: str
    name: str
    quantisation: str
    """As publishers name it: Q4_K_M, UD-IQ1_S, FP8 ..."""
    parameters: int
    context: int
    """Longest the model was trained for; 0 where the file does not say."""
    vocabulary: int
    embedding: int
    """Length of a token's vector."""
    heads: int
    experts: int
    experts_used: int
    expert_width: int
    """Length of an expert's hidden vector; 0 without experts."""
    layers: list[Layer]
    embeddings: int
    """Bytes of the token table."""
    output: int
    """Bytes of the output matrix and its norm; the matrix itself counts 0 where it is the token table (tied)."""
    tied: bool
    attention: str
    """MHA, GQA, MLA, legacy MLA (no compressed cache), sliding window, hybrid or none."""
    types: dict[str, int]
    """Tensor type -> bytes of all tensors of that type."""
    weights: int
    """Bytes of all tensors."""
    chat_template: bool
    pooling: str
    """How an embedding is made of the vectors of its tokens, as the files say: mean, cls, last, rank, or empty."""
    basis: str
    """Where this is known from: the header of a file (and how many bytes were read for it), or published figures."""
    exact: bool
    """Whether it was read from the files themselves."""
