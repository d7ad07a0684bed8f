# SPDX-License-Identifier: GPL-3.0-or-later
"""The CPU part of classic KTransformers, compiled for real on a booted Debian 12: with NUMA, without, and lied to.

  .venv/bin/pytest -q -s tests/long/test_classic.py

Release 0.2.1.post1 is the only one whose source a package registry has. What the role gives the compiler
(build.environment) compiles the cmake target cpuinfer_ext; what the role looks at afterwards (verify) looks at it. The
kernels then compute experts, compared with numpy. Not here: the GPU part, which needs nvcc and takes half an hour. So
nvcc is a stand-in that only tells its version; headers and libcudart are NVIDIA's own.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ansible_collections.onprem.llm.plugins.module_utils.hardware.read import read
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import build, verify
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers.build import Build

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="test hosts need root")

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / ".cache/long/classic"
LAB, VERSION = "long-classic", "0.2.1.post1"
HOSTS = {
    "lab": LAB,
    "network": "10.77.217.0/24",
    "hosts": [{"name": "c1", "ip": "10.77.217.11", "image": "bookworm", "binds": {str(FOLDER): str(FOLDER)}}],
}
TESTHOST = str(PROJECT / "tools/testhost")
#: What setup.py makes of CPU_INSTRUCT.
AVX2 = ["-DLLAMA_NATIVE=OFF", *(f"-DLLAMA_{name}=ON" for name in ("FMA", "F16C", "AVX", "AVX2"))]
AVX512 = [*AVX2, "-DLLAMA_AVX512=ON"]
CMAKE = {"AVX2": AVX2, "AVX512": AVX512, "FANCY": [*AVX512, "-DLLAMA_AVX512_FANCY_SIMD=ON"]}
NUMA = {
    "numa_alloc_onnode",
    "numa_bind",
    "numa_bitmask_alloc",
    "numa_bitmask_setbit",
    "numa_free",
    "numa_num_configured_nodes",
}


def on_host(*argv: str, check: bool = True) -> tuple[int, str, str]:
    done = subprocess.run([TESTHOST, "exec", LAB, "c1", *argv], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.returncode, done.stdout, done.stderr


def run(argv: list[str]) -> tuple[int, str, str]:
    """As the module runs commands, but on the host."""
    return on_host(*argv, check=False)


def pip(*argv: str, **env: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *argv], check=True, env={**os.environ, **env}
    )


def toolkit() -> Path:
    """A CUDA_HOME: NVIDIA's headers and runtime, and an nvcc that tells its version."""
    home = FOLDER / "cuda"
    parts = {"runtime": "12.4.127", "nvcc": "12.4.131"}  # of the latter only crt/*.h, which the former include
    for part, version in parts.items():
        pip("download", "--no-deps", "--only-binary=:all:", "-d", str(FOLDER), f"nvidia-cuda-{part}-cu12=={version}")
        with zipfile.ZipFile(next(FOLDER.glob(f"nvidia_cuda_{part}*.whl"))) as wheel:
            wheel.extractall(FOLDER / "parts")
        shutil.copytree(FOLDER / f"parts/nvidia/cuda_{part}/include", home / "include", dirs_exist_ok=True)
    shutil.copytree(FOLDER / "parts/nvidia/cuda_runtime/lib", home / "lib64")
    (home / "lib64/libcudart.so").symlink_to("libcudart.so.12")
    (home / "bin").mkdir()
    (home / "bin/nvcc").write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n")
    (home / "bin/nvcc").chmod(0o755)
    return home


