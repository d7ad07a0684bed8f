# SPDX-License-Identifier: GPL-3.0-or-later
"""Facts of all recorded machines: read from proc and sys as from the record, with a reason for all that is unknown."""

from __future__ import annotations

import os
import random
import shutil
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines

from ansible_collections.onprem.llm.plugins.module_utils.hardware import cpu, limits, numa
from ansible_collections.onprem.llm.plugins.module_utils.hardware.read import read
from ansible_collections.onprem.llm.plugins.module_utils.hardware.recorded import from_record, records
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Hardware

MACHINES = sorted(machines.machines())
GPU_SETS = [(), ("rtx-4090-24g",), ("a100-sxm4-80g", "rtx-2080ti-22g-modded"), ("h200-sxm",) * 8, ("vgpu-32g",)]
ONE = "spr-2s-xeon-gold-6430"


def refuse(argv: list[str]) -> tuple[int, str, str]:
    raise AssertionError(f"a command of this host was run for a recorded machine: {argv}")


def read_root(root: Path, id: str = "recorded") -> Hardware:
    return read(str(root), id, "/srv/llm/models", refuse, False)


def without(hardware: Hardware, key: str = "unknown") -> dict[str, Any]:
    return {name: value for name, value in hardware.items() if name != key}


def unexplained(hardware: Hardware) -> list[str]:
    """Facts that are None although no reason says why."""
    known = {"memory.limit", "memory.measured"}
    if hardware["driver"]["state"] in ("none", "no_gpu"):
        known |= {f"driver.{fact}" for fact in hardware["driver"]}
    known |= {f"gpus.{position}.index" for position, _ in enumerate(hardware["gpus"])}
    known |= {f"numa.{node['id']}.socket" for node in hardware["numa"] if not node["cpus"]}

    def walk(value: Any, path: str) -> Iterator[str]:
        if value is None:
            above = [path[:end] for end, char in enumerate(path) if char == "."]
            if path not in known and not {path, *above} & set(hardware["unknown"]):
                yield path
        elif isinstance(value, dict):
            for key, one in value.items():
                yield from walk(one, f"{path}.{key}" if path else key)
        elif isinstance(value, list):
            for position, one in enumerate(value):
                number = one["id"] if isinstance(one, dict) and "cpus" in one else position
                yield from walk(one, f"{path}.{number}")

    return list(walk(without(hardware), ""))


# --- recorded machines


@pytest.mark.parametrize("gpus", GPU_SETS, ids=lambda gpus: "+".join(gpus) or "none")
@pytest.mark.parametrize("machine", MACHINES)
def test_proc_and_sys_tell_what_the_record_does(machine: str, gpus: tuple[str, ...], tmp_path: Path) -> None:
    record = machines.record(machine, gpus)
    expected = from_record(record)
    found = read_root(machines.write_root(record, tmp_path), machine)
    assert without(found) == without(expected)
    assert set(found["unknown"]) == set(expected["unknown"])
    assert unexplained(found) == unexplained(expected) == []


@pytest.mark.parametrize("machine", MACHINES)
def test_a_bare_record_is_read_alike(machine: str, tmp_path: Path) -> None:
    record = machines.machines()[machine]
    expected = from_record(record)
    found = read_root(machines.write_root(record, tmp_path), machine)
    assert without(found) == without(expected)
    assert set(found["unknown"]) == set(expected["unknown"])
    assert unexplained(expected) == []
    assert expected["gpus"] == [] and "add `gpus: []`" in expected["unknown"]["gpus"]
    for fact in ("driver", "disk", "system.kernel", "system.glibc", "system.python", "system.distribution"):
        assert "the record does not tell" in expected["unknown"][fact]


