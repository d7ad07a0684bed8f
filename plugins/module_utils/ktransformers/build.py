# SPDX-License-Identifier: GPL-3.0-or-later
"""What to compile KTransformers with on a machine: decided here, never left to what its build scripts detect.

Two methods. ``source`` is kt-kernel, 0.5 and later; NUMA is always in it. ``classic`` is the whole program up to 0.4.1.
Read in setup.py, CMakeLists.txt and cmake/DetectCPU.cmake of the tags v0.2.1.post1, v0.2.3post2, v0.3.2 and v0.7.0.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware
from ansible_collections.onprem.llm.plugins.module_utils.placement import engines, threads

METHODS = ("source", "classic")
#: What each method compiles into: Python extensions by name.
EXTENSIONS = {"source": ("kt_kernel_ext",), "classic": ("cpuinfer_ext", "KTransformersOps")}
PACKAGE = {"source": "kt_kernel", "classic": "ktransformers"}
LAST_CLASSIC, FIRST_SOURCE = (0, 4, 1), (0, 5)
#: From here on classic has its C++ in csrc/, compiles AMX where `lscpu` prints "amx", and insists on libnuma-dev.
CSRC = (0, 2, 4)
#: The CUDA that the locked torch is built for; torch refuses a toolkit of another major version.
CUDA_MAJOR = 12
OLDEST_CUDA = (12, 1)
AMX_FLAGS = {"amx_tile", "amx_int8", "amx_bf16"}
#: -mavx512f -mavx512bw -mavx512dq -mavx512vl of LLAMA_AVX512 in kt-kernel.
AVX512_BASE = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
#: CPU_INSTRUCT of classic and the flags its compiler options stand for, best first. FANCY has vpopcntdq since 0.2.3.
CLASSIC_ISA = (
    ("FANCY", AVX512_BASE | {"avx512_vnni", "avx512_vpopcntdq"}),
    ("AVX512", {"avx512f", "avx512bw"}),
    ("AVX2", {"avx2"}),
)
GIB = 2**30
#: Memory of one compile job: nvcc on the Marlin kernels, g++ on the CPU kernels.
JOB_CUDA, JOB_CPU = 4 * GIB, 2 * GIB

APT = {
    "source": ("build-essential", "cmake", "libhwloc-dev", "libnuma-dev", "ninja-build", "pkg-config"),
    "classic": ("build-essential", "cmake", "ninja-build", "patchelf"),
}
BALANCE_SERVE = (
    "libaio-dev",
    "libcurl4-openssl-dev",
    "libfmt-dev",
    "libgflags-dev",
    "libssl-dev",
    "libtbb-dev",
    "zlib1g-dev",
)
#: Triton compiles a launcher for its kernels when a service first uses them: gcc stays.
TRITON = ("gcc", "libc6-dev")
RUN_TIME = {"source": (*TRITON, "libgomp1", "libhwloc15", "libnuma1"), "classic": (*TRITON, "libgomp1")}


class BuildError(Exception):
    """It cannot be compiled here. The text names object, value, limit and way out, in one line."""


@dataclass(frozen=True)
class Build:
    """Everything that changes the bits. Two machines with equal builds share one."""

    method: str
    version: str
    sources: tuple[str, ...]
    """sha256 of every tarball, main one first."""
    lock: str
    """sha256 over the lock files: what compiles, and what it is installed with."""
    system: str
    """As in "debian 12"."""
    python: str
    """As in "3.11"."""
    isa: str
    """source: kt-kernel's own name of the variant. classic: CPU_INSTRUCT."""
    amx: bool
    numa: bool
    cuda: str
    """Release of the toolkit, as in "12.4"; "" without."""
    architectures: tuple[str, ...]
    """Compute capabilities, as in "8.9"."""


