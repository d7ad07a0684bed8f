#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compute a tiny layer of experts with kt-kernel as the service would, and compare it with plain torch in fp32.

usage: KT_KERNEL_CPU_VARIANT=avx2 PYTHON selftest.py METHOD THREADS NODE...
    PYTHON   the one of the installed version
    METHOD   as --kt-method of the server
    THREADS  threads in all, as --kt-cpuinfer
    NODE...  one pool of threads on each of these NUMA nodes, as --kt-numa-nodes

The weights are written in the files of the method and read by the engine's own loader, so that the engine itself picks
the class that computes. Needs no GPU. The last line on standard output is JSON: variant (of the kernels that were
loaded), class, method, error (relative, of the worse of decoding and prefill), threads, seconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time

START = time.monotonic()

import click as _click  # noqa: F401  kt-kernel's command line needs it and does not say so
import kt_kernel
import torch
from safetensors.torch import save_file

EXPERTS, CHOSEN, HIDDEN = 8, 2, 512
BATCHES = (1, 64)  # decoding and prefill have kernels of their own
LAYER = "model.layers.0"
DEEPSEEK, MINIMAX, DEEPSEEK_V4 = "mlp.experts", "block_sparse_moe.experts", "ffn.experts"
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def pack(values: torch.Tensor) -> torch.Tensor:
    """Integers from -8 to 7 [rows, columns] as 4-bit codes, eight in an int32, the first in the lowest bits."""
    codes = (values + 8).to(torch.int64).view(len(values), -1, 8)
    return (codes << torch.arange(0, 32, 4)).sum(-1).to(torch.uint32).view(torch.int32)


