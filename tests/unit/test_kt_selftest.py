# SPDX-License-Identifier: GPL-3.0-or-later
"""The self-test of kt-kernel: what is refused before it runs, and the cause in one line when it fails.

The texts of failures are those that kt-kernel 0.7.2 and Python printed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import selftest
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers.selftest import Asked, Host
from ansible_collections.onprem.llm.plugins.module_utils.placement.engines import AMX, AVX512_BF16, RULES, kt_variant
from ansible_collections.onprem.llm.plugins.modules import ktransformers_selftest

sys.path.insert(0, str(Path(__file__).parents[1]))
from machines import hardware, machines

ZEN4 = Host(("avx2", *AVX512_BF16), "6.1.0-37-amd64", {0, 1}, 128)
XEON = Host(("avx2", *AMX), "6.1.0-37-amd64", {0, 1}, 128)
OLD = Host(("avx2",), "6.1.0-37-amd64", {0}, 36)


def asked(variant: str = "avx2", method: str = "BF16", threads: int = 2, nodes: tuple[int, ...] = (0,)) -> Asked:
    return Asked(variant, method, threads, nodes)


def printed(**changes: Any) -> str:
    result = {"variant": "avx2", "class": "AVX2BF16_MOE", "method": "BF16", "error": 0.004, **changes}
    return f"Created\n{json.dumps(result)}\nCPUInfer[0x1]: Goodbye\n"


# Before it runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", sorted(machines()))
def test_the_best_build_is_the_planners(machine: str) -> None:
    """One choice, made twice: by the plan from the facts, and on the host where nothing is placed."""
    facts = hardware(machine)
    host = Host(facts["cpu"]["isa"], facts["system"]["kernel"] or "", {0}, 2)
    assert selftest.best(host) == kt_variant(facts)


@pytest.mark.parametrize(
    ("host", "what", "said"),
    [
        (
            ZEN4,
            asked("amx"),
            "kt-kernel's build amx needs amx_tile, amx_int8, amx_bf16; this CPU does not have it, and the build was "
            "not "
            "started. Use KT_KERNEL_CPU_VARIANT=avx512_bf16.",
        ),
        (
            OLD,
            asked("avx512_base"),
            "kt-kernel's build avx512_base needs avx512f, avx512bw; this CPU does not have it, and the build was not "
            "started. Use KT_KERNEL_CPU_VARIANT=avx2.",
        ),
        (
            OLD._replace(isa=()),
            asked("avx2"),
            "kt-kernel's build avx2 needs avx2; this CPU does not have it, and the build was not started. "
            "Use llama.cpp on this host.",
        ),
        (
            XEON._replace(kernel="5.10.0-8-amd64"),
            asked("amx"),
            "kt-kernel's build amx needs Linux 5.16, the first that gives tiles; this kernel is 5.10.0-8-amd64. "
            "Install a "
            "newer one, or: Use KT_KERNEL_CPU_VARIANT=avx512_bf16.",
        ),
        (
            XEON,
            asked("avx512"),
            "KT_KERNEL_CPU_VARIANT=avx512 is no build of kt-kernel, which would silently take another one. "
            "Name one of amx, avx512_bf16, avx512_vbmi, avx512_vnni, avx512_base, avx2.",
        ),
        (
            OLD,
            asked(nodes=(0, 1)),
            "NUMA node 1 is asked for (kt-numa-nodes), and this host has 0. kt-kernel would go on with a wrong memory "
            "layout. Plan again.",
        ),
        (
            OLD,
            asked(threads=64),
            "kt-cpuinfer asks for 64 threads on 1 NUMA nodes; this host gives 36 CPUs. Use as many as there are "
            "physical "
            "cores, at least one per node: plan again.",
        ),
        (XEON, asked(threads=1, nodes=(0, 1)), "kt-cpuinfer asks for 1 threads on 2 NUMA nodes; this host gives 128"),
        (OLD, asked(method="SYCL_GPTQ_INT4"), "kt-method SYCL_GPTQ_INT4 has no self-test. Use one of AMXINT4,"),
    ],
)
def test_refused_before_it_runs(host: Host, what: Asked, said: str) -> None:
    assert selftest.refusal(what, host).startswith(said)


def test_what_fits_may_run() -> None:
    assert not selftest.refusal(asked("amx", "AMXINT4", 64, (0, 1)), XEON)
    assert not selftest.refusal(asked(), OLD)


def test_every_method_of_the_planner_has_a_limit() -> None:
    planned = {method.name for methods in RULES["ktransformers"].methods.values() for method in methods}
    assert planned <= set(selftest.LIMITS)


# When it fails -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [-4, 132], ids=["signal", "shell"])
def test_sigill_names_the_flags_that_are_missing(status: int) -> None:
    assert selftest.cause(asked("amx", "AMXINT8"), ZEN4, status, "", "") == (
        "variant amx died with SIGILL (illegal instruction) in method AMXINT8: this CPU lacks amx_tile, amx_int8, "
        "amx_bf16. "
        "Use KT_KERNEL_CPU_VARIANT=avx512_bf16."
    )


def test_sigill_where_the_flags_are_listed() -> None:
    """Forged flags, a hypervisor that hides AMX, or a sandbox that refuses the tiles (kt#320)."""
    assert selftest.cause(asked("amx", "AMXINT8"), XEON, -4, "", "") == (
        "variant amx died with SIGILL (illegal instruction) in method AMXINT8: this CPU lacks what /proc/cpuinfo lists "
        "(amx_tile, amx_int8, amx_bf16), or this process may not use it (hypervisor, sandbox, forged flags). "
        "Use KT_KERNEL_CPU_VARIANT=avx512_bf16."
    )


BUILD = "kt-kernel's build avx2, method BF16"
MISSING = "Traceback (most recent call last):\nModuleNotFoundError: No module named 'click'\n"
SYMBOL = "ImportError: libtorch_cpu.so: undefined symbol: _ZN5torch23torchInternalAssertFail\n"
ABSENT = (
    "RuntimeError: AMXINT8 backend not available. Required ISA:\n  - AVX512F + AVX512BW (VNNI optional)\n"
    "Please recompile kt_kernel_ext with AVX512 enabled.\n"
)
LIBRARY = "ImportError: /lib/x86_64-linux-gnu/libstdc++.so.6: version `GLIBCXX_3.4.32' not found (required by a.so)\n"


@pytest.mark.parametrize(
    ("status", "out", "err", "said"),
    [
        (None, "", "", f"{BUILD}: no result in time with 2 threads."),
        (-11, "", "boom", f"{BUILD}: died with SIGSEGV. Run it by hand for its last words: boom"),
        (-9, "", "", f"{BUILD}: died with SIGKILL."),
        (1, "", MISSING, f"{BUILD}: the installed version lacks the Python module click."),
        (1, "", SYMBOL, f"{BUILD}: undefined symbol _ZN5torch23torchInternalAssertFail: torch and"),
        (1, "", ABSENT, f"{BUILD}: this build has no class for BF16:"),
        (1, "", LIBRARY, f"{BUILD}: a library of this system is too old: GLIBCXX_3.4.32 is missing"),
        (1, "", "ValueError: so", f"{BUILD}: failed: ValueError: so"),
        (0, "Goodbye", "", f"{BUILD}: it ended well and printed no result: Goodbye."),
        (0, printed(variant="avx512_bf16"), "", "kt-kernel was told to load its build avx2 and loaded avx512_bf16: "),
        (0, printed(error=0.7), "", f"{BUILD} (AVX2BF16_MOE) computes wrongly: relative error 0.7,"),
        (0, printed(error=float("inf")), "", f"{BUILD} (AVX2BF16_MOE) computes wrongly:"),
        (0, printed(error=float("nan")), "", f"{BUILD} (AVX2BF16_MOE) computes wrongly:"),
    ],
)  # fmt: skip
def test_the_cause_in_one_line(status: int | None, out: str, err: str, said: str) -> None:
    found = selftest.cause(asked(), ZEN4, status, out, err)
    assert found.startswith(said)
    assert "\n" not in found


def test_a_right_result_is_no_failure() -> None:
    assert selftest.cause(asked(), ZEN4, 0, printed(), "warnings") == ""
    assert selftest.parse(printed())["error"] == 0.004


# The module ----------------------------------------------------------------------------------------------------------

#: Stands in for the installed Python: it answers what it is told, or dies.
STAND_IN = """#!/bin/sh
echo "$KT_KERNEL_CPU_VARIANT $2 $3 $4 cuda=$CUDA_VISIBLE_DEVICES" >> {log}
{does}
"""


@pytest.fixture
def run(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setattr(ktransformers_selftest, "look", lambda: ZEN4)
    (tmp_path / "selftest.py").write_text("# the test\n")

    def once(does: str, check: bool = False, **more: Any) -> dict[str, Any]:
        python = tmp_path / "python"
        python.write_text(STAND_IN.format(log=tmp_path / "log", does=does))
        python.chmod(0o755)
        given = {
            "python": str(python),
            "script": str(tmp_path / "selftest.py"),
            "proofs": str(tmp_path / "tree.proofs"),
            "_ansible_check_mode": check,
            **more,
        }
        with patch_module_args(given), pytest.raises(SystemExit):
            ktransformers_selftest.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    once.log = tmp_path / "log"  # type: ignore[attr-defined]
    return once


def says(**changes: Any) -> str:
    return f"cat <<'E'\n{printed(**changes)}E"


def test_a_proof_is_kept_until_something_changes(run: Any) -> None:
    what = {"environment": {"KT_KERNEL_CPU_VARIANT": "avx2"}, "threads": 4, "nodes": [0, 1]}
    # After an upgrade of the kernel nothing differs from what was described.
    assert not run(says(), check=True, **what)["changed"] and not run.log.exists()
    first = run(says(), **what)
    assert first["changed"] and first["result"]["class"] == "AVX2BF16_MOE"
    assert run.log.read_text() == "avx2 BF16 4 0 cuda=\n"
    again = run("exit 1", **what)
    assert not again["changed"] and again["result"] == first["result"]
    assert run("exit 1", **{**what, "threads": 8})["failed"]


def test_the_best_build_where_none_is_named(run: Any) -> None:
    assert run(says(variant="avx512_bf16"))["result"]["variant"] == "avx512_bf16"


def test_nothing_runs_that_was_refused(run: Any) -> None:
    found = run(says(), environment={"KT_KERNEL_CPU_VARIANT": "amx"})
    assert found["failed"] and "needs amx_tile" in found["msg"] and not run.log.exists()


def test_a_death_by_signal_is_named_and_proves_nothing(run: Any) -> None:
    what = {"environment": {"KT_KERNEL_CPU_VARIANT": "avx512_bf16"}}
    assert run("kill -ILL $$", **what)["msg"].startswith("variant avx512_bf16 died with SIGILL")
    assert run(says(variant="avx512_bf16"), **what)["changed"]


def test_without_the_installed_python(run: Any, tmp_path: Any) -> None:
    found = run(says(), python=str(tmp_path / "gone"))
    assert found["failed"] and "gone" in found["msg"]