def release(version: str) -> tuple[int, ...]:
    """0.2.3post2 -> (0, 2, 3): what comes after the third number does not order releases here."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(one) for one in found[1].split(".")[:3]) if found else ()


def decide(
    method: str,
    version: str,
    hardware: Hardware,
    *,
    sources: Sequence[str],
    lock: str,
    python: str,
    cuda: str,
    blocked: Mapping[str, str],
    architectures: str,
) -> Build:
    """The build for this machine, which wheel.problems has let through. BuildError where it would not work.

    ``cuda`` is the toolkit's release, "" without, on the machine that compiles; ``blocked`` are releases that are not
    taken, and why; ``architectures`` is the site's list, "" takes those of the machine's GPUs.
    """
    flags = set(hardware["cpu"]["isa"])
    _check_release(method, version)
    if method == "source" and not hardware["gpus"] and not architectures:
        cuda = ""  # a toolkit elsewhere is nothing to a machine without a GPU
    _check_cuda(method, cuda, blocked, hardware)
    isa, amx = _instructions(method, version, hardware, flags)
    return Build(
        method=method,
        version=version,
        sources=tuple(sources),
        lock=lock,
        system=f"{hardware['system']['distribution']} {hardware['system']['version']}",
        python=python,
        isa=isa,
        amx=amx,
        numa=method == "source" or len(threads.compute_nodes(hardware)) > 1,
        cuda=cuda,
        architectures=_architectures(method, architectures, hardware) if cuda else (),
    )


def _check_release(method: str, version: str) -> None:
    number = release(version)
    if method == "classic" and not (number and number <= LAST_CLASSIC):
        raise BuildError(
            f"Version {version} is no classic KTransformers: the last is 0.4.1. Use method source or wheel."
        )
    if method == "source" and not number >= FIRST_SOURCE:
        raise BuildError(f"Version {version} has no kt-kernel: the first is 0.5.0. Use method classic.")


def _check_cuda(method: str, cuda: str, blocked: Mapping[str, str], hardware: Hardware) -> None:
    way_out = (
        "Let role cuda_toolkit install 12.4 or 12.8 where it compiles, or name yours in ktransformers_cuda_version."
    )
    if not cuda:
        cards = [card["name"] for card in hardware["gpus"]]
        if method == "classic" or cards:
            why = (
                "classic always compiles CUDA files" if method == "classic" else f"its kernels must feed the {cards[0]}"
            )
            raise BuildError(
                f"{hardware['id']} has no CUDA toolkit (ktransformers_cuda_version is empty), and {why}. {way_out}"
            )
        return
    if not re.fullmatch(r"\d+\.\d+", cuda):
        raise BuildError(f"ktransformers_cuda_version is {cuda!r}; write the release, as in 12.4.")
    if cuda in blocked:
        raise BuildError(f"The CUDA toolkit is {cuda}: {blocked[cuda]}. {way_out}")
    number = tuple(int(one) for one in cuda.split("."))
    if number[0] != CUDA_MAJOR or number < OLDEST_CUDA:
        raise BuildError(
            f"The CUDA toolkit is {cuda}; torch is built for CUDA {CUDA_MAJOR} and takes 12.1 or later of it. {way_out}"
        )


def _instructions(method: str, version: str, hardware: Hardware, flags: set[str]) -> tuple[str, bool]:
    """Instruction set and whether AMX is compiled in. All three flags and a kernel known to give the tiles."""
    kernel = engines.version(hardware["system"]["kernel"])
    tiles = kernel is not None and kernel >= engines.AMX_KERNEL
    if method == "source":
        variants = [(name, set(isa)) for name, isa in engines.KT_VARIANTS if name != "amx" or tiles]
        needed = [(name, isa | (AVX512_BASE if name != "avx2" else set())) for name, isa in variants]
        isa = next(name for name, wanted in needed if wanted <= flags)
        return isa, isa == "amx"
    seen = bool(flags & AMX_FLAGS)
    amx = flags >= AMX_FLAGS and tiles
    if release(version) >= CSRC and seen and not amx:
        raise BuildError(
            f"{hardware['id']} shows {', '.join(sorted(flags & AMX_FLAGS))} with kernel "
            f"{hardware['system']['kernel']}: KTransformers {version} would compile AMX by itself, which needs all "
            "three flags and kernel 5.16, and would die with SIGILL. Install a newer kernel, or use 0.2.3post2."
        )
    isa = next(name for name, wanted in CLASSIC_ISA if wanted <= flags)
    return isa, amx and release(version) >= CSRC


def _architectures(method: str, asked: str, hardware: Hardware) -> tuple[str, ...]:
    given = [one for one in re.split(r"[;,\s]+", asked) if one]
    wrong = [one for one in given if not re.fullmatch(r"\d{1,2}\.\d", one)]
    if wrong:
        raise BuildError(
            f"ktransformers_cuda_architectures names {wrong[0]!r}; write compute capabilities as in 8.9 or 8.0;8.6."
        )
    found = given or sorted({card["compute_capability"] for card in hardware["gpus"] if card["compute_capability"]})
    if not found:
        raise BuildError(
            f"{hardware['id']} has no GPU whose compute capability is known: nothing says what to compile for. Set "
            "ktransformers_cuda_architectures, e.g. 8.9."
        )
    oldest = engines.RULES[engines.CLASSIC if method == "classic" else "ktransformers"].capability or (0, 0)
    old = [one for one in found if _number(one) < oldest]
    if old:
        raise BuildError(
            f"Compute capability {old[0]} is below {oldest[0]}.{oldest[1]}, the oldest that KTransformers' kernels of "
            f"method {method} are for. "
            f"Use {'method classic or ' if method == 'source' and _number(old[0]) >= (7, 5) else ''}llama.cpp."
        )
    return tuple(sorted(set(found), key=_number))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(one) for one in capability.split("."))


def key(build: Build) -> str:
    """Name of the build: what people ask for first, and 8 digits over all of it."""
    digest = hashlib.sha256(json.dumps(asdict(build), sort_keys=True).encode()).hexdigest()[:8]
    words = [build.version, build.method, build.isa.lower(), *(["numa"] if build.numa else [])]
    return "-".join([*words, f"py{build.python}", *([f"cu{build.cuda}"] if build.cuda else []), digest])


def jobs(asked: int, cpus: int, memory: int, cuda: bool) -> int:
    """Compile jobs: what was asked for, else as many as CPUs and ``memory`` (bytes that are free) allow."""
    return asked or max(1, min(cpus, memory // (JOB_CUDA if cuda else JOB_CPU)))


def environment(build: Build, job_count: int, cuda_home: str) -> dict[str, str]:
    """The whole environment of the compiler; nothing is inherited, because a USE_NUMA left there would count."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    whole = {"PATH": path, "LC_ALL": "C.UTF-8", "HOME": "/root", "TMPDIR": "/var/tmp", "CMAKE_GENERATOR": "Ninja"}
    if build.cuda:
        whole |= {"PATH": f"{cuda_home}/bin:{path}", "CUDA_HOME": cuda_home, "CUDA_PATH": cuda_home}
    return whole | (_source(build, job_count) if build.method == "source" else _classic(build, job_count))


