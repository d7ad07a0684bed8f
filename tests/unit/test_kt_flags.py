# SPDX-License-Identifier: GPL-3.0-or-later
"""KTransformers' options: what the plan gives for real machines, and what a service is started with."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from decisions import GIB, ask, catalogue, header, machine

from ansible_collections.onprem.llm.plugins.module_utils import command_line, installed
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import classic, flags, look
from ansible_collections.onprem.llm.plugins.module_utils.placement import differences, engines, pins

PROJECT = Path(__file__).parents[2]
R1 = catalogue("deepseek-r1", "FP8")
BOTH = set(pins.ROLES)
#: The lines of sglang-kt 0.7.2 that add an option this project gives: names and nargs as its server_args.py has them.
PROGRAM = """
def add(parser):
    parser.add_argument("--model-path", "--model", type=str, required=True)
    parser.add_argument("--served-model-name", type=str)
    parser.add_argument("--host", type=str)
    parser.add_argument("--port", type=int)
    parser.add_argument("--kt-weight-path", type=str)
    parser.add_argument("--kt-method", type=str, default="AMXINT4")
    parser.add_argument("--kt-cpuinfer", type=int)
    parser.add_argument("--kt-threadpool-count", type=int, default=2)
    parser.add_argument("--kt-numa-nodes", type=int, nargs="+")
    parser.add_argument("--kt-num-gpu-experts", type=int)
    parser.add_argument("--context-length", type=int)
    parser.add_argument("--max-total-tokens", type=int)
    parser.add_argument("--max-running-requests", type=int)
    parser.add_argument("--mem-fraction-static", type=float)
    parser.add_argument("--chunked-prefill-size", type=int)
    parser.add_argument("--attention-backend", type=str)
    parser.add_argument("--tensor-parallel-size", "--tp-size", type=int)
    parser.add_argument("--disable-shared-experts-fusion", action="store_true")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--enable-metrics", action="store_true")
    parser.add_argument("--reasoning-parser", type=str)
    parser.add_argument("--api-key", type=str)
