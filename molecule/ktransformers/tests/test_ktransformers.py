# SPDX-License-Identifier: GPL-3.0-or-later
"""kt-kernel from its wheel on a host without a GPU: it computes as it should, or the cause is named in one line.

Which builds can run is the processor's: those that this machine lacks are skipped, and refused in other tests.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import one_line

from ansible_collections.onprem.llm.plugins.module_utils.ktransformers.selftest import FLAGS, VARIANT

testinfra_hosts = ["ansible://moe1"]

ROOT = "/opt/onprem-llm/ktransformers"
PACKAGES = f"{ROOT}/current/lib/python3.11/site-packages"
LAB = "/var/tmp/lab"
#: Runs a program that the kernel refuses the tiles of AMX: arch_prctl(ARCH_REQ_XCOMP_PERM) answers EPERM (seccomp).
WITHOUT_TILES = """
import ctypes, os, struct, sys
steps = [(32, 0, 0, 0), (21, 0, 3, 158), (32, 0, 0, 16), (21, 0, 1, 0x1023), (6, 0, 0, 0x50001), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
program = Program(len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def flags(host: Any) -> set[str]:
    return set(re.search(r"(?m)^flags\s*:(.*)$", host.check_output("cat /proc/cpuinfo")).group(1).split())


@pytest.fixture(autouse=True)
def lab(host: Any) -> None:
    host.check_output(f"sudo install -d -m 777 {LAB}")


def write(host: Any, path: str, text: str) -> str:
    host.check_output(f"printf %s {shlex.quote(text)} | sudo tee {path} >/dev/null && sudo chmod 755 {path}")
    return path


def compute(host: Any, variant: str = "", method: str = "BF16", **more: Any) -> dict[str, Any]:
    """The self-test as the role runs it, without what was proven before."""
    environment = {**({VARIANT: variant} if variant else {}), **more.pop("environment", {})}
    given = {
        "python": f"{ROOT}/current/bin/python",
        "script": f"{ROOT}/selftest.py",
        "proofs": f"{LAB}/proofs.json",
        "method": method,
        "environment": environment,
        **more,
    }
    try:
        return host.ansible("onprem.llm.ktransformers_selftest", json.dumps(given), check=False)
    except host.ansible.AnsibleException as failed:
        return failed.result


@contextmanager
def lists(host: Any, flags: set[str]) -> Iterator[None]:
    """Meanwhile /proc/cpuinfo lists these flags."""
    write(
        host, f"{LAB}/cpuinfo", f"processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: {' '.join(sorted(flags))}\n\n"
    )
    host.check_output(f"sudo mount --bind {LAB}/cpuinfo /proc/cpuinfo")
    try:
        yield
    finally:
        host.check_output("sudo umount /proc/cpuinfo")


@contextmanager
def away(host: Any, path: str) -> Iterator[None]:
    """Meanwhile the file or folder is not there."""
    host.check_output(f"sudo mv {path} {path}.away")
    try:
        yield
    finally:
        host.check_output(f"sudo mv {path}.away {path}")


# It computes ---------------------------------------------------------------------------------------------------------


def test_the_role_proved_what_the_service_will_use(host: Any) -> None:
    (proof,) = json.loads(host.check_output(f"sudo cat $(readlink {ROOT}/current).proofs")).values()
    assert (proof["variant"], proof["class"], proof["method"]) == ("avx2", "AVX2BF16_MOE", "BF16")
    assert 0 < proof["error"] < 0.01


@pytest.mark.parametrize(
    ("variant", "method", "computes"),
    [
        ("avx512_base", "FP8", "AMXFP8_MOE"),
        ("avx512_bf16", "AMXINT8", "AMXInt8_MOE"),
        ("amx", "AMXINT4", "AMXInt4_MOE"),
    ],
)
def test_builds_for_newer_processors_compute(
    host: Any, flags: set[str], variant: str, method: str, computes: str
) -> None:
    if gone := set(FLAGS[variant]) - flags:
        pytest.skip(f"this CPU lacks {', '.join(sorted(gone))}")
    found = compute(host, variant, method, threads=2)
    assert "result" in found, found
    assert (found["result"]["variant"], found["result"]["class"]) == (variant, computes)
    assert 0 < found["result"]["error"] < 0.03
    # What was proven is not computed again.
    again = compute(host, variant, method, threads=2, timeout=0)
    assert not again["changed"] and again["result"] == found["result"]


def test_the_sandbox_of_the_service_lets_the_kernels_run(host: Any, flags: set[str]) -> None:
    """Tiles are asked for, and memory is bound to nodes, by system calls that the unit's filter could refuse."""
    variant, method = ("amx", "AMXINT8") if set(FLAGS["amx"]) <= flags else ("avx2", "FP8")
    folder = "/run/systemd/system/ktransformers@probe.service.d"
    host.check_output(f"sudo install -d {folder}")
    program = f"{ROOT}/current/bin/python {ROOT}/selftest.py {method} 2 0"
    write(host, "/etc/onprem-llm/ktransformers/probe.env", f"{VARIANT}={variant}\nCUDA_VISIBLE_DEVICES=\n")
    write(host, f"{folder}/probe.conf", f"[Service]\nType=oneshot\nRestart=no\nExecStart=\nExecStart={program}\n")
    started = host.run("sudo systemctl daemon-reload && sudo systemctl start ktransformers@probe")
    said = host.check_output("sudo journalctl -o cat --no-pager -u ktransformers@probe")
    host.check_output(f"sudo rm -r {folder} /etc/onprem-llm/ktransformers/probe.env && sudo systemctl daemon-reload")
    assert started.rc == 0, said
    assert f'"variant": "{variant}"' in said and "Operation not permitted" not in said, said


# It is refused, or its failure has a name ----------------------------------------------------------------------------


def test_a_build_that_the_flags_exclude_is_not_started(host: Any) -> None:
    with lists(host, {"lm", "avx", "avx2", "fma", "avx512f", "avx512bw"}):
        said = compute(host, "amx", "AMXINT8", python="/nowhere/python")["msg"]
    assert said == (
        "kt-kernel's build amx needs amx_tile, amx_int8, amx_bf16, avx512_vnni, avx512vbmi, avx512_bf16; this CPU does "
        "not have it, and the build was not started. Use KT_KERNEL_CPU_VARIANT=avx512_base."
    )


def test_what_kt_kernel_would_ignore_is_refused(host: Any) -> None:
    assert "KT_KERNEL_CPU_VARIANT=avx512 is no build of kt-kernel" in compute(host, "avx512")["msg"]
    assert "NUMA node 7 is asked for (kt-numa-nodes), and this host has 0" in compute(host, "avx2", nodes=[0, 7])["msg"]
    assert "asks for 4096 threads on 1 NUMA nodes" in compute(host, "avx2", threads=4096)["msg"]


def test_a_build_that_dies_is_named(host: Any, flags: set[str]) -> None:
    """On a processor with AMX the kernel refuses the tiles; on others /proc/cpuinfo lies. Both end in SIGILL."""
    if set(FLAGS["amx"]) <= flags:
        script = write(host, f"{LAB}/without_tiles.py", WITHOUT_TILES)
        refused = f'#!/bin/sh\nexec /usr/bin/python3 {script} {ROOT}/current/bin/python "$@"\n'
        said = compute(host, "amx", "AMXINT8", python=write(host, f"{LAB}/python", refused))["msg"]
    else:
        with lists(host, flags | set(FLAGS["amx"])):
            said = compute(host, "amx", "AMXINT8")["msg"]
    assert said.startswith("variant amx died with SIGILL (illegal instruction) in method AMXINT8: this CPU lacks what")
    assert "\n" not in said and "Use KT_KERNEL_CPU_VARIANT=" in said


def test_another_build_than_asked_for_is_noticed(host: Any, flags: set[str]) -> None:
    if set(FLAGS["avx512_base"]) - flags:
        pytest.skip("this CPU can run one build only")
    with away(host, host.check_output(f"ls {PACKAGES}/kt_kernel/_kt_kernel_ext_avx512_base.*.so")):
        said = compute(host, "avx512_base", "FP8")["msg"]
    assert said.startswith(
        "kt-kernel was told to load its build avx512_base and loaded avx2: the file of avx512_base is"
    )


def test_a_wrong_result_is_noticed(host: Any) -> None:
    """The engine's activation is another one than the reference's."""
    write(host, f"{LAB}/sitecustomize.py", "import torch.nn.functional as f\nf.silu = f.relu\n")
    said = compute(host, "avx2", environment={"PYTHONPATH": LAB})["msg"]
    assert re.fullmatch(
        r"kt-kernel's build avx2, method BF16 \(AVX2BF16_MOE\) computes wrongly: relative error 0\.\d+, "
        r"at most 0\.01 is right\. Use another build or method\.",
        said,
    )


def test_a_class_that_the_build_has_not_is_named(host: Any) -> None:
    said = compute(host, "avx2", "AMXINT8")["msg"]
    assert "kt-kernel's build avx2, method AMXINT8: this build has no class for AMXINT8" in said and "\n" not in said


def test_a_missing_module_is_named(host: Any) -> None:
    with away(host, f"{PACKAGES}/click"):
        assert "the installed version lacks the Python module click" in compute(host, "avx2")["msg"]


def test_a_test_that_does_not_end_is_ended(host: Any) -> None:
    assert "no result in time with 1 threads" in compute(host, "avx2", timeout=0)["msg"]


# The service ---------------------------------------------------------------------------------------------------------


def test_the_unit_is_sound_and_closed(host: Any) -> None:
    verified = host.run("sudo systemd-analyze verify ktransformers@qwen.service")
    assert (verified.rc, verified.stdout + verified.stderr) == (0, "")
    score = host.check_output("sudo systemd-analyze security --no-pager ktransformers@qwen.service | tail -1")
    assert float(re.search(r"qwen\.service: ([0-9.]+)", score).group(1)) <= 2.0


def test_the_service_starts_with_what_the_plan_says(host: Any) -> None:
    found = host.check_output("sudo cat /etc/onprem-llm/ktransformers/qwen.env")
    assert "KT_KERNEL_CPU_VARIANT=avx2\n" in found
    for option in (
        "kt-method BF16",
        "kt-cpuinfer 2",
        "kt-threadpool-count 1",
        "kt-numa-nodes 0",
        "context-length 8192",
    ):
        assert f"--{option} " in found
    key = host.check_output("sudo cat /etc/onprem-llm/ktransformers/api_key").strip()
    assert len(key) >= 16 and key not in found


def test_the_host_knows_what_it_serves_with(host: Any) -> None:
    local = json.loads(host.check_output("cat /etc/ansible/facts.d/onprem_llm.fact"))
    section = local["components"]["ktransformers"]
    assert section["pointer"] == host.check_output(f"readlink -f {ROOT}/current")
    assert section["models"]["qwen"]["pointer"] == host.check_output("readlink -f /srv/llm/served/qwen")
    assert (section["previous"], local["debts"]) == ({}, [])


def test_every_option_is_one_of_the_installed_program(host: Any) -> None:
    line = host.check_output("sudo grep ^KTRANSFORMERS_OPTIONS= /etc/onprem-llm/ktransformers/qwen.env")
    source = host.check_output(f"cat {PACKAGES}/sglang/srt/server_args.py")
    options = re.findall(r" ?--[a-z0-9-]+", line)
    assert len(options) > 10
    assert not [option for option in options if f'"{option.strip()}"' not in source]


def test_upstreams_sglang_is_not_beside_it(host: Any) -> None:
    assert one_line(host.check_output(f"ls -d {PACKAGES}/sglang*.dist-info | xargs -n1 basename")) == (
        "sglang_kt-0.7.2.dist-info"
    )
