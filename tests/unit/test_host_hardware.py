# SPDX-License-Identifier: GPL-3.0-or-later
"""The module, run for real on this machine and on recorded ones; lscpu reads the same roots."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines

from ansible_collections.onprem.llm.plugins.module_utils.hardware.recorded import from_record
from ansible_collections.onprem.llm.plugins.modules import host_hardware


def call(capsys: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    given = {"id": "h", "model_dir": "/srv/llm/models", "_ansible_check_mode": True, **options}
    with patch_module_args(given), pytest.raises(SystemExit):
        host_hardware.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = call(capsys, model_dir=str(tmp_path / "not/there/yet"))
    found = answer["hardware"]
    assert answer["changed"] is False and found["id"] == "h"
    assert answer["installed"] == [], "nobody asked what is served"
    assert found["architecture"] == os.uname().machine
    assert 1 <= found["cpu"]["cores"] <= found["cpu"]["threads"] == os.sysconf("SC_NPROCESSORS_ONLN")
    assert 0 < found["cpu"]["usable"] <= found["cpu"]["threads"]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert abs(found["memory"]["total"] - total) < total / 100
    assert any(node["cpus"] for node in found["numa"])
    room = os.statvfs(tmp_path)
    assert found["disk"]["total"] == room.f_blocks * room.f_frsize
    assert found["system"]["kernel"] == os.uname().release
    assert found["system"]["python"] is not None
    assert found["driver"]["state"] in ("ok", "none", "not_loaded", "no_gpu", "reboot_required", "gpu_error", "unknown")
    assert all(isinstance(reason, str) and len(reason) > 20 for reason in found["unknown"].values())


def test_this_machine_measured(capsys: pytest.CaptureFixture[str]) -> None:
    memory = (hardware := call(capsys, measure_bandwidth=True)["hardware"])["memory"]
    assert memory["measured"] or "memory.measured" in hardware["unknown"]
    assert all(rate > 10**8 for rate in (memory["measured"] or {}).values())


def test_a_recorded_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    record = machines.record("spr-2s-xeon-gold-6430-1tb", ("rtx-4090-24g",))
    machines.write_root(record, tmp_path)
    answer = call(capsys, root=str(tmp_path), id=record["id"])
    assert answer["changed"] is False
    expected = from_record(record)
    assert {**answer["hardware"], "unknown": {}} == {**expected, "unknown": {}}


def test_a_root_that_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer = call(capsys, root=str(tmp_path / "no"))
    assert answer["msg"] == f"root: {tmp_path}/no is no folder; give that of a recorded machine, or leave it out."


@pytest.mark.skipif(not shutil.which("lscpu"), reason="lscpu is not installed")
@pytest.mark.parametrize("machine", sorted(machines.machines()))
def test_lscpu_sees_the_same(machine: str, tmp_path: Path) -> None:
    machines.write_root(machines.record(machine), tmp_path)
    text = subprocess.run(
        ["lscpu", "-s", str(tmp_path), "-J"], capture_output=True, text=True, check=True, env={"LC_ALL": "C"}
    ).stdout

    def fields(entries: list[dict[str, Any]]) -> dict[str, str]:
        found: dict[str, str] = {}
        for entry in entries:
            found[entry["field"].rstrip(":")] = entry["data"]
            found.update(fields(entry.get("children", [])))
        return found

    seen = fields(json.loads(text)["lscpu"])
    hardware = machines.hardware(machine)
    assert seen["Model name"] == hardware["cpu"]["model"]
    assert int(seen["Socket(s)"]) == hardware["cpu"]["sockets"]
    assert int(seen["Thread(s) per core"]) == hardware["cpu"]["threads_per_core"]
    assert int(seen["NUMA node(s)"]) == len(hardware["numa"])
    places = subprocess.run(
        ["lscpu", "-s", str(tmp_path), "-p=CPU,NODE,SOCKET,CORE"], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(",") for line in places.splitlines() if not line.startswith("#")]
    assert len(rows) == hardware["cpu"]["threads"]
    assert len({core for _, _, _, core in rows}) == hardware["cpu"]["cores"]
    for node in hardware["numa"]:
        assert sorted(int(cpu) for cpu, number, _, _ in rows if number == str(node["id"])) == node["cpus"]