"""


def planned(machine_id: str = "spr-2s-xeon-gold-6430-1tb", **more: Any) -> dict[str, Any]:
    found = ask(machine(machine_id, "rtx-4090-24g"), [R1], 8192, 1, **more)
    return {**found, "model": "r1", "port": 9101, "model_path": "/srv/llm/served/r1/"}


@pytest.mark.parametrize(
    ("machine_id", "gpu", "variant", "threads", "pools"),
    [
        ("spr-2s-xeon-gold-6430-1tb", "rtx-4090-24g", "amx", 64, "0 1"),
        ("spr-2s-snc4-xeon-8480", "rtx-4090-24g", "amx", 112, "0 1 2 3 4 5 6 7"),
        ("emr-2s-cxl-xeon-gold-6530", "rtx-4090-24g", "amx", 64, "0 1"),
        ("icx-2s-xeon-8352v", "rtx-4090-24g", "avx512_vbmi", 72, "0 1"),
        ("icx-2s-interleaved-xeon-silver-4310", "rtx-4090-24g", "avx512_vbmi", 24, "0 1"),
        ("hsx-2s-e5-2696v3", "rtx-4090-24g", "avx2", 36, "0 1"),
        ("genoa-1s-nps4-epyc-9534", "rtx-4090-24g", "avx512_bf16", 64, "0 1 2 3"),
        ("genoa-2s-offline-epyc-9554", "rtx-4090-24g", "avx512_bf16", 128, "0 1"),
    ],
)
def test_build_method_threads_and_pools_of_recorded_machines(
    machine_id: str, gpu: str, variant: str, threads: int, pools: str
) -> None:
    """A node without CPUs (CXL) gets no pool, a CPU that is offline no thread, and nodes are counted, not sockets."""
    hardware: Any = machine(machine_id, gpu)
    hardware["memory"]["total"] = 2048 * GIB
    placement = ask(hardware, [R1], 8192, 1, engine="ktransformers")
    assert placement["engine"] == "ktransformers", placement["reasons"]
    given = placement["flags"]
    assert placement["environment"]["KT_KERNEL_CPU_VARIANT"] == variant
    assert (given["kt-method"], given["kt-cpuinfer"], given["kt-numa-nodes"]) == ("FP8", threads, pools)
    assert given["kt-threadpool-count"] == len(pools.split())
    assert set(engines.KT_VARIANTS[0][1]) <= set(hardware["cpu"]["isa"]) or variant != "amx"
    nodes = {node["id"]: node["cpus"] for node in hardware["numa"]}
    assert flags.missing_nodes(placement, nodes) == []


@pytest.mark.parametrize("machine_id", ["vm-1s-epyc-2vcpu", "laptop-i7-1260p"])
def test_small_machines_are_refused_with_the_figures(machine_id: str) -> None:
    placement = ask(machine(machine_id, "rtx-4090-24g"), [R1], 8192, 1, engine="ktransformers")
    assert placement["fits"] == "no" and any("missing" in one for one in placement["reasons"]), placement["reasons"]


def test_every_option_is_one_the_program_has() -> None:
    given = flags.server_flags(planned(), "127.0.0.1")
    assert flags.unknown(given, PROGRAM) == []
    assert flags.unknown(["kt-method", "kt-metod"], PROGRAM) == ["kt-metod"]
    assert "api-key" not in given, "whoever lists processes would see it"


def test_the_command_line_is_what_the_parser_reads() -> None:
    """The nodes are several words: `0 1` in one would be no number."""
    import argparse

    parser = argparse.ArgumentParser(exit_on_error=False)
    exec(PROGRAM, names := {})  # type: ignore[var-annotated]
    names["add"](parser)
    line = command_line.written(flags.server_flags(planned(), "192.0.2.1", "/srv/llm/converted/r1"))
    read = parser.parse_args(shlex.split(line))
    assert (read.kt_numa_nodes, read.kt_threadpool_count, read.kt_cpuinfer) == ([0, 1], 2, 64)
    assert (read.model_path, read.kt_weight_path) == ("/srv/llm/served/r1", "/srv/llm/converted/r1")
    assert (read.host, read.port, read.served_model_name) == ("192.0.2.1", 9101, "r1")


def test_files_as_they_are_hold_the_weights_too() -> None:
    given = flags.server_flags(planned(), "127.0.0.1")
    assert given["kt-weight-path"] == given["model"] == "/srv/llm/served/r1"


def test_what_is_installed_is_what_was_planned() -> None:
    one = planned()
    text = (
        f"# Written by the role ktransformers. Files: {one['source']}\n"
        f"# NUMA policy of the plan: {differences.numa_text(one['numa'])}\n"
        "KT_KERNEL_CPU_VARIANT=amx\n"
        f"{flags.OPTIONS}={command_line.written(flags.server_flags(one, '127.0.0.1'))}\n"
        f"{flags.FOUND}=--reasoning-parser deepseek-r1\n"
    )
    found = flags.installed("r1", text)
    assert found["engine"] == "ktransformers" and found["numa"] == "pools 0 1" and found["port"] == 9101
    here: Any = {**one, "host": "h"}
    assert differences.differences([here], {"h": [found]}) == [differences.NOTHING]
    fewer = {**found, "flags": {**found["flags"], "kt-cpuinfer": "32"}}
    assert differences.differences([here], {"h": [fewer]}) == ["h: r1: kt-cpuinfer 32 -> 64"]


def test_services_of_both_engines_are_seen(tmp_path: Path) -> None:
    for engine, line in (
        ("llamacpp", "LLAMACPP_OPTIONS=--port 9101"),
        ("ktransformers", f"{flags.OPTIONS}=--port 9102"),
    ):
        (tmp_path / engine).mkdir()
        (tmp_path / engine / "m.env").write_text(line + "\n")
    assert [(one["engine"], one["port"]) for one in installed.read(tmp_path)] == [
        ("llamacpp", 9101),
        ("ktransformers", 9102),
    ]


# --- what the host has


def sentence(nodes: dict[int, list[int]], **change: Any) -> list[str]:
    one = planned()
    one["flags"] = {**one["flags"], **change}
    return flags.missing_nodes(one, nodes)


def test_a_pool_on_a_missing_node_is_refused() -> None:
    (said,) = sentence({0: list(range(64))})
    assert said == (
        "r1: --kt-numa-nodes 0 1: there is no node 1; nodes with CPUs here: 0. "
        "Plan again (playbooks/plan.yml): the machine is not what was planned for."
    )
    (said,) = sentence({0: list(range(64)), 1: []})
    assert "node 1 has no CPUs; nodes with CPUs here: 0." in said
    (said,) = sentence({0: list(range(32)), 1: list(range(32))}, **{"kt-threadpool-count": 4})
    assert "2 nodes for --kt-threadpool-count 4" in said
    (said,) = sentence({0: list(range(8)), 1: list(range(8))})
    assert said.startswith("r1: 64 threads for 16 CPUs of node 0, 1. More threads than CPUs")
    assert sentence({0: list(range(64)), 1: list(range(64))}) == []


# --- thoughts

SWITCHED = "{% if add_generation_prompt %}<|im_start|>{% if enable_thinking is false %}<think>\n\n</think>{% endif %}"


@pytest.mark.parametrize(
    ("model_type", "template", "parser"),
    [
        ("deepseek_v3", "{% if add_generation_prompt %}{{'<｜Assistant｜><think>\\n'}}{% endif %}", "deepseek-r1"),
        (
            "deepseek_v3",
            "{% set content = content.split('</think>')[-1] %}{% if add_generation_prompt %}",
            "deepseek-r1",
        ),
        ("deepseek_v3", "{% if add_generation_prompt %}{{'<｜Assistant｜>'}}{% endif %}", ""),
        (
            "deepseek_v3",
            "{% if add_generation_prompt %}{% if thinking %}<think>{% else %}</think>{% endif %}",
            "deepseek-v3",
        ),
        ("qwen3_moe", SWITCHED, "qwen3"),
        ("qwen3_moe", "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}", "qwen3-thinking"),
        ("qwen3_moe", "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", ""),
        ("gpt_oss", "<|channel|>analysis", "gpt-oss"),
        ("glm4_moe", SWITCHED, "glm45"),
        ("kimi_k2", "{% if add_generation_prompt %}<think>", "kimi_k2"),
        ("minimax_m2", "{% if add_generation_prompt %}<think>\n", "minimax"),
        ("", "", ""),
    ],
)
def test_thoughts_are_taken_out_by_what_the_chat_template_says(model_type: str, template: str, parser: str) -> None:
    assert flags.reasoning_parser(model_type, template) == parser


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json", "several"])
def test_the_template_is_found_wherever_publishers_put_it(tmp_path: Path, where: str) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    if where == "chat_template.jinja":
        (tmp_path / where).write_text(SWITCHED)
    else:
        many = [{"name": "tool_use", "template": ""}, {"name": "default", "template": SWITCHED}]
        given = {"chat_template": many if where == "several" else SWITCHED}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(given))
    assert look.thinks(str(tmp_path)) == "qwen3"
    assert look.thinks(str(tmp_path / "absent")) == "", "not downloaded yet"


# --- classic


def old(release: str, quantisation: str = "ud-q2_k_xl") -> dict[str, Any]:
    hardware: Any = machine("hsx-2s-e5-2696v3", "rtx-2080ti-22g-modded")
    hardware["memory"]["total"] = 1024 * GIB
    files = [header(f"deepseek-r1-{quantisation}-legacy")]
    found = ask(hardware, files, 1024, 1, pin={"engine": "ktransformers-classic"}, allowed=BOTH, roles=BOTH)
    assert found["engine"] == "ktransformers-classic", found["reasons"]
    path = "/srv/llm/served/r1/DeepSeek-R1/one-00001-of-00005.gguf"
    return {**found, "model": "r1", "port": 10002, "model_path": path}


def test_classic_gets_the_folder_and_only_options_of_its_release() -> None:
    given = flags.classic_flags(old("0.2.3post2"), "127.0.0.1", "0.2.3post2", "/etc/x/r1.rules.yaml")
    assert given["gguf_path"] == given["model_path"] == "/srv/llm/served/r1/DeepSeek-R1"
    assert (given["port"], given["cpu_infer"], given["optimize_config_path"]) == (10002, 36, "/etc/x/r1.rules.yaml")
    assert "backend_type" not in given and "cache_lens" in given
    assert flags.classic_flags(old("0.2.4"), "127.0.0.1", "0.2.4")["backend_type"] == "ktransformers"


@pytest.mark.parametrize("release", ["0.2.3post2", "0.2.4"])
def test_what_is_installed_of_classic_is_what_was_planned(release: str) -> None:
    """With every release: what only some of them know is the role's own, not the plan's."""
    one = old(release)
    line = command_line.written(flags.classic_flags(one, "127.0.0.1", release, "/etc/x/r1.rules.yaml"))
    numa = differences.numa_text(one["numa"])
    found = flags.installed(
        "r1", f"# Files: {one['source']}\n# NUMA policy of the plan: {numa}\n{flags.OPTIONS}={line}\n"
    )
    assert found["engine"] == "ktransformers-classic"
    here: Any = {**one, "host": "h"}
    assert differences.differences([here], {"h": [found]}) == [differences.NOTHING]


def test_one_bit_needs_a_release_that_has_its_kernels() -> None:
    assert classic.too_old("r1", "UD-Q2_K_XL", "0.2.1.post1") == "" == classic.too_old("r1", "UD-IQ1_S", "0.2.3post2")
    assert classic.too_old("r1", "UD-IQ1_S", "0.2.1.post1") == (
        "r1: UD-IQ1_S has experts in IQ1_S, which classic KTransformers computes with from 0.2.3 on; "
        "ktransformers_version is 0.2.1.post1. Install a newer release (ktransformers_archive), or pin UD-Q2_K_XL or "
        "Q4_K_M."
    )


def test_cards_before_ampere_get_torch_matrices(tmp_path: Path) -> None:
    rules = tmp_path / "tree/lib/python3.11/site-packages/ktransformers/optimize/optimize_rules"
    rules.mkdir(parents=True)
    (rules / "DeepSeek-V3-Chat.yaml").write_text('generate_op: "KLinearMarlin"\nprefill_op: "KLinearTorch"\n')
    (tmp_path / "config.json").write_text('{"architectures": ["DeepseekV3ForCausalLM"]}')
    tree, model = str(tmp_path / "tree"), str(tmp_path)
    turing = machine("hsx-2s-e5-2696v3", "rtx-2080ti-22g-modded")
    assert look.own_rules(tree, model, turing, 1) == 'generate_op: "KLinearTorch"\nprefill_op: "KLinearTorch"\n'
    ampere = machine("hsx-2s-e5-2696v3", "rtx-4090-24g")
    assert look.own_rules(tree, model, ampere, 1) == "", "its own rules are good"
    (rules / "DeepSeek-V3-Chat-multi-gpu.yaml").write_text('generate_op: "KLinearMarlin" # two\n')
    assert look.own_rules(tree, model, ampere, 2).endswith("# two\n"), "by itself it takes one GPU"
    with pytest.raises(ValueError, match=r"DeepseekV3ForCausalLM on 3 GPUs: .* has no rules for that many"):
        look.own_rules(tree, model, ampere, 3)


def test_classic_is_for_hosts_of_the_group_that_install_it() -> None:
    model = {"name": "r1", "variants": [{"quantisation": "Q4_K_M"}]}
    groups = {"inference": ["g"], "ktransformers": [], "llamacpp": ["g"]}
    given = [{"model": "r1", "host": "g", "engine": "ktransformers-classic"}]
    (said,) = pins.check(given, [model], groups)
    assert "the host is no member of the group ktransformers" in said
    assert pins.check(given, [model], {**groups, "ktransformers": ["g"]}) == []
    hardware: Any = machine("hsx-2s-e5-2696v3", "rtx-2080ti-22g-modded")
    hardware["memory"]["total"] = 1024 * GIB
    bar = {"ktransformers-classic": "ktransformers_install_method is wheel on h; set it to classic for this engine"}
    files = [header("deepseek-r1-ud-q2_k_xl-legacy")]
    refused = ask(
        hardware, files, 1024, 1, pin={"engine": "ktransformers-classic"}, no_gpu=bar, allowed=BOTH, roles=BOTH
    )
    assert refused["fits"] == "no" and any("install_method is wheel on h" in one for one in refused["reasons"])


# --- the launcher

STAND_IN = """
import os, multiprocessing, subprocess, sys
def prepare_server_args(words):
    class Settings: pass
    found = Settings(); found.words = words; found.api_key = None
    return found
