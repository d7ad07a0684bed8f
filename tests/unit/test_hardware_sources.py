# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory modules and their bandwidth, the disk of the models, the system, and measuring."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines

from ansible_collections.onprem.llm.plugins.module_utils.hardware import bandwidth, disk, memory, system
from ansible_collections.onprem.llm.plugins.module_utils.hardware.cpu import Info
from ansible_collections.onprem.llm.plugins.module_utils.hardware.read import read
from ansible_collections.onprem.llm.plugins.module_utils.hardware.recorded import from_record
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree, recorded_run
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware, Node


def refuse(argv: list[str]) -> tuple[int, str, str]:
    raise AssertionError(f"a command of this host was run for a recorded machine: {argv}")


def read_root(root: Path, measure: bool = False) -> Hardware:
    return read(str(root), "recorded", "/srv/llm/models", refuse, measure)


# --- memory modules

DMIDECODE = """# dmidecode 3.4
Getting SMBIOS data from sysfs.

Handle 0x0027, DMI type 17, 92 bytes
Memory Device
\tArray Handle: 0x0026
\tSize: 32 GB
\tLocator: CPU0_DIMM_A1
\tBank Locator: NODE 0
\tType: DDR5
\tSpeed: 5600 MT/s
\tConfigured Memory Speed: 4800 MT/s

Handle 0x0028, DMI type 17, 92 bytes
Memory Device
\tSize: No Module Installed
\tLocator: CPU0_DIMM_A2
\tBank Locator: NODE 0
\tType: Unknown
\tSpeed: Unknown

Handle 0x0029, DMI type 19, 31 bytes
Memory Array Mapped Address
\tSize: 1 TB
"""


def test_what_dmidecode_prints() -> None:
    rows = memory.parse_dmidecode(DMIDECODE)
    assert len(rows) == 2 and rows[0] == {
        "size": "32 GB",
        "locator": "CPU0_DIMM_A1",
        "bank_locator": "NODE 0",
        "type": "DDR5",
        "speed": "5600 MT/s",
        "configured": "4800 MT/s",
    }
    assert memory.dimms(rows, None) == ({"count": 1, "type": "DDR5", "speed": 4800, "channels": 1}, "")


@pytest.mark.parametrize(
    ("locator", "bank", "expected"),
    [
        ("CPU0_DIMM_A1", "NODE 0", ("0", "A")),
        ("CPU1_DIMM_H2", "NODE 1", ("1", "H")),
        ("P1-DIMMB1", "P0_Node1_Channel0_Dimm0", ("1", "B")),
        ("P2-DIMMA1", "P1_Node0_Channel0_Dimm0", ("2", "A")),
        ("DIMM_P0_A0", "P0 CHANNEL A", ("0", "A")),
        ("DIMM 0", "P1 CHANNEL L", ("1", "L")),
        ("A1", "Not Specified", ("A", "1")),
        ("DIMM_A1", "NODE 1", ("1", "A")),
        ("Controller1-ChannelA-DIMM0", "BANK 0", ("1", "A")),
        ("ChannelB-DIMM0", "BANK 2", ("", "B")),
        ("CPU0_C3D0", "NODE 0", ("0", "3")),
        ("PROC 1 DIMM 4", "Not Specified", None),
        ("", "", None),
    ],
)
def test_where_manufacturers_say_a_module_sits(locator: str, bank: str, expected: tuple[str, str] | None) -> None:
    assert memory.place(locator, bank) == expected


def rows(*locators: str, **fields: str) -> list[dict[str, str]]:
    plain = {"size": "64 GB", "type": "DDR5", "speed": "4800 MT/s", "configured": "4800 MT/s", "bank_locator": ""}
    return [{**plain, "locator": locator, **fields} for locator in locators]


