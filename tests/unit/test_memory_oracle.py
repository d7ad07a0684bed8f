# SPDX-License-Identifier: GPL-3.0-or-later
"""What llama.cpp prints of its memory, and the module that asks it. tests/integration runs the real program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.placement import oracle
from ansible_collections.onprem.llm.plugins.module_utils.placement.types import DeviceMemory

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models

PROJECT = Path(__file__).parents[2]
MIB = oracle.MIB
GIB = oracle.GIB
PRINTED = "CUDA0 4026 1024 290 \nCUDA1 100 0 20 \nHost 281 0 40 \n"
ROWS = (
    '{"type":"log","time":248784,"level":"info","msg":"cmn init"}\n'
    '{"type":"fit_memory_breakdown","data":{"unit":"MiB","rows":['
    '{"kind":"device","name":"CUDA0","description":"RTX 4090","total":24564,"free":23149,"self":164,"model":67,'
    '"context":32,"compute":65,"unaccounted":791},'
    '{"kind":"host","name":"Host","self":157,"model":140,"context":0,"compute":17},'
    '{"kind":"buffer_type","name":"CPU_REPACK","self":140,"model":140,"context":0,"compute":0}]}}\n'
)


def planned(device: str, weights: int, kv_cache: int, compute: int) -> DeviceMemory:
    rest: Any = dict.fromkeys(("capacity", "overhead", "reserve", "others"), 0)
    return {**rest, "device": device, "weights": weights, "kv_cache": kv_cache, "compute": compute}


def test_lines_of_fit_params() -> None:
    assert oracle.fit_print(PRINTED) == {
        "gpu0": {"weights": 4026 * MIB, "kv_cache": 1024 * MIB, "compute": 290 * MIB},
        "gpu1": {"weights": 100 * MIB, "kv_cache": 0, "compute": 20 * MIB},
        "ram": {"weights": 281 * MIB, "kv_cache": 0, "compute": 40 * MIB},
    }


def test_rows_of_the_log_with_repacked_weights() -> None:
    """The last breakdown counts; CPU_REPACK is RAM."""
    first = ROWS.replace('"model":67', '"model":1')
    assert oracle.breakdown(first + ROWS) == {
        "gpu0": {"weights": 67 * MIB, "kv_cache": 32 * MIB, "compute": 65 * MIB},
        "ram": {"weights": 280 * MIB, "kv_cache": 0, "compute": 17 * MIB},
    }


@pytest.mark.parametrize(
    ("name", "device"),
    [("Host", "ram"), ("CPU", "ram"), ("CPU_REPACK", "ram"), ("CUDA3", "gpu3"), ("Vulkan0", "gpu0"), ("ROCm1", "gpu1")],
)
def test_names_of_devices(name: str, device: str) -> None:
    assert oracle.device(name) == device


def test_output_that_says_nothing() -> None:
    with pytest.raises(oracle.OracleError, match=r"printed no memory; expected a line of a device.*invalid arg"):
        oracle.fit_print("error: invalid argument: -x\n")
    with pytest.raises(oracle.OracleError, match=r"expected a fit_memory_breakdown\. It ended with: nothing"):
        oracle.breakdown("")
    with pytest.raises(oracle.OracleError, match="a fit_memory_breakdown that cannot be read"):
        oracle.breakdown('{"type":"fit_memory_breakdown","data":{}}')


def test_differences_say_both_figures() -> None:
    plan = [planned("ram", GIB, 2 * GIB, GIB), planned("gpu0", 10 * GIB, 0, GIB)]

    def said(device: str, part: str, size: int) -> list[str]:
        report: oracle.Reported = {one["device"]: {key: one[key] for key in oracle.PARTS} for one in plan}  # type: ignore[literal-required]
        report[device][part] = size
        return oracle.compare(plan, report)

    assert said("ram", "weights", GIB) == []
    assert said("gpu0", "weights", int(10.4 * GIB)) == []
    assert said("gpu0", "weights", 11 * GIB) == [
        "gpu0: the plan expects 10.00 GiB of weights, llama.cpp reports 11.00 GiB (10% more; 5% is the band)."
    ]
    assert said("ram", "kv_cache", GIB) == [
        "ram: the plan expects 2.00 GiB of cache, llama.cpp reports 1.00 GiB (50% less; 10% is the band)."
    ]
    assert said("gpu0", "kv_cache", GIB) == [
        "gpu0: the plan expects 0.00 GiB of cache, llama.cpp reports 1.00 GiB (more; 10% is the band)."
    ]
    # Compute buffers are planned as upper bounds: less is no difference.
    assert said("ram", "compute", 0) == []
    assert len(said("ram", "compute", 2 * GIB)) == 1
    report = {"ram": {"weights": GIB, "kv_cache": 2 * GIB, "compute": 2 * GIB}}
    assert len(oracle.compare(plan[:1], report, logits=GIB)) == 0
    # A device the plan does not know.
    assert len(oracle.compare([], report)) == 3


def test_arguments_are_the_placements() -> None:
    flags = {"ctx-size": 8192, "parallel": 2, "threads": 32, "gpu-layers": 33, "numa": "distribute", "flash-attn": "on"}
    assert oracle.arguments("/m/a.gguf", flags)[6:] == [
        "--no-repack", "--ctx-size", "8192", "--parallel", "2", "--flash-attn", "on", "--gpu-layers", "33",
    ]  # fmt: skip


# --- the module


def run(tmp_path: Path, program: Path, placement: dict[str, Any]) -> dict[str, Any]:
    given = tmp_path / "arguments.json"
    arguments = {"program": str(program), "host": "gpu1", "placements": [placement], "_ansible_check_mode": True}
    given.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}))
    script = PROJECT / "plugins/modules/llamacpp_memory.py"
    environment = {"PYTHONPATH": str(PROJECT / "collections"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, script, given], capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout)
    assert not found["changed"]
    return found["answers"][0]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A tree of llama.cpp whose llama-fit-params prints its arguments to a file, and this memory."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/llama-fit-params"
    tool.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/asked\nprintf "Host 1 3 40 \\n"\n')
    tool.chmod(0o755)
    return tmp_path / "bin/llama-server"


def placement(path: Path) -> dict[str, Any]:
    return {
        "model_path": str(path), "flags": {"ctx-size": 2048, "ubatch-size": 512, "mlock": True},
        "memory": [planned("ram", 500_000, MIB, 0)],
    }  # fmt: skip


def test_module_reports_and_compares(tmp_path: Path, program: Path) -> None:
    """Logits of a batch, 512 x 20000 x 4 bytes, are not held against the plan; the rest is below the slack."""
    path = tiny_models.write("llama", tmp_path / "m.gguf", vocabulary=20000)
    found = run(tmp_path, program, placement(path))
    assert found["reported"] == {"ram": {"weights": MIB, "kv_cache": 3 * MIB, "compute": 40 * MIB}}
    assert (found["model"], found["differences"], found["reason"]) == ("m.gguf", [], "")
    asked = (tmp_path / "asked").read_text()
    assert asked == f"--model {path} --fit off --fit-print on --no-repack --ctx-size 2048 --ubatch-size 512\n"
    small = tiny_models.write("llama", tmp_path / "m.gguf")
    found = run(tmp_path, program, placement(small))
    assert found["differences"] == [
        "ram: the plan expects 0.00 GiB of compute buffers, llama.cpp reports 0.04 GiB (more; 15% is the band)."
    ]


def test_module_says_why_there_is_no_report(tmp_path: Path, program: Path) -> None:
    path = tiny_models.write("llama", tmp_path / "m.gguf")
    tool = program.with_name("llama-fit-params")
    found = run(tmp_path, program, placement(tmp_path / "away.gguf"))
    assert found["reason"] == f"{tmp_path}/away.gguf is not there: the model is not on this host yet"
    tool.write_text("#!/bin/sh\necho 'error: bad file' >&2\nexit 3\n")
    assert run(tmp_path, program, placement(path))["reason"] == f"{tool} ended with 3: error: bad file"
    tool.write_text("#!/bin/sh\necho hello\n")
    assert "llama.cpp printed no memory" in run(tmp_path, program, placement(path))["reason"]
    tool.unlink()
    found = run(tmp_path, program, placement(path))
    assert found["reported"] is None
    assert found["reason"] == f"{tool} is not there: this build of llama.cpp brings no llama-fit-params"


def test_devices_are_those_of_the_host() -> None:
    one, two = {"weights": 1, "kv_cache": 0, "compute": 0}, {"weights": 2, "kv_cache": 0, "compute": 0}
    reported = {"ram": one, "gpu0": two, "gpu1": one}
    assert oracle.named(reported, "") == reported
    assert oracle.named(reported, "1,3") == {"ram": one, "gpu1": two, "gpu3": one}