def stored(method: str, values: torch.Tensor, power: int) -> dict[str, torch.Tensor]:
    """The matrix ``values`` * 2**power [rows, columns] as files of this method hold it: {end of the name: tensor}."""
    rows, columns = values.shape
    scale = 2.0**power
    exponents = torch.full((rows, columns // 32), 127 + power, dtype=torch.uint8)
    if method == "FP8":
        blocks = torch.full((rows // 128, columns // 128), scale)
        return {"weight": values.to(torch.float8_e4m3fn), "weight_scale_inv": blocks}
    if method == "FP8_PERCHANNEL":
        return {"weight": values.to(torch.float8_e4m3fn), "weight_scale": torch.full((rows, 1), scale)}
    if method == "MXFP8":
        return {"weight": values.to(torch.float8_e4m3fn), "weight_scale_inv": exponents}
    if method == "MXFP4":
        codes = (values.abs().unsqueeze(-1) == torch.tensor(E2M1)).to(torch.uint8).argmax(-1) + 8 * (values < 0)
        return {"weight": (codes[:, 0::2] | (codes[:, 1::2] << 4)).to(torch.int8), "scale": exponents}
    if method == "RAWINT4":
        groups = torch.full((rows, columns // 32), scale, dtype=torch.bfloat16)
        return {"weight_packed": pack(values), "weight_scale": groups}
    if method == "GPTQ_INT4":
        groups = torch.full((columns // 128, rows), scale, dtype=torch.float16)
        return {"qweight": pack(values).T.contiguous(), "scales": groups}
    return {"weight": (values * scale).to(torch.bfloat16)}


def write(folder: str, method: str, experts: list[list[tuple[torch.Tensor, int]]]) -> None:
    """A checkpoint of one layer; ``experts`` are (values, power) of gate, up and down."""
    if method == "LLAMAFILE":
        import gguf

        writer = gguf.GGUFWriter(f"{folder}/model.gguf", "llama")
        for place, name in enumerate(("gate", "up", "down")):
            stack = torch.stack([expert[place][0] * 2.0 ** expert[place][1] for expert in experts])
            writer.add_tensor(f"blk.0.ffn_{name}_exps.weight", stack.to(torch.float16).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return
    where, names = {"MXFP8": (MINIMAX, "w1 w3 w2"), "MXFP4": (DEEPSEEK_V4, "w1 w3 w2")}.get(
        method, (DEEPSEEK, "gate_proj up_proj down_proj")
    )
    tensors = {}
    for number, expert in enumerate(experts):
        for name, (values, power) in zip(names.split(), expert, strict=True):
            for end, tensor in stored(method, values, power).items():
                tensors[f"{LAYER}.{where}.{number}.{name}.{end}"] = tensor
    save_file(tensors, f"{folder}/model.safetensors")


def layer(method: str, threads: int, nodes: list[int], inner: int, experts: list[list[tuple[torch.Tensor, int]]]):
    """The engine's object for these experts, its weights loaded."""
    with tempfile.TemporaryDirectory() as folder:
        converted = method.startswith("AMX")
        if not converted:
            write(folder, method, experts)
        made = kt_kernel.KTMoEWrapper(
            layer_idx=0, num_experts=EXPERTS, num_experts_per_tok=CHOSEN, hidden_size=HIDDEN,
            moe_intermediate_size=inner, gpu_experts_mask=None, cpuinfer_threads=threads,
            threadpool_count=len(nodes), numa_nodes=nodes, weight_path=folder,
            chunked_prefill_size=max(BATCHES), method=method,
        )  # fmt: skip
        same = torch.arange(EXPERTS, dtype=torch.int64)
        if converted:
            dense = [torch.stack([e[i][0] * 2.0 ** e[i][1] for e in experts]).to(torch.bfloat16) for i in range(3)]
            made.load_weights_from_tensors(*dense, same)
        else:
            made.load_weights(same)
    return made


def reference(x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, experts: list) -> torch.Tensor:
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for expert, weight in zip(chosen[token].tolist(), weights[token].tolist(), strict=True):
            gate, up, down = (values * 2.0**power for values, power in experts[expert])
            out[token] += weight * (down @ (torch.nn.functional.silu(gate @ x[token]) * (up @ x[token])))
    return out


def main() -> None:
    method, threads, nodes = sys.argv[1], int(sys.argv[2]), [int(one) for one in sys.argv[3:]]
    # The wrapper pins its buffers for copies to a GPU, which torch refuses where none is visible.
    for name in ("zeros", "empty"):
        plain = getattr(torch, name)
        setattr(torch, name, lambda *a, plain=plain, pin_memory=False, **k: plain(*a, **k))
    torch.set_num_threads(1)  # the engine's own threads keep the CPUs busy
    torch.manual_seed(1)
    grid = torch.tensor([-one for one in E2M1 if one] + list(E2M1)) if method == "MXFP4" else torch.arange(-7.0, 8.0)
    inner = max(512, 256 * len(nodes))
    shapes = ((inner, HIDDEN), (inner, HIDDEN), (HIDDEN, inner))
    # Every number is one that all of these formats hold exactly, so that a small error is the arithmetic's alone.
    experts = [
        [(grid[torch.randint(len(grid), shape)], -6 - (number + place) % 3) for place, shape in enumerate(shapes)]
        for number in range(EXPERTS)
    ]
    made = layer(method, threads, nodes, inner, experts)
    error = 0.0
    for tokens in BATCHES:
        x = torch.randn(tokens, HIDDEN).to(torch.bfloat16)
        chosen = torch.stack([torch.randperm(EXPERTS)[:CHOSEN] for _ in range(tokens)])
        weights = torch.rand(tokens, CHOSEN)
        out, count = torch.zeros_like(x), torch.tensor([tokens], dtype=torch.int32)
        pointers = (one.data_ptr() for one in (chosen, weights, x, out))
        made.cpu_infer.submit(made.moe.forward_task(count.data_ptr(), CHOSEN, *pointers, False))
        made.cpu_infer.sync()
        wanted = reference(x.float(), chosen, weights, experts)
        difference = ((out.float() - wanted).norm() / wanted.norm()).item()
        error = max(error, difference if difference == difference else float("inf"))
    print(
        json.dumps(
            {
                "variant": kt_kernel.__cpu_variant__,
                "class": type(made.moe).__name__,
                "method": method,
                "error": round(error, 4),
                "threads": threads,
                "seconds": round(time.monotonic() - START, 1),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