def kt_variant(isa: set[str]) -> str:
    """The variant that the kt-kernel wheel picks."""
    if {"amx_tile", "amx_int8", "amx_bf16", "avx512f", "avx512bw", "avx512_vnni", "avx512vbmi", "avx512_bf16"} <= isa:
        return "amx"
    if not {"avx512f", "avx512bw"} <= isa:
        return "avx2"
    for variant, flags in (
        ("avx512_bf16", {"avx512_vnni", "avx512vbmi", "avx512_bf16"}),
        ("avx512_vbmi", {"avx512_vnni", "avx512vbmi"}),
        ("avx512_vnni", {"avx512_vnni"}),
    ):
        if flags <= isa:
            return variant
    return "avx512_base"


@pytest.mark.parametrize("machine", MACHINES)
def test_expected_of_a_record(machine: str) -> None:
    expected = machines.machines()[machine]["expect"]
    found = machines.hardware(machine)
    isa = set(found["cpu"]["isa"])
    assert expected == {
        "isa_amx": {"amx_tile", "amx_int8", "amx_bf16"} <= isa,
        "isa_avx512f": "avx512f" in isa,
        "kt_kernel_variant": kt_variant(isa),
        "physical_cores": found["cpu"]["cores"],
        "numa_nodes_with_cpu": sum(bool(node["cpus"]) for node in found["numa"]),
    }


def test_there_are_the_machines_and_cards_that_plans_need() -> None:
    assert len(MACHINES) >= 18 and len(machines.gpus()) >= 14
    assert machines.hardware("spr-2s-xeon-gold-6430-1tb")["memory"]["total"] > 0.98 * 2**40
    assert machines.hardware("hsx-1s-x99-e5-2696v3-64gb")["memory"]["bandwidth"] == 4 * 2133 * 10**6 * 8


def test_an_offline_cpu_takes_no_core_away() -> None:
    found = machines.hardware("genoa-2s-offline-epyc-9554")
    assert (found["cpu"]["cores"], found["cpu"]["threads"], found["cpu"]["offline"]) == (128, 255, [128])
    assert found["cpu"]["threads_per_core"] == 2
    assert [node["cores"] for node in found["numa"]] == [64, 64]


def test_a_node_with_memory_only() -> None:
    found = machines.hardware("emr-2s-cxl-xeon-gold-6530")
    assert found["numa"][2]["cpus"] == [] and found["numa"][2]["cores"] == 0 and found["numa"][2]["socket"] is None
    assert found["memory"]["total"] == sum(node["memory"] for node in found["numa"])


def test_interleaved_numbers() -> None:
    found = machines.hardware("icx-2s-interleaved-xeon-silver-4310")
    assert found["numa"][0]["cpus"][:3] == [0, 2, 4] and found["numa"][1]["cpus"][:3] == [1, 3, 5]
    assert [node["socket"] for node in found["numa"]] == [0, 1]


def test_a_hybrid_processor() -> None:
    found = machines.hardware("laptop-i7-1260p")["cpu"]
    assert (found["cores"], found["threads"], found["threads_per_core"]) == (12, 16, 2)


def test_a_virtual_machine_is_seen_by_its_flags() -> None:
    assert machines.hardware("vm-1s-epyc-2vcpu")["system"]["virtualisation"] == "vm-other"
    assert machines.hardware(ONE)["system"]["virtualisation"] == "none"


# --- what a record may get wrong


def change(**changes: Any) -> dict[str, Any]:
    record = machines.record(ONE, ("rtx-4090-24g",))
    for path, value in changes.items():
        *above, last = path.split("__")
        place: Any = record
        for key in above:
            place = place[int(key) if isinstance(place, list) else key]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return record


