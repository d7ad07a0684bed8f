# SPDX-License-Identifier: GPL-3.0-or-later
"""The shapes of a site's variants, from hubs, directories and what is published here; and what they cost."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.shape.variants import VARIANT_BUDGET, Reader, Result

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "hub")]

import headers
import server
import tiny_models

REPO = "unsloth/DeepSeek-R1-GGUF"
TINY = "tiny/llama"
R1 = ("deepseek-r1-ud-iq1_s-legacy", "deepseek-r1-ud-q2_k_xl-legacy", "deepseek-r1-q4_k_m-legacy")


@pytest.fixture(autouse=True)
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.Handler, "log_message", lambda *_: None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repositories of large models' headers and of one tiny model."""
    folder = tmp_path_factory.mktemp("hub")
    for name in R1:
        headers.write(name, folder / "models" / REPO, vocabulary=True)
    (folder / "models" / TINY).mkdir(parents=True)
    tiny_models.write("llama", folder / "models" / TINY / "m-F32.gguf")
    # The same tree as a mirror and as Hugging Face serve it.
    (folder / "artifacts" / TINY).mkdir(parents=True)
    for place in ("master", "resolve/master"):
        (folder / "artifacts" / TINY / place).mkdir(parents=True)
        tiny_models.write("llama", folder / "artifacts" / TINY / place / "m-F32.gguf")
    return folder


@pytest.fixture
def hub(root: Path) -> Iterator[server.Hub]:
    with server.running(root) as running:
        for name in R1:
            for path, size in claimed(name):
                running.faults.append(server.Fault("claim", path, size))
        yield running


def claimed(name: str) -> list[tuple[str, int]]:
    """The parts of a model with the sizes of the real files (the largest is beyond all headers)."""
    model = headers.MODELS[name]
    prefix = model.path.format("").removesuffix(".gguf")
    return [(prefix, 50_100_000_000)]


def variant(repo: str, entry: str, **more: Any) -> dict[str, Any]:
    return {
        "format": "gguf",
        "source": "hub",
        "repo": repo,
        "revision": "master",
        "include": ["*"],
        "entry": entry,
        **more,
    }


def first_part(name: str, root: Path) -> str:
    folder = root / "models" / REPO
    prefix = headers.MODELS[name].path.format("-00001-of-*")
    return str(next(folder.glob(prefix)).relative_to(folder))


def reader(hub: server.Hub, kind: str = "modelscope", **more: Any) -> Reader:
    url = hub.url if kind == "modelscope" else f"{hub.url}/artifacts"
    return Reader({"hub": {"type": kind, "url": url}}, {}, timeout=10, **more)


def shape(result: Result) -> dict[str, Any]:
    assert result["shape"] is not None, result["error"]
    return dict(result["shape"])


# --- what it costs


def test_a_model_of_140_gb_costs_less_than_10_mb_and_says_so(hub: server.Hub, root: Path) -> None:
    result = reader(hub).read(variant(REPO, first_part(R1[0], root)))
    assert shape(result)["weights"] == sum(tensor.bytes for tensor in headers.tensors(R1[0])) > 140e9
    assert result["bytes"] == hub.sent < 10_000_000
    said = f"(3 files), {transfer.human(result['bytes'])} read in {result['requests']} requests"
    assert str(shape(result)["basis"]).endswith(said)


def test_all_variants_of_a_model_cost_less_than_20_mb(hub: server.Hub, root: Path) -> None:
    asked = reader(hub)
    results = [asked.read(variant(REPO, first_part(name, root))) for name in R1]
    assert [shape(result)["quantisation"] for result in results] == ["UD-IQ1_S", "UD-Q2_K_XL", "Q4_K_M"]
    assert asked.transferred == hub.sent < 4_000_000
    assert results[1]["bytes"] < 600_000, "the tokenizer is fetched once"


def test_what_occurs_twice_is_read_once(hub: server.Hub) -> None:
    asked = reader(hub)
    first, second = (asked.read(variant(TINY, "m-F32.gguf")) for _ in range(2))
    assert second == {**first, "bytes": 0, "requests": 0} and first["requests"] == 1
    assert first["key"] == "hub:tiny/llama@master:m-F32.gguf"