def source(cuda: Path) -> Path:
    """The sdist, unpacked. Its metadata can only be asked with torch of CUDA: three files stand in for it."""
    stub = FOLDER / "stub/torch/utils"
    stub.mkdir(parents=True)
    (stub.parent / "__init__.py").write_text('from . import version\n__version__ = "2.6.0"\n')
    (stub.parent / "version.py").write_text('cuda = "12.4"\n')
    (stub / "__init__.py").touch()
    (stub / "cpp_extension.py").write_text(
        textwrap.dedent("""\
            import os
            from setuptools import Extension
            from setuptools.command.build_ext import build_ext as BuildExtension
            CUDA_HOME = os.environ["CUDA_HOME"]
            CUDAExtension = lambda name, sources, **_: Extension(name, sources)
            """)
    )
    pip("install", "--target", str(FOLDER / "stub"), "setuptools<80", "wheel", "packaging", "cpufeature", "numpy")
    pip(
        *("download", "--no-deps", "--no-build-isolation", "--no-binary=:all:", "-d", str(FOLDER)),
        f"ktransformers=={VERSION}",
        PYTHONPATH=str(FOLDER / "stub"),
        CUDA_HOME=str(cuda),
    )
    with tarfile.open(FOLDER / f"ktransformers-{VERSION}.tar.gz") as archive:
        archive.extractall(FOLDER, filter="data")
    return FOLDER / f"ktransformers-{VERSION}"


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[Path, Path]]:
    """The source and the toolkit, in a folder that has the same name on this machine and on the host."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    cuda = toolkit()
    tree = source(cuda)
    subprocess.run([TESTHOST, "up"], input=json.dumps(HOSTS), text=True, check=True)
    try:
        on_host("apt-get", "update", "-qq")
        yield tree, cuda
    finally:
        if os.environ.get("ONPREM_KEEP") != "1":
            subprocess.run([TESTHOST, "down", LAB], check=True)
            shutil.rmtree(FOLDER)


def install(*packages: str) -> None:
    on_host(
        "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages
    )


@functools.cache
def here() -> Build:
    """What the role would decide for this CPU; the kernels shall run here."""
    local = read("/", "c1", "/", lambda argv: (127, "", ""), False)
    given: dict[str, Any] = {"sources": ["0" * 64], "python": "3.11", "cuda": "12.4", "architectures": "8.9"}
    given |= {"lock": "0" * 64, "blocked": {}}
    return build.decide("classic", VERSION, local, **given)


def compiled(tree: Path, cuda: Path, wanted: Build, **more: str) -> tuple[Path, float]:
    """The folder with the extension, and the seconds it took. ``more``: what else somebody left in the environment."""
    folder, start = FOLDER / "out", time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    env = {**build.environment(wanted, 2, str(cuda)), **more}
    prefix = ["nice", "-n", "10", "env", "-i", *(f"{name}={value}" for name, value in sorted(env.items()))]
    on_host(
        *(*prefix, "cmake", "-S", f"{tree}/ktransformers/ktransformers_ext", "-B", str(FOLDER / "objects")),
        *(f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}", "-DPYTHON_EXECUTABLE=/usr/bin/python3", *CMAKE[wanted.isa]),
    )
    on_host(*prefix, "cmake", "--build", str(FOLDER / "objects"), "--target", "cpuinfer_ext", "--parallel", "2")
    return folder, time.monotonic() - start


def looked_at(folder: Path, wanted: Build) -> dict[str, Any]:
    return verify.extension(folder, "out", "cpuinfer_ext", wanted, run, python="/usr/bin/python3")


def refusal(folder: Path, wanted: Build) -> str:
    with pytest.raises(verify.VerifyError) as caught:
        looked_at(folder, wanted)
    return str(caught.value)


def answers(folder: Path, wanted: Build) -> str:
    program = PROJECT / "roles/ktransformers/files/classic_forward.py"
    shutil.copy(program, folder)
    code, out, err = run(["env", f"PYTHONPATH={folder}", "/usr/bin/python3", str(folder / program.name)])
    verify.judge("out: classic_forward.py", wanted, code, out, err, expected="answers")
    return out.splitlines()[0]


def test_numa_is_in_it_exactly_when_it_is_wanted(lab: tuple[Path, Path]) -> None:
    tree, cuda = lab
    without, with_numa = replace(here(), numa=False), replace(here(), numa=True)
    install(*build.packages(without), *build.run_time_packages(without), "python3-dev", "python3-numpy")

    # NUMA is wanted, and libnuma-dev is not there: the compiler is content, we are not.
    with pytest.raises(verify.VerifyError, match=r"no numa\.h: the build would go on without NUMA"):
        verify.source(tree, with_numa, root=Path(f"/proc/{leader()}/root"))
    folder, seconds = compiled(tree, cuda, with_numa)
    print(f"\nCPU_INSTRUCT={here().isa}, from nothing: {seconds:.0f} s")
    assert "is not linked with libnuma, and NUMA is wanted" in refusal(folder, with_numa)
    facts = looked_at(folder, without)
    assert not facts["numa"] and not [name for name in facts["needed"] if "numa" in name]

    # With it, and with everything the role installs.
    install(*build.packages(with_numa), *build.run_time_packages(with_numa))
    verify.source(tree, with_numa, root=Path(f"/proc/{leader()}/root"))
    shutil.rmtree(FOLDER / "objects/CMakeFiles")  # cmake remembers that there was no libnuma
    (FOLDER / "objects/CMakeCache.txt").unlink()
    folder, seconds = compiled(tree, cuda, with_numa)
    facts = looked_at(folder, with_numa)
    size = next(folder.glob("*.so")).stat().st_size
    print(f"with NUMA: {seconds:.0f} s, {size} B, needs {facts['needed']}, uses {facts['numa']}")
    print(answers(folder, with_numa))
    assert "libnuma.so.1" in facts["needed"]
    assert set(facts["numa"]) == NUMA
    assert "libnuma.so.1 => /" in run(["ldd", str(next(folder.glob("*.so")))])[1]
    assert "USE_NUMA was in the environment" in refusal(folder, without)

    # The same machine, the same library: without the variable there is none of it.
    folder, seconds = compiled(tree, cuda, without)
    facts = looked_at(folder, without)
    size = next(folder.glob("*.so")).stat().st_size
    print(f"without: {seconds:.0f} s, {size} B, needs {facts['needed']}; {answers(folder, without)}")
    assert not facts["numa"] and "libnuma.so.1" not in facts["needed"]
    assert "libnuma" not in run(["ldd", str(next(folder.glob("*.so")))])[1]

    # Somebody meant well: 0 turns it on.
    folder, _ = compiled(tree, cuda, without, USE_NUMA="0")
    assert "USE_NUMA was in the environment, where 0 and an empty value turn it on too" in refusal(folder, without)


def leader() -> str:
    """The host's first process, as this machine numbers it."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "root/etc/hostname").read_text().strip() == "c1" and (folder / f"root{FOLDER}/cuda").exists():
                return folder.name
        except OSError:
            continue
    raise AssertionError("the host c1 does not run")
