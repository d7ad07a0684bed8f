# SPDX-License-Identifier: GPL-3.0-or-later
"""Toolkits for the repository of repository.py. They say what they are and can do nothing: each must be refused."""

from __future__ import annotations

NVCC = """\
#!/bin/sh
case "$1" in --version) echo "Cuda compilation tools, release %s, V%s.93"; exit ;; esac
echo "nvcc fatal error: this is no compiler" >&2
exit 1
"""


def toolkit(release: str, *lacking: str) -> dict[str, str]:
    """Path to content of the files of NVIDIA's layout."""
    files = {"bin/nvcc": NVCC % (release, release), "include/cuda_runtime.h": "\n", "lib64/libcudart.so": "\n"}
    return {f"/usr/local/cuda-{release}/{name}": text for name, text in files.items() if name not in lacking}


#: (name, version, files)
PACKAGES = [
    ("cuda-toolkit-12-8", "12.8.1-1", toolkit("12.8")),
    ("cuda-toolkit-12-8", "12.8.2-1", toolkit("12.8")),
    ("cuda-toolkit-12-9", "12.9.1-1", toolkit("12.9", "lib64/libcudart.so")),
    ("cuda-toolkit-13-2", "13.2.0-1", toolkit("13.2")),
]
