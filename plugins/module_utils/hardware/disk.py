# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk behind a folder: room, file system, whether it is remote, whether it turns."""

from __future__ import annotations

import re
from typing import NamedTuple

from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Run, Tree, answer
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Disk

MOUNTS = "/proc/self/mountinfo"
NETWORK = ("nfs", "cifs", "smb", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "afs", "9p", "fuse.")
LOCAL_FUSE = ("fuse.ntfs", "fuse.exfat", "fuse.lxcfs", "fuse.overlay", "fuse.fuse-overlayfs")


class Mount(NamedTuple):
    point: str
    device: str
    """major:minor."""
    filesystem: str
    source: str


def is_network(filesystem: str) -> bool:
    """Whether the files lie on another machine; a FUSE file system counts as one unless it is known to be local."""
    return filesystem.startswith(NETWORK) and not filesystem.startswith(LOCAL_FUSE)


def mount_of(mountinfo: str, path: str) -> Mount | None:
    """The mount a path lies on: the longest mount point above it, the last one where several are stacked."""
    best = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) < 6 or len(right) < 2:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), left[4])
        above = path == point or path.startswith(point.rstrip("/") + "/")
        if above and (best is None or len(point) >= len(best.point)):
            best = Mount(point, left[2], right[0], right[1])
    return best


def existing(tree: Tree, path: str) -> str:
    """The path, or the nearest folder above it that exists; links followed on this machine."""
    path = "/" + path.strip("/")
    while path != "/" and not tree.exists(path):
        path = path.rpartition("/")[0] or "/"
    real = tree.real(path)
    return path if tree.recorded or real is None else str(real)


def rotational(tree: Tree, device: str, depth: int = 4) -> bool | None:
    """Whether a block device (its folder in /sys) or any it is made of turns."""
    slaves = tree.names(f"{device}/slaves") or []
    if slaves and depth:
        turning = [rotational(tree, f"{device}/slaves/{slave}", depth - 1) for slave in slaves]
        return None if None in turning and True not in turning else True in turning
    for place in (device, f"{device}/.."):  # a partition's queue is that of its disk
        flag = tree.number(f"{place}/queue/rotational")
        if flag is not None:
            return bool(flag)
    return None


def block_device(tree: Tree, mount: Mount) -> str | None:
    """Its folder in /sys. Btrfs and ZFS have numbers of their own: there the source's name leads to it."""
    by_number = f"/sys/dev/block/{mount.device}"
    if tree.exists(by_number):
        return by_number
    by_name = f"/sys/class/block/{mount.source.rpartition('/')[2]}"
    return by_name if mount.source.startswith("/dev/") and tree.exists(by_name) else None


def parse_df(text: str) -> tuple[int, int] | None:
    """Total and free bytes of df --block-size=1 --portability."""
    for line in text.splitlines()[1:]:
        found = re.search(r" (\d+) +\d+ +(\d+) +\S+ +/", line)
        if found:
            return int(found[1]), int(found[2])
    return None


def read(tree: Tree, run: Run, model_dir: str, unknown: dict[str, str]) -> Disk | None:
    path = existing(tree, model_dir)
    rc, out, err = run(["df", "--block-size=1", "--portability", path])
    room = parse_df(out)
    if room is None:
        unknown["disk"] = f"{answer('df', rc, out, err)}: the room for models is unknown; run df {path} by hand"
        return None
    mount = mount_of(tree.text(MOUNTS) or "", path)
    disk = Disk(path=model_dir, total=room[0], free=room[1], filesystem=None, network=False, rotational=None)
    if mount is None:
        unknown["disk.filesystem"] = f"{tree.why(MOUNTS)}; look at findmnt {path}"
        unknown["disk.rotational"] = unknown["disk.filesystem"]
        return disk
    disk["filesystem"], disk["network"] = mount.filesystem, is_network(mount.filesystem)
    device = block_device(tree, mount)
    disk["rotational"] = rotational(tree, device) if device else None
    if disk["rotational"] and re.match(r"/dev/(vd|xvd)", mount.source):
        disk["rotational"] = None
        unknown["disk.rotational"] = f"{mount.source} is a virtual disk, which says of itself that it turns"
    if disk["rotational"] is None:
        unknown.setdefault("disk.rotational", f"/sys does not tell of {mount.source}; look at lsblk -o NAME,ROTA")
    return disk