@pytest.mark.parametrize(
    ("modules", "most", "channels"),
    [
        (rows("CPU0_DIMM_A1", "CPU0_DIMM_A2", "CPU0_DIMM_B1", "CPU1_DIMM_A1"), None, 3),
        (rows(*(f"A{n}" for n in range(1, 17))), 8, 8),
        (rows("PROC 1 DIMM 1", "PROC 1 DIMM 3"), 16, 2),
        (rows("DIMM 0", "DIMM 0"), None, 2),
    ],
)
def test_channels_are_a_hint(modules: list[dict[str, str]], most: int | None, channels: int) -> None:
    found, _ = memory.dimms(modules, most)
    assert found and found["channels"] == channels and found["count"] == len(modules)


def test_the_slowest_module_sets_the_speed() -> None:
    found, _ = memory.dimms(rows("A1") + rows("A2", configured="4400 MT/s"), None)
    assert found and found["speed"] == 4400
    found, _ = memory.dimms(rows("A1", configured="Unknown", speed="2133 MHz"), None)
    assert found and found["speed"] == 2133


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ([], "dmidecode names no memory module"),
        (rows("A1", size="No Module Installed"), "dmidecode names no memory module"),
        (rows("A1", speed="Unknown", configured="Unknown"), "dmidecode names no speed of the memory modules"),
    ],
)
def test_modules_that_tell_nothing(modules: list[dict[str, str]], reason: str) -> None:
    found, why = memory.dimms(modules, None)
    assert found is None and reason in why and "run it on the host itself" in why


def test_dmidecode_that_refuses(tmp_path: Path) -> None:
    """As in a container."""
    machines.write_root(machines.record("spr-2s-xeon-gold-6430"), tmp_path)
    machines.command(tmp_path, "dmidecode", {"rc": 1, "stderr": "/dev/mem: Can't read memory from /dev/mem"})
    found = read_root(tmp_path)
    assert found["memory"]["dimms"] is None and found["memory"]["bandwidth"] is None
    assert "dmidecode ended with 1 (/dev/mem: Can't read memory from /dev/mem)" in found["unknown"]["memory.dimms"]
    assert found["unknown"]["memory.bandwidth"].endswith("run it as root on the host itself, or measure it")


def test_the_width_of_lpddr_is_not_known() -> None:
    found = machines.hardware("laptop-i7-1260p", dimms=rows("A", type="LPDDR5"))
    assert found["memory"]["dimms"] and found["memory"]["bandwidth"] is None
    assert "the width of LPDDR5 channels is not told" in found["unknown"]["memory.bandwidth"]


@pytest.mark.parametrize(
    ("machine", "gigabytes"),
    [
        ("spr-2s-xeon-gold-6430", 2 * 8 * 4.4 * 8),
        ("spr-2s-xeon-8480-2tb", 2 * 8 * 4.4 * 8),  # two modules per channel lower the speed
        ("icx-2s-xeon-8352v", 2 * 8 * 2.933 * 8),
        ("hsx-2s-e5-2696v3", 2 * 4 * 2.133 * 8),
        ("hsx-1s-x99-e5-2696v3-64gb", 4 * 2.133 * 8),
        ("genoa-2s-epyc-9654", 2 * 12 * 4.8 * 8),
        ("emr-2s-xeon-gold-6530", 2 * 8 * 4.8 * 8),
        ("laptop-i7-1260p", 2 * 3.2 * 8),
    ],
)
def test_theoretical_bandwidth(machine: str, gigabytes: float) -> None:
    assert machines.hardware(machine)["memory"]["bandwidth"] == round(gigabytes * 10**9)


@pytest.mark.parametrize("machine", sorted(machines.machines()))
def test_the_processors_name_leads_to_the_same_bandwidth(machine: str) -> None:
    """The table of generations against the modules of each record; two modules per channel may be slower."""
    found = machines.hardware(machine)
    typical = memory.typical_bandwidth(found)
    assert typical
    if found["memory"]["bandwidth"]:
        assert 0.9 <= found["memory"]["bandwidth"] / typical[0] <= 1.0
    share = found["system"]["virtualisation"] != "none"
    assert ("a virtual machine gets a share of it" in typical[1]) == share