def child(key):
    print("child", key == "0123456789abcdef-secret", repr(key), flush=True)
    print("argv", open("/proc/self/cmdline").read(), flush=True)
    print("environ", open("/proc/self/environ").read(), flush=True)
def run_server(settings):
    print("log", repr(settings.api_key), f"{settings.api_key!r}", flush=True)
    print("argv", open("/proc/self/cmdline").read(), flush=True)
    spawn = multiprocessing.get_context("spawn")
    other = spawn.Process(target=child, args=(settings.api_key,))
    other.start(); other.join()
    sys.exit(other.exitcode)
def kill_process_tree(pid, include_parent): print("ended", flush=True)
"""


def test_the_key_is_in_no_list_of_processes_and_in_no_log(tmp_path: Path) -> None:
    """SGLang spawns its workers, which import the launcher again and get the settings as they are."""
    (tmp_path / "sglang").mkdir()
    (tmp_path / "sglang/__init__.py").write_text("")
    (tmp_path / "sglang/launch_server.py").write_text(STAND_IN)
    (tmp_path / "api_key").write_text("0123456789abcdef-secret\n")
    done = subprocess.run(
        [sys.executable, str(PROJECT / "roles/ktransformers/files/serve.py"), "--port", "9101"],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "CREDENTIALS_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "child True '***'" in done.stdout and "ended" in done.stdout
    assert "secret" not in done.stdout + done.stderr
    assert re.search(r"argv .*serve\.py", done.stdout)