def test_the_budget_ends_the_reading_of_one_variant_not_of_the_others(hub: server.Hub, root: Path) -> None:
    asked = reader(hub, budget=500_000)
    small = asked.read(variant(TINY, "m-F32.gguf"))
    large = asked.read(variant(REPO, first_part(R1[0], root)))
    again = asked.read(variant(TINY, "m-F32.gguf"))
    assert small["shape"] and again["shape"]
    assert large["shape"] is None and "the header does not end within the" in str(large["error"])
    assert asked.transferred <= 500_000


def test_a_spent_budget_is_said_and_what_lies_here_is_still_read(hub: server.Hub, root: Path) -> None:
    sources = {
        "hub": {"type": "modelscope", "url": hub.url},
        "disk": {"type": "directory", "path": str(root / "models")},
    }
    asked = Reader(sources, {}, budget=0)
    said = "tiny/llama: the 0 B for the headers of all models are spent; allow more"
    assert error(asked.read(variant(TINY, "m-F32.gguf"))) == said
    assert shape(asked.read({**variant(TINY, "m-F32.gguf"), "source": "disk"}))
    assert hub.requests == []


# --- from where


@pytest.mark.parametrize("kind", ["modelscope", "huggingface", "mirror"])
def test_every_kind_of_hub(hub: server.Hub, kind: str) -> None:
    found = shape(reader(hub, kind).read(variant(TINY, "m-F32.gguf")))
    assert (found["name"], found["attention"], found["quantisation"]) == ("random-llama", "MHA", "F32")


def test_a_directory_is_read_without_a_network(root: Path) -> None:
    asked = Reader({"hub": {"type": "directory", "path": str(root / "models")}}, {})
    result = asked.read(variant(TINY, "m-F32.gguf"))
    assert shape(result)["basis"] == "header of m-F32.gguf"
    assert (result["bytes"], result["requests"], asked.transferred) == (0, 0, 0)


