# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets the CPU kernels of classic KTransformers compute: four experts, two of them per token, against the same in numpy."""

from __future__ import annotations

import contextlib
import sys

import numpy as np

with contextlib.suppress(ImportError):  # the program itself imports torch first; it brings the CUDA runtime
    import torch  # noqa: F401
import cpuinfer_ext

EXPERTS, CHOSEN, HIDDEN, INTERMEDIATE, TOKENS, F16 = 4, 2, 256, 256, 3, 1
random = np.random.default_rng(7)


def weights(rows: int, columns: int) -> np.ndarray:
    return (random.standard_normal((EXPERTS, rows, columns)) / 16).astype(np.float16)


gate, up, down = weights(INTERMEDIATE, HIDDEN), weights(INTERMEDIATE, HIDDEN), weights(HIDDEN, INTERMEDIATE)
chosen = np.array([[0, 1], [2, 3], [1, 2]], dtype=np.int64)
share = random.random((TOKENS, CHOSEN), dtype=np.float32)
tokens = (random.standard_normal((TOKENS, HIDDEN)) / 4).astype(np.float16)
found = np.zeros_like(tokens)

config = cpuinfer_ext.moe.MOEConfig(
    EXPERTS, CHOSEN, HIDDEN, INTERMEDIATE, 32, 10, 64, gate.ctypes.data, up.ctypes.data, down.ctypes.data, F16, F16, F16, F16
)
cpu, experts = cpuinfer_ext.CPUInfer(2), cpuinfer_ext.moe.MOE(config)
data = [array.ctypes.data for array in (chosen, share, tokens, found)]
try:
    task = experts.forward(TOKENS, CHOSEN, *data)
except TypeError:  # since 0.2.4 the number of tokens lies in memory as well
    count = np.array([TOKENS], dtype=np.int32)
    task = experts.forward(TOKENS, CHOSEN, *data, count.ctypes.data)
cpu.submit(task)
cpu.sync()

wanted = np.zeros((TOKENS, HIDDEN))
for token in range(TOKENS):
    x = tokens[token].astype(np.float64)
    for number, part in zip(chosen[token], share[token], strict=True):
        middle = gate[number].astype(np.float64) @ x
        wanted[token] += part * (down[number] @ (middle / (1 + np.exp(-middle)) * (up[number] @ x)))
error = float(np.abs(found - wanted).mean() / np.abs(wanted).mean())
print(f"relative error {error:.4f}")
print("answers" if error < 0.02 else "wrong")
sys.exit(error >= 0.02)
