# SPDX-License-Identifier: GPL-3.0-or-later
"""GGUF headers: what is read, and that nothing damaged passes."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import gguf

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

import samples

TINY = Path(__file__).parents[1] / "fixtures/models/tiny-rag-f16.gguf"


def written(folder: Path, data: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_reads_a_real_model() -> None:
    header = gguf.read_header(TINY)
    assert (header.version, header.architecture, header.tensor_count, header.split_count) == (3, "llama", 29, 0)
    assert header.metadata["llama.embedding_length"] == 128
    assert "tokenizer.ggml.tokens" not in header.metadata


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "byte 0: the magic needs 4 bytes, the file has 0 more"),
        (b"<!DOCTYPE html>" * 9, "byte 0: begins with b'<!DO'"),
        (samples.gguf(version=1), "byte 4: version 1 is not 2 or 3"),
        (b"GGUF" + struct.pack(">I", 3) + b"\0" * 99, "byte 4: big-endian"),
        (samples.gguf(counts=(2**40, 1)), "1099511627776 tensors and 1 metadata pairs do not fit"),
        (samples.gguf(counts=(2, 2**60)), "do not fit"),
        (samples.gguf()[:100], "truncated or corrupt"),
        (samples.gguf()[:-1], "tensor 'blk.1.weight' ends at byte"),
        (samples.gguf(metadata={"general.alignment": 48}), "general.alignment is 48, not a power of two"),
        (samples.gguf().replace(b"general.architecture\x08", b"general.architecture\x63"), "unknown type 99"),
        (samples.gguf().replace(struct.pack("<Q", 20) + b"general", struct.pack("<Q", 1 << 50) + b"general"), "claims"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses_what_is_no_complete_file(tmp_path: Path, data: bytes, message: str) -> None:
    path = written(tmp_path, data)
    with pytest.raises(gguf.GgufError) as refusal:
        gguf.read_header(path)
    assert str(refusal.value).startswith(f"{path}: byte ")
    assert message in str(refusal.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    data = samples.gguf()
    for length in range(0, len(data), 61):
        with pytest.raises(gguf.GgufError):
            gguf.read_header(written(tmp_path, data[:length]))


def test_damage_never_crashes_or_hangs(tmp_path: Path) -> None:
    """Random bytes in the header: it is read, or refused by the one error; nothing else is raised."""
    dice = random.Random(1)
    data = TINY.read_bytes()
    refused = 0
    for _attempt in range(300):
        damaged = bytearray(data)
        for _byte in range(dice.randint(1, 8)):
            damaged[dice.randrange(20000)] = dice.randrange(256)
        try:
            gguf.read_header(written(tmp_path, bytes(damaged)))
        except gguf.GgufError:
            refused += 1
    assert refused > 50


def test_a_complete_set_passes(tmp_path: Path) -> None:
    paths = samples.split(tmp_path, "m-Q4", 3)
    headers = gguf.check_set({path.name: path for path in paths})
    assert [headers[path.name].split_no for path in paths] == [0, 1, 2]


def test_a_set_with_a_part_missing(tmp_path: Path) -> None:
    paths = samples.split(tmp_path, "m-Q4", 3)
    with pytest.raises(gguf.GgufError, match=r"2 of 3 parts are there, missing: m-Q4-00002-of-00003.gguf"):
        gguf.check_set({path.name: path for path in (paths[0], paths[2])})


def test_a_part_under_the_name_of_another(tmp_path: Path) -> None:
    paths = samples.split(tmp_path, "m-Q4", 2)
    with pytest.raises(gguf.GgufError, match="the header says part 2 of 2, the name says 1 of 2"):
        gguf.check_set({paths[0].name: paths[1], paths[1].name: paths[0]})


def test_parts_of_different_models(tmp_path: Path) -> None:
    paths = samples.split(tmp_path, "m-Q4", 2)
    paths[1].write_bytes(samples.gguf(metadata={"split.no": (1,), "split.count": (2,)}, tensors=5))
    with pytest.raises(gguf.GgufError, match="the parts hold 7 tensors, the first promises 4"):
        gguf.check_set({path.name: path for path in paths})


def test_a_part_that_is_not_named_like_one(tmp_path: Path) -> None:
    part = samples.split(tmp_path, "m-Q4", 2)[1]
    with pytest.raises(gguf.GgufError, match="part 2 of 2, but not named like one"):
        gguf.check_set({"model.gguf": part})


def test_a_file_without_architecture(tmp_path: Path) -> None:
    path = written(tmp_path, samples.gguf(metadata={}))
    with pytest.raises(gguf.GgufError, match="architecture is missing"):
        gguf.check_set({path.name: path})
