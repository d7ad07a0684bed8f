# SPDX-License-Identifier: GPL-3.0-or-later
"""The NVIDIA driver on a real Debian kernel: built, failing, recovered, and loaded in a virtual machine.

  .venv/bin/pytest -q -s tests/long/test_driver.py

On one fresh Debian 13 host: the open flavour is asked for and refused; its package is installed past the role and fails
to build; the role cleans up and says why; then it builds the proprietary modules. The disk of that host becomes a
virtual machine with two NUMA nodes, where the module is loaded, and a reboot is owed and made.

The first half takes about 12 minutes and is kept in .cache/long/driver/KEY, KEY being what decides on it: the role, its
modules and the image. A second call goes on from there. Without a GPU nothing here proves that a GPU works.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kernel import NAME, PROJECT, TESTHOST, Host, Machine, Play, output

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="test hosts need root")

FOLDER = PROJECT / ".cache/long/driver"
LAB, NETWORK = "long-driver", "10.77.10.0/24"
FACTS = "/etc/ansible/facts.d/onprem_llm.fact"
DECIDE = (
    "roles/nvidia_driver/**/*",
    "roles/nvidia_repository/**/*",
    "plugins/module_utils/nvidia_driver/*.py",
    "plugins/modules/nvidia_driver_info.py",
    "playbooks/drivers.yml",
    "tests/long/kernel.py",
)
# What somebody does who follows a guide: the open modules of Debian's archive, by hand.
BY_HAND = """
cd /etc/apt/sources.list.d
for file in *.sources; do
  sed 's/^Components:.*/Components: contrib non-free non-free-firmware/' "$file" >"by-hand-$file"
done
apt-get update -qq
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends linux-headers-amd64 nvidia-open-kernel-dkms
echo "apt ended with $?"
rm by-hand-*
apt-get update -qq
"""
# Kernel, what DKMS says of it, and the version of the module on disk.
KERNELS = """
for kernel in $(ls /lib/modules); do
  echo "$kernel|$(dkms status -k "$kernel")|$(modinfo -k "$kernel" -F version nvidia-current)"
