# SPDX-License-Identifier: GPL-3.0-or-later
"""Mutated GGUF files: reading them ends soon, in little memory, with a header or with the one error."""

from __future__ import annotations

import signal
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.onprem.llm.plugins.module_utils import gguf, ranges
from ansible_collections.onprem.llm.plugins.module_utils.shape.classify import ShapeError, shape_of

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "hub")]

import headers
import samples
import tiny_models

MEMORY = 64 << 20
ARCHITECTURES = tuple(tiny_models.DIMENSIONS)


@pytest.fixture(autouse=True)
def hang() -> Iterator[None]:
    """A reader that hangs ends the test instead of stopping everything."""
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Real small files, one of each architecture, and the header of a large one."""
    folder = tmp_path_factory.mktemp("tiny")
    found = []
    for name in ARCHITECTURES:
        tiny_models.write(name, folder / f"{name}.gguf")
        found.append((folder / f"{name}.gguf").read_bytes())
    return [*found, headers.write("deepseek-r1-ud-iq1_s-legacy", folder)[0].read_bytes()]


#: What a counter, a length or an offset may be changed to.
NUMBERS = st.sampled_from([0, 1, 2, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("byte"), st.floats(0, 1), st.integers(0, 255)),
        st.tuples(st.just("u32"), st.floats(0, 1), NUMBERS.map(lambda n: n % 2**32)),
        st.tuples(st.just("u64"), st.floats(0, 1), NUMBERS),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("double"), st.floats(0, 1), st.integers(1, 4096)),
    ),
    min_size=1,
    max_size=6,
)


def mutated(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Changes lie in the header mostly: the place is a share of the first 16 KiB."""
    out = bytearray(data)
    for kind, share, value in changes:
        at = int(share * min(len(out), 16384))
        if kind == "byte":
            out[at : at + 1] = bytes([value])
        elif kind == "u32":
            out[at : at + 4] = struct.pack("<I", value)
        elif kind == "u64":
            out[at : at + 8] = struct.pack("<Q", value)
        elif kind == "cut":
            del out[at:]
        else:
            out[at:at] = out[at : at + value]
    return bytes(out)


@settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(which=st.integers(0, len(ARCHITECTURES)), changes=CHANGES, complete=st.booleans())
def test_a_mutated_file_is_read_or_refused(
    tmp_path: Path, originals: list[bytes], which: int, changes: list[tuple[str, float, int]], complete: bool
) -> None:
    path = tmp_path / "mutated.gguf"
    path.write_bytes(mutated(originals[which], changes))
    tracemalloc.start()
    try:
        header = gguf.read_header(path, complete=complete)
        shape_of(header.metadata, header.tensors, "test")
    except (gguf.GgufError, ShapeError) as error:
        assert str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY


class Bytes(ranges.File):
    """A file in memory. Where bytes are costly, long lists are passed by leaps."""

    name = "bytes"

    def __init__(self, data: bytes, costly: bool) -> None:
        super().__init__()
        self.data, self.size, self.costly = data, len(data), costly

    def _fetch(self, at: int, count: int) -> bytes:
        return self.data[at : at + count]


@pytest.fixture(scope="module")
def vocabulary() -> bytes:
    """A list of 1.5 MB in a header."""
    words = [f"{number:x}" for number in range(120_000)]
    return samples.gguf(metadata={"general.architecture": "llama", "tokenizer.ggml.merges": words, "split.count": (1,)})


def read(data: bytes, costly: bool) -> gguf.Header | None:
    try:
        return gguf.read_header(Bytes(data, costly), tables={})
    except gguf.GgufError:
        return None


@settings(max_examples=80, deadline=None, derandomize=True)
@given(changes=st.one_of(st.just([]), CHANGES), scattered=st.lists(st.tuples(st.floats(0, 1), NUMBERS), max_size=4))
def test_a_leap_over_a_damaged_list_changes_nothing(
    vocabulary: bytes, changes: list[tuple[str, float, int]], scattered: list[tuple[float, int]]
) -> None:
    data = bytearray(vocabulary)
    for share, value in scattered:
        at = int(share * len(data))
        data[at : at + 8] = struct.pack("<Q", value)
    damaged = mutated(bytes(data), changes)
    plain = read(damaged, costly=False)
    # Damage inside the list is passed over unseen; all that can be read is the same.
    assert plain is None or read(damaged, costly=True) == plain


def sparse(path: Path, start: bytes, size: int) -> Path:
    """A file of ``size`` bytes that takes no room: ``start``, and zeros."""
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(size)
    return path


def head(tensors: int, pairs: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs)


LARGE = 1 << 36
#: What is in the file, and what is said of it; nothing where it is read to its end.
BOMBS = {
    "more strings than a header has room for": (
        head(0, 1) + samples.string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, LARGE // 8 - 100),
        "ends beyond the 67108864 bytes a header may have",
    ),
    "as many empty strings as a header has room for": (
        head(0, 1) + samples.string("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, gguf.HEADER_LIMIT // 8 - 100),
        "",
    ),
    "a string as long as the file": (
        head(0, 1) + samples.string("general.name") + struct.pack("<IQ", 8, LARGE - 100),
        "ends beyond the 67108864 bytes",
    ),
    "texts without end": (
        head(0, 1000) + (samples.string("general.name") + struct.pack("<I", 8) + samples.string("x" * 999_000)) * 60,
        "brings the names and texts to more than 8388608 bytes",
    ),
    "millions of tensors": (head(1 << 30, 0), "1073741824 tensors and 0 metadata pairs, at most 32768 and 16384"),
    "millions of pairs": (head(0, 1 << 30), "at most 32768 and 16384 are read"),
    "lists in lists": (
        head(0, 1) + samples.string("a") + struct.pack("<IIQ", 9, 9, 1 << 20),
        "has elements of the unknown type 9",
    ),
    "as many tensors as are allowed": (
        head(gguf.TENSOR_LIMIT, 0)
        + b"".join(
            samples.string(f"{number:064}") + struct.pack("<I4QIQ", 4, 2**63, 2**63, 2**63, 2**63, 99, 0)
            for number in range(gguf.TENSOR_LIMIT)
        ),
        "",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_little_memory_and_ends(tmp_path: Path, name: str) -> None:
    start, message = BOMBS[name]
    path = sparse(tmp_path / "bomb.gguf", start, LARGE)
    # Tracing every step is slow, and eight million of them hold nothing.
    traced = name != "as many empty strings as a header has room for"
    if traced:
        tracemalloc.start()
    try:
        if message:
            with pytest.raises(gguf.GgufError, match=message):
                gguf.read_header(path)
        else:
            gguf.read_header(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
