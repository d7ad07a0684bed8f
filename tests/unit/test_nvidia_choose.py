# SPDX-License-Identifier: GPL-3.0-or-later
"""Which flavour of the driver fits GPUs, headers and source: each recorded GPU on each machine, and mixtures."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines
from nvidia_hosts import NEW, OLD, Machine

GPUS = sorted(machines.gpus())
BLACKWELL = {name for name, one in machines.gpus().items() if one["needs_open_kernel_module"]}
PASCAL = ("Tesla P40", "0x1b38", "6.1")
VOLTA = ("Tesla V100-SXM2-32GB", "0x1db5", "7.0")


def host(path: Path, *gpus: str, form: str = "new", machine: str = "vm-1s-epyc-2vcpu") -> Machine:
    found = Machine(path, gpus, machine)
    found.kernel(NEW if form == "new" else OLD, form=form, running=True)
    return found


def card(found: Machine, address: str, device: str) -> None:
    """A GPU that is not among the recorded ones."""
    for name, text in {"class": "0x030200", "vendor": "0x10de", "device": device, "numa_node": "0"}.items():
        machines.write(found.root / f"sys/bus/pci/devices/{address}/{name}", text)


def repository(found: Machine, version: str = "580.126.09-1") -> None:
    """NVIDIA's, with its lean packages."""
    names = ("nvidia-driver-cuda", "nvidia-kernel-open-dkms", "nvidia-kernel-dkms", "nvidia-open", "cuda-drivers")
    found.offers.update({name: [version] for name in names})


def test_the_recorded_gpus_hold_a_blackwell() -> None:
    assert BLACKWELL and len(GPUS) > len(BLACKWELL)


@pytest.mark.parametrize("machine", sorted(machines.machines()))
def test_every_recorded_gpu_on_every_recorded_machine(machine: str, tmp_path: Path) -> None:
    """Debian's archive gives the proprietary flavour, and nothing for a Blackwell; NVIDIA's gives the open one."""
    found = host(tmp_path, machine=machine)
    for gpu in GPUS:
        shutil.rmtree(found.root / "sys/bus/pci/devices")
        for address in ("0000:18:00.0", "0000:98:00.0"):
            card(found, address, machines.gpus()[gpu]["pci_device"])
        found.archive()
        plan, refused, _ = found.decide()
        assert plan["wanted"]
        if gpu in BLACKWELL:
            assert plan["flavour"] == "open" and len(refused) == 1, refused
        else:
            assert (plan["flavour"], plan["version"], refused) == ("proprietary", "550.163.01-2", [])
        repository(found)
        plan, refused, _ = found.decide(source="nvidia_repo")
        assert (plan["flavour"], plan["driver"], refused) == ("open", "580.126.09", [])


@pytest.mark.parametrize("machine", sorted(machines.machines()))
def test_a_recorded_machine_without_a_gpu_is_left_alone(machine: str, tmp_path: Path) -> None:
    found = Machine(tmp_path, [], machine)
    plan, refused, _ = found.decide(source="nvidia_repo")
    assert (plan["wanted"], plan["why"], plan["install"], refused) == (
        False,
        "there is no NVIDIA GPU on the PCI bus",
        [],
        [],
    )
    assert found.decide(install="always").plan["install"]


def test_debians_archive_has_nothing_for_a_blackwell(tmp_path: Path) -> None:
    assert host(tmp_path, "rtx-5090", "rtx-5090").decide().refused == [
        "2 x NVIDIA GeForce RTX 5090 (Blackwell) needs a driver of the 570 series or newer with open kernel modules, "
        "and Debian's archive has 550.163.01. Set nvidia_driver_source: nvidia_repo (or runfile), or take a newer "
        "distribution."
    ]


def test_the_archive_is_known_before_its_components_are_enabled(tmp_path: Path) -> None:
    found = host(tmp_path, "rtx-5090")
    found.offers.clear()
    (refused,) = found.decide(sources_pending=True).refused
    assert "Debian's archive has 550.163.01" in refused
    (refused,) = found.decide(flavour="proprietary", sources_pending=True).refused[:1]
    assert refused.startswith(
        "nvidia_driver_flavour is proprietary, and NVIDIA GeForce RTX 5090 (Blackwell, 0000:18:00.0)"
    )


@pytest.mark.parametrize("gpu", [one for one in GPUS if one not in BLACKWELL])
def test_open_modules_of_the_archive(gpu: str, tmp_path: Path) -> None:
    """They compile against the old headers only."""
    plan, refused, _ = host(tmp_path / "old", gpu, form="old").decide(flavour="open")
    assert (plan["flavour"], plan["install"][-1], refused) == ("open", "nvidia-open-kernel-dkms=550.163.01-2", [])
    assert host(tmp_path / "new", gpu).decide(flavour="open").refused == [
        f"The open kernel modules 550.163.01 do not compile on kernel {NEW}: its headers have the new form of "
        "pci_resize_resource, which they know from 580.126.09 on (nv-pci.c: too few arguments to function "
        "'pci_resize_resource'). Three ways out: nvidia_driver_flavour: proprietary; nvidia_driver_source: nvidia_repo "
        "with 580.126.09 or newer; or keep and boot an older kernel (Debian 13: up to 6.12.94; hold its linux-image "
        "package and remove newer ones)."
    ]


