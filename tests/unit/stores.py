# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of the model store share: a model, a host's disk, and what a transfer leaves there."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.hubs import File
from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest, store
from ansible_collections.onprem.llm.plugins.module_utils.model_store.pieces import TreeHash
from ansible_collections.onprem.llm.plugins.module_utils.model_store.store import Verified
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import Model, Pieces, Source, StoreError

COMMIT = "c" * 40
PARTS = [f"F16/m-F16-0000{number}-of-00002.gguf" for number in (1, 2)]
README = "README.md"
CONTENT = {
    PARTS[0]: random.Random(1).randbytes(300_000),
    PARTS[1]: random.Random(2).randbytes(200_000),
    README: b"# A model\n",
}


def listed(path: str, content: bytes | None = None) -> File:
    data = CONTENT[path] if content is None else content
    return File(path, len(data), hashlib.sha256(data).hexdigest())


def tree(data: bytes) -> Pieces:
    hashed = TreeHash(len(data))
    hashed.update(data)
    return hashed.pieces()


MODEL = Model(
    name="chat",
    repo="onprem/m-GGUF",
    revision="master",
    include=("F16/*",),
    entry=PARTS[0],
    commit=COMMIT,
    files=tuple(listed(path) for path in PARTS),
    sources=(Source("modelscope", "modelscope", url="https://me:secret@modelscope.cn"),),
    origin="modelscope",
)
DOCS = replace(MODEL, name="docs", include=(README,), entry="", files=(listed(README),))


class Host:
    """A host's disk."""

    def __init__(self, folder: Path) -> None:
        self.store, self.served = folder / "models", folder / "served"
        self.home = self.store / "onprem/m-GGUF/master"
        self.stage = self.store / ".staging/onprem--m-GGUF@master"

    def bring(self, file: File, content: bytes | None = None, model: Model = MODEL) -> Verified:
        """What a transfer does: a verified file in the staging folder."""
        data = CONTENT[file.path] if content is None else content
        place = store.staged(store.stage(self.store, model), file)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return Verified(place, hashlib.sha256(data).hexdigest(), tree(data))

    def publish(self, model: Model = MODEL) -> manifest.Manifest:
        return store.publish(self.store, model, {file.path: self.bring(file, model=model) for file in model.files})

    def paths(self) -> list[str]:
        """Every file of the store."""
        return sorted(str(path.relative_to(self.store)) for path in self.store.rglob("*") if not path.is_dir())

    def change(self, path: str, content: bytes) -> None:
        """Somebody writes into a published file."""
        place = self.home / path
        place.chmod(0o644)
        place.write_bytes(content)
        os.utime(place)


def refusal(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(StoreError) as caught:
        call(*args, **named)
    return str(caught.value)


class PowerCut(BaseException):
    """Not an Exception: nothing in the code can catch it and tidy up."""
