# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done for a driver, what forbids it, what is wrong with one that is there, and why a reboot is owed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines
import nvidia_hosts
from nvidia_hosts import NEW, OLD, VERSION, Machine

from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import plan as planning
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import refuse, verify

CARD = "rtx-4090-24g"
SET = ["nvidia-kernel-support", "libcuda1", "nvidia-smi", "nvidia-persistenced", "nvidia-kernel-dkms"]
NEWER = "570.172.08-1"


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    """Debian 13 with a 4090, the newest kernel running and its headers there."""
    found = Machine(tmp_path, [CARD])
    found.kernel(NEW, running=True)
    return found


# --- what is done


def test_a_fresh_host(host: Machine) -> None:
    host.kernel(OLD, form="old", headers=False)
    host.installed("linux-image-amd64", version="6.12.117-1")
    host.offers["linux-headers-amd64"] = ["6.12.117-1"]
    plan, refused, notes = host.decide()
    assert refused == notes == []
    assert (plan["action"], plan["installed"], plan["version"], plan["driver"]) == (
        "install",
        None,
        VERSION,
        "550.163.01",
    )
    headers = [f"linux-headers-{OLD}", f"linux-headers-{NEW}", "linux-headers-amd64"]
    assert plan["packages"] == [*headers, *SET]
    assert plan["install"] == [
        f"linux-headers-{OLD}",
        "linux-headers-amd64",
        f"nvidia-kernel-support={VERSION}",
        f"libcuda1={VERSION}",
        f"nvidia-smi={VERSION}",
        "nvidia-persistenced",
        f"nvidia-kernel-dkms={VERSION}",
    ]
    assert (plan["pin"], plan["build"], plan["load"], plan["hold"]) == ("550.163.01*", [OLD, NEW], True, [])
    assert host.problems() == [] == host.debts()
    assert planning.facts(plan) == {}


def test_an_installed_driver_is_left_alone(host: Machine) -> None:
    host.driver()
    host.archive(NEWER)  # apt has a newer one since
    plan, refused, notes = host.decide()
    assert (plan["action"], plan["install"], plan["build"], refused, notes) == ("none", [], [], [], [])
    assert (plan["installed"], plan["version"]) == (VERSION, VERSION)
    assert plan["hold"] == sorted(SET)
    assert host.problems() == []
    facts = {"version": VERSION, "driver": "550.163.01", "flavour": "proprietary", "source": "distro"}
    assert planning.facts(plan) == facts


@pytest.mark.parametrize("asked", ["570.172.08", NEWER])
def test_another_version_is_a_change(host: Machine, asked: str) -> None:
    host.driver()
    for name in SET:
        host.offers[name] = [VERSION, NEWER]
    plan, refused, _ = host.decide(version=asked)
    assert (plan["action"], plan["installed"], plan["version"], refused) == ("change", VERSION, NEWER, [])
    assert plan["install"] == [f"{name}={NEWER}" for name in SET if name != "nvidia-persistenced"]
    assert plan["pin"] == "570.172.08*"


@pytest.mark.parametrize("asked", ["550.163.01", VERSION])
def test_the_installed_version_may_be_asked_for(host: Machine, asked: str) -> None:
    """apt need not offer it any more."""
    host.driver()
    host.archive(NEWER)
    plan, refused, _ = host.decide(version=asked)
    assert (plan["action"], plan["version"], refused) == ("none", VERSION, [])


def test_a_version_that_nobody_offers(host: Machine) -> None:
    assert host.decide(version="545.23.08").refused == [
        "nvidia_driver_version is 545.23.08, and apt offers nvidia-kernel-dkms in 550.163.01-2 only. Name one of "
        "these, or give apt a source that has it."
    ]


