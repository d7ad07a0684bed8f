# SPDX-License-Identifier: GPL-3.0-or-later
"""Folders that look like a host to the module on the NVIDIA driver: kernels, packages, DKMS, firmware, disk.

Texts are those seen on Debian 13 with driver 550.163.01, on Debian 12, and in the manuals where a line says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines

from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver import look, plan, verify
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.plan import Decision
from ansible_collections.onprem.llm.plugins.module_utils.nvidia_driver.types import Debt, Host, Options

OLD, NEW = "6.12.94+deb13-amd64", "6.12.117+deb13-amd64"
VERSION = "550.163.01-2"
PCI_H = {
    "old": "int __must_check pci_resize_resource(struct pci_dev *dev, int i, int size);\n",
    "new": "int __must_check pci_resize_resource(struct pci_dev *dev, int i, int size,\n\t\t\t\tint exclude_bars);\n",
}
DRIVER = ("nvidia-kernel-support", "libcuda1", "nvidia-smi", "nvidia-kernel-dkms", "nvidia-open-kernel-dkms")
MAKE_LOG = """\
DKMS make.log for nvidia-current-open-550.163.01 for kernel {kernel} (x86_64)
make -C /lib/modules/{kernel}/build M=/var/lib/dkms/nvidia-current-open/550.163.01/build
  CC [M]  nvidia/nv-pci.o