def test_headers_that_a_meta_package_would_bring_count_too(tmp_path: Path) -> None:
    found = host(tmp_path, "rtx-4090-24g", form="old")
    found.installed("linux-image-amd64", version="6.12.94-1")
    found.offers["linux-headers-amd64"] = ["6.12.117-1", "6.12.94-1"]
    (refused,) = found.decide(flavour="open").refused
    assert "do not compile on kernel 6.12.117:" in refused
    found.kernel(NEW)  # the same kernel, installed: named once
    (refused,) = found.decide(flavour="open").refused
    assert f"do not compile on kernel {NEW}:" in refused
    (found.root / "lib/modules" / NEW).rename(found.root / "gone")
    found.installed("linux-image-amd64", version="6.12.94-1", want="hold")
    assert found.decide(flavour="open").refused == []


@pytest.mark.parametrize(
    ("version", "refused"),
    [("570.172.08-1", True), ("580.105.08-1", True), ("580.126.09-1", False), ("590.48-1", False)],
)
def test_open_modules_of_nvidia(version: str, refused: bool, tmp_path: Path) -> None:
    found = host(tmp_path, "rtx-4090-24g")
    repository(found, version)
    assert bool(found.decide(source="nvidia_repo", flavour="open").refused) is refused
    # Left to choose, what can be built is taken.
    assert found.decide(source="nvidia_repo").plan["flavour"] == ("proprietary" if refused else "open")


@pytest.mark.parametrize(("name", "device", "capability"), [PASCAL, VOLTA])
def test_older_than_turing(name: str, device: str, capability: str, tmp_path: Path) -> None:
    found = host(tmp_path)
    card(found, "0000:18:00.0", device)
    assert [one["capability"] for one in found.see()["gpus"]] == [capability]
    assert found.decide().plan["flavour"] == "proprietary" and found.decide().refused == []
    family = {"6": "Pascal", "7": "Volta"}[capability[0]]
    assert found.decide(flavour="open").refused[0] == (
        f"nvidia_driver_flavour is open, and {name} ({family}, 0000:18:00.0) only works with proprietary kernel "
        "modules. Set nvidia_driver_flavour: auto or proprietary."
    )
    repository(found, "580.126.09-1")
    assert found.decide(source="nvidia_repo").plan["flavour"] == "proprietary"
    repository(found, "590.48.01-1")
    assert found.decide(source="nvidia_repo").refused == [
        f"{name} ({family}, 0000:18:00.0) is served up to the 580 series, and NVIDIA's repository has 590.48.01. "
        'Set nvidia_driver_branch: "580", or nvidia_driver_version to one of that series.'
    ]


def test_generations_that_one_driver_serves(tmp_path: Path) -> None:
    found = host(tmp_path, "rtx-4090-24g", "t4-16g", "h100-sxm5-80g")
    card(found, "0000:90:00.0", PASCAL[1])
    assert found.decide().refused == []
    repository(found)
    assert found.decide(source="nvidia_repo").refused == []
    assert found.decide(source="nvidia_repo").plan["flavour"] == "proprietary"


@pytest.mark.parametrize("source", ["distro", "nvidia_repo", "runfile"])
def test_generations_that_no_driver_serves(source: str, tmp_path: Path) -> None:
    found = host(tmp_path, "rtx-5090")
    card(found, "0000:90:00.0", PASCAL[1])
    card(found, "0000:91:00.0", PASCAL[1])
    repository(found)
    decision = found.decide(source=source, version="580.126.09")
    assert decision.refused == [
        "No driver serves all GPUs of this host: 2 x Tesla P40 (Pascal) only has proprietary kernel modules, NVIDIA "
        "GeForce RTX 5090 (Blackwell, 0000:18:00.0) only open ones, and a kernel loads one driver. Take one kind out, "
        "give it to a virtual machine (vfio-pci), or put it into another host."
    ]
    assert decision.plan["install"] == []
    for address in ("0000:90:00.0", "0000:91:00.0"):
        found.give_away(address)
    assert found.decide(source="nvidia_repo").refused == []


def test_a_gpu_that_nobody_knows(tmp_path: Path) -> None:
    found = host(tmp_path)
    card(found, "0000:18:00.0", "0x3fff")
    plan, refused, notes = found.decide()
    assert (plan["flavour"], refused) == ("proprietary", [])
    assert notes == [
        "NVIDIA device 10de:3fff (10de:3fff) is not in the table of GPUs: both flavours are taken to fit it"
    ]


@pytest.mark.parametrize("flavour", ["proprietary", "open"])
def test_what_is_installed_stays(flavour: str, tmp_path: Path) -> None:
    found = host(tmp_path, "rtx-4090-24g", form="old")
    found.driver(flavour)
    plan, refused, _ = found.decide()
    assert (plan["flavour"], plan["action"], plan["install"], plan["purge"], refused) == (flavour, "none", [], [], [])