def test_a_missing_library_comes_in_the_installed_version(host: Machine) -> None:
    host.driver()
    del host.packages["libcuda1"]
    host.offers["libcuda1"] = [NEWER, VERSION]
    plan, refused, _ = host.decide()
    assert (plan["action"], plan["install"], refused) == ("repair", [f"libcuda1={VERSION}"], [])
    host.offers["libcuda1"] = [NEWER]
    assert host.decide().refused == [
        "The driver is 550.163.01, and apt offers libcuda1 in 570.172.08-1 only: library and module of two versions do "
        'not work together. Set nvidia_driver_version: "570.172.08", or give apt a source that has libcuda1 550.163.01.'
    ]


def test_a_kernel_that_came_later_is_built_for(host: Machine) -> None:
    host.driver()
    host.kernel("6.12.120+deb13-amd64")
    plan = host.decide().plan
    assert (plan["action"], plan["build"]) == ("repair", ["6.12.120+deb13-amd64"])
    assert host.problems() == [
        "Kernel 6.12.120+deb13-amd64 has no nvidia module, and the driver is 550.163.01 (dkms does not know it). "
        "Run `dkms autoinstall -k 6.12.120+deb13-amd64` and read its output."
    ]


def test_the_flavour_may_be_changed(host: Machine) -> None:
    host.driver()
    for name in ("nvidia-driver-cuda", "nvidia-kernel-open-dkms"):
        host.offers[name] = ["580.126.09-1"]
    plan, refused, notes = host.decide(source="nvidia_repo", flavour="open")
    assert (plan["action"], plan["purge"], refused) == ("change", ["nvidia-kernel-dkms"], [])
    assert plan["install"] == ["nvidia-driver-cuda=580.126.09-1", "nvidia-kernel-open-dkms=580.126.09-1"]
    assert notes == ["nvidia-kernel-dkms goes, nvidia-kernel-open-dkms comes"]


def test_the_source_may_be_changed(host: Machine) -> None:
    """To a repository of whole drivers, or to one whose parts have to be of the installed version."""
    host.driver()
    host.offers["cuda-drivers"] = ["580.126.09-1"]
    plan, refused, _ = host.decide(source="nvidia_repo", flavour="proprietary")
    assert (plan["action"], plan["installed"], plan["install"], refused) == (
        "change",
        VERSION,
        ["cuda-drivers=580.126.09-1"],
        [],
    )
    host.offers["nvidia-driver-cuda"] = ["580.126.09-1"]
    host.offers["nvidia-kernel-dkms"] = ["580.126.09-1", VERSION]
    (refusal,) = host.decide(source="nvidia_repo", flavour="proprietary").refused
    assert refusal.startswith("The driver is 550.163.01, and apt offers nvidia-driver-cuda in 580.126.09-1 only: ")
    plan, refused, _ = host.decide(source="nvidia_repo", flavour="proprietary", version="580.126.09")
    assert (plan["install"], refused) == (["nvidia-driver-cuda=580.126.09-1", "nvidia-kernel-dkms=580.126.09-1"], [])


@pytest.mark.parametrize(
    ("offers", "options", "packages"),
    [
        (["nvidia-open", "cuda-drivers"], {}, ["nvidia-open"]),
        (["nvidia-open", "cuda-drivers"], {"flavour": "proprietary"}, ["cuda-drivers"]),
        (["nvidia-open-580", "nvidia-open"], {"branch": "580"}, ["nvidia-open-580"]),
        (
            ["nvidia-open", "nvidia-driver-cuda", "nvidia-kernel-open-dkms"],
            {},
            ["nvidia-driver-cuda", "nvidia-kernel-open-dkms"],
        ),
    ],
)
def test_nvidias_repository(host: Machine, offers: list[str], options: dict[str, Any], packages: list[str]) -> None:
    host.offers.update({name: ["580.126.09-1"] for name in offers})
    plan, refused, _ = host.decide(source="nvidia_repo", **options)
    assert (plan["packages"], refused) == ([f"linux-headers-{NEW}", *packages], [])
    assert plan["install"] == [f"{name}=580.126.09-1" for name in packages]


