# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan's memory against what llama.cpp reports of the same files, for real.

The programs are those of tests/hub/llama-archive (Debian sid, packed once into the cache of the test hub).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import ranges
from ansible_collections.onprem.llm.plugins.module_utils.placement import memory, oracle
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import DeviceMemory
from ansible_collections.onprem.llm.plugins.module_utils.shape.read import read_shape
from ansible_collections.onprem.llm.plugins.module_utils.shape.types import Shape

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import tiny_models

MIB = memory.MIB
RECORDED = json.loads((TESTS / "fixtures/llamacpp_memory.json").read_text())["rows"]
BUFFER = re.compile(
    r"^\S+ I (?P<what>\w+): +\S+ (?P<kind>model|KV|RS|compute) buffer size = +(?P<size>[\d.]+) MiB", re.M
)
PARTS = {"model": "weights", "KV": "kv_cache", "RS": "kv_cache", "compute": "compute"}


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of llama.cpp's programs."""
    script = TESTS / "hub/hub"
    loader = SourceFileLoader("hub", str(script))
    spec = spec_from_loader("hub", loader)
    assert spec
    hub = module_from_spec(spec)
    sys.modules["hub"] = hub
    loader.exec_module(hub)
    hub.CACHE.mkdir(parents=True, exist_ok=True)
    with open(hub.CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        archive = hub.llama_archive()
    folder = tmp_path_factory.mktemp("llama")
    subprocess.run(["tar", "-xzf", archive, "-C", folder, "--strip-components=1"], check=True)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("models")
    yield folder
    for path in folder.glob("*.gguf"):
        path.unlink()


def shape_of(path: Path) -> Shape:
    return read_shape(lambda name: ranges.LocalFile(path.parent / name), [path.name])


def in_ram(shape: Shape, outputs: int | None = None, **changes: Any) -> DeviceMemory:
    asked: dict[str, Any] = {
        "tokens": 2048, "slots": 2, "ubatch": 512, "cache_type": "f16", "cache_ram": 0, "taken": {},
    } | changes  # fmt: skip
    machine: Any = {"memory": {"total": 10**13, "limit": None}, "gpus": [], "numa": []}
    nothing: Any = {"gpu_layers": 0, "cpu_moe_layers": 0, "split": []}
    return memory.llamacpp(shape, machine, offload=nothing, outputs=outputs, **asked)[0]


def served(llama: Path, path: Path, *options: str) -> str:
    """Everything llama-server says from its start to its end; it gets no request."""
    with open(path.with_suffix(".log"), "w+") as log:
        command = [llama / "llama-server", "--model", path, "--ctx-size", "2048", "--parallel", "2", "--cache-ram", "0"]
        command += [
            "--host",
            "127.0.0.1",
            "--port",
            str(20000 + os.getpid() % 10000),
            "--no-ui",
            "--offline",
            "--fit",
            "off",
        ]
        server = subprocess.Popen([*command, *options], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 120
            while "listening on" not in path.with_suffix(".log").read_text() and time.monotonic() < deadline:
                assert server.poll() is None, path.with_suffix(".log").read_text()[-2000:]
                time.sleep(0.05)
            # A signal before the loop that waits for it is lost.
            while server.poll() is None and time.monotonic() < deadline:
                server.send_signal(signal.SIGINT)
                time.sleep(0.3)
        finally:
            server.kill()
            server.wait()
    return path.with_suffix(".log").read_text()


def fit_params(llama: Path, path: Path, *options: str) -> oracle.Reported:
    command = [llama / "llama-fit-params", *oracle.arguments(str(path), {}), *options]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
    return oracle.fit_print(done.stdout)


def deviations(planned: DeviceMemory, reported: Mapping[str, float]) -> dict[str, float]:
    """Reported over planned, less one."""
    return {part: reported[part] / planned[part] - 1 for part in reported if planned[part]}  # type: ignore[literal-required]


@pytest.mark.parametrize("arch", [*tiny_models.DIMENSIONS])
def test_tiny_model_in_the_server(llama: Path, models: Path, arch: str) -> None:
    """llama-server's own buffers, to a hundredth of a MiB: weights within 5 %, cache within 10 %, the compute buffer at
    most 5 % above the plan and 25 % below it."""
    path = tiny_models.write(arch, models / f"{arch}.gguf")
    embedding = ["--embedding"] if arch == "bert" else []
    log = served(llama, path, "--verbose", "--no-repack", "--no-warmup", *embedding)
    reported = dict.fromkeys(PARTS.values(), 0.0)
    for found in BUFFER.finditer(log):
        reported[PARTS[found["kind"]]] += float(found["size"]) * MIB
    planned = in_ram(shape_of(path))
    apart = deviations(planned, reported)
    print(arch, {part: f"{value:+.1%}" for part, value in apart.items()})
    assert reported["weights"] > 0
    assert abs(apart["weights"]) <= 0.05
    assert abs(apart.get("kv_cache", 0)) <= 0.10
    assert -0.25 <= apart["compute"] <= 0.05
    assert bool(reported["kv_cache"]) == (arch != "bert")


LARGER = {
    "llama": {"scale": 32, "layers": 8, "dtype": "Q4_K", "vocabulary": 32000},
    "qwen3moe": {"scale": 16, "experts": 32, "dtype": "Q8_0", "vocabulary": 32000},
}


@pytest.mark.parametrize("arch", LARGER)
def test_larger_model_in_the_server_and_in_the_tool(llama: Path, models: Path, arch: str) -> None:
    """More than 200 MB: the breakdown of --log-jsonl (with repacked weights), and llama-fit-params; no difference."""
    path = tiny_models.write(arch, models / f"larger-{arch}.gguf", **LARGER[arch])  # type: ignore[arg-type]
    assert path.stat().st_size > 200e6
    shape = shape_of(path)
    real = oracle.breakdown(served(llama, path, "--log-jsonl"))
    tool = fit_params(llama, path, "--ctx-size", "2048", "--parallel", "2")
    for reported, planned in ((real, in_ram(shape)), (tool, in_ram(shape, outputs=512))):
        apart = deviations(planned, reported["ram"])
        print(arch, {part: f"{value:+.1%}" for part, value in apart.items()})
        assert abs(apart["weights"]) <= 0.05
        assert abs(apart["kv_cache"]) <= 0.10
        assert -0.25 <= apart["compute"] <= 0.05
        assert oracle.compare([planned], reported) == []
    # The same report against a plan for twice the conversations.
    (said, *_) = oracle.compare([in_ram(shape, tokens=4096)], real)
    assert re.fullmatch(
        r"ram: the plan expects [\d.]+ GiB of cache, llama.cpp reports [\d.]+ GiB \(50% less; 10% is the band\)\.", said
    )


def test_the_module_asks_the_real_program(llama: Path, models: Path) -> None:
    """With the flags of a placement, options the tool does not know included."""
    path = tiny_models.write("qwen3moe", models / "module.gguf", scale=8, vocabulary=32000)
    flags = {"ctx-size": 2048, "parallel": 2, "ubatch-size": 512, "flash-attn": "on", "cache-ram": 512, "threads": 2}
    flags |= {"load-mode": "mmap", "lazy-mode": "off", "cache-type-k": "q8_0", "cache-type-v": "q8_0"}
    plans = {tokens: in_ram(shape_of(path), tokens=tokens, cache_type="q8_0") for tokens in (2048, 65536)}
    for tokens, differences in ((2048, 0), (65536, 1)):
        placement = {"model_path": str(path), "flags": flags, "memory": [plans[tokens]]}
        given = path.with_suffix(".json")
        given.write_text(
            json.dumps(
                {"ANSIBLE_MODULE_ARGS": {"program": f"{llama}/llama-server", "host": "h", "placements": [placement]}}
            )
        )
        script = TESTS.parent / "plugins/modules/llamacpp_memory.py"
        environment = {**os.environ, "PYTHONPATH": str(TESTS.parent / "collections")}
        done = subprocess.run([sys.executable, script, given], capture_output=True, text=True, env=environment)
        found = json.loads(done.stdout)
        (answer,) = found["answers"]
        assert answer["reason"] == "" and answer["reported"]["ram"]["weights"]
        assert len(answer["differences"]) == differences, found
        assert found["findings"][0]["state"] == ("warning" if differences else "ok")


@pytest.mark.parametrize("name", tiny_models.PUBLISHED)
def test_the_size_of_published_models(llama: Path, models: Path, name: str) -> None:
    """Files with a hole for weights: the tool still says what is recorded for all of them, GPUs included."""
    path = tiny_models.write_published(name, models)
    rows = [row for row in RECORDED if row["model"] == name and not row["gpu_layers"]]
    assert rows
    for row in rows:
        options = [
            "--ctx-size", row["tokens"], "--parallel", row["slots"], "--ubatch-size", row["ubatch"],
            "--cache-type-k", row["cache_type"], "--cache-type-v", row["cache_type"], "--flash-attn", "on",
        ]  # fmt: skip
        reported = fit_params(llama, path, *map(str, options))
        assert [size // MIB for size in reported["ram"].values()] == row["reported"]["ram"]
    path.unlink()