def _source(build: Build, job_count: int) -> dict[str, str]:
    there = dict(engines.KT_VARIANTS)[build.isa]
    wants = {
        "AMX": build.amx,
        "AVX512": build.isa != "avx2",
        "AVX512_VNNI": "avx512_vnni" in there,
        "AVX512_BF16": "avx512_bf16" in there,
        "AVX512_VBMI": "avx512vbmi" in there,
    }
    return {
        "CPUINFER_CPU_INSTRUCT": "AVX2" if build.isa == "avx2" else "AVX512",
        # Each is said: what is not said is looked up in /proc/cpuinfo, where one AMX flag of three is enough.
        **{f"CPUINFER_ENABLE_{name}": "ON" if wanted else "OFF" for name, wanted in wants.items()},
        "CPUINFER_BUILD_ALL_VARIANTS": "0",
        "CPUINFER_USE_CUDA": "1" if build.cuda else "0",
        **({"CPUINFER_CUDA_ARCHS": ";".join(build.architectures).replace(".", "")} if build.cuda else {}),
        "CPUINFER_BUILD_TYPE": "Release",
        "CPUINFER_PARALLEL": str(job_count),
        "CPUINFER_FORCE_REBUILD": "1",
        "CPUINFER_VERSION": build.version,
    }


def _classic(build: Build, job_count: int) -> dict[str, str]:
    return {
        # Exactly TRUE: anything else asks the network for a wheel first.
        "KTRANSFORMERS_FORCE_BUILD": "TRUE",
        "CPU_INSTRUCT": build.isa,
        "TORCH_CUDA_ARCH_LIST": ";".join(build.architectures),
        "MAX_JOBS": str(job_count),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(job_count),
        # CMake asks whether it is there, not what it says: 0 and "" turn NUMA on as well.
        **({"USE_NUMA": "1"} if build.numa else {}),
    }


def packages(build: Build) -> list[str]:
    """Debian packages the compiler needs."""
    more = ["libnuma-dev"] if build.numa else []
    if build.method == "classic" and release(build.version) >= CSRC:
        more += BALANCE_SERVE
    return sorted({*APT[build.method], *more})


def run_time_packages(build: Build) -> list[str]:
    """Debian packages every host needs that runs it."""
    return sorted({*RUN_TIME[build.method], *(["libnuma1"] if build.numa else [])})


def from_values(values: Mapping[str, Any]) -> Build:
    """A build as it comes back from JSON."""
    return Build(**{**values, "sources": tuple(values["sources"]), "architectures": tuple(values["architectures"])})