def test_open_modules_that_a_new_kernel_breaks_are_replaced(tmp_path: Path) -> None:
    found = host(tmp_path, "rtx-4090-24g", form="old")
    found.driver("open")
    found.kernel(NEW)
    plan, refused, notes = found.decide()
    assert (plan["flavour"], plan["action"], plan["purge"]) == ("proprietary", "change", ["nvidia-open-kernel-dkms"])
    assert refused == [] and notes == ["nvidia-open-kernel-dkms goes, nvidia-kernel-dkms comes"]


def ubuntu(path: Path, *gpus: str, branches: tuple[str, ...] = ("535", "570", "580", "590")) -> Machine:
    found = Machine(path, gpus)
    machines.write(path / "etc/os-release", 'ID=ubuntu\nVERSION_ID="24.04"')
    kernel = "6.8.0-41-generic"
    found.kernel(kernel, form="old", running=True)
    found.installed("linux-image-generic", version="6.8.0-41.41")
    found.offers = {f"linux-headers-{kernel}": ["6.8.0-41.41"]}
    for branch in branches:
        version = f"{branch}.1.2-0ubuntu0.24.04.1"
        for tail in ("", "-open"):
            found.pkgnames.append(f"nvidia-headless-no-dkms-{branch}-server{tail}")
            found.offers[f"nvidia-headless-no-dkms-{branch}-server{tail}"] = [version]
            found.offers[f"nvidia-dkms-{branch}-server{tail}"] = [version]
            for one in (kernel, "generic"):
                found.offers[f"linux-modules-nvidia-{branch}-server{tail}-{one}"] = ["6.8.0-41.41+1"]
        found.offers[f"nvidia-utils-{branch}-server"] = [version]
    found.offers["nvidia-modprobe"] = ["535.1-0ubuntu1"]
    return found


@pytest.mark.parametrize(
    ("gpu", "options", "flavour", "branch"),
    [
        ("rtx-4090-24g", {}, "open", "590"),
        ("rtx-4090-24g", {"branch": "570"}, "open", "570"),
        ("rtx-4090-24g", {"branch": "570-server", "flavour": "proprietary"}, "proprietary", "570"),
        ("rtx-5090", {}, "open", "590"),
        ("p40", {}, "proprietary", "580"),
    ],
)
def test_ubuntu(gpu: str, options: dict[str, Any], flavour: str, branch: str, tmp_path: Path) -> None:
    found = ubuntu(tmp_path, *([gpu] if gpu != "p40" else []))
    if gpu == "p40":
        card(found, "0000:18:00.0", PASCAL[1])
    plan, refused, _ = found.decide(**options)
    assert (plan["flavour"], plan["branch"], refused) == (flavour, branch, [])
    series = f"{branch}-server" + ("-open" if flavour == "open" else "")
    assert plan["packages"] == [
        f"nvidia-utils-{branch}-server",
        "nvidia-modprobe",
        f"linux-modules-nvidia-{series}-6.8.0-41-generic",
        f"linux-modules-nvidia-{series}-generic",
        f"nvidia-headless-no-dkms-{series}",
    ]
    assert plan["install"][-1] == f"nvidia-headless-no-dkms-{series}={branch}.1.2-0ubuntu0.24.04.1"


def test_ubuntu_without_prebuilt_modules_builds(tmp_path: Path) -> None:
    found = ubuntu(tmp_path, "rtx-4090-24g", branches=("570",))
    del found.offers["linux-modules-nvidia-570-server-open-6.8.0-41-generic"]
    plan = found.decide().plan
    assert plan["packages"][-1] == "nvidia-dkms-570-server-open" and "linux-headers-generic" in plan["packages"]


def test_ubuntus_modules_are_not_held(tmp_path: Path) -> None:
    """A new kernel has to bring its own."""
    found = ubuntu(tmp_path, "rtx-4090-24g", branches=("570",))
    found.installed(*found.decide().plan["packages"], version="570.1.2-0ubuntu0.24.04.1")
    assert found.decide().plan["hold"] == [
        "nvidia-headless-no-dkms-570-server-open",
        "nvidia-modprobe",
        "nvidia-utils-570-server",
    ]


def test_ubuntu_has_nothing_for_a_blackwell(tmp_path: Path) -> None:
    (refused,) = ubuntu(tmp_path, "rtx-5090", branches=("535", "550")).decide().refused
    assert (
        "needs a driver of the 570 series or newer with open kernel modules, and Ubuntu's archive has 550.1.2"
        in refused
    )


def test_ubuntu_without_the_branch(tmp_path: Path) -> None:
    (refused,) = ubuntu(tmp_path, "rtx-4090-24g").decide(branch="575").refused
    assert refused.startswith(
        "apt offers no package nvidia-headless-no-dkms-575-server-open; it has the series 535, 570, 580, 590: "
    )