BAD = {
    "id is missing": (change(id=None), "a recorded machine: `id` is missing"),
    "cpu is missing": (change(cpu=None), f"{ONE}: `cpu` is missing; add it as in"),
    "numa is missing": (change(numa=None), f"{ONE}: `numa` is missing"),
    "cpu is no object": (change(cpu="Xeon"), f"{ONE}: `cpu` is 'Xeon', not an object."),
    "no nodes": (change(numa=[]), f"{ONE}: `numa` has no node with CPUs; give at least node 0"),
    "no cpus in nodes": (change(numa=[{"node": 0, "mem_total_kb": 1}]), "`numa` has no node with CPUs"),
    "twice the same node": (change(numa__1__node=0), f"{ONE}: `numa` has a node twice; its nodes are [0, 0]."),
    "cpus that are no list": (change(cpu__online="0-x"), f"{ONE}: cpu: `online` is no list of CPUs such as 0-31"),
    "a billion cpus": (change(cpu__online="0-999999999"), "no range of CPUs below 8192"),
    "no cpus": (change(cpu__online=""), "`online` is empty; a machine has at least one CPU."),
    "cpu_map lacks a cpu": (change(cpu_map__127=None), f"{ONE}: cpu_map: `127` is missing"),
    "memory is a text": (change(numa__0__mem_total_kb="512 GB"), "`mem_total_kb` is '512 GB', not a whole number."),
    "memory is negative": (change(numa__0__mem_total_kb=-1), "`mem_total_kb` is -1; memory is not negative."),
    "gpus is an object": (change(gpus={}), f"{ONE}: `gpus` is {{}}, not a list."),
    "a gpu without a name": (change(gpus=[{}]), f"{ONE}: gpus: `nvidia_smi_name` is missing"),
    "many gpus": (change(gpus__0__count=1000), "`count` is 1000; at most 64 GPUs"),
    "a gpu on a node that is not": (change(gpus__0__numa_node=7), "`numa_node` is 7; the machine's nodes are [0, 1]."),
    "a gpu without memory": (change(gpus__0__memory_total_mib=0), "`memory_total_mib` is 0; leave it out"),
    "python as a number": (change(python=3.11), f"{ONE}: `python` is 3.11, not a text or a list."),
    "python with a patch": (change(python="3.11.2"), "`python` is '3.11.2'; write versions as in `3.11`"),
    "os": (change(os="12"), f"{ONE}: `os` is '12'; write it as in `debian 13`."),
    "driver": (change(driver=570), f"{ONE}: `driver` is 570, not a text or an object."),
    "disk without room": (change(disk__free=None), f"{ONE}: disk: `free` is missing"),
    "true is no number": (change(disk__free=True), f"{ONE}: disk: `free` is True, not a whole number."),
    "dimms": (change(dimms=["32 GB"]), f"{ONE}: `dimms` is '32 GB', not an object."),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused(name: str) -> None:
    record, message = BAD[name]
    with pytest.raises(ValueError) as caught:
        from_record(record)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<html>", "This is not JSON"),
        ("[" * 100_000, "This is not JSON"),
        ("{}", "A list of recorded machines is needed"),
        ("[]", "A list of recorded machines is needed"),
        ("[1]", "A list of recorded machines is needed"),
        ('[{"cpu": {}}]', "machine 1: `id` is missing"),
        ('[{"id": "a"}, {"id": "b"}, {"id": "a"}]', "Machine a is recorded twice; give each an id of its own."),
    ],
)
def test_a_bad_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=None) as caught:
        records(text)
    assert message in str(caught.value)


def test_all_records_of_a_file() -> None:
    text = (machines.FOLDER / "machines.json").read_text()
    assert sorted(one["id"] for one in records(text)) == MACHINES


def test_a_gpu_may_be_counted() -> None:
    found = machines.hardware(ONE, gpus=[{**machines.gpus()["h200-sxm"], "count": 8}], driver="580.95.05")
    assert [gpu["index"] for gpu in found["gpus"]] == list(range(8))
    assert found["driver"]["state"] == "ok" and found["driver"]["version"] == "580.95.05"
    assert "driver.cuda" in found["unknown"] and "gpus.7.mig" in found["unknown"]


# --- what a host may lack


def root(tmp_path: Path, machine: str = ONE, gpus: tuple[str, ...] = ()) -> Path:
    return machines.write_root(machines.record(machine, gpus), tmp_path)


