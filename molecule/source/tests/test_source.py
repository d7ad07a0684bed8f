# SPDX-License-Identifier: GPL-3.0-or-later
"""llama.cpp compiled on a host: complete, in service, nothing left of the build; and given to an equal host."""

from __future__ import annotations

import json
import re

import pytest
import testinfra
from conftest import INVENTORY, SSH_CONFIG

testinfra_hosts = ["ansible://build1"]

ROOT = "/opt/onprem-llm/llamacpp"
ASK = """
import json, urllib.request
chat = {"model": "tiny-chat", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
key = open("/etc/onprem-llm/llamacpp/api_key").read().strip()
request = urllib.request.Request("http://127.0.0.1:9101/v1/chat/completions", json.dumps(chat).encode())
request.add_header("Authorization", "Bearer " + key)
request.add_header("Content-Type", "application/json")
print(json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["message"]["content"])
"""


@pytest.fixture
def tree(host):
    return host.check_output(f"readlink -f {ROOT}/current")


def test_the_model_answers(host, running):
    running("llamacpp@tiny-chat")
    answer = host.run(f"sudo python3 -c '{ASK}'")
    assert "Paris" in answer.stdout, answer.stdout + answer.stderr


def test_the_release_is_told(host, tree):
    """T4: without git no build number is known, so the release is what the floor is compared with."""
    assert re.match(r"version: 0\.5\.0\S* \(build 0,", host.check_output(f"{tree}/llama-server --version 2>&1"))


def test_every_kind_of_processor_has_its_backend(host, tree):
    found = host.check_output(f"ls {tree}").split()
    assert {f"libggml-cpu-{name}.so" for name in ("x64", "haswell", "skylakex", "icelake", "zen4")} <= set(found)
    assert {"llama-server", "llama-gguf-split"} <= set(found)


def test_the_program_finds_its_own_libraries_and_takes_a_fitting_backend(host, tree):
    linked = host.check_output(f"ldd {tree}/llama-server {tree}/libggml-cpu-*.so")
    assert "not found" not in linked
    ours = re.findall(r"=> (\S*/lib(?:llama|ggml)\S*)", linked)
    assert ours and all(path.startswith(f"{tree}/") for path in ours), ours
    # Of the running process: what it has mapped.
    mapped = host.check_output("sudo cat /proc/$(systemctl show -P MainPID llamacpp@tiny-chat)/maps")
    taken = set(re.findall(r"libggml-cpu-(\w+)\.so", mapped))
    flags = set(re.search(r"(?m)^flags\s*:(.*)$", host.check_output("cat /proc/cpuinfo")).group(1).split())
    assert len(taken) == 1, taken
    assert taken != {"x64"} or "sse4_2" not in flags, f"the slowest backend on a processor with {sorted(flags)}"


def test_nothing_of_the_build_is_left(host, tree):
    assert host.check_output(f"ls {ROOT}").split() == [tree.rpartition("/")[2], "current"]
    marker = json.loads(host.file(f"{tree}/.complete").content_string)
    assert marker["facts"]["version"] == "0.5.0-dev" and re.fullmatch("[0-9a-f]{64}", marker["sha256"])


def test_the_other_host_received_what_it_can_run(host, tree):
    """The same bytes, without a compiler; and nobody gives them any more."""
    other = testinfra.get_host("ansible://build2", ansible_inventory=str(INVENTORY), ssh_config=str(SSH_CONFIG))
    assert other.check_output(f"cat {tree}/.complete") == host.check_output(f"cat {tree}/.complete")
    assert re.match(r"version: 0\.5\.0", other.check_output(f"{tree}/llama-server --version 2>&1"))
    assert "not found" not in other.check_output(f"ldd {tree}/llama-server {tree}/*.so")
    assert not other.package("gcc").is_installed and not other.package("libc6-dev").is_installed
    assert not host.file("/var/cache/onprem-llm/build").exists


def test_the_unit_is_sandboxed(host):
    text = host.check_output("systemd-analyze security --no-pager llamacpp@tiny-chat.service | tail -n 1")
    assert float(re.search(r"(\d+\.\d)", text).group(1)) <= 1.5, text