def test_what_debian_12_has_is_too_old_a_dkms_for_nvidias_packages(host: Machine) -> None:
    host.offers.update({"nvidia-open": ["580.126.09-1"], "dkms": ["3.0.10-8+deb12u1"]})
    assert host.decide(source="nvidia_repo").refused == [
        "NVIDIA's packages of driver 580.126.09 want dkms 3.1.8 or newer, and apt offers 3.0.10-8+deb12u1. Add the "
        "distribution's backports, or take a newer release of it, or an nvidia_driver_branch before 570."
    ]
    host.offers["dkms"].append("3.1.8-1~bpo12+1")
    assert host.decide(source="nvidia_repo").refused == []


def test_a_run_file(host: Machine) -> None:
    plan, refused, _ = host.decide(source="runfile", version="580.126.09")
    assert (plan["action"], plan["flavour"], plan["version"], refused) == ("install", "open", "580.126.09", [])
    assert plan["packages"] == [f"linux-headers-{NEW}", "dkms", "gcc", "libc6-dev", "make"]
    host.modules[NEW] = ("nvidia", "580.126.09")
    host.dkms[NEW] = [f"nvidia/580.126.09, {NEW}, x86_64: installed"]
    host.installed("dkms", "gcc", "libc6-dev", "make")
    machines.write(host.root / "usr/bin/nvidia-uninstall", "")
    plan, refused, _ = host.decide(source="runfile", version="580.126.09")
    assert (plan["action"], plan["installed"], refused) == ("none", "580.126.09", [])
    assert host.problems(source="runfile", version="580.126.09") == []
    assert host.decide(source="runfile").refused == [
        "nvidia_driver_source is runfile and nvidia_driver_version is empty: name the file's version."
    ]


def test_a_driver_of_somebody_else(host: Machine) -> None:
    assert host.decide(source="preinstalled").refused == [
        "nvidia_driver_source is preinstalled, and this host has no driver: none is loaded and no kernel has an nvidia "
        "module (GPUs: NVIDIA GeForce RTX 4090 (0000:18:00.0)). Install it, or set nvidia_driver_source: distro."
    ]
    host.modules[NEW] = ("nvidia", "575.57.08")
    host.kernel(OLD, form="old")
    host.modprobe = ""
    plan, refused, _ = host.decide(source="preinstalled")
    assert (plan["action"], plan["installed"], plan["packages"], refused) == ("none", "575.57.08", [], [])
    assert host.problems(source="preinstalled") == []
    host.loaded("570.172.08")
    host.modules[NEW] = ("nvidia", "575.57.08")
    assert [one["why"] for one in host.debts(source="preinstalled")] == [
        "the loaded driver is 570.172.08 and the one on disk 575.57.08"
    ]


def test_a_container_is_left_alone(host: Machine) -> None:
    host.container = "lxc"
    plan, refused, _ = host.decide()
    assert (plan["wanted"], plan["load"], refused) == (False, False, [])
    assert plan["why"] == "this is a container (lxc): the driver belongs on the host whose kernel it is"
    plan = host.decide(install="always").plan
    assert (plan["wanted"], plan["load"], plan["action"]) == (True, False, "install")
    host.driver()
    host.loaded("535.1")
    assert host.debts(install="always") == []


def test_gpus_of_virtual_machines_are_not_ours(host: Machine) -> None:
    host.give_away("0000:18:00.0")
    assert host.decide().plan["why"] == (
        "all GPUs are given to virtual machines (vfio-pci): NVIDIA GeForce RTX 4090 (0000:18:00.0)"
    )


# --- bad input


