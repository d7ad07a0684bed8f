# SPDX-License-Identifier: GPL-3.0-or-later
"""CUDA toolkits on booted Debian 13: the distribution's, really installed and really compiling; and forged ones from a
repository in the form of NVIDIA's, as far as molecule/drivers has not shown them.

  .venv/bin/pytest -q -s tests/long/test_cuda.py

A host without a toolkit and one with a small disk are booted. What cannot work is refused there first; then the role
installs 12.4 (1.9 GB to fetch the first time, 5 GB on the disk), and the tests after it compile with what builds are
given. Six minutes. The hosts are taken away at the end; the packages stay in the cache of the test hosts.

Environment:
  ONPREM_KEEP   1 leaves the hosts running
Outputs: .cache/long/cuda/NAME.log
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="test hosts need root")

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / ".cache/long/cuda"
LAB = "long-cuda"
TESTHOST = str(PROJECT / "tools/testhost")
SSH_CONFIG = Path(os.environ.get("TESTHOST_STATE", "/var/lib/testhosts")) / LAB / "ssh_config"
ROOT = "/opt/onprem-llm/cuda_toolkit"
HOME = f"{ROOT}/12.4"
REPOSITORY = FOLDER / "repository"
FACTS = "/etc/ansible/facts.d/onprem_llm.fact"

HOSTS = f"""---
all:
  vars:
    ansible_user: ansible
    ansible_become: true
    ansible_ssh_common_args: -F {SSH_CONFIG}
cuda_toolkit:
  hosts:
    box: {{ansible_host: 10.77.222.11}}
    small: {{ansible_host: 10.77.222.12}}