@pytest.mark.parametrize(
    ("name", "isa", "expected"),
    [
        ("Intel(R) Xeon(R) Platinum 8480+", (), (8, 4800)),
        ("INTEL(R) XEON(R) PLATINUM 8592+", (), (8, 5600)),
        ("Intel(R) Xeon(R) 6980P", (), (12, 6400)),
        ("Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", (), (8, 2933)),
        ("Intel(R) Xeon(R) Gold 6348 CPU @ 2.60GHz", ("avx512_vbmi2",), (8, 3200)),
        ("Intel(R) Xeon(R) Gold 6248R CPU @ 3.00GHz", (), (6, 2933)),
        ("Intel(R) Xeon(R) Platinum 8168 CPU @ 2.70GHz", (), (6, 2666)),
        ("Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", (), (4, 2400)),
        ("Intel(R) Xeon(R) CPU E5-2696 v3 @ 2.30GHz", (), (4, 2133)),
        ("AMD EPYC 9575F 64-Core Processor", (), (12, 6000)),
        ("AMD EPYC 7763 64-Core Processor", (), (8, 3200)),
        ("AMD EPYC 7551P 32-Core Processor", (), (8, 2666)),
        ("AMD Ryzen 7 5800H with Radeon Graphics", (), (2, 3200)),
        ("Intel(R) Xeon(R) Processor", ("amx_tile",), (8, 4800)),
        ("AMD EPYC", ("avx512_bf16",), (12, 4800)),
        ("AMD EPYC", (), None),
        ("", (), None),
        ("POWER9", (), None),
    ],
)
def test_channels_by_the_processors_name(name: str, isa: tuple[str, ...], expected: tuple[int, int] | None) -> None:
    found = memory.channels_of(name, isa)
    assert (found and (found.channels, found.speed)) == expected


def test_a_processor_of_no_table() -> None:
    found = machines.hardware("vm-1s-epyc-2vcpu")
    found["cpu"]["model"] = "Virtual CPU"
    assert memory.typical_bandwidth(found) is None


# --- the disk

