# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything a decision needs to know of a host. Nothing raises and nothing is changed."""

from __future__ import annotations

import re

from ansible_collections.onprem.llm.plugins.module_utils.hardware import nvidia, pci
from ansible_collections.onprem.llm.plugins.module_utils.hardware.system import detect, parse_release
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Run, Tree, recorded_run
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import kernels, packages, secure_boot
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import Card, Host, Nouveau, Options, Space

RUNFILE = ("/usr/bin/nvidia-uninstall", "/usr/bin/nvidia-installer")
GB, MB = 10**9, 10**6
# Compiler, headers and driver below /usr; archives of apt and what DKMS builds below /var: 1.3 GB were seen in all, and
# a build holds its objects twice while it lasts.
NEEDS = {"/usr": 1_500 * MB, "/var": 1_500 * MB}
INITRAMFS = 64 * MB  # where /boot has none yet
SLACK = 16 * MB


def cards(tree: Tree, run: Run) -> tuple[list[Card], str, str, bool]:
    """GPUs, nvidia-smi's state and reason, and whether the bus is to be seen."""
    unknown: dict[str, str] = {}
    devices = pci.scan(tree)
    kernel = {one.address: one.driver for one in devices or []}
    found, driver = nvidia.read(tree, run, 1, unknown)
    listed = [
        Card(
            name=gpu["name"],
            address=gpu["pci_address"],
            device=gpu["pci_device"],
            capability=gpu["compute_capability"],
            driver=kernel.get(gpu["pci_address"] or ""),
        )
        for gpu in found
    ]
    return listed, driver["state"], unknown.get("driver", ""), devices is not None


def nouveau(tree: Tree, run: Run) -> Nouveau:
    rc, out, _ = run(["modprobe", "--showconfig"])
    return Nouveau(
        loaded=tree.exists("/sys/module/nouveau"),
        blacklisted=bool(re.search(r"(?m)^(?:blacklist nouveau|install nouveau /bin/(?:false|true))\s*$", out))
        if rc == 0
        else None,
    )


def initramfs(tree: Tree) -> int:
    """What a new initramfs takes beside the old one: the size of the largest there is."""
    files = (tree.path(f"/boot/{name}") for name in tree.names("/boot") or [] if name.startswith("initrd.img-"))
    return max((file.stat().st_size for file in files if file.is_file()), default=INITRAMFS) + SLACK


def space(tree: Tree, run: Run) -> dict[str, Space]:
    """Free bytes by folder; a folder df says nothing of is left out."""
    found = {}
    for folder, need in {**NEEDS, "/boot": initramfs(tree)}.items():
        _, out, _ = run(["df", "-P", "-B1", folder])
        row = re.search(r"(?m)^\S+ +\d+ +\d+ +(\d+) +\S+ +(/.*)$", out)
        if row:
            found[folder] = Space(free=int(row[1]), mount=row[2].strip(), need=need)
    return found


def reboot_required(tree: Tree) -> str | None:
    if not tree.exists("/run/reboot-required"):
        return None
    return " ".join(sorted(set((tree.text("/run/reboot-required.pkgs") or "").split())))


def branches(run: Run) -> list[str]:
    """Driver series for servers in Ubuntu's archive, oldest first."""
    _, out, _ = run(["apt-cache", "pkgnames", "nvidia-headless-no-dkms-"])
    return sorted(set(re.findall(r"(?m)^nvidia-headless-no-dkms-(\d+)-server$", out)), key=int)


def read(root: str, run: Run, options: Options) -> Host:
    """root: / for this host; a folder with its proc, sys and commands for a recorded one, as host_hardware's."""
    tree = Tree(root)
    if tree.recorded:
        run = recorded_run(tree)
    release = parse_release(tree.text("/etc/os-release") or "")
    container, _ = detect(run, "--container")
    found, smi, reason, bus = cards(tree, run)
    installed = packages.parse_dpkg(run(packages.QUERY)[1])
    running = (tree.text("/proc/sys/kernel/osrelease") or "").strip()
    series = branches(run) if release.get("ID") == "ubuntu" else []
    host = Host(
        distribution=release.get("ID"),
        version=release.get("VERSION_ID"),
        container=container if container != "none" else None,
        gpus=found,
        bus=bus,
        running=running,
        kernels=kernels.read(tree, run, installed, running),
        metas=kernels.metas(installed),
        packages={name: one for name, one in installed.items() if packages.matters(name)},
        broken=packages.broken(installed),
        offers={},
        branches=series,
        loaded=nvidia.loaded(tree),
        smi=smi,
        smi_reason=reason,
        nouveau=nouveau(tree, run),
        runfile=[one for one in RUNFILE if tree.exists(one)],
        secure_boot=secure_boot.read(tree, run),
        space=space(tree, run),
        reboot_required=reboot_required(tree),
    )
    host["offers"] = packages.ask(run, packages.names(host, options, asked_branches(host, options)))
    return host


def asked_branches(host: Host, options: Options) -> list[str]:
    if host["distribution"] == "ubuntu" and options.source == "distro":
        return [options.branch] if options.branch else host["branches"]
    return [options.branch]