@pytest.mark.parametrize("key", ["", "/var/lib/dkms/mok.pub", "/var/lib/shim-signed/mok/MOK.der"])
def test_secure_boot_without_an_enrolled_key(host: Machine, key: str) -> None:
    host.efi(True)
    if key:
        machines.write(host.root / key.lstrip("/"), "certificate")
    host.mokutil = [
        {"args": ["--sb-state"], "stdout": "SecureBoot enabled\n"},
        {"args": ["--test-key"], "stdout": f"{key} is not enrolled\n"},
    ]
    (refused,) = host.decide().refused
    named, why = (key, "is not enrolled") if key else ("/var/lib/dkms/mok.pub", "does not exist yet")
    assert refused.startswith(
        f"Secure Boot is on, and the key that DKMS signs modules with ({named}) {why}, so the kernel would refuse the "
        "driver. As root on the host: "
    )
    assert ("mkdir -p /var/lib/dkms; openssl req -new -x509" in refused) is (not key)
    assert refused.endswith(
        f"mokutil --import {named} (asks for a new password); reboot, and at its console choose Enroll MOK and give "
        "that password; then run again. Or switch Secure Boot off in the firmware."
    )
    host.mokutil[1] = {"args": ["--test-key"], "rc": 1, "stdout": f"{key} is already enrolled\n"}
    assert host.decide().refused == ([] if key else [refused])


def test_ubuntu_keeps_its_key_elsewhere() -> None:
    said = refuse.unsigned({"on": True, "lockdown": None, "enrolled": None, "key": None}, True) or ""
    folder = "/var/lib/shim-signed/mok"
    assert f"mkdir -p {folder}; openssl" in said and f"-keyout {folder}/MOK.priv -out {folder}/MOK.der;" in said


def test_lockdown_without_secure_boot(host: Machine) -> None:
    machines.write(host.root / "sys/kernel/security/lockdown", "none [integrity] confidentiality")
    (refused,) = host.decide().refused
    assert refused.startswith("The kernel is locked down (integrity), and the key that DKMS signs modules with")


def test_secure_boot_off(host: Machine) -> None:
    host.efi(False)
    assert host.decide().refused == []


@pytest.mark.parametrize("left", ["/usr/bin/nvidia-uninstall", "/usr/bin/nvidia-installer"])
def test_what_a_run_file_left(host: Machine, left: str) -> None:
    machines.write(host.root / left.lstrip("/"), "")
    assert host.decide().refused == [
        f"NVIDIA's installer has put a driver here ({left}), and packages would overwrite parts of it. Remove it "
        "(nvidia-uninstall) and run again, or set nvidia_driver_source: runfile or preinstalled."
    ]
    assert host.decide(source="runfile", version="580.126.09").refused == []


def test_a_run_file_over_packages(host: Machine) -> None:
    host.driver()
    assert host.decide(source="runfile", version="580.126.09", flavour="proprietary").refused == [
        "nvidia_driver_source is runfile, and packages have put a driver here (nvidia-kernel-dkms); the two overwrite "
        "each other. Purge those packages (apt-get purge) and run again, or set nvidia_driver_source: distro or "
        "nvidia_repo."
    ]


def test_unfinished_packages_of_somebody_else(host: Machine) -> None:
    host.installed("zfs-dkms", version="2.3.2-2", state="half-configured")
    host.installed("mysql-server", version="8", state="unpacked")
    assert host.decide().refused == [
        "dpkg has unfinished packages: mysql-server (unpacked), zfs-dkms (half-configured). They are not the driver's, "
        "so nobody but you should decide: look at `dpkg --configure -a`, repair or remove them, then run again."
    ]
    host.driver()
    assert host.decide().refused == []  # nothing to do, so nothing is in the way


def test_unfinished_packages_of_the_driver_are_repaired(host: Machine) -> None:
    host.driver("proprietary", built=False)
    host.installed(f"linux-headers-{NEW}", version="6.12.117-1", state="half-configured")
    plan, refused, _ = host.decide()
    assert (plan["action"], plan["build"], refused) == ("repair", [NEW], [])
    assert plan["configure"] == [f"linux-headers-{NEW}", "nvidia-kernel-dkms"]