def test_an_empty_root_gives_reasons_only(tmp_path: Path) -> None:
    found = read_root(tmp_path)
    assert found["cpu"]["threads"] == 0 and found["memory"]["total"] == 0 and found["gpus"] == []
    assert unexplained(found) == []
    assert f"/proc/meminfo is missing below {tmp_path}" in found["unknown"]["memory.total"]
    assert "/proc/cpuinfo has no flags" in found["unknown"]["cpu.isa"]
    assert found["unknown"]["driver"].startswith("commands/nvidia-smi.json is missing")


@pytest.mark.parametrize("folder", ["proc", "sys", "commands", "etc", "usr", "sys/devices/system/cpu", "sys/bus"])
def test_a_missing_folder_gives_reasons(folder: str, tmp_path: Path) -> None:
    found_root = root(tmp_path, gpus=("rtx-4090-24g",))
    before = set(read_root(found_root)["unknown"])
    shutil.rmtree(found_root / folder)
    found = read_root(found_root)
    assert unexplained(found) == []
    assert folder == "sys/bus" or set(found["unknown"]) - before, "something is unknown now and has a reason"


@pytest.mark.parametrize("kept", [True, False], ids=["an empty folder", "no folder"])
def test_zero_numa_nodes(kept: bool, tmp_path: Path) -> None:
    nodes = root(tmp_path) / "sys/devices/system/node"
    shutil.rmtree(nodes)
    if kept:
        nodes.mkdir()
    found = read_root(tmp_path)
    assert [(node["id"], len(node["cpus"]), node["cores"]) for node in found["numa"]] == [(0, 128, 64)]
    assert found["numa"][0]["memory"] == found["memory"]["total"] > 0
    assert "taken as one node with all CPUs and memory; look at numactl -H" in found["unknown"]["numa"]
    assert unexplained(found) == []


def test_gaps_between_nodes(tmp_path: Path) -> None:
    nodes = root(tmp_path) / "sys/devices/system/node"
    (nodes / "node1").rename(nodes / "node8")
    assert [node["id"] for node in read_root(tmp_path)["numa"]] == [0, 8]


def test_a_lone_node_has_all_memory(tmp_path: Path) -> None:
    """Some virtual machines count only a part of it on the node."""
    meminfo = root(tmp_path, "vm-1s-epyc-2vcpu") / "sys/devices/system/node/node0/meminfo"
    meminfo.write_text("Node 0 MemTotal: 1000 kB\nNode 0 MemFree: 500 kB\n")
    assert read_root(tmp_path)["numa"][0]["memory"] == 24600000 * 1024


def test_nodes_that_do_not_add_up(tmp_path: Path) -> None:
    meminfo = root(tmp_path) / "sys/devices/system/node/node0/meminfo"
    meminfo.write_text("Node 0 MemTotal: 1000 kB\n")
    assert "look at numactl -H and /proc/meminfo" in read_root(tmp_path)["unknown"]["numa"]


def test_memory_that_can_be_had_of_a_node() -> None:
    text = "Node 0 MemFree: 100 kB\nNode 0 FilePages: 60 kB\nNode 0 Shmem: 20 kB\nNode 0 SReclaimable: 5 kB\n"
    assert numa.available(numa.meminfo(text)) == 145 * 1024


