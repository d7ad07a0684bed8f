# SPDX-License-Identifier: GPL-3.0-or-later
"""Method source of role ktransformers, from archive to environment, on two booted Debian 12.

  .venv/bin/pytest -q -s tests/long/test_kt_source.py

The source of kt-kernel is in no package registry, so a small one stands in for it: it has the folders and submodules of
the real one, and compiles an extension that uses libnuma and keeps the CPUINFER_* it was given. All else is real:
archives and checksums, gcc, role build with its second host, uv, the verification of what came out. That the real
source compiles is not shown here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.onprem.llm.plugins.module_utils.hardware.read import read
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import build

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="test hosts need root")

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / ".cache/long/kt-source"
LAB = "long-kt-source"
NAMES = {"s1": "10.77.218.11", "s2": "10.77.218.12"}
TESTHOST = str(PROJECT / "tools/testhost")
SSH_CONFIG = Path(os.environ.get("TESTHOST_STATE", "/var/lib/testhosts")) / LAB / "ssh_config"
VERSION = "0.7.2"
EXTENSION = """
#include <Python.h>
#ifdef NUMA
#include <numa.h>
static int nodes(void) { numa_bind(numa_all_nodes_ptr); return numa_num_configured_nodes(); }
#else
static int nodes(void) { return 1; }
#endif
static PyObject *count(PyObject *self, PyObject *none) { return PyLong_FromLong(nodes()); }
static PyMethodDef methods[] = {{"nodes", count, METH_NOARGS, ""}, {0}};
static struct PyModuleDef defined = {PyModuleDef_HEAD_INIT, "kt_kernel_ext", 0, -1, methods};
PyMODINIT_FUNC PyInit_kt_kernel_ext(void) { return PyModule_Create(&defined); }
"""
SETUP = """
import json, os
from setuptools import Extension, setup
given = {name: value for name, value in os.environ.items() if name.startswith(("CPUINFER_", "USE_NUMA", "HOST_"))}
open("python/environment.json", "w").write(json.dumps(given))
setup(name="kt-kernel", version=os.environ["CPUINFER_VERSION"], packages=["kt_kernel"],
      package_dir={"kt_kernel": "python"}, package_data={"kt_kernel": ["*.json"]},
      ext_modules=[Extension("kt_kernel.kt_kernel_ext", ["ext.c"], LINKED)])
"""
PLAY = """
- hosts: kt
  gather_facts: true
  vars_files:
    - PROJECT/group_vars/all/paths.yml
    - PROJECT/group_vars/all/artifacts.yml
    - PROJECT/group_vars/all/floors.yml
    - settings.yml
  environment: {USE_NUMA: "0", CPUINFER_ENABLE_AMX: "ON", HOST_SAYS: "1"}
  pre_tasks:
    - onprem.llm.host_hardware: {id: "{{ inventory_hostname }}", model_dir: /}
      register: __ktransformers_hardware
  roles: [onprem.llm.firewall]
  tasks:
    - ansible.builtin.include_role: {name: onprem.llm.ktransformers, tasks_from: install}
