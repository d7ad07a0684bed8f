# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama: what its stores hold, what the plan says of it, what a host's files tell."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from decisions import ask, catalogue, header, machine, rejection, said
from stores import COMMIT, MODEL, Host, listed

from ansible_collections.onprem.llm.plugins.module_utils.model_store import manifest, store
from ansible_collections.onprem.llm.plugins.module_utils.ollama.installed import installed
from ansible_collections.onprem.llm.plugins.module_utils.placement import engines
from ansible_collections.onprem.llm.plugins.module_utils.rollout import record

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT / "tests/hub"))
import samples

ONE = "m-Q8_0.gguf"
PARTS = [samples.shard_name("m-F16", number, 2) for number in range(2)]
CONTENT = {
    ONE: samples.gguf(),
    **{name: samples.gguf(**samples.shard(number, 2)) for number, name in enumerate(PARTS)},
}
#: Takes the place of llama-quantize: what the module makes of its result is the point. The real one: molecule/ollama.
QUANTIZE = """#!/bin/sh
test "$1" = --allow-requantize && test "$4" = COPY || exit 2
test "$(id -u)" = 65534 || exit 3
cat "$2" "$(dirname "$2")"/*00002-of-00002.gguf > "$3"
"""


class Disk(Host):
    """A host whose store has the model in one file and in two."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        folder.chmod(0o755)
        self.root = folder / "ollama"
        self.quantize = folder / "llama-quantize"
        self.quantize.write_text(QUANTIZE)
        self.quantize.chmod(0o755)
        self.files("master", CONTENT)

    def files(self, revision: str, content: dict[str, bytes]) -> None:
        model = replace(MODEL, revision=revision, include=("*.gguf",), entry=ONE, files=())
        brought = {}
        for path, data in content.items():
            brought[path] = self.bring(listed(path, data), data, model)
        store.publish(self.store, replace(model, files=tuple(listed(*one) for one in content.items())), brought)

    def lay_out(
        self, entry: str = ONE, revision: str = "master", check: bool = False, model: str = "chat", **parameters: Any
    ) -> dict[str, Any]:
        source = str(self.store / "onprem/m-GGUF" / revision)
        wanted = {"name": model, "source": source, "entry": entry, "parameters": parameters or {"num_ctx": 512}}
        given = {
            "root": str(self.root),
            "models": [wanted],
            "quantize": str(self.quantize),
            "records": str(self.root.parent / "rollout"),
            "_ansible_check_mode": check,
        }
        ran = subprocess.run(
            [sys.executable, "-m", "ansible_collections.onprem.llm.plugins.modules.ollama_model"],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": {**given, "_ansible_remote_tmp": str(self.root.parent)}}),
            capture_output=True, text=True, check=False, cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT / "collections")},
        )  # fmt: skip
        answer: dict[str, Any] = json.loads(ran.stdout)
        return answer

    def use(self, answer: dict[str, Any]) -> Path:
        """The switch: the service reads this store now."""
        tree = Path(answer["stores"]["chat"])
        link = self.root / "chat/current"
        link.unlink(missing_ok=True)
        link.symlink_to(tree)
        self.record(tree)
        return tree

    def record(self, *trees: Path) -> None:
        """What serves with this store, and what it may go back to."""
        folder, link = str(self.root.parent / "rollout"), str(self.root / "chat/current")
        before = record.read(folder, "ollama")
        good = record.Configuration("1", dict.fromkeys([link] if trees else [], str(*trees)))
        record.write(folder, record.Record("ollama", good=good, previous=before.good if before else None))


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Not below pytest's own folder, into which only root can look: parts are merged by nobody."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Disk(Path(folder))


def layers(tree: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((tree / "manifests/registry.ollama.ai/library/chat/latest").read_text())
    assert found["schemaVersion"] == 2
    return {one["mediaType"].rpartition(".")[2]: one for one in [*found["layers"], found["config"]]}


def blob(tree: Path, layer: dict[str, Any]) -> Path:
    path = tree / "blobs" / layer["digest"].replace(":", "-")
    assert path.stat().st_size == layer["size"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == layer["digest"].removeprefix("sha256:")
    return path


def test_a_model_takes_its_space_once(disk: Disk) -> None:
    answer = disk.lay_out()
    assert answer["changed"], answer
    found = layers(tree := Path(answer["stores"]["chat"]))
    assert blob(tree, found["model"]).samefile(disk.home / ONE)
    assert json.loads(blob(tree, found["params"]).read_text()) == {"num_ctx": 512}
    assert json.loads(blob(tree, found["v1+json"]).read_text())["model_family"] == "llama"
    # Whoever the service runs as can read it, and nobody but root can write.
    assert all(path.stat().st_mode & 0o777 in (0o755, 0o444) and not path.stat().st_uid for path in tree.rglob("*"))


def test_what_is_there_is_left_alone(disk: Disk) -> None:
    tree = disk.use(disk.lay_out())
    before = tree.stat().st_ctime_ns
    again = disk.lay_out()
    assert not again["changed"] and again["diff"] == [] and tree.stat().st_ctime_ns == before


def test_check_mode_says_what_it_would_do(disk: Disk) -> None:
    asked = disk.lay_out(check=True)
    assert asked["changed"] and not disk.root.exists()
    tree = disk.use(disk.lay_out())
    assert str(tree) == asked["stores"]["chat"]
    said = disk.lay_out(check=True, num_ctx=1024)
    assert (
        said["changed"]
        and "num_ctx: 512\n" in said["diff"][0]["before"]
        and "num_ctx: 1024\n" in said["diff"][0]["after"]
    )
    # On a fresh host nothing is published yet.
    assert disk.lay_out(revision=COMMIT, check=True)["stores"]["chat"].endswith("/not published yet")


by_root = pytest.mark.skipif(os.geteuid() != 0, reason="parts are merged by another user")


@by_root
def test_parts_become_one_file(disk: Disk) -> None:
    answer = disk.lay_out(PARTS[0])
    assert answer["changed"], answer
    tree = disk.use(answer)
    assert blob(tree, layers(tree)["model"]).read_bytes() == CONTENT[PARTS[0]] + CONTENT[PARTS[1]]
    assert not disk.lay_out(PARTS[0])["changed"]
    assert sorted(path.name for path in tree.parent.iterdir()) == sorted([tree.name, "current"])


@by_root
def test_a_merge_that_fails_leaves_what_serves(disk: Disk) -> None:
    tree = disk.use(disk.lay_out())
    disk.quantize.write_text("#!/bin/sh\necho no space >&2\nexit 1\n")
    answer = disk.lay_out(PARTS[0])
    assert answer["failed"] and "could not merge" in answer["msg"] and "no space" in answer["msg"]
    assert tree.is_dir() and disk.lay_out()["removed"] == []


def test_half_a_store_of_other_settings_takes_no_room(disk: Disk) -> None:
    """A run that was killed left it, and the next one has other parameters."""
    tree = disk.use(disk.lay_out())
    half = tree.with_name(".0123456789ab.part")
    (half / "blobs").mkdir(parents=True)
    (half / "blobs/merged").write_text("half")
    disk.quantize.write_text(f"#!/bin/sh\ntest -e {half} && echo no room >&2\nexit 1\n")
    assert "no room" not in disk.lay_out(PARTS[0])["msg"] and not half.exists()


def test_a_store_that_somebody_changed_is_made_anew(disk: Disk) -> None:
    tree = disk.use(disk.lay_out())
    parameters = blob(tree, layers(tree)["params"])
    parameters.chmod(0o644)
    parameters.write_text('{"num_ctx": 999}\n')
    assert disk.lay_out()["changed"] and "512" in parameters.read_text()
    # The store of models replaced a damaged file: the link would keep the bytes of old.
    (disk.home / ONE).rename(disk.home / "old")
    (disk.home / ONE).write_bytes(CONTENT[ONE])
    assert disk.lay_out()["changed"] and blob(tree, layers(tree)["model"]).samefile(disk.home / ONE)
    blob(tree, layers(tree)["model"]).unlink()
    assert disk.lay_out()["changed"] and not disk.lay_out()["changed"]


def test_what_one_goes_back_to_is_kept(disk: Disk) -> None:
    trees: list[Path] = []
    for context in (1, 2, 3, 4):
        answer = disk.lay_out(num_ctx=context)
        # Before the switch: what serves, and what was before it, are both still there.
        assert all(tree.is_dir() for tree in trees[-2:])
        trees.append(disk.use(answer))
    answer = disk.lay_out(num_ctx=4)
    assert [tree.is_dir() for tree in trees] == [False, False, True, True]
    assert answer["changed"] == bool(answer["removed"])
    # Going back: the record's way back is the newer one then, whatever was made last.
    disk.use(disk.lay_out(num_ctx=3))
    disk.lay_out(num_ctx=5)
    disk.lay_out(num_ctx=6)
    assert all(tree.is_dir() for tree in trees[-2:])


def test_the_store_of_a_model_that_leaves_stays_while_it_may_be_gone_back_to(disk: Disk) -> None:
    tree = disk.use(disk.lay_out())
    assert disk.lay_out(model="other")["removed"] == [] and tree.is_dir()
    disk.record()
    assert disk.lay_out(model="other")["removed"] == [] and tree.is_dir()
    disk.record()
    assert disk.lay_out(model="other", check=True)["removed"] == [str(tree.parent)] and tree.is_dir()
    assert disk.lay_out(model="other")["removed"] == [str(tree.parent)] and not tree.parent.exists()


def test_nothing_is_removed_where_a_record_cannot_be_read(disk: Disk) -> None:
    tree = disk.use(disk.lay_out())
    (disk.root.parent / "rollout/ollama.json").write_text("{")
    assert "is not what onprem.llm writes" in disk.lay_out(num_ctx=1)["msg"] and tree.is_dir()


def test_what_is_not_published_is_refused(disk: Disk) -> None:
    answer = disk.lay_out("other.gguf")
    assert (
        answer["failed"] and "other.gguf is not published" in answer["msg"] and "playbooks/models.yml" in answer["msg"]
    )
    (disk.home / ONE).unlink()
    assert "is not published" in disk.lay_out()["msg"]


def test_the_manifest_of_the_store_says_what_is_linked(disk: Disk) -> None:
    entry = manifest.read(disk.home).entries()[ONE]
    assert layers(Path(disk.lay_out()["stores"]["chat"]))["model"]["digest"] == f"sha256:{entry.sha256}"


# --- the plan


def test_experts_are_not_placed_by_hand() -> None:
    """What llama.cpp would run with experts in RAM, Ollama runs with fewer layers on the GPU."""
    files = [catalogue("qwen3-235b-a22b", "Q4_K_M")]
    one, other = (
        ask(machine("spr-2s-xeon-gold-6430-1tb", "rtx-4090-24g"), files, 8192, 1, engine=e)
        for e in ("llamacpp", "ollama")
    )
    assert one["offload"]["cpu_moe_layers"] and other["engine"] == "ollama" and other["fits"] == "memory"
    assert other["offload"]["cpu_moe_layers"] == 0 and other["flags"]["num_gpu"] == other["offload"]["gpu_layers"] > 0


def test_beside_llama_cpp_it_is_slower_with_experts_in_ram() -> None:
    both = ask(machine("spr-2s-xeon-gold-6430-1tb", "rtx-4090-24g"), [catalogue("qwen3-235b-a22b", "Q4_K_M")], 8192, 1)
    assert both["engine"] == "llamacpp" and both["offload"]["cpu_moe_layers"]
    assert rejection(both, "ollama")["reason"] == "Slower: it cannot be told which experts lie where."


def test_a_llama_cpp_without_the_gpu_says_nothing_of_it() -> None:
    host, files = machine("hsx-1s-x99-e5-2696v3-64gb", "rtx-3090"), [header("qwen3-30b-a3b-q4_k_m")]
    assert ask(host, files, 32768, 4, engine="llamacpp")["offload"]["cpu_moe_layers"]
    both = {"llamacpp", "ollama"}
    found = ask(host, files, 32768, 4, allowed=both, roles=both, no_gpu={"llamacpp": "llamacpp_cuda is false"})
    assert found["engine"] == "ollama"
    assert found["offload"]["cpu_moe_layers"] == 0 and found["flags"]["num_gpu"] == found["offload"]["gpu_layers"] > 0


def test_merged_parts_are_counted_and_told() -> None:
    files = [catalogue("qwen3-235b-a22b", "Q4_K_M")]
    host = machine("spr-2s-xeon-gold-6430-1tb", "rtx-4090-24g")
    one, other = (ask(host, files, 8192, 1, engine=engine) for engine in ("llamacpp", "ollama"))
    assert (one["converted"], other["disk"]) == (0, 2 * one["disk"]) and other["converted"] == one["disk"]
    said(other, "Ollama reads one file, and this model comes in parts: they are merged")


def test_llama_server_is_told_through_ollama() -> None:
    environment = ask(machine("laptop-i7-1260p"), [header("qwen3-4b-q4_k_m")], 4096, 2, engine="ollama")["environment"]
    assert environment["LLAMA_ARG_FIT"] == "off" and int(environment["LLAMA_ARG_CACHE_RAM"]) > 0


def test_vectors_need_files_that_name_their_pooling() -> None:
    shape: Any = {"format": "gguf", "types": [], "experts": 0, "quantisation": "F16", "pooling": ""}
    asked: Any = (machine("laptop-i7-1260p"), shape, {"quantisation": "F16"}, 1)
    (why,) = engines.refusals("ollama", *asked, kind="embedding")
    assert why == "Ollama computes vectors only with files that name their pooling, and these do not. Use llama.cpp."
    assert not engines.refusals("llamacpp", *asked, kind="embedding") and not engines.refusals("ollama", *asked)
    shape["pooling"] = "last"
    assert not engines.refusals("ollama", *asked, kind="embedding")


def test_where_both_may_run_it_is_llama_cpp() -> None:
    placement = ask(machine("laptop-i7-1260p"), [header("qwen3-4b-q4_k_m")], 4096, 2)
    assert placement["engine"] == "llamacpp" and rejection(placement, "ollama")


# --- what a host says


def test_a_service_tells_what_it_starts_with() -> None:
    text = (
        "# Written by the role ollama. Files: o/r@master\n# Model: /srv/llm/served/chat/a.gguf\n"
        "# Port: 9101\n# Parameters: --num_ctx 4096 --num_gpu 0\n"
        "OLLAMA_NUM_PARALLEL=2\nOLLAMA_HOST=127.0.0.1:11434\nOLLAMA_MODELS=/srv/llm/ollama/chat/current\nDOOR_MODEL=chat\n"
    )
    assert installed("chat", text) == {
        "model": "chat",
        "engine": "ollama",
        "port": 9101,
        "source": "o/r@master",
        "flags": {"num_ctx": "4096", "num_gpu": "0"},
        "environment": {"OLLAMA_NUM_PARALLEL": "2"},
        "numa": "none",
    }
    # A line that somebody has broken keeps nobody from looking at the host.
    assert installed("chat", text.replace("4096", "'4096"))["flags"] == {}