/var/lib/dkms/nvidia-current-open/550.163.01/build/nvidia/nv-pci.c: In function 'nv_resize_pcie_bars':
/var/lib/dkms/nvidia-current-open/550.163.01/build/nvidia/nv-pci.c:237:9: error: too few arguments to function \
'pci_resize_resource'
make[3]: *** [scripts/Makefile.build:244: nvidia/nv-pci.o] Error 1
make: *** [Makefile:189: all] Error 2
"""
SEEN = "nv-pci.c:237:9: error: too few arguments to function 'pci_resize_resource'"


class Machine:
    """A host on disk; ``see`` reads it, ``decide`` decides. Change it between calls as an administrator would."""

    def __init__(self, root: Path, gpus: Sequence[str] = (), machine: str = "vm-1s-epyc-2vcpu") -> None:
        self.root = root
        record = machines.record(machine, gpus, os="debian 13", kernel=NEW, disk=None, driver=None)
        machines.write_root(record, root)
        self.packages: dict[str, tuple[str, str, str]] = {}
        self.offers: dict[str, list[str]] = {}
        self.dkms: dict[str, list[str]] = {}
        self.modules: dict[str, tuple[str, str]] = {}
        self.pkgnames: list[str] = []
        self.mokutil: list[dict[str, Any]] = []
        self.space = {"/usr": (40_000_000_000, "/"), "/var": (40_000_000_000, "/"), "/boot": (400_000_000, "/boot")}
        self.modprobe: str | None = "blacklist nouveau\n"
        self.container = "none"
        (root / "sys/bus/pci/devices").mkdir(parents=True, exist_ok=True)
        self.smi(rc=127, stdout="")
        self.archive()

    # --- what it has

    def archive(self, version: str = VERSION, persistenced: str = "550.163.01-1") -> None:
        """Debian's archive with contrib and non-free."""
        self.offers.update({name: [version] for name in DRIVER})
        self.offers.update({"nvidia-persistenced": [persistenced], "dkms": ["3.2.2-1~deb13u1"]})
        self.offers.update({name: ["4:14.2.0-1"] for name in ("gcc", "make", "libc6-dev")})

    def kernel(
        self,
        name: str,
        form: str | None = "new",
        headers: bool = True,
        offered: bool = True,
        package: str | None = "",
        running: bool = False,
    ) -> None:
        """package: version of its package, derived from the name where empty; None: not installed by one."""
        folder = self.root / "lib/modules" / name
        folder.mkdir(parents=True, exist_ok=True)
        if headers:
            (folder / "build/include/linux").mkdir(parents=True, exist_ok=True)
            machines.write(folder / "source/include/linux/pci.h", PCI_H[form] if form else "/* nothing */")
        version = package or f"{name.split('+')[0].split('-')[0]}-1"
        if package is not None:
            self.packages[f"linux-image-{name}"] = (version, "install", "installed")
        if headers and package is not None:
            self.packages[f"linux-headers-{name}"] = (version, "install", "installed")
        if offered:
            self.offers[f"linux-headers-{name}"] = [version]
        if running:
            machines.write(self.root / "proc/sys/kernel/osrelease", name)

    def installed(self, *names: str, version: str = VERSION, state: str = "installed", want: str = "install") -> None:
        self.packages.update({name: (version, want, state) for name in names})

    def driver(self, flavour: str = "proprietary", version: str = VERSION, built: bool = True) -> None:
        """Debian's driver on every kernel, as apt and DKMS leave it."""
        name, package = {
            "proprietary": ("nvidia-current", "nvidia-kernel-dkms"),
            "open": ("nvidia-current-open", "nvidia-open-kernel-dkms"),
        }[flavour]
        upstream = version.split("-")[0]
        self.installed(*DRIVER[:3], "nvidia-persistenced", "dkms", version=version)
        self.installed(package, version=version, state="installed" if built else "half-configured")
        for kernel in self.root.glob("lib/modules/*"):
            self.dkms[kernel.name] = [
                f"{name}/{upstream}, {kernel.name}, x86_64: installed" if built else f"{name}/{upstream}: added"
            ]
            if built:
                self.modules[kernel.name] = ("nvidia-current", upstream)
            else:
                log = self.root / f"var/lib/dkms/{name}/{upstream}/build/make.log"
                machines.write(log, MAKE_LOG.format(kernel=kernel.name))

    def loaded(self, version: str) -> None:
        machines.write(
            self.root / "proc/driver/nvidia/version",
            f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Apr  8 12:41:17 UTC 2025",
        )

    def smi(self, rc: int, stdout: str) -> None:
        machines.command(self.root, "nvidia-smi", {"rc": rc, "stdout": stdout})

    def give_away(self, address: str, driver: str = "vfio-pci") -> None:
        """Binds a GPU to another driver of the kernel."""
        target = self.root / f"sys/bus/pci/drivers/{driver}"
        target.mkdir(parents=True, exist_ok=True)
        (self.root / f"sys/bus/pci/devices/{address}/driver").symlink_to(target)

    def efi(self, on: bool) -> None:
        """The firmware's variable: four bytes of attributes, then the state."""
        path = self.root / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x06\x00\x00\x00" + (b"\x01" if on else b"\x00"))

    # --- what is seen and decided

    def write(self) -> None:
        rows = "".join(f"{name}\t{v}\t{want}\t{state}\n" for name, (v, want, state) in self.packages.items())
        machines.command(self.root, "dpkg-query", {"stdout": rows})
        policy = "".join(policy_of(name, offered, self.packages.get(name)) for name, offered in self.offers.items())
        machines.command(
            self.root,
            "apt-cache",
            {"args": ["pkgnames"], "stdout": "\n".join(self.pkgnames)},
            {"args": ["policy"], "stdout": policy},
        )
        machines.command(
            self.root, "dkms", *({"args": [k], "stdout": "\n".join(lines) + "\n"} for k, lines in self.dkms.items())
        )
        machines.command(
            self.root,
            "modinfo",
            *({"args": [k, module], "stdout": f"{v}\n"} for k, (module, v) in self.modules.items()),
            {"rc": 1, "stderr": "modinfo: ERROR: Module nvidia not found."},
        )
        machines.command(self.root, "mokutil", *self.mokutil)
        head = "Filesystem 1-blocks Used Available Capacity Mounted on\n"
        machines.command(
            self.root,
            "df",
            *({"args": [f], "stdout": f"{head}/dev/sda1 9 9 {free} 1% {m}\n"} for f, (free, m) in self.space.items()),
        )
        machines.command(
            self.root, "modprobe", *([{"stdout": self.modprobe}] if self.modprobe is not None else [{"rc": 127}])
        )
        machines.command(
            self.root,
            "systemd-detect-virt",
            {"args": ["--container"], "rc": int(self.container == "none"), "stdout": self.container},
            {"rc": 1, "stdout": "none"},
        )

    def see(self, **options: Any) -> Host:
        self.write()
        return look.read(str(self.root), nobody, Options(**options))

    def decide(self, **options: Any) -> Decision:
        return plan.decide(self.see(**options), Options(**options))

    def problems(self, **options: Any) -> list[str]:
        host = self.see(**options)
        return verify.problems(host, plan.decide(host, Options(**options)).plan)

    def debts(self, **options: Any) -> list[Debt]:
        host = self.see(**options)
        return verify.debts(host, plan.decide(host, Options(**options)).plan)


def nobody(argv: list[str]) -> tuple[int, str, str]:
    raise AssertionError(f"a recorded host runs no command: {argv}")


def policy_of(name: str, offered: Sequence[str], there: tuple[str, str, str] | None) -> str:
    """As apt-cache policy prints it."""
    lines = [
        f"{name}:",
        f"  Installed: {there[0] if there else '(none)'}",
        f"  Candidate: {offered[0]}",
        "  Version table:",
    ]
    for one in offered:
        mark = "***" if there and there[0] == one else "   "
        lines += [f" {mark} {one} 500", "        500 http://mirror.test/debian trixie/non-free amd64 Packages"]
    return "\n".join(lines) + "\n"