MOUNTS = """22 1 8:2 / / rw,relatime - ext4 /dev/sda2 rw
30 22 0:40 / /srv/llm rw - nfs4 nas:/llm rw
31 22 259:1 / /srv/llm/models rw - xfs /dev/nvme0n1p1 rw
32 22 0:45 / /mnt/with\\040space rw - fuse.rclone cloud: rw
33 22 0:46 / /data rw - btrfs /dev/sdb1 rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "filesystem", "network"),
    [
        ("/srv/llm/models/x", "xfs", False),
        ("/srv/llm/models", "xfs", False),
        ("/srv/llm/modelsX", "nfs4", True),
        ("/srv/other", "ext4", False),
        ("/mnt/with space/a", "fuse.rclone", True),
        ("/data", "btrfs", False),
    ],
)
def test_the_mount_of_a_path(path: str, filesystem: str, network: bool) -> None:
    mount = disk.mount_of(MOUNTS, path)
    assert mount and mount.filesystem == filesystem and disk.is_network(filesystem) == network


@pytest.mark.parametrize(
    ("filesystem", "network"),
    [("cifs", True), ("ceph", True), ("fuse.ceph", True), ("9p", True), ("lustre", True), ("zfs", False),
     ("fuse.ntfs-3g", False), ("fuseblk", False), ("overlay", False), ("tmpfs", False)],
)  # fmt: skip
def test_network_file_systems(filesystem: str, network: bool) -> None:
    assert disk.is_network(filesystem) == network


def turning(root: Path, name: str, flag: int, *parts: str) -> Path:
    folder = root / f"sys/devices/virtual/block/{name}"
    machines.write(folder / "queue/rotational", flag)
    for part in parts:
        (folder / "slaves").mkdir(exist_ok=True)
        (folder / "slaves" / part).symlink_to(root / f"sys/devices/virtual/block/{part}")
    return folder


def test_what_a_disk_is_made_of_turns(tmp_path: Path) -> None:
    """A volume (dm) over a mirror (md) over a partition of a turning disk and a flash disk."""
    partition = turning(tmp_path, "sda", 1) / "sda1"
    partition.mkdir()
    (tmp_path / "sys/devices/virtual/block/sda1").symlink_to(partition)
    turning(tmp_path, "nvme0n1", 0)
    turning(tmp_path, "md0", 0, "sda1", "nvme0n1")
    turning(tmp_path, "dm-0", 0, "md0")
    turning(tmp_path, "dm-1", 1, "nvme0n1")
    tree = Tree(str(tmp_path))
    assert disk.rotational(tree, "/sys/devices/virtual/block/dm-0") is True
    assert disk.rotational(tree, "/sys/devices/virtual/block/dm-1") is False
    assert disk.rotational(tree, "/sys/devices/virtual/block/none") is None


def test_a_device_that_is_made_of_itself(tmp_path: Path) -> None:
    turning(tmp_path, "dm-0", 0, "dm-0")
    assert disk.rotational(Tree(str(tmp_path)), "/sys/devices/virtual/block/dm-0") is False


def test_btrfs_is_found_by_its_source(tmp_path: Path) -> None:
    mount = disk.mount_of(MOUNTS, "/data")
    machines.write(tmp_path / "sys/class/block/sdb1/partition", 1)
    assert mount and disk.block_device(Tree(str(tmp_path)), mount) == "/sys/class/block/sdb1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Filesystem 1-blocks Used Available Capacity Mounted on\n/dev/sda1 1000 400 600 40% /\n", (1000, 600)),
        ("Filesystem 1-blocks Used Available Capacity Mounted on\n//nas/a b 1000 400 600 40% /a b\n", (1000, 600)),
        ("", None),
        ("df: cannot read\nx\n", None),
    ],
)
def test_the_room_of_a_disk(text: str, expected: tuple[int, int] | None) -> None:
    assert disk.parse_df(text) == expected


def test_a_disk_that_does_not_tell(tmp_path: Path) -> None:
    machines.write_root(machines.record("vm-1s-epyc-2vcpu"), tmp_path)
    machines.command(tmp_path, "df", {"rc": 1, "stderr": "df: /srv: Stale file handle"})
    found = read_root(tmp_path)
    assert found["disk"] is None
    assert found["unknown"]["disk"] == (
        "df ended with 1 (df: /srv: Stale file handle): the room for models is unknown; run df / by hand"
    )


def test_a_virtual_disk_does_not_know_what_it_is(tmp_path: Path) -> None:
    machines.write_root(machines.record("vm-1s-epyc-2vcpu"), tmp_path)
    (tmp_path / "proc/self/mountinfo").write_text("27 1 8:1 / / rw - ext4 /dev/vda1 rw")
    (tmp_path / "sys/devices/pci/block/sda/queue/rotational").write_text("1\n")
    found = read_root(tmp_path)
    assert found["disk"] and found["disk"]["rotational"] is None
    assert "/dev/vda1 is a virtual disk" in found["unknown"]["disk.rotational"]


# --- the system


def detected(vm: tuple[int, str], container: tuple[int, str]) -> list[dict[str, Any]]:
    return [
        {"args": [option], "rc": rc, "stdout": f"{word}\n"}
        for option, (rc, word) in (("--vm", vm), ("--container", container))
    ]


def test_virtual_machine_and_container(tmp_path: Path) -> None:
    machines.write_root(machines.record("vm-1s-epyc-2vcpu"), tmp_path)
    machines.command(tmp_path, "systemd-detect-virt", *detected((0, "kvm"), (0, "lxc")))
    assert (read_root(tmp_path)["system"]["virtualisation"], read_root(tmp_path)["system"]["container"]) == (
        "kvm",
        "lxc",
    )
    machines.command(tmp_path, "systemd-detect-virt", *detected((1, "none"), (1, "none")))
    assert read_root(tmp_path)["system"]["container"] == "none"
    (tmp_path / "commands/systemd-detect-virt.json").unlink()
    machines.write(tmp_path / ".dockerenv", "")
    found = read_root(tmp_path)["system"]
    assert (found["virtualisation"], found["container"]) == ("vm-other", "docker")


def test_pythons_by_their_names() -> None:
    names = ["python3", "python3.9", "python3.13", "python3.11-config", "python3.11", "python3.x", "python2.7"]
    assert system.pythons(names) == ["3.9", "3.11", "3.13"]


def test_a_system_without_versions(tmp_path: Path) -> None:
    machines.write(tmp_path / "etc/os-release", 'ID="arch"')
    unknown: dict[str, str] = {}
    tree = Tree(str(tmp_path))
    found = system.read(tree, recorded_run(tree), Info("", "", "", frozenset()), unknown)
    assert found["distribution"] == "arch" and found["version"] is None
    assert "a rolling distribution has none" in unknown["system.version"]
    assert (
        "look at lscpu" in unknown["system.virtualisation"] and "look at /proc/1/environ" in unknown["system.container"]
    )


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"args": 3}]', "[" * 100_000, '[{"args": [], "rc": "x"}]'])
def test_a_recorded_command_that_is_none(text: str, tmp_path: Path) -> None:
    machines.write(tmp_path / "commands/df.json", text)
    rc, out, why = recorded_run(Tree(str(tmp_path)))(["df", "/"])
    assert (rc, out) == (-1, "") and why.startswith("commands/df.json")


def test_the_first_entry_that_matches_answers(tmp_path: Path) -> None:
    machines.command(tmp_path, "nvidia-smi", {"args": ["-q", "-x"], "stdout": "long"}, {"rc": 9, "stdout": "short"})
    run = recorded_run(Tree(str(tmp_path)))
    assert run(["nvidia-smi", "-q", "-x"]) == (0, "long", "") and run(["nvidia-smi", "-L"]) == (9, "short", "")


# --- measuring


def node(number: int, cpus: list[int], available: int | None = None) -> Node:
    return Node(id=number, socket=0, cpus=cpus, cores=len(cpus), memory=10**9, available=available)


def test_a_recorded_machine_is_not_measured(tmp_path: Path) -> None:
    machines.write_root(machines.record("vm-1s-epyc-2vcpu"), tmp_path)
    found = read_root(tmp_path, measure=True)
    assert found["memory"]["measured"] is None
    assert "a recorded machine cannot be measured" in found["unknown"]["memory.measured"]


def test_reading_memory_gives_a_rate() -> None:
    found = bandwidth.measured(Tree("/"), [node(0, [0]), node(2, [])], None, 10**10, unknown := {})
    assert found and list(found) == ["0"] and found["0"] > 10**8, "a node without CPUs is not measured"
    assert "memory.measured" not in unknown or "the figure may be too high" in unknown["memory.measured"]


@pytest.mark.parametrize(
    ("one", "allowed", "reason"),
    [
        (node(0, [0], available=10**8), None, "node 0: a twentieth of its free memory is less than 64 MiB"),
        (node(0, [0]), {1}, "node 0: this process may not run on its CPUs"),
        (node(0, [8000]), None, "node 0: not measured ("),
    ],
)
def test_what_cannot_be_measured_says_why(one: Node, allowed: set[int] | None, reason: str) -> None:
    found = bandwidth.measured(Tree("/"), [one], allowed, 10**10, unknown := {})
    assert found is None and unknown["memory.measured"].startswith(reason)


def test_caches_that_are_shared_count_once(tmp_path: Path) -> None:
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2")):
        for index, (level, size) in enumerate([(1, "48K"), (2, "2048K"), (3, "32M")]):
            folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                machines.write(folder / name, text)
    assert bandwidth.last_level_cache(Tree(str(tmp_path)), [0, 1, 2, 3]) == 64 * 2**20


def test_one_thread_per_core(tmp_path: Path) -> None:
    tree = Tree(str(machines.write_root(machines.record("spr-2s-xeon-gold-6430"), tmp_path)))
    assert bandwidth.one_per_core(tree, [0, 1, 64, 65]) == [0, 1]
    assert from_record(machines.record("spr-2s-xeon-gold-6430"))["numa"][0]["cores"] == 32
