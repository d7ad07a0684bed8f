# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights that are converted first: when, whereto, with what, and what keeps them from being used wrongly."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.testing import patch_module_args
from decisions import GIB, ask, catalogue, machine
from jinja2.nativetypes import NativeEnvironment
from test_kt_flags import PROGRAM, SWITCHED

from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import convert, look
from ansible_collections.onprem.llm.plugins.module_utils.rollout import record
from ansible_collections.onprem.llm.plugins.modules import ktransformers_info

sys.path.insert(0, str(Path(__file__).parents[1]))
import machines

PROJECT = Path(__file__).parents[2]
GOLD = "spr-2s-xeon-gold-6430-1tb"


def planned(ram: int = 512, quantisation: str = "FP8", **more: Any) -> dict[str, Any]:
    hardware: Any = machine(GOLD, "rtx-4090-24g")
    hardware["memory"]["total"] = ram * GIB
    found = ask(hardware, [catalogue("deepseek-r1", quantisation)], 8192, 1, **more)
    assert found["engine"] == "ktransformers", found["reasons"]
    return {**found, "model": "r1", "port": 9101, "model_path": "/srv/llm/served/r1/", "source": "org/R1@abc"}


def wanted(placement: dict[str, Any], identity: str = "a") -> convert.Conversion:
    found = convert.conversion(placement, "/srv/llm/converted", identity)
    assert found
    return found


def test_files_as_they_are_need_none() -> None:
    placement = planned(ram=1024)
    assert (placement["flags"]["kt-method"], placement["converted"]) == ("FP8", 0)
    assert convert.conversion(placement, "/srv/llm/converted", "a") is None


def test_what_the_script_is_asked_for_is_what_the_service_runs_with() -> None:
    placement = planned()
    one = wanted(placement)
    assert (one["method"], one["quant"], one["input"], one["pools"]) == ("AMXINT4", "int4", "fp8", 2)
    assert convert.arguments(one, "/out") == [
        "--input-path", "/srv/llm/served/r1", "--input-type", "fp8", "--output", "/out", "--quant-method", "int4",
        "--cpuinfer-threads", "64", "--threadpool-count", "2",
    ]  # fmt: skip
    assert one["bytes"] == placement["converted"] > 300 * 10**9
    assert placement["disk"] == 688_600_000_000 + placement["converted"]


def test_the_folder_names_what_it_is_good_for() -> None:
    placement = planned()
    first = wanted(placement)["path"]
    assert first.startswith("/srv/llm/converted/r1.AMXINT4-2pools-")
    four = {**placement, "flags": {**placement["flags"], "kt-threadpool-count": 4}}
    other = {wanted(four)["path"], wanted(placement, "other files")["path"], first}
    assert len(other) == 3, "other pools or other files are another conversion"
    assert wanted(placement)["path"] == first


def test_what_the_script_does_not_read_is_refused() -> None:
    placement = planned()
    placement["variant"] = {**placement["variant"], "quantisation": "GPTQ-INT4"}
    with pytest.raises(
        ValueError, match=r"r1: GPTQ-INT4 cannot be converted to AMXINT4. The script reads FP8, FP16 and"
    ):
        wanted(placement)


def test_a_disk_too_small_is_refused_with_figures() -> None:
    one = wanted(planned())
    assert convert.shortage([one], one["bytes"] + convert.RESERVE, "/srv/llm/converted") == ""
    said = convert.shortage([one], 200 * 10**9, "/srv/llm/converted")
    assert said.startswith(
        f"/srv/llm/converted: converting r1 to AMXINT4 takes {one['bytes'] / 1e9:.0f} GB, and 200 GB"
    )
    assert convert.shortage([], 0, "/srv/llm/converted") == ""


# --- the module, on a recorded machine


