#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the lock file of this scenario: of the project's own what computes on a CPU.

usage: lock PROJECT_LOCK TARGET FOLDER...    FOLDER: where a wheel of torch for the CPU and Python 3.11 may be

With such a wheel it takes the place of torch for CUDA, which is 3 GB more to download and works as well.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

# kt-kernel and what it imports, sglang-kt without what it imports, and what torch for the CPU imports.
NAMES = (
    *("kt-kernel", "sglang-kt", "click", "numpy", "safetensors", "gguf", "pyyaml", "packaging", "requests", "tqdm"),
    *("charset-normalizer", "urllib3", "typer", "annotated-doc", "shellingham", "typing-extensions", "rich"),
    *("markdown-it-py", "mdurl", "pygments", "httpx", "anyio", "httpcore", "h11", "idna", "certifi"),
    *("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy", "setuptools"),
)


def main() -> None:
    source, target, *folders = sys.argv[1:]
    entries = {
        entry.split("==")[0]: entry for entry in re.split(r"(?m)^(?=\S)", Path(source).read_text()) if "==" in entry
    }
    wheels = [path for folder in folders for path in Path(folder).glob("torch-*+cpu-cp311-*x86_64.whl")]
    if wheels:
        version = wheels[0].name.split("-")[1]
        torch = f"torch=={version} --hash=sha256:{hashlib.sha256(wheels[0].read_bytes()).hexdigest()}\n"
    else:
        torch = "".join(entries[name] for name in entries if re.match("(torch|triton|nvidia-.*)$", name))
    Path(target).write_text("".join(entries[name] for name in NAMES) + torch)


if __name__ == "__main__":
    main()
