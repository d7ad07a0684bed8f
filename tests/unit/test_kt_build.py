# SPDX-License-Identifier: GPL-3.0-or-later
"""What KTransformers is compiled with: on all recorded machines, and where it is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines

from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import build, verify
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers.build import Build, BuildError

ARTIFACTS = yaml.safe_load((Path(__file__).parents[2] / "group_vars/all/artifacts.yml").read_text())["artifacts"]
FLOORS = yaml.safe_load((Path(__file__).parents[2] / "group_vars/all/floors.yml").read_text())
CLASSIC, SOURCE = ARTIFACTS["ktransformers_classic"]["version"], ARTIFACTS["ktransformers_source"]["version"]
#: Recorded machine -> (kt-kernel's variant, CPU_INSTRUCT of classic, whether classic has NUMA).
WANTED = {
    "spr-2s-xeon-gold-6430": ("amx", "FANCY", True),
    "spr-2s-snc4-xeon-8480": ("amx", "FANCY", True),
    "icx-2s-xeon-8352v": ("avx512_vbmi", "FANCY", True),
    "hsx-2s-e5-2696v3": ("avx2", "AVX2", True),
    "genoa-1s-nps4-epyc-9534": ("avx512_bf16", "FANCY", True),
    "vm-1s-epyc-2vcpu": ("avx512_bf16", "FANCY", False),
    "spr-2s-xeon-gold-6430-1tb": ("amx", "FANCY", True),
    "spr-2s-xeon-gold-6454s-1tb": ("amx", "FANCY", True),
    "spr-2s-xeon-8488c": ("amx", "FANCY", True),
    "spr-2s-xeon-8480-2tb": ("amx", "FANCY", True),
    "emr-2s-xeon-gold-6530": ("amx", "FANCY", True),
    "emr-2s-cxl-xeon-gold-6530": ("amx", "FANCY", True),
    "icx-2s-interleaved-xeon-silver-4310": ("avx512_vbmi", "FANCY", True),
    "icx-2s-xeon-8352v-16vcpu-90gb": ("avx512_vbmi", "FANCY", True),
    "hsx-1s-x99-e5-2696v3-64gb": ("avx2", "AVX2", False),
    "genoa-2s-offline-epyc-9554": ("avx512_bf16", "FANCY", True),
    "genoa-2s-epyc-9654": ("avx512_bf16", "FANCY", True),
    "laptop-i7-1260p": ("avx2", "AVX2", False),
}


def decided(machine: str = "spr-2s-xeon-gold-6430", method: str = "classic", **changes: Any) -> Build:
    given: dict[str, Any] = {"sources": ["0" * 64], "python": "3.11", "cuda": "12.4", "architectures": "8.9"}
    given |= {"lock": "0" * 64, "blocked": FLOORS["cuda_blocked"]}
    asked = {key: changes.pop(key) for key in list(changes) if key in given}
    version = changes.pop("version", CLASSIC if method == "classic" else SOURCE)
    cards = changes.pop("gpus", [])
    return build.decide(method, version, machines.hardware(machine, cards, **changes), **{**given, **asked})


def refusal(**given: Any) -> str:
    with pytest.raises(BuildError) as caught:
        decided(**given)
    text = str(caught.value)
    assert "\n" not in text, "one line"
    return text


# --- decisions on all recorded machines


def test_every_recorded_machine_has_a_decision_here() -> None:
    assert set(WANTED) == set(machines.machines())


@pytest.mark.parametrize("machine", sorted(WANTED))
def test_the_machine_decides_instructions_amx_and_numa(machine: str) -> None:
    variant, instruct, numa = WANTED[machine]
    kernels, classic = decided(machine, "source"), decided(machine)
    assert (kernels.isa, kernels.amx, kernels.numa) == (variant, variant == "amx", True)
    assert (classic.isa, classic.amx, classic.numa) == (instruct, False, numa)


@pytest.mark.parametrize("machine", sorted(WANTED))
@pytest.mark.parametrize("method", build.METHODS)
def test_numa_and_amx_reach_the_compiler_as_decided(machine: str, method: str) -> None:
    one = decided(machine, method)
    env = build.environment(one, 4, "/opt/cuda")
    if method == "classic":
        assert ("USE_NUMA" in env) == one.numa
        assert env["KTRANSFORMERS_FORCE_BUILD"] == "TRUE"
        assert env["CPU_INSTRUCT"] in ("FANCY", "AVX512", "AVX2")
        assert not [name for name in env if name.startswith("CPUINFER_")]
    else:
        assert "USE_NUMA" not in env
        said = {
            name: env[f"CPUINFER_ENABLE_{name}"]
            for name in ("AMX", "AVX512", "AVX512_VNNI", "AVX512_BF16", "AVX512_VBMI")
        }
        assert set(said.values()) <= {"ON", "OFF"}
        assert (said["AMX"] == "ON") == one.amx
        assert env["CPUINFER_CPU_INSTRUCT"] == ("AVX2" if one.isa == "avx2" else "AVX512")
    assert "NATIVE" not in env.values(), "a native build fits the builder alone"


def test_the_machine_with_one_amx_flag_of_three_gets_none() -> None:
    record = machines.machines()["spr-2s-xeon-gold-6430"]
    record["cpu"]["flags"] = record["cpu"]["flags"].replace(" amx_int8", "").replace(" amx_bf16", "")
    assert "amx_tile" in record["cpu"]["flags"].split()
    one = decided(method="source", cpu=record["cpu"])
    assert (one.isa, one.amx) == ("avx512_bf16", False)
    assert build.environment(one, 1, "")["CPUINFER_ENABLE_AMX"] == "OFF"


@pytest.mark.parametrize(
    ("kernel", "amx"), [("5.15.0-91-generic", False), ("5.16.0", True), ("6.1.0-37-amd64", True), (None, False)]
)
def test_amx_needs_a_kernel_that_is_known_to_give_the_tiles(kernel: str | None, amx: bool) -> None:
    assert decided(method="source", kernel=kernel).amx == amx


def test_what_is_compiled_for_classic_fits_processors_without_vpopcntdq() -> None:
    record = machines.machines()["icx-2s-xeon-8352v"]
    record["cpu"]["flags"] = " ".join(one for one in record["cpu"]["flags"].split() if one != "avx512_vpopcntdq")
    assert decided("icx-2s-xeon-8352v", cpu=record["cpu"]).isa == "AVX512"


def test_later_classic_compiles_amx_by_itself_and_is_refused_where_that_would_die() -> None:
    assert decided(version="0.3.2").amx
    text = refusal(version="0.3.2", kernel="5.10.0-30-amd64")
    assert "amx_tile" in text and "5.10.0-30-amd64" in text and "5.16" in text and "0.2.3post2" in text
    assert not decided(version=CLASSIC, kernel="5.10.0-30-amd64").amx


# --- environment


def test_nothing_of_the_hosts_environment_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_NUMA", "0")
    monkeypatch.setenv("CPUINFER_ENABLE_AMX", "ON")
    env = build.environment(decided("vm-1s-epyc-2vcpu"), 1, "/opt/cuda")
    assert "USE_NUMA" not in env
    assert env == build.environment(decided("vm-1s-epyc-2vcpu"), 1, "/opt/cuda")
    assert env["PATH"].startswith("/opt/cuda/bin:")


def test_cuda_reaches_the_compiler() -> None:
    env = build.environment(decided(architectures="8.9; 8.0"), 3, "/opt/cuda")
    assert (env["CUDA_HOME"], env["TORCH_CUDA_ARCH_LIST"], env["MAX_JOBS"]) == ("/opt/cuda", "8.0;8.9", "3")
    env = build.environment(decided(method="source", architectures="8.0,8.9"), 3, "/opt/cuda")
    assert (env["CPUINFER_USE_CUDA"], env["CPUINFER_CUDA_ARCHS"], env["CPUINFER_PARALLEL"]) == ("1", "80;89", "3")
    env = build.environment(decided(method="source", cuda=""), 3, "")
    assert env["CPUINFER_USE_CUDA"] == "0" and "CUDA_HOME" not in env and "CPUINFER_CUDA_ARCHS" not in env


def test_the_gpus_of_the_machine_are_what_is_compiled_for() -> None:
    assert decided(gpus=["rtx-4090-24g", "rtx-3090"], architectures="").architectures == ("8.6", "8.9")


@pytest.mark.parametrize(
    ("asked", "cpus", "gibibytes", "cuda", "wanted"),
    [(0, 64, 1000, True, 64), (0, 64, 16, True, 4), (0, 64, 16, False, 8), (0, 2, 1, True, 1), (7, 64, 4, True, 7)],
)
def test_jobs_follow_cpus_and_memory(asked: int, cpus: int, gibibytes: int, cuda: bool, wanted: int) -> None:
    assert build.jobs(asked, cpus, gibibytes * 2**30, cuda) == wanted


def test_packages_bring_libnuma_before_it_is_compiled() -> None:
    assert "libnuma-dev" in build.packages(decided())
    assert "libnuma-dev" not in build.packages(decided("vm-1s-epyc-2vcpu"))
    assert {"libnuma-dev", "libhwloc-dev", "pkg-config"} <= set(build.packages(decided("vm-1s-epyc-2vcpu", "source")))
    assert "libaio-dev" in build.packages(decided(version="0.2.4post1"))
    assert "libaio-dev" not in build.packages(decided())
    assert "libnuma1" in build.run_time_packages(decided())


@pytest.mark.parametrize("method", build.METHODS)
def test_every_host_has_what_triton_compiles_with_and_no_more(method: str) -> None:
    needed = build.run_time_packages(decided("vm-1s-epyc-2vcpu", method))
    assert {"gcc", "libc6-dev", "libgomp1"} <= set(needed)
    assert not {"build-essential", "cmake", "libnuma-dev"} & set(needed)


# --- refusals


def test_refusals_name_object_value_limit_and_way_out() -> None:
    assert "0.5.0" in refusal(version="0.5.0") and "0.4.1" in refusal(version="0.5.0")
    assert "0.5.0" in refusal(method="source", version="0.4.1")
    text = refusal(cuda="")
    assert "ktransformers_cuda_version is empty" in text and "12.4" in text
    text = refusal(method="source", cuda="", gpus=["rtx-4090-24g"])
    assert "4090" in text and "cuda_toolkit" in text
    text = refusal(cuda="13.2")
    assert "13.2" in text and "gibberish" in text and "12.8" in text
    assert "'12'" in refusal(cuda="12") and "as in 12.4" in refusal(cuda="12")
    assert "13.0" in refusal(cuda="13.0") and "11.8" in refusal(cuda="11.8") and "12.0" in refusal(cuda="12.0")
    text = refusal(architectures="")
    assert "ktransformers_cuda_architectures" in text and "8.9" in text
    assert "'89'" in refusal(architectures="89")
    text = refusal(method="source", gpus=["rtx-2080ti-22g-modded"], architectures="")
    assert "7.5" in text and "8.0" in text and "classic" in text
    assert decided(gpus=["rtx-2080ti-22g-modded"], architectures="").architectures == ("7.5",)


def test_a_toolkit_elsewhere_is_nothing_to_a_machine_without_a_gpu() -> None:
    one = decided(method="source", architectures="")
    assert (one.cuda, one.architectures) == ("", ())
    assert decided(method="source", architectures="8.9").cuda == "12.4", "it compiles for those that have one"


# --- the key


def test_equal_machines_have_one_key_and_it_reads_well() -> None:
    one, other = decided("spr-2s-xeon-gold-6430"), decided("emr-2s-xeon-gold-6530")
    assert build.key(one) == build.key(other)
    assert build.key(one).startswith(f"{CLASSIC}-classic-fancy-numa-py3.11-cu12.4-")


CHANGES: dict[str, Any] = {
    "method": "source",
    "version": "0.2.3",
    "sources": ("1" * 64,),
    "lock": "1" * 64,
    "system": "debian 13",
    "python": "3.12",
    "isa": "AVX2",
    "amx": True,
    "numa": False,
    "cuda": "12.8",
    "architectures": ("8.0",),
}


@pytest.mark.parametrize("field", CHANGES)
def test_whatever_changes_the_bits_changes_the_key(field: str) -> None:
    one = decided()
    assert set(CHANGES) == set(verify.plain(one)), "every part of a build is tried"
    assert build.key(one) != build.key(replace(one, **{field: CHANGES[field]}))


def test_what_changes_no_bits_changes_no_key() -> None:
    assert build.key(decided(architectures="8.0 8.9")) == build.key(decided(architectures="8.9;8.0"))
    assert build.key(decided(gpus=["rtx-4090-24g"])) == build.key(decided())


def test_a_build_survives_json() -> None:
    assert build.from_values(verify.plain(decided())) == decided()


# --- the lock file


@pytest.mark.parametrize("name", ["ktransformers_source", "ktransformers_classic"])
def test_submodules_are_entries_of_their_own(name: str) -> None:
    for path, entry in ARTIFACTS[name]["submodules"].items():
        assert f"{path}/CMakeLists.txt" in verify.WHOLE[name.removeprefix("ktransformers_")]
        assert ARTIFACTS[entry]["version"] in ARTIFACTS[entry]["url"], "a submodule is fetched by its commit"


def test_the_built_wheel_takes_the_place_of_the_published_one() -> None:
    lock = (
        "a==1 \\\n    --hash=sha256:aa\n"
        "kt-kernel==0.7.2 \\\n    --hash=sha256:bb \\\n    --hash=sha256:cc\n    # via -r x\n"
        "z==2 --hash=sha256:dd"
    )
    assert verify.lock_with(lock, "kt-kernel", "file:///x.whl", "ee") == (
        "a==1 \\\n    --hash=sha256:aa\nz==2 --hash=sha256:dd\nkt-kernel @ file:///x.whl --hash=sha256:ee\n"
    )
    assert verify.lock_with("a==1\n", "ktransformers", "file:///x.whl", "ee").startswith("a==1\nktransformers @")
