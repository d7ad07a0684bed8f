# SPDX-License-Identifier: GPL-3.0-or-later
"""Operating system, kernel, C library, Pythons, and whether this is a virtual machine or a container."""

from __future__ import annotations

import re

from ansible_collections.onprem.llm.plugins.module_utils.hardware.cpu import Info
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Run, Tree, answer
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import System

PROGRAMS = ("/usr/local/bin", "/usr/bin")
# Files that container engines put into their containers.
MARKS = {"/.dockerenv": "docker", "/run/.containerenv": "podman"}


def parse_release(text: str) -> dict[str, str]:
    """Variables of /etc/os-release."""
    return {name: value.strip("\"'") for name, value in re.findall(r"(?m)^([A-Z_]+)=(.*?)\s*$", text)}


def pythons(names: list[str]) -> list[str]:
    """Versions by names such as python3.11, oldest first."""
    found = {int(match[1]) for match in (re.fullmatch(r"python3\.(\d{1,3})", name) for name in names) if match}
    return [f"3.{minor}" for minor in sorted(found)]


def virtualisation(info: Info) -> str | None:
    """Without systemd-detect-virt: what the processor's flags say; None when it has no flags."""
    if not info.flags:
        return None
    return "vm-other" if "hypervisor" in info.flags else "none"


def detect(run: Run, kind: str) -> tuple[str | None, str]:
    """What systemd-detect-virt prints for --vm or --container; it ends with 1 when that is none."""
    rc, out, err = run(["systemd-detect-virt", kind])
    word = out.strip()
    return (word, "") if rc in (0, 1) and word else (None, answer("systemd-detect-virt", rc, out, err))


def architecture(tree: Tree, run: Run, info: Info, unknown: dict[str, str]) -> str:
    found = (tree.text("/proc/sys/kernel/arch") or "").strip() or run(["uname", "-m"])[1].strip() or info.architecture
    if not found:
        unknown["architecture"] = "neither the kernel, uname nor /proc/cpuinfo tells it; run uname -m by hand"
    return found


def read(tree: Tree, run: Run, info: Info, unknown: dict[str, str]) -> System:
    release = parse_release(tree.text("/etc/os-release") or "")
    kernel = (tree.text("/proc/sys/kernel/osrelease") or "").strip()
    rc, out, err = run(["getconf", "GNU_LIBC_VERSION"])
    glibc = re.fullmatch(r"glibc (\d+\.\d+\S*)", out.strip())
    folders = [names for names in map(tree.names, PROGRAMS) if names is not None]
    vm, _ = detect(run, "--vm")
    container, no_container = detect(run, "--container")
    if container is None:
        container = next((engine for mark, engine in MARKS.items() if tree.exists(mark)), None)
    system = System(
        distribution=release.get("ID"),
        version=release.get("VERSION_ID"),
        kernel=kernel or None,
        glibc=glibc[1] if glibc else None,
        python=pythons([name for names in folders for name in names]) if folders else None,
        virtualisation=vm or virtualisation(info),
        container=container,
    )
    explain(
        system,
        {
            "distribution": f"{tree.why('/etc/os-release')}; engines are chosen without it",
            "version": f"{tree.why('/etc/os-release')}; a rolling distribution has none",
            "kernel": f"{tree.why('/proc/sys/kernel/osrelease')}; run uname -r",
            "glibc": f"{answer('getconf', rc, out, err)}; run ldd --version",
            "python": f"{' and '.join(PROGRAMS)} cannot be listed; look for python3 in PATH",
            "virtualisation": "neither systemd-detect-virt nor the processor's flags tell it; look at lscpu",
            "container": f"{no_container}; look at /proc/1/environ for container=",
        },
        unknown,
    )
    return system


def explain(system: System, reasons: dict[str, str], unknown: dict[str, str]) -> None:
    unknown.update({f"system.{fact}": reason for fact, reason in reasons.items() if system.get(fact) is None})
