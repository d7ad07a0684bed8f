#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small repository in the form of NVIDIA's: flat, signed, with a keyring package. Packages have the real names.

    repository.py FOLDER DRIVER...     has exactly these versions of the driver; one that ends with .13 does not compile

The kernel module of a driver does nothing, and is built by DKMS like the real one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import cuda

KEYRING = "cuda-keyring_1.1-1_all.deb"
MODULE = """\
#include <linux/module.h>
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Stands for a driver and drives nothing");
MODULE_VERSION("%s");
"""
BROKEN = "#error too few arguments to function 'pci_resize_resource'\n"
DKMS = """\
PACKAGE_NAME="%(module)s"
PACKAGE_VERSION="%(version)s"
BUILT_MODULE_NAME[0]="%(module)s"
DEST_MODULE_LOCATION[0]="/updates/dkms"
MAKE[0]="make -C $kernel_source_dir M=$dkms_tree/%(module)s/%(version)s/build"
CLEAN="true"
AUTOINSTALL="yes"
"""
POSTINST = """\
#!/bin/sh
set -e
[ "$1" != configure ] || /usr/lib/dkms/common.postinst %(module)s %(version)s /usr/share/%(module)s "" "$2"
"""
PRERM = """\
#!/bin/sh
[ ! -x /usr/sbin/dkms ] || dkms remove %(module)s/%(version)s --all >/dev/null || true
"""

Files = Mapping[str, str]


def run(*command: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run([str(word) for word in command], cwd=cwd, check=True, capture_output=True, text=True).stdout


def package(folder: Path, name: str, version: str, depends: str, files: Files, scripts: Files | None = None) -> Path:
    """Builds a package; files and scripts: path to content."""
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for path, content in files.items():
            target = tree / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            target.chmod(0o755 if content.startswith("#!") else 0o644)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: tests <root@localhost>\n"
        control += f"Depends: {depends}\n" if depends else ""
        control += "Description: for tests\n"
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(control)
        for script, content in (scripts or {}).items():
            (tree / "DEBIAN" / script).write_text(content)
            (tree / "DEBIAN" / script).chmod(0o755)
        tree.chmod(0o755)
        target = folder / f"{name}_{version}_amd64.deb"
        run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, target)
    return target


def dkms(folder: Path, name: str, version: str, module: str) -> Path:
    """A package whose module DKMS builds when it is configured. version: of the package, with its last part."""
    driver = version.partition("-")[0]
    names = {"module": module, "version": driver}
    source = f"/usr/src/{module}-{driver}"
    files = {
        f"{source}/Makefile": f"obj-m := {module}.o\n",
        f"{source}/{module}.c": BROKEN if driver.endswith(".13") else MODULE % driver,
        f"{source}/dkms.conf": DKMS % names,
    }
    return package(folder, name, version, "dkms", files, {"postinst": POSTINST % names, "prerm": PRERM % names})


def key(home: Path) -> None:
    """The key of the repository, made once."""
    if not (home / "public.gpg").exists():
        home.mkdir(mode=0o700, parents=True)
        identity = "Repository for tests <root@localhost>"
        run(
            "gpg", "--homedir", home, "--batch", "--passphrase", "", "--quick-gen-key", identity, "ed25519", "sign", "0"
        )
        run("gpg", "--homedir", home, "--batch", "--output", home / "public.gpg", "--export")


def index(folder: Path, home: Path) -> None:
    """The signed list of the packages in a folder."""
    blocks = []
    for deb in sorted(folder.glob("*.deb")):
        if deb.name == KEYRING:
            continue
        data = deb.read_bytes()
        sums = f"Filename: ./{deb.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
        blocks.append(run("dpkg-deb", "--field", deb).rstrip() + "\n" + sums)
    text = "\n".join(blocks).encode()
    (folder / "Packages").write_bytes(text)
    (folder / "Packages.gz").write_bytes(gzip.compress(text, mtime=0))
    lists = [folder / "Packages", folder / "Packages.gz"]
    sums = "".join(
        f" {hashlib.sha256(one.read_bytes()).hexdigest()} {one.stat().st_size} {one.name}\n" for one in lists
    )
    date = run("date", "--utc", "--rfc-email").strip().replace("+0000", "UTC")
    (folder / "Release").write_text(f"Origin: NVIDIA\nLabel: NVIDIA CUDA\nDate: {date}\nSHA256:\n{sums}")
    (folder / "InRelease").unlink(missing_ok=True)
    run("gpg", "--homedir", home, "--batch", "--clearsign", "--output", folder / "InRelease", folder / "Release")


def keyring(folder: Path, home: Path) -> None:
    """NVIDIA's keyring package, made once, and its entry in a lock file."""
    if (folder / "keyring.json").exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        built = package(Path(scratch), "cuda-keyring", "1.1-1", "", {"usr/share/keyrings/x.gpg": ""})
        tree = Path(scratch) / "tree"
        run("dpkg-deb", "--raw-extract", built, tree)
        (tree / "usr/share/keyrings/x.gpg").unlink()
        shutil.copy(home / "public.gpg", tree / "usr/share/keyrings/cuda-archive-keyring.gpg")
        run("dpkg-deb", "--root-owner-group", "--build", tree, folder / KEYRING)
    data = (folder / KEYRING).read_bytes()
    entry = {
        "version": "1.1-1",
        "url": f"file:///srv/nvidia/{KEYRING}",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size": len(data),
    }
    (folder / "keyring.json").write_text(json.dumps(entry))


def publish(folder: Path, versions: list[str]) -> None:
    home = folder / "gnupg"
    folder.mkdir(parents=True, exist_ok=True)
    key(home)
    keyring(folder, home)
    for deb in folder.glob("nvidia-*.deb"):
        deb.unlink()
    for driver in versions:
        version = f"{driver}-1"
        dkms(folder, "nvidia-kernel-dkms", version, "nvidia")
        dkms(folder, "nvidia-kernel-open-dkms", version, "nvidia")
        either = f"nvidia-kernel-dkms (= {version}) | nvidia-kernel-open-dkms (= {version})"
        package(folder, "nvidia-driver-cuda", version, either, {})
    for name, version, files in cuda.PACKAGES:
        package(folder, name, version, "", files)
    index(folder, home)
    # It takes the place of Debian's own, which is built in minutes: the same driver, a little newer.
    tiny = folder / "debian"
    tiny.mkdir(exist_ok=True)
    dkms(tiny, "nvidia-kernel-dkms", "550.163.01-2+tiny", "nvidia-current")
    index(tiny, home)
    run("gpgconf", "--homedir", home, "--kill", "all")


if __name__ == "__main__":
    publish(Path(sys.argv[1]), sys.argv[2:])