def test_a_failed_build_of_the_open_modules(host: Machine) -> None:
    """Left to choose, the other flavour takes its place; asked for, it is refused; what failed is told either way."""
    host.driver("open", built=False)
    plan, refused, notes = host.decide()
    assert (plan["action"], plan["flavour"], plan["purge"]) == ("change", "proprietary", ["nvidia-open-kernel-dkms"])
    assert (plan["configure"], refused) == ([], [])
    assert notes == [f"nvidia-open-kernel-dkms goes, nvidia-kernel-dkms comes: {nvidia_hosts.SEEN}"]
    (refusal,) = host.decide(flavour="open").refused
    assert "do not compile" in refusal
    host.modprobe = ""  # follows from the failure, as does dpkg's state: the cause is told alone
    assert host.problems(flavour="open") == [
        f"The open driver 550.163.01 could not be built for kernel {NEW} (dkms: added): {nvidia_hosts.SEEN}. Three "
        "ways out: nvidia_driver_flavour: proprietary; nvidia_driver_source: nvidia_repo with 580.126.09 or newer; or "
        "keep and boot an older kernel."
    ]


def test_an_unfinished_package_with_all_modules_built(host: Machine) -> None:
    host.driver()
    host.installed("nvidia-smi", state="unpacked")
    host.modprobe = ""
    assert host.problems() == [
        "dpkg has not finished nvidia-smi (unpacked): run this role again, or look at `dpkg --configure -a`."
    ]


def test_a_refusal_leaves_a_working_driver(host: Machine) -> None:
    """A half-configured package of a host whose running kernel has its module stays; one that never worked goes."""
    host.driver()
    host.installed("nvidia-kernel-dkms", "nvidia-cuda-toolkit", state="half-configured")
    host.kernel("6.12.120+deb13-amd64")
    host.space["/var"] = (1_000, "/var")
    plan, refused, _ = host.decide()
    assert refused and (plan["unbuilt"], plan["frozen"]) == ([], "550.163.01*")
    del host.modules[NEW]
    assert host.decide().plan["unbuilt"] == ["nvidia-kernel-dkms"]


def test_no_headers_for_the_running_kernel(host: Machine) -> None:
    host.kernel("6.12.86+deb13-amd64", form="old", headers=False, offered=False, running=True)
    assert host.decide().refused == [
        "apt has no linux-headers-6.12.86+deb13-amd64, and without headers no driver can be built for the running "
        "kernel 6.12.86+deb13-amd64. Three ways out: install the kernel that apt offers and boot it (apt-get install "
        "linux-image-amd64; reboot); add a mirror or snapshot that still has linux-headers-6.12.86+deb13-amd64; or "
        "bring linux-headers-6.12.86+deb13-amd64 yourself (dpkg -i)."
    ]
    assert host.decide(sources_pending=True).refused == []


def test_no_headers_for_another_kernel(host: Machine) -> None:
    host.kernel("6.12.86+deb13-amd64", form="old", headers=False, offered=False)
    plan, refused, notes = host.decide()
    assert refused == [] and notes == [
        "apt has no linux-headers-6.12.86+deb13-amd64: kernel 6.12.86+deb13-amd64 gets no driver; remove that kernel"
    ]
    assert plan["build"] == [NEW] and f"linux-headers-{NEW}" in plan["packages"]
    assert "linux-headers-6.12.86+deb13-amd64" not in plan["packages"]


@pytest.mark.parametrize("source", ["distro", "preinstalled"])
def test_the_kernel_that_boots_next_gets_no_driver(host: Machine, source: str) -> None:
    host.driver()
    host.kernel("6.12.120+deb13-amd64", headers=False, offered=False)
    said = "Kernel 6.12.120+deb13-amd64 boots next, and it has neither a driver nor headers to build one for"
    (problem,) = host.problems(source=source)
    assert problem.startswith(said)
    assert [one.startswith(said) for one in host.decide(source=source).refused] == [True] * (source == "distro")
    assert host.debts(source=source)  # so the problem has to stop the run before it is paid