def test_what_is_published_here_needs_no_network(tmp_path: Path, root: Path) -> None:
    home = tmp_path / TINY / "master"
    home.mkdir(parents=True)
    data = (root / "models" / TINY / "m-F32.gguf").read_bytes()
    (home / "m-F32.gguf").write_bytes(data)
    entry = {"path": "m-F32.gguf", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (home / "manifest.json").write_text(json.dumps({"files": [entry]}))
    away = {"hub": {"type": "modelscope", "url": "http://127.0.0.1:9"}}
    assert shape(Reader(away, {}, str(tmp_path)).read(variant(TINY, "m-F32.gguf")))["name"] == "random-llama"
    (home / "m-F32.gguf").write_bytes(data[:-1])
    assert "Connection refused" in str(Reader(away, {}, str(tmp_path)).read(variant(TINY, "m-F32.gguf"))["error"])


# --- what is said


def error(result: Result) -> str:
    assert result["shape"] is None
    return str(result["error"])


def test_a_source_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    asked = Reader({"hub": {"type": "modelscope", "url": "http://127.0.0.1:9"}}, {})
    first, second = asked.read(variant(TINY, "a.gguf")), asked.read(variant(TINY, "b.gguf"))
    assert error(first).startswith("the source 'hub' did not answer: http://127.0.0.1:9/api/v1/models/tiny/llama/repo?")
    assert "Connection refused" in error(first)
    assert (error(second), second["requests"]) == (error(first), 0)


def test_a_token_goes_to_the_hub(root: Path) -> None:
    with server.running(root, token="t0ken") as hub:
        source = {"hub": {"type": "modelscope", "url": hub.url}}
        assert "HTTP 401" in error(Reader(source, {"hub": "wr0ng"}).read(variant(TINY, "m-F32.gguf")))
        assert "wr0ng" not in error(Reader(source, {"hub": "wr0ng"}).read(variant(TINY, "m-F32.gguf")))
        assert shape(Reader(source, {"hub": "t0ken"}).read(variant(TINY, "m-F32.gguf")))


def test_headers_are_read_through_the_proxy(hub: server.Hub) -> None:
    through = transfer.Urllib("http://127.0.0.1:9")
    assert "Connection refused" in error(reader(hub, transport=through).read(variant(TINY, "m-F32.gguf")))
    past = transfer.Urllib("http://127.0.0.1:9", "127.0.0.1")
    assert shape(reader(hub, transport=past).read(variant(TINY, "m-F32.gguf")))


def test_an_unusable_variant_says_what_it_lacks(hub: server.Hub) -> None:
    asked = reader(hub)
    assert error(asked.read({"repo": TINY})) == "the variant 'tiny/llama' lacks source, revision, include"
    assert (
        error(asked.read(variant(TINY, ""))) == "tiny/llama: the variant names no `entry`, the first file of the model"
    )
    said = error(asked.read({**variant(TINY, "m.gguf"), "source": "elsewhere"}))
    assert said == "the source 'elsewhere' is not among model_sources: hub"
    assert "unusable path '../../m.gguf'" in error(asked.read(variant(TINY, "../../m.gguf")))
    assert "HTTP 404 Not Found. Check `repo`, `revision` and `entry`" in error(asked.read(variant(TINY, "no.gguf")))


def test_a_part_the_hub_does_not_have(hub: server.Hub, root: Path) -> None:
    hub.faults.append(server.Fault("missing", "00002-of-00003"))
    said = error(reader(hub).read(variant(REPO, first_part(R1[0], root))))
    assert "HTTP 404 Not Found" in said
    assert said.endswith("it is part 2 of 3 of DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf")


def test_a_hub_without_range_is_said(hub: server.Hub) -> None:
    hub.faults.append(server.Fault("no-range", "tiny"))
    hub.faults.append(server.Fault("no-range", "m-F32"))
    basis = str(shape(reader(hub).read(variant(TINY, "m-F32.gguf")))["basis"])
    assert basis.endswith("; the server ignores Range, so the files were read from their beginning")


def test_a_variant_costs_no_more_than_its_share(hub: server.Hub, root: Path) -> None:
    hub.faults.append(server.Fault("no-range", "UD-IQ1_S"))
    # A header of zeros without end, from a server that sends whatever is asked.
    large = root / "models" / TINY / "zeros.gguf"
    large.write_bytes((root / "models" / REPO / first_part(R1[0], root)).read_bytes()[:100_000])
    hub.faults += [server.Fault("claim", "zeros", 50_000_000_000), server.Fault("no-range", "zeros")]
    result = reader(hub).read(variant(TINY, "zeros.gguf"))
    assert error(result) and result["bytes"] <= VARIANT_BUDGET


# --- the module itself


def run_module(tmp_path: Path, **arguments: Any) -> dict[str, Any]:
    """As Ansible runs it: a program that prints JSON."""
    given = tmp_path / "arguments.json"
    given.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": {"_ansible_check_mode": True, **arguments}}))
    project = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, project / "plugins/modules/gguf_info.py", given],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(project / "collections")},
        check=False,
    )
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_the_module_in_check_mode(tmp_path: Path, hub: server.Hub) -> None:
    wanted = [variant(TINY, "m-F32.gguf"), variant(TINY, "no.gguf")]
    done = run_module(
        tmp_path, variants=wanted, sources={"hub": {"type": "modelscope", "url": hub.url}}, tokens={"hub": "t0ken"}
    )
    good, bad = done["results"]
    assert (done["changed"], good["shape"]["name"], bad["shape"]) == (False, "random-llama", None)
    assert "HTTP 404" in bad["error"]
    assert done["bytes"] == good["bytes"] and done["msg"] == "65.5 kB read from the network for 2 models"
    assert "t0ken" not in json.dumps(done)


def test_the_module_reads_a_file_on_the_host(tmp_path: Path, root: Path) -> None:
    path = root / "models" / TINY / "m-F32.gguf"
    done = run_module(tmp_path, path=str(path))
    assert done["results"][0]["shape"]["basis"] == "header of m-F32.gguf" and done["bytes"] == 0
    done = run_module(tmp_path, path=str(tmp_path / "none.gguf"))
    assert done["results"][0]["error"] == f"{tmp_path}/none.gguf: No such file or directory"