"""


def archive(name: str, files: dict[str, str]) -> dict[str, Any]:
    """An archive as GitHub makes them, and its entry of a lock file."""
    path = FOLDER / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz") as whole:
        for inner, text in files.items():
            member = tarfile.TarInfo(f"{name}-1/{inner}")
            member.size = len(text.encode())
            whole.addfile(member, io.BytesIO(text.encode()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"version": VERSION, "url": f"file:{path}", "sha256": digest, "size": path.stat().st_size}


def settings(linked: str, **more: Any) -> None:
    """What the site sets; ``linked`` is how the extension is compiled."""
    submodules = {"third_party/llama.cpp": "small_llama_cpp", "third_party/pybind11": "small_pybind11"}
    entries = {name: archive(name, {"CMakeLists.txt": name}) for name in submodules.values()}
    source = {
        "version.py": f'__version__ = "{VERSION}"\n',
        "third_party/llamafile/README": "",
        "kt-kernel/CMakeLists.txt": "",
        "kt-kernel/setup.py": SETUP.replace("LINKED", linked),
        "kt-kernel/ext.c": EXTENSION,
        "kt-kernel/python/__init__.py": "",
        "kt-kernel/scripts/convert_cpu_weights.py": "print('converts')\n",
    }
    lock = (PROJECT / "requirements/ktransformers/py3.11.txt").read_text()
    click = re.search(r"(?m)^click==.*\n(?:[ ].*\n)+", lock)
    assert click
    (FOLDER / "lock.txt").write_text(f"{click[0]}kt-kernel=={VERSION} --hash=sha256:{'0' * 64}\n")
    given = {
        "artifacts": entries,
        "ktransformers_install_method": "source",
        "ktransformers_archive": {**archive("kt", source), "submodules": submodules},
        "ktransformers_lock": str(FOLDER / "lock.txt"),
        **more,
    }
    (FOLDER / "settings.yml").write_text(yaml.safe_dump(given))


def play(*arguments: str) -> tuple[int, str]:
    program = str(Path(sys.executable).parent / "ansible-playbook")
    done = subprocess.run(
        [program, "-i", str(FOLDER / "hosts.yml"), str(FOLDER / "play.yml"), *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    (FOLDER / "play.log").write_text(done.stdout + done.stderr)
    return done.returncode, done.stdout + done.stderr


def on(host: str, command: str) -> str:
    done = subprocess.run(
        [TESTHOST, "exec", LAB, host, "sh", "-c", command], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def changed(output: str) -> dict[str, int]:
    return {host: int(number) for host, number in re.findall(r"(?m)^(s\d)\s+: ok=\d+\s+changed=(\d+)", output)}


@pytest.fixture(scope="module")
def lab() -> Iterator[None]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    bind = {str(FOLDER): str(FOLDER)}
    hosts = [{"name": name, "ip": ip, "image": "bookworm", "binds": bind} for name, ip in NAMES.items()]
    described = {"lab": LAB, "network": "10.77.218.0/24", "hosts": hosts}
    subprocess.run([TESTHOST, "up"], input=json.dumps(described), text=True, check=True)
    common = {"ansible_user": "ansible", "ansible_become": True, "ansible_ssh_common_args": f"-F {SSH_CONFIG}"}
    inventory = {name: {"ansible_host": ip, "fleet_address": ip} for name, ip in NAMES.items()}
    (FOLDER / "hosts.yml").write_text(yaml.safe_dump({"kt": {"hosts": inventory, "vars": common}}))
    (FOLDER / "play.yml").write_text(PLAY.replace("PROJECT", str(PROJECT)))
    try:
        yield
    finally:
        if os.environ.get("ONPREM_KEEP") != "1":
            subprocess.run([TESTHOST, "down", LAB], check=True)
            shutil.rmtree(FOLDER)


ROOTS = "/opt/onprem-llm/ktransformers /opt/onprem-llm/ktransformers_build"


def test_a_build_that_is_not_what_was_asked_for_is_published_nowhere(lab: None) -> None:
    settings("")
    code, output = play("--check")
    assert code == 0, output[-3000:]
    assert on("s1", f"ls {ROOTS} 2>/dev/null") == "", "check mode writes nothing"
    code, output = play()
    assert code != 0
    assert "kt_kernel_ext" in output and "is not linked with libnuma, and NUMA is wanted" in output, output[-3000:]
    for host in NAMES:
        assert on(host, f"find {ROOTS} -name .complete -not -path '*.work/*' 2>/dev/null") == ""


def test_one_host_compiles_and_both_serve_it(lab: None) -> None:
    settings("define_macros=[('NUMA', '1')], libraries=['numa']")
    code, output = play()
    assert code == 0, output[-3000:]
    trees = {host: on(host, "ls -d /opt/onprem-llm/ktransformers/0.7.2-source-*/.complete") for host in NAMES}
    assert len(set(trees.values())) == 1 and trees["s1"], trees
    tree = trees["s1"].removesuffix("/.complete")
    for host in NAMES:
        assert on(host, "ls -d /opt/onprem-llm/ktransformers_build/*.work 2>/dev/null") == ""
        assert on(host, f"{tree}/bin/python -c 'import kt_kernel.kt_kernel_ext as k; print(k.nodes())'").isdigit()
        assert on(host, f"ls {tree}/share") == "convert_cpu_weights.py"
        # Triton compiles when the service first starts.
        assert on(host, "command -v gcc") != ""
    # The rest is needed on one host only.
    assert [on(host, "command -v cmake") != "" for host in NAMES] == [True, False]
    # What was decided is what the compiler got, and nothing of the host's own environment.
    given = json.loads(on("s1", f"cat {tree}/lib/python3.11/site-packages/kt_kernel/environment.json"))
    local = read("/", "s1", "/", lambda argv: (127, "", ""), False)
    decided = build.decide(
        "source", VERSION, local, sources=[], lock="", python="3.11", cuda="", blocked={}, architectures=""
    )
    wanted = {key: value for key, value in build.environment(decided, 1, "").items() if key.startswith("CPUINFER_")}
    assert {**given, "CPUINFER_PARALLEL": "1"} == wanted
    print(textwrap.indent(json.dumps(given, indent=1), "  "))
    code, output = play()
    assert code == 0 and changed(output) == {"s1": 0, "s2": 0}, output[-3000:]


def test_an_equal_host_gives_what_it_compiled_and_a_killed_run_is_taken_up(lab: None) -> None:
    tree = on("s1", "ls -d /opt/onprem-llm/ktransformers/0.7.2-source-*/.complete").removesuffix("/.complete")
    # As if s2 were new, and s1 had been killed before it verified what it installed.
    on("s2", f"rm -r {ROOTS}")
    on("s1", f"rm -r {tree}/.verified {tree}/share")
    code, output = play()
    assert code == 0 and "Build the Python that builds" not in output, output[-3000:]
    for host in NAMES:
        assert on(host, f"ls {tree}/.verified {tree}/share/convert_cpu_weights.py").count("\n") == 1
        assert on(host, "cd /opt/onprem-llm; ls ktransformers_build; readlink ktransformers_build/current").split() == [
            *(Path(tree).name, "current"),
            Path(tree).name,
        ]
        assert json.loads(on(host, f"cat {Path(tree).parent}_build/current/.complete"))["builder"] == "s1"


def test_a_version_that_came_to_harm_is_withdrawn(lab: None) -> None:
    tree = on("s1", "ls -d /opt/onprem-llm/ktransformers/0.7.2-source-*/.complete").removesuffix("/.complete")
    record = on("s1", "ls -d /opt/onprem-llm/ktransformers_build/0.7.2-source-*/build.json")
    for host in NAMES:
        on(host, f'rm {tree}/.complete {tree}/.verified; sed -i \'s/"numa": true/"numa": false/\' {record}')
    code, output = play()
    assert code != 0 and "records numa False, and True is wanted" in output, output[-3000:]
    assert on("s1", f"ls {tree}/.complete 2>/dev/null") == ""
    on("s1", f"rm -r {Path(record).parent}")
    on("s2", f"rm -r {Path(record).parent}")
    code, output = play()
    assert code == 0, output[-3000:]
    assert on("s2", f"ls {tree}/.complete") == f"{tree}/.complete"