def test_a_kernel_that_the_boot_loader_left(host: Machine) -> None:
    """Newer than the running one and there since before the boot: rebooting again would not help."""
    host.driver()
    host.kernel("6.12.120+deb13-amd64", headers=False, offered=False)
    there = host.root / "var/lib/dpkg/info/linux-image-6.12.120+deb13-amd64.list"
    machines.write(there, "/boot\n")
    os.utime(there, (1000, 1000))
    machines.write(host.root / "proc/stat", "cpu 1 2\nbtime 2000\n")
    assert host.decide().refused == host.problems() == host.debts() == []
    os.utime(there, (3000, 3000))
    assert len(host.decide().refused) == len(host.problems()) == len(host.debts()) == 1


def test_a_kernel_of_somebody_else(host: Machine) -> None:
    host.kernel("6.15.3-custom", headers=False, offered=False, package=None, running=True)
    (refused,) = host.decide().refused
    assert refused.startswith("The running kernel 6.15.3-custom is none of the distribution's and has no headers at")
    host.kernel("6.15.3-custom", headers=True, offered=False, package=None, running=True)
    assert host.decide().refused == []


def test_a_real_time_kernel(host: Machine) -> None:
    host.kernel("6.12.117+deb13-rt-amd64", running=True)
    assert host.decide().refused == [
        "The running kernel 6.12.117+deb13-rt-amd64 is a real-time one, and NVIDIA's modules exclude those "
        "(CONFIG_PREEMPT_RT). Boot a kernel of the ordinary flavour, or set nvidia_driver_source: preinstalled."
    ]
    host.kernel(NEW, running=True)
    plan, refused, _ = host.decide()
    assert refused == [] and plan["build"] == [NEW] and "linux-headers-6.12.117+deb13-rt-amd64" not in plan["packages"]


def test_a_full_boot(host: Machine) -> None:
    host.space["/boot"] = (30_000_000, "/boot")
    assert host.decide().refused == [
        "/boot has 30 MB free, and installing and building the driver takes 80 MB (/boot 80 MB). Make room: remove old "
        "kernels (apt-get autoremove --purge), or enlarge it; then run again."
    ]


def test_a_full_root(host: Machine) -> None:
    """Folders of one file system are added up."""
    host.space = {folder: (2_000_000_000, "/") for folder in ("/usr", "/var", "/boot")}
    assert host.decide().refused == [
        "/ has 2,000 MB free, and installing and building the driver takes 3,080 MB (/usr 1,500 MB, /var 1,500 MB, "
        "/boot 80 MB). Make room: empty apt's cache (apt-get clean), remove what is not needed, or enlarge it; then "
        "run again."
    ]
    host.driver()
    assert host.decide().refused == []


def test_components_that_are_not_enabled(host: Machine) -> None:
    for name in nvidia_hosts.DRIVER:
        del host.offers[name]
    assert host.decide().refused == [
        "apt offers no package nvidia-kernel-dkms: Debian keeps it in the components contrib and non-free; let "
        "nvidia_driver_source: distro add them, and look at what apt-get update says."
    ]
    plan, refused, _ = host.decide(sources_pending=True)
    assert (plan["action"], plan["version"], refused) == ("install", None, [])


def test_a_repository_that_is_empty(host: Machine) -> None:
    (refused,) = host.decide(source="nvidia_repo", branch="999").refused
    assert refused == (
        "apt offers no package nvidia-open-999: look at what apt-get update says of NVIDIA's repository or its mirror, "
        "and at nvidia_driver_branch."
    )


def test_all_that_forbids_is_told_at_once(host: Machine) -> None:
    host.efi(True)
    host.space["/boot"] = (0, "/boot")
    machines.write(host.root / "usr/bin/nvidia-uninstall", "")
    assert len(host.decide(flavour="open").refused) == 4


# --- what is wrong, and what is owed


