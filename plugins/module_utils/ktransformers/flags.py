# SPDX-License-Identifier: GPL-3.0-or-later
"""KTransformers: what its server is started with for a placement, and what the files of a service say of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils import command_line

ENGINE, CLASSIC = "ktransformers", "ktransformers-classic"
#: Lines of a model's environment file that are options, not environment. The second has what its files tell of it.
OPTIONS, FOUND = "KTRANSFORMERS_OPTIONS", "KTRANSFORMERS_FOUND"
#: Files each engine's program has its options in, below the tree's site-packages.
PARSERS = {ENGINE: "sglang/srt/server_args.py", CLASSIC: "ktransformers/server/args.py"}
BACKEND_TYPES = (0, 2, 4)
"""Release from which classic knows --backend_type (server/args.py)."""


def _own_flags(placement: Mapping[str, Any], address: str, weights: str) -> dict[str, Any]:
    """What the role gives itself."""
    model = str(placement["model_path"]).rstrip("/")
    return {
        "model": model,
        "served-model-name": placement["model"],
        "host": address,
        "port": placement["port"],
        "kt-weight-path": weights or model,
    }


#: What `server_flags` and `classic_flags` add to a placement's own flags.
OURS = (
    *_own_flags({"model_path": "", "model": "", "port": 0}, "", ""),
    "model_path", "gguf_path", "model_name", "backend_type", "optimize_config_path",
)  # fmt: skip
#: Options that a site may not pin: they would put the key into the list of processes, read other options from a file,
#: or give clients programs of this host.
NOT_PINNED = (
    "api-key", "admin-api-key", "config", "tool-server", "model-path", "api_key", "ssl_keyfile", "ssl_certfile", "web"
)  # fmt: skip


def server_flags(placement: Mapping[str, Any], address: str, weights: str = "") -> dict[str, Any]:
    """Long options (no dashes) of sglang-kt for one placement; True stands for an option without a value.

    ``weights``: folder of the converted experts; empty where the model's own files are used.
    """
    flags = {**_own_flags(placement, address, weights), **placement["flags"]}
    # One word for each node, or its parser takes them for one number.
    flags["kt-numa-nodes"] = str(flags["kt-numa-nodes"]).split()
    return flags


def classic_flags(placement: Mapping[str, Any], address: str, release: str, rules: str = "") -> dict[str, Any]:
    """Long options of a release up to 0.4.1. ``rules``: file of its optimise rules; empty takes its own.

    ``model_path`` of the placement is the first GGUF file; its folder also holds config.json and the tokenizer.
    """
    folder = str(placement["model_path"]).rpartition("/")[0]
    flags = {
        "model_path": folder,
        "gguf_path": folder,
        "model_name": placement["model"],
        "host": address,
        "port": placement["port"],
        **placement["flags"],
    }
    if numbers(release) >= BACKEND_TYPES:
        flags["backend_type"] = "ktransformers"
    return flags | ({"optimize_config_path": rules} if rules else {})


def numbers(release: str) -> tuple[int, ...]:
    """(0, 2, 1) of 0.2.1.post1."""
    found = re.match(r"\d+(?:\.\d+)*", release)
    return tuple(int(one) for one in found[0].split(".")) if found else ()


def options_of(program: str) -> set[str]:
    """Long options, without dashes, that the source of a parser (argparse) adds.

    It is read, not run: importing SGLang takes half a minute, and a driver.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            words = [one.value for one in node.args if isinstance(one, ast.Constant)]
            found.update(str(word)[2:] for word in words if str(word).startswith("--"))
    return found


def unknown(options: Iterable[str], program: str) -> list[str]:
    """Those of ``options`` that the program has not."""
    return sorted(set(options) - options_of(program))


def missing_nodes(placement: Mapping[str, Any], nodes: Mapping[int, Iterable[int]]) -> list[str]:
    """Why the placement's pools cannot run here. ``nodes``: node -> its CPUs that are online.

    kt-kernel 0.7.2 only prints `NUMA node 1 not found` and goes on with all threads elsewhere.
    """
    flags = placement["flags"]
    wanted = [int(one) for one in str(flags.get("kt-numa-nodes", "")).split()]
    there = {node: len(list(cpus)) for node, cpus in nodes.items()}
    with_cpus = [node for node, count in sorted(there.items()) if count]
    label = f"{placement['model']}: --kt-numa-nodes {flags.get('kt-numa-nodes')}"
    listed = f"nodes with CPUs here: {', '.join(map(str, with_cpus)) or 'none'}"
    again = "Plan again (playbooks/plan.yml): the machine is not what was planned for."
    said = []
    if absent := [str(one) for one in wanted if one not in there]:
        said.append(f"{label}: there is no node {', '.join(absent)}; {listed}. {again}")
    if bare := [str(one) for one in wanted if one in there and not there[one]]:
        said.append(f"{label}: node {', '.join(bare)} has no CPUs; {listed}. {again}")
    pools = int(flags.get("kt-threadpool-count", len(wanted)))
    if pools != len(wanted):
        said.append(
            f"{label}: {len(wanted)} nodes for --kt-threadpool-count {pools}. Each pool has one node: pin both or none."
        )
    threads = int(flags.get("kt-cpuinfer") or flags.get("cpu_infer") or 1)
    online = sum(there[one] for one in wanted if one in there) if wanted else sum(there.values())
    if not said and threads > online:
        said.append(
            f"{placement['model']}: {threads} threads for {online} CPUs"
            + (f" of node {', '.join(map(str, wanted))}" if wanted else "")
            + f". More threads than CPUs are many times slower. {again}"
        )
    return said


def reasoning_parser(model_type: str, template: str) -> str:
    """Which of sglang-kt's parsers takes the thoughts out of the answer; empty for a model that does not think.

    ``model_type`` of its config.json, ``template`` of its chat. A template that opens <think> itself makes a model
    think always; one with a switch leaves it to the request; one that only closes or strips </think> has a model that
    writes the tag itself.
    """
    if model_type == "gpt_oss":
        return "gpt-oss"
    if "think>" not in template:
        return ""
    switch = re.search(r"\b(enable_thinking|thinking)\b(?=[^'\"]*%})", template)
    tail = template.rpartition("add_generation_prompt")[2]
    for start, parser in (("glm4", "glm45"), ("kimi", "kimi_k2"), ("minimax", "minimax")):
        if model_type.startswith(start):
            return parser
    if model_type.startswith("deepseek"):
        return "deepseek-v3" if switch else "deepseek-r1"
    if switch:
        return "qwen3"
    # qwen3 waits for the tag, so it does no harm to a model that never writes one.
    return "qwen3-thinking" if "<think>" in tail else "qwen3"


def installed(model: str, text: str) -> dict[str, Any]:
    """What a model's service starts with, as its environment file says: the same keys as a placement's."""

    def said(pattern: str) -> str:
        found = re.search(pattern, text, re.MULTILINE)
        return found[1].strip() if found else ""

    flags = command_line.read(said(f"^{OPTIONS}=(.*)$"))
    return {
        "model": model,
        "engine": CLASSIC if "gguf_path" in flags else ENGINE,
        "port": int(flags.get("port", 0)),
        "source": said(r"^# .*Files: (.*)$"),
        "flags": {key: value for key, value in flags.items() if key not in OURS},
        "environment": command_line.environment(text, OPTIONS, FOUND),
        "numa": said(r"^# NUMA policy of the plan: (.*)$"),
    }
