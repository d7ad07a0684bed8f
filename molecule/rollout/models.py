# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hosts of this scenario are given to serve: models.py FOLDER ARCHIVE MODEL SECONDS

FOLDER/models/onprem/tiny/REVISION/chat.gguf: the tiny trained model, good and bad revisions of it
FOLDER/builds/NAME.tar.gz: llama.cpp, a good version and bad ones
FOLDER/lock.json: checksums of the builds; `later` dies SECONDS after its start
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np


def written(source: Path, path: Path, name: str, spoil: bool = False) -> None:
    """The model, called ``name``; ``spoil``: its matrices shuffled, so that it speaks gibberish."""
    reader, rng = gguf.GGUFReader(source), np.random.default_rng(6)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value = {"general.name": name}.get(field.name, field.contents())
        kind = field.types[0]
        writer.add_key_value(field.name, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        data = tensor.data.copy()
        if spoil and data.ndim > 1:
            rng.shuffle(data)
        writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


#: What llama-server does before it is the real one, by build; none of it when it is asked for its version or options.
BEFORE = {
    "plain": "",
    "other": "# Another version.\n",
    "crash": "kill -SEGV $$",
    "later": "(sleep {seconds}; kill -SEGV $$) &",
    # Held up nine tenths of the time.
    "slow": "(while kill -STOP $$; do sleep 0.09; kill -CONT $$; sleep 0.01; done) &",
}


def build(archive: Path, path: Path, before: str) -> None:
    """The archive of llama.cpp, spoilt by what its program does ``before``."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(["tar", "-xzf", archive, "-C", scratch], check=True)
        top = next(Path(scratch).iterdir())
        script = top / "llama-server"
        first, rest = script.read_text().split("\n", 1)
        added = before if before.startswith("#") or not before else f'case "$*" in *--model*) {before} ;; esac\n'
        script.write_text(f"{first}\n{added}{rest}")
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "-czf", path, "-C", scratch, top.name], check=True)


def main() -> None:
    folder, archive, model, seconds = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    shutil.rmtree(folder / "models", ignore_errors=True)
    here = folder / "models/onprem/tiny"
    for name in ("v1", "v2", "v3"):
        written(model, here / name / "chat.gguf", f"tiny {name}")
    written(model, here / "gibberish/chat.gguf", "gibberish", spoil=True)
    whole = (here / "v1/chat.gguf").read_bytes()
    (here / "corrupt").mkdir()
    (here / "corrupt/chat.gguf").write_bytes(whole[: len(whole) // 2])
    lock = {}
    for name, before in BEFORE.items():
        path = folder / f"builds/{name}.tar.gz"
        build(archive, path, before.replace("{seconds}", seconds))
        lock[name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
    (folder / "lock.json").write_text(json.dumps(lock, indent=1))


if __name__ == "__main__":
    main()