done
"""


def key() -> str:
    digest = hashlib.sha256(output(TESTHOST, "image", "trixie").encode())
    for pattern in DECIDE:
        for path in sorted(PROJECT.glob(pattern)):
            digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:12]


def packages(host: Host) -> list[str]:
    return host.says("dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\\n'").splitlines()


def driver(host: Host, title: str, **variables: str) -> Play:
    play = host.play(title, nvidia_driver_install="always", **variables)
    print(f"{title}: exit code {play.code}, {play.changed} changes, {play.seconds:.0f} s", flush=True)
    return play


def health(host: Host) -> dict[str, str]:
    """What must be silent on a healthy host."""
    return {
        "half-installed packages": host.run("dpkg --audit").stdout,
        "apt": host.run("apt-get check -qq 2>&1").stdout,
        "failed units": host.run("systemctl --failed --no-legend --plain").stdout,
    }


def install(folder: Path) -> dict[str, Any]:
    """The first half, once for a key: what was seen, in order."""
    seen: dict[str, Any] = {"date": time.strftime("%Y-%m-%d %H:%M")}
    host = Host(folder, LAB, NETWORK)
    try:
        host.up()
        before = packages(host)
        seen["refused"] = driver(host, "1-open-refused", nvidia_driver_flavour="open")._asdict()
        seen["installed before the refusal"] = sorted(set(packages(host)) - set(before))
        begin = time.monotonic()
        seen["by hand"] = host.run(BY_HAND).stdout
        print(f"open modules by hand: {time.monotonic() - begin:.0f} s", flush=True)
        seen["left by hand"] = [line for line in packages(host) if line.endswith("half-configured")]
        seen["recovered"] = driver(host, "2-open-recovered", nvidia_driver_flavour="open")._asdict()
        seen["open modules left"] = [line for line in packages(host) if line.startswith("nvidia-open-kernel-dkms ")]
        seen["health after the failure"] = health(host)
        built = driver(host, "3-built")
        assert built.code == 0, built.output[-6000:]
        seen["built"] = built._asdict()
        seen["kernels"] = [line.split("|") for line in host.says(KERNELS).splitlines()]
        seen["driver"] = host.says("dpkg-query -W -f '${Version}' nvidia-kernel-dkms")
        seen["again"] = driver(host, "4-again")._asdict()
        seen["nvidia-smi"] = host.run("nvidia-smi").returncode
        seen["health"] = health(host)
        seen["facts"] = json.loads(host.says(f"cat {FACTS}"))
        host.pack()
    finally:
        host.down()
    (folder / "seen.json").write_text(json.dumps(seen, indent=1) + "\n")
    return seen


@pytest.fixture(scope="module")
def folder() -> Path:
    """Of this key; those of others are taken away."""
    mine = FOLDER / key()
    for other in FOLDER.glob("*"):
        if other != mine:
            shutil.rmtree(other)
    mine.mkdir(parents=True, exist_ok=True)
    return mine


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    kept = folder / "seen.json"
    if not kept.exists():
        return install(folder)
    found: dict[str, Any] = json.loads(kept.read_text())
    print(f"nothing that decides has changed since {found['date']}: going on from {folder}", flush=True)
    return found


@pytest.fixture(scope="module")
def machine(folder: Path, seen: dict[str, Any]) -> Iterator[Machine]:
    assert seen["built"]["code"] == 0
    if not shutil.which("qemu-system-x86_64"):
        subprocess.run([PROJECT / "tools/setup", "dev", "qemu-system-x86"], check=True)
    machine = Machine(folder)
    try:
        begin = time.monotonic()
        machine.up()
        print(f"the virtual machine is up after {time.monotonic() - begin:.0f} s", flush=True)
        yield machine
    finally:
        machine.down()


def words(text: str) -> str:
    """Output without the line breaks that its display put in."""
    return " ".join(text.split())


# --- a host with a kernel, and a compiler that really runs


def test_open_modules_are_refused_before_anything_is_installed(seen: dict[str, Any]) -> None:
    said = words(seen["refused"]["output"])
    assert seen["refused"]["code"] != 0 and "pci_resize_resource" in said, said
    for way_out in ("nvidia_driver_flavour: proprietary", "nvidia_driver_source: nvidia_repo", "older kernel"):
        assert way_out in said
    assert not seen["installed before the refusal"]


def test_a_failed_build_is_shown_and_cleaned_up(seen: dict[str, Any]) -> None:
    assert "apt ended with 100" in seen["by hand"] and seen["left by hand"], seen["by hand"][-3000:]
    said = words(seen["recovered"]["output"])
    assert seen["recovered"]["code"] != 0
    assert "error: too few arguments to function" in said, said[-3000:]
    for way_out in ("nvidia_driver_flavour: proprietary", "nvidia_driver_source: nvidia_repo", "older kernel"):
        assert way_out in said
    assert not seen["open modules left"]
    assert not any(seen["health after the failure"].values()), seen["health after the failure"]


def test_proprietary_modules_are_built_for_every_kernel(seen: dict[str, Any]) -> None:
    version = seen["driver"].rpartition("-")[0]
    assert seen["kernels"]
    for kernel, dkms, module in seen["kernels"]:
        assert dkms == f"nvidia-current/{version}, {kernel}, x86_64: installed"
        assert module == version
    said = seen["facts"]["components"]["nvidia_driver"]
    assert said["flavour"] == "proprietary" and said["source"] == "distro" and said["version"] == seen["driver"]


def test_second_run_changes_nothing(seen: dict[str, Any]) -> None:
    assert (seen["again"]["code"], seen["again"]["changed"]) == (0, 0), seen["again"]["output"][-3000:]


def test_host_without_a_gpu_stays_healthy(seen: dict[str, Any]) -> None:
    assert seen["nvidia-smi"] == 9
    assert not any(seen["health"].values()), seen["health"]


# --- its disk in a virtual machine: the kernel runs


def test_host_without_a_gpu_boots_healthy(machine: Machine, seen: dict[str, Any]) -> None:
    assert machine.says("uname -r") in [kernel for kernel, _, _ in seen["kernels"]]
    assert machine.says("systemctl --failed --no-legend --plain") == ""


def test_module_loads_until_it_misses_a_gpu(machine: Machine) -> None:
    done = machine.run("dmesg --clear; modprobe nvidia-current")
    assert done.returncode != 0 and "No such device" in done.stderr
    assert "NVRM: No NVIDIA GPU found." in machine.says("dmesg")
    assert machine.run("nvidia-smi").returncode == 9


def test_two_numa_nodes_are_seen(machine: Machine) -> None:
    hardware = machine.module("host_hardware", id=NAME, model_dir="/srv")["hardware"]
    assert [node["cpus"] for node in hardware["numa"]] == [[0, 1], [2, 3]]
    assert hardware["cpu"]["sockets"] == 2
    for node in hardware["numa"]:
        assert 1.3 * 2**30 < node["memory"] <= 1.5 * 2**30
    assert hardware["gpus"] == []


def test_a_reboot_is_owed_and_made(machine: Machine) -> None:
    machine.says("modprobe nouveau")
    owed = machine.play("5-owed", nvidia_driver_install="always", nvidia_driver_reboot="never")
    assert owed.code == 0, owed.output[-3000:]
    debts = json.loads(machine.says(f"cat {FACTS}"))["debts"]
    assert [(debt["component"], debt["what"]) for debt in debts] == [("nvidia_driver", "reboot")]
    assert "nouveau" in debts[0]["why"]

    boots = machine.boots
    paid = machine.play("6-paid", nvidia_driver_install="always", nvidia_driver_reboot="if_needed")
    assert paid.code == 0, paid.output[-3000:]
    assert machine.boots == boots + 1
    assert machine.run("test -e /sys/module/nouveau").returncode != 0
    assert json.loads(machine.says(f"cat {FACTS}"))["debts"] == []
    print(f"owed: {owed.seconds:.0f} s, rebooted: {paid.seconds:.0f} s", flush=True)
