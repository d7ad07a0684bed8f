# SPDX-License-Identifier: GPL-3.0-or-later
"""CUDA toolkits from a repository in the form of NVIDIA's. They are forged, so none of them may pass.

What is rarer, and what a real toolkit does, is in tests/long/test_cuda.py.
"""

from __future__ import annotations

import json

from conftest import one_line, playbook, untouched

testinfra_hosts = ["ansible://drive3"]

ROOT = "/opt/onprem-llm/cuda_toolkit"
FACTS = "/etc/ansible/facts.d/onprem_llm.fact"
EARLIER = {"homes": {"12.8": f"{ROOT}/12.8"}, "default": "12.8"}


def run(*versions: str, pins: dict[str, str] | None = None) -> str:
    """drivers.yml for the host of these tests, with toolkits from NVIDIA's repository: what it says when it fails."""
    settings = {
        "cuda_toolkit_source": "nvidia_repo",
        "cuda_toolkit_versions": versions,
        "cuda_toolkit_package_versions": pins or {},
    }
    done = playbook("playbooks/drivers.yml", "--limit", "drive3", "-e", json.dumps(settings))
    said = one_line(done.stdout + done.stderr)
    assert done.returncode == 2, said
    return said


def installed(host) -> str:
    return host.run("dpkg-query -W -f '${Package}=${Version} ' 'cuda-*'").stdout.strip()


def test_none_installs_nothing_and_says_so_to_builds(host):
    assert installed(host) == ""
    assert "cuda_toolkit" not in host.run(f"cat {FACTS}").stdout
    assert not host.file(ROOT).exists


def test_a_blocked_release_is_refused_before_anything_is_changed(host):
    with untouched(host):
        said = run("12.8", "13.2")
    assert "cuda_toolkit_versions asks for CUDA 13.2: its compiler breaks" in said


def test_a_compiler_that_only_says_so_is_refused(host):
    # As an earlier run has written it down: no build may use it any more.
    facts = {"format": 1, "components": {"cuda_toolkit": EARLIER, "other": {"version": "1"}}, "debts": []}
    host.check_output(f"mkdir -p $(dirname {FACTS}) && printf '%s' '{json.dumps(facts)}' >{FACTS}")
    said = run("12.8", pins={"12.8": "12.8.1-1"})
    assert f"{ROOT}/12.8 does not compile: nvcc ended with 1: nvcc fatal error: this is no compiler" in said
    assert "No build takes a toolkit of drive3 until a run proves them all." in said
    assert json.loads(host.check_output(f"cat {FACTS}"))["components"] == {"other": {"version": "1"}}
    # In its exact version, held, with a home that is a link.
    assert installed(host) == "cuda-toolkit-12-8=12.8.1-1"
    assert "cuda-toolkit-12-8" in host.check_output("apt-mark showhold").split()
    assert host.check_output(f"readlink {ROOT}/12.8") == "/usr/local/cuda-12.8"


def test_a_newer_version_does_not_come_by_itself(host):
    assert installed(host) == "cuda-toolkit-12-8=12.8.1-1"
    assert "12.8.2-1" in host.check_output("apt-cache policy cuda-toolkit-12-8")
    assert "does not compile" in run("12.8")
    assert "Inst cuda" not in host.check_output("apt-get --simulate full-upgrade")
    assert installed(host) == "cuda-toolkit-12-8=12.8.1-1"
