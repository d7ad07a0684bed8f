# SPDX-License-Identifier: GPL-3.0-or-later
"""GGUF headers: what is read, and that nothing damaged passes."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import gguf as reference
import pytest

from ansible_collections.onprem.llm.plugins.module_utils import gguf

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "hub")]

import headers
import samples
import tiny_models

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


@pytest.mark.parametrize("architecture", tiny_models.DIMENSIONS)
def test_says_what_the_reference_says(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "model.gguf"
    tiny_models.write(architecture, path)
    header, theirs = gguf.read_header(path), reference.GGUFReader(path)
    assert [(t.name, t.dimensions, t.type, t.type_name, t.elements, t.size) for t in header.tensors] == [
        (t.name, tuple(map(int, t.shape)), int(t.tensor_type), t.tensor_type.name, int(t.n_elements), int(t.n_bytes))
        for t in theirs.tensors
    ]
    for key, value in header.metadata.items():
        said = theirs.fields[key].contents()
        assert list(value) == said if isinstance(value, tuple) else value == said, key
    skipped = {key for key in theirs.fields if not key.startswith("GGUF.")} - set(header.metadata)
    assert all(key.startswith("tokenizer.ggml.") for key in skipped), "only the tokenizer's tables are left out"


def test_knows_the_types_the_reference_knows() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in reference.GGML_QUANT_SIZES.items()}
    theirs.pop(9)  # Q8_1: never stored
    assert theirs == gguf.TYPES


def test_short_lists_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = reference.GGUFWriter(path, "llama")
    writer.add_head_count_kv([8, 0, 4])
    writer.add_array("llama.attention.sliding_window_pattern", [True, False, True])
    writer.add_array("tokenizer.ggml.scores", [0.5] * 5000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = gguf.read_header(path).metadata
    assert metadata["llama.attention.head_count_kv"] == (8, 0, 4)
    assert metadata["llama.attention.sliding_window_pattern"] == (True, False, True)
    assert "tokenizer.ggml.scores" not in metadata


def test_version_2_is_read(tmp_path: Path) -> None:
    assert gguf.read_header(written(tmp_path, samples.gguf(version=2))).tensor_count == 2


def test_an_unknown_type_is_as_long_as_the_way_to_the_next_tensor(tmp_path: Path) -> None:
    data = samples.gguf(rows=64)
    unknown = data.replace(struct.pack("<QQI", 32, 64, 1), struct.pack("<QQI", 32, 64, 77))
    tensors = gguf.read_header(written(tmp_path, unknown)).tensors
    assert [(tensor.type_name, tensor.size) for tensor in tensors] == [("type 77", 4096), ("type 77", 4096)]


def test_a_tensor_over_the_next_one(tmp_path: Path) -> None:
    data = samples.gguf().replace(struct.pack("<QQI", 32, 64, 1), struct.pack("<QQI", 32, 64, 0), 1)
    with pytest.raises(gguf.GgufError, match=r"tensor 'blk.0.weight' has 8192 bytes, the next one begins after 4096"):
        gguf.read_header(written(tmp_path, data))


def test_a_header_alone_is_read_when_it_is_allowed_to_be(tmp_path: Path) -> None:
    path = headers.write("llama-70b-q4_k_m", tmp_path)[0]
    with pytest.raises(gguf.GgufError, match="ends at byte"):
        gguf.read_header(path)
    header = gguf.read_header(path, complete=False)
    assert sum(tensor.size for tensor in header.tensors) == sum(t.bytes for t in headers.tensors("llama-70b-q4_k_m"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "byte 0: the magic needs 4 bytes, the file has 0 more"),
        (b"<!DOCTYPE html>" * 9, "byte 0: begins with b'<!DO'"),
        (samples.gguf(version=1), "byte 4: version 1 is not 2 or 3"),
        (samples.gguf(version=0), "byte 4: version 0 is not 2 or 3"),
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


def strangers(tmp_path: Path, second: bytes) -> str:
    paths = samples.split(tmp_path, "m-Q4", 2)
    paths[1].write_bytes(second)
    with pytest.raises(gguf.GgufError) as refusal:
        gguf.check_set({path.name: path for path in paths})
    return str(refusal.value)


OF_TWO = {"split.no": (1,), "split.count": (2,)}


def test_a_part_of_another_model_is_named_with_the_part_it_does_not_belong_to(tmp_path: Path) -> None:
    first, second = "m-Q4-00001-of-00002.gguf", "m-Q4-00002-of-00002.gguf"
    end = ": they are not parts of one model"
    said = strangers(tmp_path, samples.gguf(metadata={**OF_TWO, "split.tensors.count": 9}, first=2))
    assert said == f"{second} belongs to a model of 9 tensors, {first} to one of 4{end}"
    said = strangers(tmp_path, samples.gguf(metadata={**OF_TWO, "general.architecture": "qwen3"}, first=2))
    assert said == f"{second} is of the architecture qwen3, {first} of llama{end}"
    said = strangers(tmp_path, samples.gguf(metadata=OF_TWO, first=1))
    assert said == f"{second} holds tensor 'blk.1.weight', {first} holds it too{end}"


def test_layers_of_another_width_are_not_of_this_model(tmp_path: Path) -> None:
    paths = headers.write("deepseek-r1-ud-iq1_s-legacy", tmp_path)
    there = {path.name: gguf.read_header(path, complete=False) for path in paths}
    wide = [tensor._replace(dimensions=(4096,)) for tensor in there[paths[2].name].tensors]
    there[paths[2].name] = gguf.Header(3, len(wide), there[paths[2].name].metadata, tuple(wide))
    with pytest.raises(gguf.GgufError) as refusal:
        gguf.check_parts(there)
    assert str(refusal.value) == (
        f"{paths[2].name} has layers 4096 wide, {paths[0].name} describes a model 7168 wide: "
        "they are not parts of one model"
    )


def test_a_part_that_is_not_named_like_one(tmp_path: Path) -> None:
    part = samples.split(tmp_path, "m-Q4", 2)[1]
    with pytest.raises(gguf.GgufError, match="part 2 of 2, but not named like one"):
        gguf.check_set({"model.gguf": part})


def test_a_file_without_architecture(tmp_path: Path) -> None:
    path = written(tmp_path, samples.gguf(metadata={}))
    with pytest.raises(gguf.GgufError, match="architecture is missing"):
        gguf.check_set({path.name: path})
