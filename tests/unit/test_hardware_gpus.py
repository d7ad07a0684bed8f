# SPDX-License-Identifier: GPL-3.0-or-later
"""GPUs with and without a driver: each known answer of nvidia-smi, what the PCI bus shows, and what a table adds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines

from ansible_collections.onprem.llm.plugins.module_utils.hardware import gpus, nvidia, pci
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Tree
from ansible_collections.onprem.llm.plugins.module_utils.hardware.types import Driver, Gpu

CASES = {one["id"]: one for one in json.loads((machines.FOLDER / "nvidia-smi-cases.json").read_text())["cases"]}
XML = (machines.FOLDER / "nvidia-smi-q.xml").read_text()
STATES = {
    "driver_not_loaded": "not_loaded",
    "not_installed": "none",
    "no_gpu": "no_gpu",
    "reboot_required": "reboot_required",
    "gpu_error": "gpu_error",
}
REMEDIES = {
    "no-driver": "ended with 9 (NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
    "not-installed": "nvidia-smi is not installed: the driver is not installed; install the NVIDIA driver",
    "no-device": "ended with 6 (No devices were found): the driver finds no GPU; look at dmesg",
    "version-mismatch": "Driver/library version mismatch NVML library version: 550.163): the driver was updated and "
    "the old one is still loaded; reboot",
    "mixed-4090-and-fell-off-the-bus": "ended with 15 (Unable to determine the device handle for GPU0000:82:00.0: "
    "Unknown Error): a GPU does not answer any more; power the machine off and on",
}


class Host:
    """A host whose nvidia-smi answers as told; other commands are not installed."""

    def __init__(self, *answers: tuple[int, str], xml: str = "") -> None:
        self.answers, self.xml, self.asked = list(answers), xml, list[list[str]]()

    def run(self, argv: list[str]) -> tuple[int, str, str]:
        if argv[0] != "nvidia-smi":
            return 127, "", ""
        self.asked.append(argv)
        if argv[1:] == ["-q", "-x"]:
            return (0, self.xml, "") if self.xml else (1, "", "")
        rc, out = self.answers.pop(0)
        return rc, out, ""


def card(root: Path, address: str, device: str = "0x2684", kind: str = "0x030000", **files: Any) -> None:
    folder = root / "sys/bus/pci/devices" / address
    for name, text in {"class": kind, "vendor": "0x10de", "device": device, "numa_node": 0, **files}.items():
        machines.write(folder / name, text)


def read(root: Path, host: Host, nodes: int = 1) -> tuple[list[Gpu], Driver, dict[str, str]]:
    unknown: dict[str, str] = {}
    found, driver = nvidia.read(Tree(str(root)), host.run, nodes, unknown)
    return found, driver, unknown


def answers(case: dict[str, Any]) -> Host:
    return Host((case["rc"], case["stdout"]))


# --- every known answer


@pytest.mark.parametrize("case", sorted(REMEDIES))
def test_a_failure_has_a_state_and_a_way_out(case: str, tmp_path: Path) -> None:
    card(tmp_path, "0000:38:00.0")
    found, driver, unknown = read(tmp_path, answers(CASES[case]))
    assert driver["state"] == STATES[CASES[case]["expect"]]
    assert REMEDIES[case] in unknown["driver"]
    assert [(gpu["name"], gpu["memory"]) for gpu in found] == [("NVIDIA GeForce RTX 4090", None)]
    assert unknown["gpus.0.memory"] == f"memory is known from nvidia-smi only: {unknown['driver']}"


def test_every_case_is_tested() -> None:
    failing = {name for name, case in CASES.items() if case["rc"] not in (0, 2)}
    assert failing == set(REMEDIES)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("one-4090-48g", [("NVIDIA GeForce RTX 4090", 49140, "8.9", "0000:38:00.0", "10de:2684")]),
        (
            "dual-2080ti-22g",
            [
                ("NVIDIA GeForce RTX 2080 Ti", 22528, "7.5", "0000:03:00.0", "10de:1e07"),
                ("NVIDIA GeForce RTX 2080 Ti", 22528, "7.5", "0000:82:00.0", "10de:1e07"),
            ],
        ),
        (
            "two-a100-80g",
            [
                ("NVIDIA A100-SXM4-80GB", 81920, "8.0", "0000:01:00.0", "10de:20b2"),
                ("NVIDIA A100-SXM4-80GB", 81920, "8.0", "0000:41:00.0", "10de:20b2"),
            ],
        ),
        ("one-h200", [("NVIDIA H200", 143771, "9.0", "0000:b9:00.0", "10de:2335")]),
    ],
)
def test_what_nvidia_smi_lists(case: str, expected: Sequence[tuple[Any, ...]], tmp_path: Path) -> None:
    found, driver, _ = read(tmp_path, answers(CASES[case]))
    assert [
        (gpu["name"], (gpu["memory"] or 0) >> 20, gpu["compute_capability"], gpu["pci_address"], gpu["pci_device"])
        for gpu in found
    ] == expected
    assert driver["state"] == "ok" and driver["version"] in CASES[case]["stdout"]
    assert [gpu["index"] for gpu in found] == list(range(len(expected)))


def test_an_old_driver_is_asked_without_compute_capability(tmp_path: Path) -> None:
    old = CASES["old-driver-no-compute-cap"]
    host = Host(
        (old["rc"], old["stdout"]),
        (0, "0, NVIDIA A100-SXM4-80GB, 81920, 470.82.01, 00000000:01:00.0, 0x20B210DE, GPU-0\n"),
    )
    found, driver, unknown = read(tmp_path, host)
    assert "compute_cap" in host.asked[0][1] and "compute_cap" not in host.asked[1][1]
    assert found[0]["compute_capability"] == "8.0", "from the table, by the PCI device"
    assert driver == {"state": "ok", "version": "470.82.01", "cuda": None, "toolkit": None}
    assert "nvidia-smi -q -x names no CUDA version" in unknown["driver.cuda"]


def test_a_field_that_stays_unknown_is_an_unknown_state(tmp_path: Path) -> None:
    card(tmp_path, "0000:38:00.0")
    host = Host(
        (2, 'Field "uuid" is not a valid field to query.\n'), (2, 'Field "uuid" is not a valid field to query.\n')
    )
    _, driver, unknown = read(tmp_path, host)
    assert driver["state"] == "unknown" and "run nvidia-smi by hand" in unknown["driver"]


def test_no_answer_in_time(tmp_path: Path) -> None:
    card(tmp_path, "0000:38:00.0")
    _, driver, unknown = read(tmp_path, Host((124, "")))
    assert driver["state"] == "gpu_error" and "it did not answer in time" in unknown["driver"]


def test_rows_count_even_when_nvidia_smi_complains(tmp_path: Path) -> None:
    """It ends with 14 when the information ROM of a card is corrupt, and lists the cards all the same."""
    found, driver, unknown = read(tmp_path, Host((14, CASES["one-h200"]["stdout"] + "WARNING: infoROM is corrupted\n")))
    assert found[0]["memory"] == 143771 * 2**20 and driver["version"] == "575.57.08"
    assert "ended with 14" in unknown["driver"]


@pytest.mark.parametrize(
    "text", ["", "\x00", "0, A, B\n", "a, b, c, d, e, f, g, h\n", "0, x, [N/A], [N/A], [N/A], y, z, u\n"]
)
def test_rows_that_are_none(text: str, tmp_path: Path) -> None:
    found, driver, unknown = read(tmp_path, Host((0, text)))
    assert driver["state"] == "unknown" and "names no driver version" in unknown["driver"]
    assert all(gpu["memory"] is None and "gpus.0.memory" in unknown for gpu in found)


# --- memory, never by the name


@pytest.mark.parametrize(
    ("name", "other"), [("rtx-4090-24g", "rtx-4090-48g-modded"), ("rtx-2080ti-11g", "rtx-2080ti-22g-modded")]
)
def test_the_same_card_with_another_memory(name: str, other: str) -> None:
    one, two = (machines.hardware("hsx-2s-e5-2696v3", (gpu,))["gpus"][0] for gpu in (name, other))
    assert (one["name"], one["pci_device"]) == (two["name"], two["pci_device"])
    assert (one["memory"], two["memory"]) == tuple(
        machines.gpus()[gpu]["memory_total_mib"] * 2**20 for gpu in (name, other)
    )


def test_memory_is_unknown_without_a_driver(tmp_path: Path) -> None:
    card(tmp_path, "0000:38:00.0")
    found, driver, unknown = read(tmp_path, Host((127, "")))
    assert found[0]["memory"] is None and found[0]["bandwidth"] == 1008 * 10**9
    assert driver["state"] == "none" and "install the NVIDIA driver" in unknown["gpus.0.memory"]


def test_mixed_gpus_are_listed_as_they_are() -> None:
    found = machines.hardware("spr-2s-xeon-gold-6430", ("a100-sxm4-80g", "rtx-2080ti-22g-modded", "rtx-5090"))["gpus"]
    assert [gpu["compute_capability"] for gpu in found] == ["8.0", "7.5", "12.0"]
    assert [gpu["index"] for gpu in found] == [0, 1, 2]


def test_a_card_that_fell_off_the_bus_stands_beside_those_that_work(tmp_path: Path) -> None:
    card(tmp_path, "0000:38:00.0")
    card(tmp_path, "0000:82:00.0")
    found, _, unknown = read(tmp_path, answers(CASES["one-4090-48g"]))
    assert [(gpu["index"], gpu["memory"]) for gpu in found] == [(0, 49140 * 2**20), (None, None)]
    assert unknown["gpus.1.memory"] == "nvidia-smi does not list this GPU or its memory; look at dmesg for Xid errors"


@pytest.mark.parametrize("driver", ["nouveau", "vfio-pci"])
def test_a_card_of_another_kernel_driver(driver: str, tmp_path: Path) -> None:
    card(tmp_path, "0000:38:00.0")
    (tmp_path / f"sys/bus/pci/drivers/{driver}").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/0000:38:00.0/driver").symlink_to(f"../../drivers/{driver}")
    _, _, unknown = read(tmp_path, Host((9, "")))
    assert unknown["gpus.0.memory"].startswith(f"the kernel's driver of this GPU is {driver}, so engines cannot use it")


# --- the PCI bus


def test_the_bus_shows_display_and_3d_controllers_of_nvidia(tmp_path: Path) -> None:
    card(tmp_path, "0000:01:00.0", "0x2330", "0x030200", numa_node=1)
    card(tmp_path, "0000:01:00.1", "0x22ba", "0x040300")  # its sound
    card(tmp_path, "0000:38:00.0", numa_node=-1)
    card(tmp_path, "0000:00:02.0", "0x46a6", vendor="0x8086")
    machines.write(tmp_path / "sys/bus/pci/devices/0000:03:00.0/class", "garbage")
    found = pci.scan(Tree(str(tmp_path)))
    assert [(one.address, one.device, one.numa_node) for one in found or []] == [
        ("0000:01:00.0", "10de:2330", 1),
        ("0000:38:00.0", "10de:2684", None),
    ]


def test_no_gpu_needs_no_reason(tmp_path: Path) -> None:
    card(tmp_path, "0000:00:02.0", "0x46a6", vendor="0x8086")
    assert read(tmp_path, Host((127, ""))) == (
        [],
        {"state": "none", "version": None, "cuda": None, "toolkit": None},
        {},
    )


def test_a_bus_that_cannot_be_seen_is_said(tmp_path: Path) -> None:
    found, driver, unknown = read(tmp_path, Host((127, "")))
    assert found == [] and driver["state"] == "none"
    assert "/sys/bus/pci/devices is missing" in unknown["gpus"] and "taken as none" in unknown["gpus"]


def test_the_numa_node_is_unknown_where_there_are_several(tmp_path: Path) -> None:
    card(tmp_path, "0000:38:00.0", numa_node=-1)
    one, _, _ = read(tmp_path, answers(CASES["one-4090-48g"]), nodes=1)
    two, _, unknown = read(tmp_path, answers(CASES["one-4090-48g"]), nodes=2)
    assert (one[0]["numa_node"], two[0]["numa_node"]) == (0, None)
    assert "look at nvidia-smi topo -m" in unknown["gpus.0.numa_node"]


@pytest.mark.parametrize(
    ("generation", "width", "expected"),
    [
        (3, 16, 15_753_846_144),
        (4, 16, 31_507_692_304),
        (5, 16, 63_015_384_608),
        (1, 1, 250_000_000),
        (9, 16, None),
        (4, 0, None),
    ],
)
def test_a_link(generation: int, width: int, expected: int | None) -> None:
    assert gpus.link(generation, width) == expected


def test_the_slot_limits_the_link(tmp_path: Path) -> None:
    """A card of the fourth generation behind a port of the third, with eight of its lanes connected."""
    bridge = tmp_path / "sys/devices/pci0000:37/0000:37:01.0"
    machines.write(bridge / "max_link_speed", "8.0 GT/s PCIe")
    folder = bridge / "0000:38:00.0"
    for name, text in {
        "class": "0x030000", "vendor": "0x10de", "device": "0x2684", "numa_node": "0",
        "max_link_speed": "16.0 GT/s PCIe", "max_link_width": "16", "current_link_width": "8",
    }.items():  # fmt: skip
        machines.write(folder / name, text)
    devices = tmp_path / "sys/bus/pci/devices"
    devices.mkdir(parents=True)
    (devices / "0000:38:00.0").symlink_to(folder)
    found, _, _ = read(tmp_path, answers(CASES["one-4090-48g"]))
    assert found[0]["link"] == 984_615_384 * 8


def test_a_link_that_is_not_told_is_the_cards_own(tmp_path: Path) -> None:
    card(tmp_path, "0000:38:00.0")
    found, _, _ = read(tmp_path, answers(CASES["one-4090-48g"]))
    assert found[0]["link"] == gpus.LANE[4] * 16


# --- nvidia-smi -q -x


def test_mig_and_cuda_come_from_the_long_answer(tmp_path: Path) -> None:
    rows = (
        "0, NVIDIA A100-SXM4-80GB, 81920, 535.54.03, 8.0, 00000000:01:00.0, 0x20B210DE, GPU-1\n"
        "1, NVIDIA GeForce RTX 3090, 24576, 535.54.03, 8.6, 00000000:41:00.0, 0x220410DE, GPU-2\n"
    )
    found, driver, unknown = read(tmp_path, Host((0, rows), xml=XML))
    assert [gpu["mig"] for gpu in found] == [True, False] and driver["cuda"] == "12.2"
    assert found[0]["link"] == gpus.LANE[4] * 16
    assert "MIG is on: the 85899345920 bytes are the whole card's" in unknown["gpus.0.memory"]
    assert "turn MIG off (nvidia-smi -mig 0)" in unknown["gpus.0.memory"]


@pytest.mark.parametrize("xml", ["<html>", "", "<nvidia_smi_log/>", "\x00", "<!DOCTYPE x [<!ENTITY a 'b'>]><x>&c;</x>"])
def test_a_long_answer_that_is_none(xml: str) -> None:
    assert nvidia.parse_xml(xml) == (None, {})


def test_a_card_that_can_be_divided_and_does_not_tell(tmp_path: Path) -> None:
    found, _, unknown = read(tmp_path, answers(CASES["one-h200"]))
    assert found[0]["mig"] is None and "nvidia-smi -q -x does not tell whether it is divided" in unknown["gpus.0.mig"]


# --- driver and toolkit


def test_a_loaded_driver_without_nvidia_smi(tmp_path: Path) -> None:
    card(tmp_path, "0000:38:00.0")
    machines.write(
        tmp_path / "proc/driver/nvidia/version",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build",
    )
    _, driver, unknown = read(tmp_path, Host((127, "")))
    assert driver["state"] == "unknown" and driver["version"] == "580.95.05"
    assert "the driver 580.95.05 is loaded, but nvidia-smi is not installed" in unknown["driver"]


@pytest.mark.parametrize(
    ("nvcc", "file", "expected"),
    [
        ("Cuda compilation tools, release 12.4, V12.4.131", None, "12.4"),
        ("", '{"cuda": {"name": "CUDA SDK", "version": "12.8.1"}}', "12.8"),
        ("", "[]", None),
        ("", "no json", None),
        ("", None, None),
    ],
)
def test_the_toolkit(nvcc: str, file: str | None, expected: str | None, tmp_path: Path) -> None:
    if file is not None:
        machines.write(tmp_path / "usr/local/cuda/version.json", file)
    assert nvidia.toolkit(Tree(str(tmp_path)), lambda argv: (0, nvcc, "")) == expected


# --- the table


@pytest.mark.parametrize("name", sorted(machines.gpus()))
def test_the_table_knows_the_recorded_cards(name: str) -> None:
    recorded = machines.gpus()[name]
    known = gpus.card(f"10de:{recorded['pci_device'][2:]}", recorded["nvidia_smi_name"])
    assert known and known.compute_capability == recorded["compute_cap"]
    supported = "8.0" <= recorded["compute_cap"].rjust(4).strip() <= "9.0" and len(recorded["compute_cap"]) == 3
    assert recorded["kt_kernel_gpu_supported"] == supported


def test_the_table_is_plausible() -> None:
    """Bandwidth and operations of a generation lie within an order of magnitude; a slipped digit does not."""
    for device, known in gpus.CARDS.items():
        assert len(device) == 4 and int(device, 16)
        assert 300 <= known.bandwidth <= 5000, known
        assert known.tflops is None or 50 <= known.tflops <= 1000, known
        assert known.generation in (3, 4, 5), known


def test_a_card_of_no_table(tmp_path: Path) -> None:
    row = "0, NVIDIA Future 9000, 1000000, 999.1, 19.0, 00000000:01:00.0, 0xFFFF10DE, GPU-1\n"
    found, _, unknown = read(tmp_path, Host((0, row)))
    assert found[0]["compute_capability"] == "19.0" and found[0]["bandwidth"] is None
    assert unknown["gpus.0.bandwidth"] == (
        "NVIDIA Future 9000 (10de:ffff) is not in the table of hardware/gpus.py; add it from its data sheet"
    )


def test_a_share_of_a_card_says_so() -> None:
    found = machines.hardware("icx-2s-xeon-8352v-16vcpu-90gb", ("vgpu-32g",))
    assert "is a share of a card" in found["unknown"]["gpus.0.bandwidth"] and found["gpus"][0]["bandwidth"]


def test_a_card_without_tensor_cores() -> None:
    tesla = {"nvidia_smi_name": "Tesla P40", "pci_device": "0x1b38", "memory_total_mib": 24576}
    found = machines.hardware("hsx-2s-e5-2696v3", gpus=[tesla])
    assert found["gpus"][0]["flops"] is None and "has no tensor cores" in found["unknown"]["gpus.0.flops"]