"""
KERNEL = """
#include <cstdio>
#include <cstdlib>
__global__ void twice(float *y) { y[threadIdx.x] *= 2; }
int main() {
  int n = -1;
  cudaError_t error = cudaGetDeviceCount(&n);
  printf("%d %s\\n", (int)error, cudaGetErrorString(error));
  return std::abs(0);
}
"""
BLAS = """
#include <cstdlib>
#include <cublas_v2.h>
#include <thrust/version.h>
int main() { cublasHandle_t handle; return cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS ? std::abs(0) : 1; }
"""


@pytest.fixture(scope="module", autouse=True)
def lab() -> Iterator[None]:
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "inventory").mkdir(parents=True)
    (FOLDER / "inventory/hosts.yml").write_text(HOSTS)
    (FOLDER / "inventory/groups.yml").symlink_to(PROJECT / "inventories/groups.yml")
    hosts = [
        {"name": "box", "ip": "10.77.222.11", "image": "trixie"},
        {
            "name": "small",
            "ip": "10.77.222.12",
            "image": "trixie",
            "disk": "3G",
            "binds": {str(REPOSITORY): "/srv/nvidia"},
        },
    ]
    subprocess.run([PROJECT / "molecule/drivers/repository.py", REPOSITORY], check=True)
    subprocess.run([TESTHOST, "down", LAB], check=False)
    description = json.dumps({"lab": LAB, "network": "10.77.222.0/24", "hosts": hosts})
    subprocess.run([TESTHOST, "up"], input=description, text=True, check=True)
    yield
    if os.environ.get("ONPREM_KEEP") != "1":
        subprocess.run([TESTHOST, "down", LAB], check=True)


def run(name: str, *arguments: str, host: str = "box") -> tuple[int, str]:
    """drivers.yml on one host: its exit code, and what it says in one line."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    program = str(PROJECT / ".venv/bin/ansible-playbook")
    command = [program, "-i", str(FOLDER / "inventory"), "--limit", host, "playbooks/drivers.yml", *arguments]
    begin = time.monotonic()
    done = subprocess.run(
        command, cwd=PROJECT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    (FOLDER / f"{name}.log").write_text(done.stdout + done.stderr)
    print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def ssh(command: str, host: str = "box") -> str:
    done = subprocess.run(
        ["ssh", "-F", str(SSH_CONFIG), host, f"sudo sh -ec {shlex.quote(command)}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


PACKAGES = "dpkg-query -W; ls /etc/apt/sources.list.d; ls -A /opt; apt-mark showhold"


def test_check_mode_on_a_fresh_host_names_the_version_and_changes_nothing() -> None:
    before = ssh(PACKAGES)
    code, said = run("check", "--check")
    assert code == 0, said[-3000:]
    assert "nvidia-cuda-toolkit=12.4." in said and "GB to fetch, 5.1 GB on the disk" in said
    assert ssh(PACKAGES) == before


def test_a_small_disk_is_refused_with_numbers() -> None:
    before = ssh("dpkg-query -W", "small")
    code, said = run("small", host="small")
    # What is in apt's cache already need not be fetched.
    assert code and "GB for the download and 5.1 GB once installed" in said, said[-3000:]
    assert "GB are missing" in said
    assert ssh("dpkg-query -W", "small") == before


def forged(name: str, *versions: str, pins: dict[str, str] | None = None, check: bool = False) -> tuple[int, str]:
    """The role on host small with forged toolkits from the repository."""
    settings = {
        "nvidia_repository_url": "file:///srv/nvidia",
        "nvidia_repository_key": json.loads((REPOSITORY / "keyring.json").read_text()),
        "cuda_toolkit_source": "nvidia_repo",
        "cuda_toolkit_versions": versions,
        "cuda_toolkit_package_versions": pins or {},
    }
    return run(name, "-e", json.dumps(settings), *(["--check"] if check else []), host="small")


def test_check_mode_names_the_version_of_a_repository_that_the_host_has_not_yet() -> None:
    before = ssh(PACKAGES, "small")
    code, said = forged("forged-check", "12.8", check=True)
    assert code == 0 and "cuda-toolkit-12-8=12.8.2-1:" in said, said[-3000:]
    assert ssh(PACKAGES, "small") == before


@pytest.mark.parametrize(
    ("version", "pins", "refusal"),
    [
        ("12.7", {}, "No package source of this host offers cuda-toolkit-12-7"),
        (
            "12.8",
            {"12.8": "12.8.9-1"},
            "cuda-toolkit-12-8 12.8.9-1, and this host's package sources offer 12.8.2-1, 12.8.1-1",
        ),
    ],
)
def test_what_nobody_offers_is_refused(version: str, pins: dict[str, str], refusal: str) -> None:
    before = ssh("dpkg-query -W", "small")
    code, said = forged(f"forged-{version}", version, pins=pins)
    assert code and refusal in said, said[-3000:]
    assert ssh("dpkg-query -W", "small") == before


def test_a_toolkit_without_its_library_is_no_home() -> None:
    code, said = forged("forged-12.9", "12.9")
    assert code and f"{ROOT}/12.9 cannot be a CUDA_HOME: it has no lib64/libcudart.so" in said, said[-3000:]


def test_an_architecture_it_cannot_compile_is_refused() -> None:
    before = ssh("dpkg-query -W")
    code, said = run("blackwell", "-e", '{"cuda_toolkit_architectures": ["12.0"]}')
    assert code and "CUDA 12.4 knows no compute capability 12.0: 12.8 is the first release that does" in said, said[
        -3000:
    ]
    assert ssh("dpkg-query -W") == before


def test_a_killed_installation_fails() -> None:
    """dpkg and apt end half-way through the packages; the test after this one finds what they left."""
    with ThreadPoolExecutor() as pool:
        running = pool.submit(run, "killed")
        ssh("until dpkg-query -W -f '${db:Status-Status}' libcublas12 2>/dev/null | grep -q unpacked; do sleep 1; done")
        ssh("pkill -KILL -x apt-get; pkill -KILL -x dpkg; pkill -KILL -x dpkg-deb || :")
        code, said = running.result()
    assert code and "Install the toolkits" in said, said[-3000:]
    assert ssh("dpkg --audit")


def test_it_is_installed_and_proven() -> None:
    code, said = run("install", "-e", '{"cuda_toolkit_architectures": ["8.0", "8.9"]}')
    assert code == 0, said[-3000:]
    assert "CUDA 12.4 for sm_80, sm_89: compiled, not run: no GPU (cudaGetDeviceCount 100" in said
    version = ssh("dpkg-query -W -f '${Version}' nvidia-cuda-toolkit")
    facts = json.loads(ssh(f"cat {FACTS}"))["components"]["cuda_toolkit"]
    assert facts == {"homes": {"12.4": HOME}, "default": "12.4", "packages": {"12.4": version}}
    assert ssh("systemctl is-system-running") == "running"


def test_the_second_run_changes_nothing() -> None:
    for name, arguments in (("again", []), ("check-again", ["--check"])):
        code, said = run(name, *arguments)
        assert code == 0 and "changed=0 " in said, said[-3000:]


def test_its_parts_are_held() -> None:
    held = set(ssh("apt-mark showhold").split())
    parts = ssh("dpkg-query -W -f '${source:Package} ${Package}\\n' | sed -n 's/^nvidia-cuda-toolkit //p'")
    assert held == set(parts.split()) and {"nvidia-cuda-toolkit", "nvidia-cuda-dev", "libcublas12"} <= held


@pytest.mark.parametrize("option", ["-I", "-isystem "])
def test_builds_find_everything_below_the_home(option: str) -> None:
    """A kernel with nvcc, a C++ program with g++, with either way to name a folder of headers."""
    ssh(f"cat >/tmp/k.cu <<'END'\n{KERNEL}\nEND\ncat >/tmp/b.cpp <<'END'\n{BLAS}\nEND")
    clean = f"env -i PATH={HOME}/bin:/usr/bin:/bin"
    nvcc = (
        f"{HOME}/bin/nvcc -gencode=arch=compute_89,code=sm_89 {option}{HOME}/include -L{HOME}/lib64 -o /tmp/k /tmp/k.cu"
    )
    ssh(f"{clean} {nvcc}")
    assert ".sm_89.cubin" in ssh(f"{HOME}/bin/cuobjdump -lelf /tmp/k")
    assert ssh("/tmp/k") == "100 no CUDA-capable device is detected"
    ssh(f"{clean} g++-13 {option}{HOME}/include -L{HOME}/lib64 -o /tmp/b /tmp/b.cpp -lcublas -lcudart")
    assert "libcublas.so.12" in ssh("ldd /tmp/b")
    assert ssh(f"readlink -f {HOME}/lib64/libcudart.so").startswith("/usr/lib/x86_64-linux-gnu/libcudart.so.12")


def test_a_blocked_compiler_in_the_path_is_refused() -> None:
    ssh("printf '#!/bin/sh\\necho release 13.2, V13.2.1\\n' >/usr/local/bin/nvcc; chmod +x /usr/local/bin/nvcc")
    code, said = run("blocked")
    ssh("rm /usr/local/bin/nvcc")
    assert code and "/usr/local/bin/nvcc is CUDA 13.2: its compiler breaks" in said, said[-3000:]


def test_a_damaged_toolkit_is_refused() -> None:
    ssh("mv /usr/bin/ptxas /usr/bin/ptxas.away")
    code, said = run("damaged")
    ssh("mv /usr/bin/ptxas.away /usr/bin/ptxas")
    assert code and "does not compile: nvcc ended with" in said, said[-3000:]
    assert "cuda_toolkit" not in json.loads(ssh(f"cat {FACTS}"))["components"]


def test_another_architecture_than_asked_is_noticed() -> None:
    """Ten lines around the real compiler that compile for something else."""
    ssh(
        f"rm {HOME}/bin/nvcc; cat >{HOME}/bin/nvcc <<'END'\n#!/bin/bash\n"
        'exec /usr/bin/nvcc "${@//89/80}"\nEND\n' + f"chmod +x {HOME}/bin/nvcc"
    )
    arguments = ["architectures=8.9", f"home={HOME}", "version=12.4", "gpus=0", "driver=none"]
    env = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")}
    words = [str(PROJECT / ".venv/bin/ansible"), "-i", str(FOLDER / "inventory"), "box", "-m", "onprem.llm.cuda_smoke"]
    done = subprocess.run(
        [*words, "-a", " ".join(arguments)], cwd=PROJECT, env=env, capture_output=True, text=True, check=False
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert "holds no code for sm_89 (cuobjdump -lelf finds sm_80)" in said
    # The next run puts the folder right, and writes it down anew.
    code, said = run("repaired")
    assert code == 0 and "changed=2 " in said, said[-3000:]
    assert HOME in ssh(f"cat {FACTS}")
    assert ssh(f"readlink {HOME}/bin/nvcc") == "/usr/bin/nvcc"