def test_library_and_driver_of_two_versions(host: Machine) -> None:
    host.driver()
    host.installed("libcuda1", "nvidia-smi", version=NEWER)
    assert host.problems() == [
        "The driver is 550.163.01, and of other versions are libcuda1 570.172.08-1, nvidia-smi 570.172.08-1: "
        "nvidia-smi says Driver/library version mismatch, and a reboot does not help. Install them in 550.163.01."
    ]


def test_another_file_in_the_place_of_the_module(host: Machine) -> None:
    host.driver()
    host.dkms[NEW][0] += " (WARNING! Diff between built and installed module!)"
    assert host.problems() == [
        f"Kernel {NEW}: dkms says of nvidia-current/550.163.01: WARNING! Diff between built and installed module! "
        "Another file took the place of the built module; run `dkms install --force nvidia-current/550.163.01 -k "
        f"{NEW}`."
    ]


def test_a_module_of_another_version(host: Machine) -> None:
    host.driver()
    host.modules[NEW] = ("nvidia-current", "535.261.03")
    assert host.problems() == [
        f"Kernel {NEW} has an nvidia module 535.261.03, and the driver is 550.163.01 (dkms: installed). "
        f"Run `dkms autoinstall -k {NEW}` and read its output."
    ]


def test_nouveau_that_comes_back(host: Machine) -> None:
    host.driver()
    host.modprobe = "options x y\n"
    (problem,) = host.problems()
    assert problem.startswith("nouveau is not blacklisted, so it takes the GPUs at the next boot: ")


def test_a_healthy_driver_owes_nothing(host: Machine) -> None:
    host.driver()
    host.loaded("550.163.01")
    assert host.problems() == [] == host.debts()


def test_reboots(host: Machine) -> None:
    """One debt per reason, each with both sides."""
    host.driver()
    host.loaded("535.261.03")
    host.kernel("6.12.120+deb13-amd64")
    (host.root / "sys/module/nouveau").mkdir(parents=True)
    machines.write(host.root / "run/reboot-required", "*** System restart required ***")
    machines.write(host.root / "run/reboot-required.pkgs", "linux-image-amd64\nlibc6\nlibc6")
    assert host.debts() == [
        {"what": "reboot", "why": "the loaded driver is 535.261.03 and the one on disk 550.163.01"},
        {"what": "reboot", "why": "nouveau is loaded and holds the GPUs"},
        {"what": "reboot", "why": f"kernel {NEW} runs and 6.12.120+deb13-amd64 is installed"},
        {"what": "reboot", "why": "the system asks for it for libc6 linux-image-amd64 (/run/reboot-required)"},
    ]


def test_what_the_driver_waits_for(host: Machine) -> None:
    """A system that wants a reboot for something else keeps no driver from running."""
    host.driver()
    host.loaded("550.163.01")
    machines.write(host.root / "run/reboot-required", "*** System restart required ***")
    seen = host.see()
    assert host.debts() and verify.waiting(seen, host.decide().plan) == []
    (host.root / "sys/module/nouveau").mkdir(parents=True)
    assert verify.waiting(host.see(), host.decide().plan) == ["nouveau is loaded and holds the GPUs"]


def test_a_run_file_cannot_install_beside_nouveau(host: Machine) -> None:
    (host.root / "sys/module/nouveau").mkdir(parents=True)
    assert [one["why"] for one in host.debts(source="runfile", version="580.126.09")] == [
        "nouveau is loaded and holds the GPUs"
    ]


def test_a_reboot_that_nvidia_smi_asks_for(host: Machine) -> None:
    host.driver()
    host.loaded("550.163.01")
    host.smi(18, "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.163")
    assert host.debts() == [
        {"what": "reboot", "why": "nvidia-smi says Driver/library version mismatch; the loaded driver is 550.163.01"}
    ]


def test_a_host_without_a_driver_owes_nothing(host: Machine) -> None:
    (host.root / "sys/module/nouveau").mkdir(parents=True)
    assert host.debts() == [] == host.problems()