class Host:
    """A recorded machine with a model, an installed program and a folder of conversions."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.root = folder / "root"
        machines.write_root(machines.record(GOLD, ["rtx-4090-24g"]), self.root)
        self.tree, self.converted = folder / "tree", folder / "converted"
        program = self.tree / "lib/python3.11/site-packages/sglang/srt/server_args.py"
        program.parent.mkdir(parents=True)
        program.write_text(PROGRAM)
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "manifest.json").write_text("{}")
        self.placement = {**planned(), "model_path": f"{self.model}/", "converted": 1000}
        self.more: dict[str, Any] = {}

    def ask(self, **change: Any) -> dict[str, Any]:
        given = {
            "placements": [{**self.placement, **change}],
            "address": "127.0.0.1",
            "release": "0.7.2",
            "tree": str(self.tree),
            "etc_dir": "/etc/x",
            "converted_dir": str(self.converted),
            "root": str(self.root),
            **self.more,
        }
        with patch_module_args(given), pytest.raises(SystemExit):
            ktransformers_info.main()
        found: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return found


@pytest.fixture
def host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Host:
    return Host(tmp_path, capsys)


def test_a_conversion_counts_when_its_marker_is_there(host: Host) -> None:
    first = host.ask()
    (one,) = first["missing"]
    assert one["arguments"][5] == f"{one['path']}.partial"
    assert first["starts"]["r1"]["flags"]["kt-weight-path"] == one["path"]
    Path(f"{one['path']}.partial").mkdir(parents=True)
    assert host.ask()["missing"], "a run that was killed left a part"
    os.rename(f"{one['path']}.partial", one["path"])
    assert host.ask()["missing"], "no marker"
    Path(one["path"], look.MARKER).touch()
    again = host.ask()
    assert (again["missing"], again["unused"]) == ([], [])


def test_more_pools_make_a_new_conversion_and_the_old_one_superfluous(host: Host) -> None:
    (one,) = host.ask()["missing"]
    Path(one["path"]).mkdir(parents=True)
    Path(one["path"], look.MARKER).touch()
    more = {**host.placement["flags"], "kt-threadpool-count": 1, "kt-numa-nodes": "0", "kt-cpuinfer": 32}
    found = host.ask(flags=more)
    assert found["missing"][0]["pools"] == 1 and found["unused"] == [one["path"]]
    (host.model / "manifest.json").write_text('{"other": "files"}')
    assert host.ask()["missing"], "the files changed under the same name"


def test_before_its_pointer_moves_the_new_files_are_what_counts(host: Host, tmp_path: Path) -> None:
    """Which files they are and what they need; the service reads them through the pointer all the same."""
    (before,) = host.ask()["missing"]
    new = tmp_path / "new"
    new.mkdir()
    (new / "manifest.json").write_text('{"new": "revision"}')
    (new / "config.json").write_text('{"model_type": "qwen3_moe"}')
    (new / "chat_template.jinja").write_text(SWITCHED)
    host.more = {"targets": {"r1": str(new)}}
    found = host.ask()
    (after,) = found["missing"]
    assert after["path"] != before["path"] and after["arguments"][1] == str(new)
    assert found["starts"]["r1"]["found"] == {"reasoning-parser": "qwen3"}
    assert found["starts"]["r1"]["flags"]["model"] == str(host.model)


def test_weights_that_one_may_go_back_to_are_in_use(host: Host, tmp_path: Path) -> None:
    (old,) = host.ask()["missing"]
    Path(old["path"]).mkdir(parents=True)
    (host.model / "manifest.json").write_text('{"other": "files"}')
    assert host.ask()["unused"] == [old["path"]]
    records = tmp_path / "records"
    host.more = {"records": str(records)}
    assert host.ask()["unused"] == [], "no record names yet what serves"
    record.write(str(records), record.Record("ktransformers"))
    assert host.ask()["unused"] == [old["path"]]
    env = record.File("/etc/r1.env", f"OPTIONS=--kt-weight-path {old['path']} --port 1")
    record.write(str(records), record.Record("ktransformers", previous=record.Configuration("1", {}, (env,))))
    assert host.ask()["unused"] == []


def test_the_host_is_held_against_the_plan(host: Host) -> None:
    wrong = {**host.placement["flags"], "kt-numa-nodes": "0 2", "kt-metod": "FP8"}
    found = host.ask(flags=wrong)
    assert found["failed"] and found["msg"].startswith(
        "No service was changed.\n- r1: --kt-numa-nodes 0 2: there is no node 2"
    )
    assert "the installed program has no option --kt-metod" in found["msg"]
    found = host.ask(engine="ktransformers-classic")
    assert "has no ktransformers/server/args.py, so it cannot serve r1" in found["msg"]


def test_on_a_fresh_host_only_the_machine_is_checked(host: Host, tmp_path: Path) -> None:
    host.tree = tmp_path / "not there"
    assert "failed" not in host.ask(flags={**host.placement["flags"], "kt-metod": "x"})


# --- the conversion itself

STAND_IN = """#!/bin/sh
echo begun >> {folder}/runs
test ! -e {part}/old || echo not empty >> {folder}/runs
cat {folder}/go
touch {part}/0.safetensors
"""


class Converting:
    """What the role runs for one conversion, with a stand-in for the script that waits until it is told to go on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.result = folder, folder / "converted/r1.AMXINT4-2pools-1"
        self.started: list[subprocess.Popen[bytes]] = []
        self.part = self.result.with_name(f"{self.result.name}.partial")
        python = folder / "tree/bin/python"
        for one in (python.parent, self.part):
            one.mkdir(parents=True)
        python.write_text(STAND_IN.format(folder=folder, part=self.part))
        python.chmod(0o755)
        os.mkfifo(folder / "go")
        tasks = yaml.safe_load((PROJECT / "roles/ktransformers/tasks/convert_one.yml").read_text())
        task = next(one for one in tasks if "async" in one)
        values = {
            "__ktransformers_one": {"path": str(self.result), "arguments": ["--output", str(self.part)]},
            "__ktransformers_tree": str(folder / "tree"),
            "__ktransformers_script": "script.py",
            **task["vars"],
        }
        environment = NativeEnvironment()
        environment.filters.update(dirname=os.path.dirname, to_nice_json=json.dumps)
        self.argv = environment.from_string(task["ansible.builtin.command"]["argv"].strip()).render(values)

    def start(self) -> subprocess.Popen[bytes]:
        self.started.append(subprocess.Popen(self.argv, start_new_session=True, stderr=subprocess.PIPE))
        return self.started[-1]

    def runs(self) -> list[str]:
        file = self.folder / "runs"
        return file.read_text().splitlines() if file.exists() else []

    def go_on(self) -> None:
        (self.folder / "go").write_text("")

    def waits(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it waits for the lock; the kernel lists who does."""
        found = re.findall(r"-> FLOCK +\S+ +\S+ +(\d+)", Path("/proc/locks").read_text())
        return str(process.pid) in found


def until(said: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not said():
        assert time.monotonic() < limit
        time.sleep(0.01)


@pytest.fixture
def converting(tmp_path: Path) -> Iterator[Converting]:
    one = Converting(tmp_path)
    yield one
    for process in one.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_a_conversion_that_outlived_its_run_is_waited_for(converting: Converting) -> None:
    (converting.part / "old").touch()
    first = converting.start()
    until(converting.runs)
    (converting.part / "half").touch()
    second = converting.start()
    until(lambda: converting.waits(second) or len(converting.runs()) > 1)
    assert (converting.part / "half").exists(), "the second must not empty what the first writes"
    converting.go_on()
    assert (first.wait(60), second.wait(60)) == (0, 0)
    assert converting.runs() == ["begun"], "once, and into an empty folder"
    assert json.loads((converting.result / look.MARKER).read_text())["path"] == str(converting.result)
    assert not converting.part.exists()


def test_a_conversion_that_was_killed_is_begun_anew(converting: Converting) -> None:
    first = converting.start()
    until(converting.runs)
    (converting.part / "old").touch()
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    second = converting.start()
    until(lambda: len(converting.runs()) > 1)
    converting.go_on()
    assert second.wait(60) == 0
    assert converting.runs() == ["begun", "begun"]
    assert {one.name for one in converting.result.iterdir()} == {"0.safetensors", look.MARKER}


def test_a_conversion_without_result_is_not_published(converting: Converting) -> None:
    (converting.folder / "tree/bin/python").write_text("#!/bin/sh\n")
    only = converting.start()
    assert b"The conversion wrote no *.safetensors into" in only.communicate()[1]
    assert only.returncode == 1 and not converting.result.exists()