@pytest.mark.parametrize(
    ("text", "architecture", "vendor"),
    [
        ("processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "aarch64", "ARM"),
        ("vendor_id  : IBM/S390\nprocessor 0: version = FF,  machine = 3931\ncpu number : 0\n", "s390x", "IBM/S390"),
        ("processor\t: 0\ncpu\t\t: POWER9 (architected), altivec supported\n", "ppc64le", "IBM"),
        ("processor\t: 0\nhart\t\t: 0\nisa\t\t: rv64imafdc\n", "", ""),
        ("\x00\xff garbage", "", ""),
    ],
    ids=["aarch64", "s390x", "ppc64le", "riscv64", "garbage"],
)  # fmt: skip
def test_cpuinfo_of_another_architecture(text: str, architecture: str, vendor: str, tmp_path: Path) -> None:
    (root(tmp_path) / "proc/cpuinfo").write_text(text)
    found = read_root(tmp_path)
    assert (found["architecture"], found["cpu"]["vendor"], found["cpu"]["isa"]) == (architecture, vendor, [])
    assert "instruction sets are known of x86 processors only; use an x86-64 machine" in found["unknown"]["cpu.isa"]
    assert found["cpu"]["cores"] == 64, "cores come from /sys, which did not change"
    assert unexplained(found) == [] and (architecture or "architecture" in found["unknown"])


def test_the_kernel_and_uname_know_the_architecture(tmp_path: Path) -> None:
    (root(tmp_path) / "proc/cpuinfo").write_text("")
    machines.command(tmp_path, "uname", {"stdout": "riscv64\n"})
    assert read_root(tmp_path)["architecture"] == "riscv64"
    machines.write(tmp_path / "proc/sys/kernel/arch", "s390x")
    assert read_root(tmp_path)["architecture"] == "s390x"


def test_cpus_without_topology_count_as_cores(tmp_path: Path) -> None:
    for one in (root(tmp_path) / "sys/devices/system/cpu").glob("cpu*"):
        shutil.rmtree(one)
    found = read_root(tmp_path)
    assert (found["cpu"]["cores"], found["cpu"]["sockets"]) == (128, 1)
    assert "the core of 128 CPUs, each is counted as one" in found["unknown"]["cpu.cores"]


def test_without_sys_the_cpus_come_from_cpuinfo(tmp_path: Path) -> None:
    shutil.rmtree(root(tmp_path) / "sys")
    found = read_root(tmp_path)
    assert found["cpu"]["threads"] == 128
    assert "counted from /proc/cpuinfo; mount /sys to know better" in found["unknown"]["cpu.threads"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Root reads everything, so a folder stands in the file's place; a pipe would block for ever."""
    for name, make in (("proc/meminfo", Path.mkdir), ("proc/cpuinfo", os.mkfifo)):
        path = root(tmp_path) / name if name == "proc/meminfo" else tmp_path / name
        path.unlink()
        make(path)
    found = read_root(tmp_path)
    assert "/proc/meminfo cannot be read (no regular file)" in found["unknown"]["memory.total"]
    assert "/proc/cpuinfo cannot be read (no regular file)" in found["unknown"]["cpu.model"]
    assert unexplained(found) == []


def test_cpuinfo_of_anything_never_raises(tmp_path: Path) -> None:
    """Mutations of a real cpuinfo and plain noise, and the same noise in the files beside it."""
    chance, text = random.Random(3), (root(tmp_path, "laptop-i7-1260p") / "proc/cpuinfo").read_text()
    files = [
        tmp_path / name
        for name in (
            "proc/cpuinfo", "proc/meminfo", "proc/self/mountinfo", "etc/os-release", "commands/df.json",
            "commands/dmidecode.json", "commands/getconf.json", "sys/devices/system/cpu/online",
            "sys/devices/system/cpu/cpu0/topology/thread_siblings_list", "sys/devices/system/node/node0/cpulist",
            "sys/devices/system/node/node0/meminfo",
        )
    ]  # fmt: skip
    for _ in range(150):
        file = chance.choice(files)
        was = file.read_text()
        position = chance.randrange(len(was) or 1)
        noise = "".join(chance.choices(string.printable + "\x00é", k=chance.randrange(80)))
        mutated = chance.choice([was[:position] + noise + was[position + len(noise) :], noise, was[:position]])
        file.write_text(mutated)
        assert unexplained(read_root(tmp_path)) == [], f"{file.name}: {mutated[-200:]!r}"
        file.write_text(was if file.name != "cpuinfo" else text)


def test_a_range_of_cpus() -> None:
    assert cpu.cpu_list("0-2,8,10-11\n") == [0, 1, 2, 8, 10, 11]
    assert cpu.cpu_list("\n") == []
    with pytest.raises(ValueError, match="'5-3' is no range of CPUs below 8192"):
        cpu.cpu_list("5-3")


# --- limits of a container


def limited(tmp_path: Path, files: dict[str, str]) -> Tree:
    for name, text in files.items():
        machines.write(tmp_path / name, text)
    return Tree(str(tmp_path))


V2 = {"proc/1/cgroup": "0::/system.slice/llamacpp@a.service"}
V1 = {"proc/1/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1"}
SLICE = "sys/fs/cgroup/system.slice"


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 8.0),
        ({**V2, f"{SLICE}/cpu.max": "max 100000"}, 8.0),
        ({**V2, f"{SLICE}/cpu.max": "250000 100000"}, 2.5),
        ({**V2, f"{SLICE}/cpu.max": "400000 100000", f"{SLICE}/llamacpp@a.service/cpu.max": "600000 100000"}, 4.0),
        ({**V2, f"{SLICE}/cpu.max": "0 0"}, 8.0),
        ({"proc/1/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/1/cgroup": "0::/../../x", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/1/cgroup": "0:://..//", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({**V1, "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "300000",
          "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000"}, 3.0),
        ({**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8.0),
        ({"proc/1/status": "Name:\tpython3\nCpus_allowed_list:\t2-4"}, 3.0),
        ({"proc/1/status": "Cpus_allowed_list:\tall of them"}, 8.0),
        # Of the login that looks, not of the services.
        ({"proc/1/cgroup": "0::/init.scope", "proc/self/cgroup": "0::/user.slice", "proc/self/status":
          "Cpus_allowed_list:\t2", "sys/fs/cgroup/user.slice/cpu.max": "100000 100000"}, 8.0),
        ({"proc/1/cgroup": "nonsense", "proc/1/status": "x"}, 8.0),
    ],
)  # fmt: skip
def test_cpus_that_may_be_used(files: dict[str, str], cpus: float, tmp_path: Path) -> None:
    assert limits.usable(limited(tmp_path, files), list(range(8))) == cpus


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({**V2, f"{SLICE}/memory.max": "max"}, None),
        ({**V2, f"{SLICE}/memory.max": "5000"}, 5000),
        ({**V2, f"{SLICE}/memory.max": "999999"}, None),
        ({**V1, "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "9223372036854771712"}, None),
        ({**V1, "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "7000"}, 7000),
    ],
)
def test_memory_that_may_be_used(files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    assert limits.memory(limited(tmp_path, files), 10_000) == limit


def test_limits_are_part_of_the_facts(tmp_path: Path) -> None:
    limited(root(tmp_path), {**V2, f"{SLICE}/cpu.max": "1600000 100000", f"{SLICE}/memory.max": str(90 * 10**9)})
    found = read_root(tmp_path)
    assert found["cpu"]["usable"] == 16.0 and found["cpu"]["cores"] == 64
    assert found["memory"]["limit"] == 90 * 10**9 < found["memory"]["total"]


def test_a_machine_nobody_has_needs_no_map_of_its_cpus() -> None:
    numa = [
        {"node": 0, "cpulist": "0-3,8-11", "mem_total_kb": 1000},
        {"node": 1, "cpulist": "4-7,12-15", "mem_total_kb": 1000},
    ]
    processor = {"vendor_id": "GenuineIntel", "model_name": "", "flags": "avx2", "sockets": 2, "threads_per_core": 2}
    found = from_record({"id": "wish", "cpu": processor, "numa": numa})
    assert (found["cpu"]["sockets"], found["cpu"]["cores"], found["cpu"]["threads"]) == (2, 8, 16)
    assert [(node["socket"], node["cores"]) for node in found["numa"]] == [(0, 4), (1, 4)]
    assert found["unknown"]["cpu.topology"].startswith("the record does not tell cpu_map")
