# SPDX-License-Identifier: GPL-3.0-or-later
"""llama-server: the command line of a placement, and what the program says of itself.

The help text is that of Debian's llama.cpp 0.7.0 (build 11669), shortened to whole entries.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args

from ansible_collections.onprem.llm.plugins.module_utils import command_line, llamacpp
from ansible_collections.onprem.llm.plugins.module_utils.placement import threads
from ansible_collections.onprem.llm.plugins.modules import llamacpp_info

HELP = (Path(__file__).parents[1] / "fixtures/llama-server-help-0.7.0.txt").read_text()


def placement(kind: str = "chat", **flags: Any) -> dict[str, Any]:
    planned = {"parallel": 1, "ctx-size": 2048}
    if kind == "embedding":
        planned |= {"embedding": True, "pooling": "mean", "batch-size": 2048, "ubatch-size": 2048}
    return {"model": "tiny", "port": 9101, "model_path": "/srv/llm/served/tiny/a/m.gguf", "flags": {**planned, **flags}}


ROOT = Path(__file__).parents[2]


def test_flags_of_a_chat_model() -> None:
    assert llamacpp.server_flags(placement(), "127.0.0.1") == {
        "model": "/srv/llm/served/tiny/a/m.gguf",
        "alias": "tiny",
        "host": "127.0.0.1",
        "port": 9101,
        "metrics": True,
        "offline": True,
        "no-webui": True,
        "no-slots": True,
        "parallel": 1,
        "ctx-size": 2048,
    }


@pytest.mark.parametrize("dangerous", ["tools", "agent", "mcp-servers-json", "mcp-servers-config", "rpc", "webui"])
def test_nothing_that_gives_clients_more_than_the_model(dangerous: str) -> None:
    assert dangerous not in llamacpp.server_flags(placement(), "127.0.0.1")
    assert dangerous not in llamacpp.server_flags(placement("embedding"), "127.0.0.1")


def test_the_operators_flags_win() -> None:
    flags = llamacpp.server_flags(placement(parallel=4, metrics=False, numa="distribute"), "192.0.2.1")
    assert (flags["parallel"], flags["metrics"], flags["numa"]) == (4, False, "distribute")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({}, ""),
        ({"ctx-size": 4096, "metrics": True}, "--ctx-size 4096 --metrics"),
        ({"metrics": False, "offline": None, "poll": 0}, "--poll 0"),
        ({"alias": "two words"}, "--alias 'two words'"),
        ({"override-tensor": r"\.ffn_.*_exps\.=CPU"}, r"--override-tensor '\.ffn_.*_exps\.=CPU'"),
        ({"alias": "x; reboot"}, "--alias 'x; reboot'"),
    ],
)
def test_command_line(flags: dict[str, Any], line: str) -> None:
    assert command_line.written(flags) == line
    words = [
        w for name, value in flags.items() for w in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]
    if False not in flags.values() and None not in flags.values():
        assert shlex.split(line) == words


@pytest.mark.parametrize(
    "option",
    [
        "threads",  # -t,    --threads N
        "help",  # three names on one line
        "usage",
        "poll",  # <0...100> for a value
        "flash-attn",  # [on|off|auto]
        "load-mode",
        "numa",
        "override-tensor",  # explanation on the next line
        "gpu-layers",
        "n-gpu-layers",
        "cache-type-k-draft",
        "no-webui",  # the fourth name of one option
        "no-slots",
        "embedding",
        "offline",
        "api-key-file",
    ],
)
def test_listed(option: str) -> None:
    assert option in llamacpp.listed_options(HELP)


@pytest.mark.parametrize(
    "word",
    [
        "ctx-sizes",
        "mmap",  # only in an explanation: '- mmap: memory-map model'
        "cpu-mask-",
    ],
)
def test_not_listed(word: str) -> None:
    assert word not in llamacpp.listed_options(HELP)


def test_everything_we_emit_exists() -> None:
    planned: dict[str, Any] = {}
    for policy in ("none", "distribute", "interleave", "bind"):
        for gpus, layers in ((0, 0), (1, 0), (2, 5)):
            planned |= threads.llamacpp(
                context=4096, slots=2, threads=8, threads_batch=8, ubatch=512, cache_type="f16", cache_ram=0,
                flash=True, offload={"gpu_layers": layers, "cpu_moe_layers": layers, "split": [3, 3]}, gpus=gpus,
                policy={"policy": policy, "nodes": [0, 1]}, mode="mmap", embedding=True, pooling="mean",
            )  # fmt: skip
    emitted = llamacpp.server_flags(placement(**planned), "x")
    assert llamacpp.unknown_options(emitted, HELP) == []


def test_an_option_of_older_releases_is_reported() -> None:
    # 0.7.0 has --load-mode in its place.
    assert llamacpp.unknown_options(["no-mmap", "metrics", "no-mmap"], HELP) == ["no-mmap"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("version: 0.7.0 (build 11669, commit Debian)\nbuilt with GNU 16.2.0 for Linux x86_64\n", ("0.7.0", 11669)),
        ("version: 8146 (d0061be)\nbuilt with cc", ("8146", 8146)),
        ("warning: no GPU\nversion: 9012 (abc)\n", ("9012", 9012)),
        ("version: 0.7.0 (d0061be)", ("0.7.0", None)),
        ("something else", ("unknown", None)),
        ("", ("unknown", None)),
    ],
)
def test_version(text: str, found: tuple[str, int | None]) -> None:
    assert llamacpp.parse_version(text) == found


@pytest.mark.parametrize(
    ("version", "build", "problem"),
    [
        ("0.7.0", 11669, ""),
        ("8146", 8146, ""),
        ("8145", 8145, "is build 8145; the oldest that may be run is 8146"),
        # From a tarball, so outside git.
        ("0.7.0", 0, ""),
        ("0.5.0-dev", 0, ""),
        ("0.7.0", None, ""),
        ("0.0.9", 0, "is release 0.0.9; the oldest that may be run is 0.1.0"),
        ("0", 0, "calls itself '0' and names no build: nobody can tell whether it is 8146 or later"),
        ("unknown", None, "calls itself 'unknown' and names no build: nobody can tell whether it is 8146 or later"),
    ],
)
def test_floor(version: str, build: int | None, problem: str) -> None:
    """T4: a program with published holes is not run, nor one that does not say what it is."""
    assert llamacpp.below_floor(version, build, 8146, "0.1.0") == problem
    assert llamacpp.below_floor(version, build, 0, "") == ""


@pytest.mark.parametrize(
    ("says", "problem"),
    [
        ("version: 0.7.0 (build 11669, commit x)", ""),
        ("version: 8000 (d0061be)", "is build 8000; the oldest that may be run is 8146 (why). Choose a newer"),
        ("version: 0 (unknown)", "names no build"),
    ],
)
def test_an_old_program_stops_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: str, problem: str
) -> None:
    """T4: the floors of this project, asked of the installed program as the role asks."""
    program = tmp_path / "llama-server"
    program.write_text(f"#!/bin/sh\necho '{says}'\n")
    program.chmod(0o755)
    floors = yaml.safe_load((ROOT / "group_vars/all/floors.yml").read_text())["version_floors"]
    task = yaml.safe_load((ROOT / "roles/llamacpp/tasks/configure.yml").read_text())[0]["onprem.llm.llamacpp_info"]
    asked = {key: re.search(r"\{\{ version_floors\.(\w+)", str(value)) for key, value in task.items()}
    given = {key: floors[found[1]] for key, found in asked.items() if found}
    with patch_module_args({"executable": str(program), "minimum_reason": "why", **given}), pytest.raises(SystemExit):
        llamacpp_info.main()
    answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert answer.get("failed", False) == bool(problem), answer
    assert problem in answer.get("msg", "")


def test_what_a_service_starts_with_can_be_read_back() -> None:
    flags = {"ctx-size": 4096, "flash-attn": "on", "embedding": True, "temp": 0, "tensor-split": "3,1"}
    placement = {"model": "chat", "port": 9101, "model_path": "/srv/llm/served/chat/it's one.gguf", "flags": flags}
    line = command_line.written(llamacpp.server_flags(placement, "127.0.0.1"))
    text = f"# Written by the role llamacpp. Files: o/chat@{'a' * 40}\nLLAMACPP_OPTIONS={line}\n"
    assert llamacpp.installed("chat", text) == {
        "model": "chat",
        "engine": "llamacpp",
        "port": 9101,
        "source": f"o/chat@{'a' * 40}",
        "flags": {key: value if value is True else str(value) for key, value in flags.items()},
        "environment": {},
        "numa": "",
    }
    dropin = "# Written by the role llamacpp. NUMA policy of the plan: bind 0 1\n[Service]\nNUMAPolicy=bind\n"
    found = llamacpp.installed("chat", "CUDA_VISIBLE_DEVICES=1,2\n" + text, dropin)
    assert (found["environment"], found["numa"]) == ({"CUDA_VISIBLE_DEVICES": "1,2"}, "bind 0 1")


def test_a_file_that_says_nothing_is_a_model_without_options() -> None:
    found = llamacpp.installed("chat", "")
    assert (found["port"], found["source"], found["flags"], found["environment"], found["numa"]) == (0, "", {}, {}, "")
