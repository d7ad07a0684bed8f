# SPDX-License-Identifier: GPL-3.0-or-later
"""llama.cpp with CUDA: what is refused, what is in the key, what the compiler is told. One run of Ansible for all."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).parents[2]
CUDA: dict[str, Any] = {
    "inventory_hostname": "gpu1",
    "llamacpp_api_key": "x" * 20,
    "llamacpp_cuda": True,
    "llamacpp_cuda_home": "/opt/cuda",
    "llamacpp_cuda_version": "12.4",
    "llamacpp_cuda_architectures": "86;89",
}
NO_CARD = {"hardware": {"gpus": [{"compute_capability": None}]}}
CARDS = {
    "hardware": {"gpus": [{"compute_capability": "8.9"}, {"compute_capability": "8.6"}, {"compute_capability": "8.9"}]}
}
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "good": ({}, []),
    "no toolkit known": (
        {"llamacpp_cuda_version": ""},
        ["no CUDA toolkit is known", "playbooks/drivers.yml", "Nothing was changed"],
    ),
    "a blocked toolkit": (
        {"llamacpp_cuda_version": "13.2"},
        ["llamacpp_cuda_version is 13.2", "IQ quantisations", "cuda_toolkit_versions"],
    ),
    "its patch release": ({"llamacpp_cuda_version": "13.2.1"}, ["llamacpp_cuda_version is 13.2.1", "IQ quantisations"]),
    "a prebuilt archive": ({"llamacpp_install_method": "binary"}, ["CUDA is compiled in: use source"]),
}
#: What the folder of the toolkit holds: what its nvcc prints, None without one; and what is said of it.
TOOLKITS: dict[str, tuple[str | None, list[str]]] = {
    "the named one": ("Cuda compilation tools, release 12.4, V12.4.131", []),
    "none": (None, ["which compiles for the equal hosts, has no nvcc that runs", "playbooks/drivers.yml"]),
    "a blocked one": (
        "Cuda compilation tools, release 13.2, V13.2.20",
        ["llamacpp_cuda_version is 12.4, and", "is CUDA 13.2. Nothing was compiled", "in llamacpp_cuda_home"],
    ),
    "one without a release": ("hello", ["is CUDA of an unknown release."]),
}
KEYS: dict[str, dict[str, Any]] = {
    "base": {},
    "again": {},
    "elsewhere": {"llamacpp_cuda_home": "/elsewhere"},
    "release": {"llamacpp_cuda_version": "12.8"},
    "architectures": {"llamacpp_cuda_architectures": "90"},
    "native": {"llamacpp_cuda_architectures": "native", "__llamacpp_hardware": CARDS},
    "definitions": {"llamacpp_cmake_definitions": {"GGML_RPC": "ON"}},
    "cpu": {"llamacpp_cuda": False},
    "cpu, whatever toolkit": {
        "llamacpp_cuda": False,
        "llamacpp_cuda_version": "",
        "llamacpp_cuda_architectures": "native",
    },
    "no card": {"llamacpp_cuda_architectures": "native", "__llamacpp_hardware": NO_CARD},
}


def argv_of(name: str) -> Any:
    """What a task of the role runs."""
    tasks = yaml.safe_load((PROJECT / "roles/llamacpp/tasks/compile.yml").read_text())
    return next(task for task in tasks if task["name"] == name)["onprem.llm.build_step"]["argv"]


def settled(change: dict[str, Any]) -> dict[str, Any]:
    return {**CUDA, "__llamacpp_hardware": {}, **change}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("llamacpp")
    include = {"name": "onprem.llm.llamacpp", "tasks_from": "preflight"}
    failed = "ansible_failed_result.results | selectattr('failed', 'defined') | selectattr('failed')"
    said = f"{failed} | map(attribute='msg') | join(' ')"
    tasks: list[dict[str, Any]] = []
    for name, (change, _) in REFUSED.items():
        keep = {"refusals": f"{{{{ refusals | default({{}}) | combine({{'{name}': {said} }}) }}}}"}
        tried = {"ansible.builtin.include_role": include, "vars": settled(change)}
        tasks.append({"name": f"Case {name}", "block": [tried], "rescue": [{"ansible.builtin.set_fact": keep}]})
    tasks.append({"ansible.builtin.copy": {"content": "{{ refusals | to_json }}", "dest": f"{folder}/refusals"}})
    compile_tasks = yaml.safe_load((PROJECT / "roles/llamacpp/tasks/compile.yml").read_text())
    begin = [task["name"] for task in compile_tasks].index("Install the compiler")
    toolkits: list[dict[str, Any]] = []
    for name, (says, _) in TOOLKITS.items():
        home = folder / name
        (home / "bin").mkdir(parents=True)
        if says:
            (home / "bin/nvcc").write_text(f"#!/bin/sh\necho '{says}'\n")
            (home / "bin/nvcc").chmod(0o755)
        keep = {"toolkits": f"{{{{ toolkits | default({{}}) | combine({{'{name}': ansible_failed_result.msg }}) }}}}"}
        settings = settled({"llamacpp_cuda_home": str(home)})
        toolkits.append(
            {"block": compile_tasks[:begin], "rescue": [{"ansible.builtin.set_fact": keep}], "vars": settings}
        )
    toolkits.append({"ansible.builtin.copy": {"content": "{{ toolkits | to_json }}", "dest": f"{folder}/toolkits"}})
    template = PROJECT / "roles/llamacpp/templates/llamacpp@.service.j2"
    argv = argv_of("Configure the build")
    renders = [
        {
            "ansible.builtin.copy": {"content": content, "dest": f"{folder}/{name}"},
            "vars": settled(change),
        }
        for name, change in KEYS.items()
        for name, content in (
            (name, "{{ [__llamacpp_key, __llamacpp_architectures, argv] | to_json }}"),
            (f"{name}.unit", f"{{{{ lookup('onprem.llm.template', '{template}') }}}}"),
        )
    ]
    files = [str(PROJECT / f"roles/llamacpp/{kind}/main.yml") for kind in ("defaults", "vars")]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    second = {**play, "gather_facts": True, "vars_files": files, "vars": {"argv": argv}, "tasks": renders + toolkits}
    (folder / "play.yml").write_text(yaml.safe_dump([second, play], sort_keys=False))
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", str(folder / "play.yml")]
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    for name in ("paths", "floors", "artifacts"):
        command += ["-e", f"@group_vars/all/{name}.yml"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        "refusals": json.loads((folder / "refusals").read_text()),
        "toolkits": json.loads((folder / "toolkits").read_text()),
        "units": {name: (folder / f"{name}.unit").read_text() for name in KEYS},
        **{name: json.loads((folder / name).read_text()) for name in KEYS},
    }


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_one_sentence(seen: dict[str, Any], case: str) -> None:
    said = seen["refusals"].get(case, "")
    assert bool(said) == bool(REFUSED[case][1]), said
    assert "\n" not in said
    for words in REFUSED[case][1]:
        assert words in said


@pytest.mark.parametrize("case", TOOLKITS)
def test_the_compiler_is_the_release_in_the_key(seen: dict[str, Any], case: str) -> None:
    """The release may be said by hand, and the folder be another toolkit's."""
    said = seen["toolkits"].get(case, "")
    assert bool(said) == bool(TOOLKITS[case][1]), said
    for words in TOOLKITS[case][1]:
        assert words in said, said


def test_a_service_on_a_gpu_waits_for_its_driver(seen: dict[str, Any]) -> None:
    after = {name: re.findall(r"(?m)^After=(.*)$", seen["units"][name]) for name in ("base", "cpu")}
    assert after["base"] == ["network-online.target nvidia-ready.service nvidia-persistenced.service"]
    assert after["cpu"] == ["network-online.target"]


def test_the_key_holds_what_changes_the_bits(seen: dict[str, Any]) -> None:
    keys = {name: seen[name][0] for name in KEYS}
    assert keys["again"] == keys["elsewhere"] == keys["native"] == keys["base"]
    assert keys["cpu"] == keys["cpu, whatever toolkit"]
    different = ["base", "release", "architectures", "definitions", "cpu"]
    assert len({keys[name] for name in different}) == len(different)


def test_native_is_what_the_cards_are(seen: dict[str, Any]) -> None:
    assert seen["native"][1] == "86;89"
    assert seen["no card"][1] == ""


def test_the_toolkit_is_the_one_that_was_given(seen: dict[str, Any]) -> None:
    told = seen["base"][2]
    assert "-DCMAKE_CUDA_COMPILER=/opt/cuda/bin/nvcc" in told and "-DCUDAToolkit_ROOT=/opt/cuda" in told
    assert "-DCMAKE_CUDA_ARCHITECTURES=86;89" in told and "-DGGML_CUDA=ON" in told
    assert "-DCMAKE_MODULE_LINKER_FLAGS=-Wl,--disable-new-dtags" in told and "-DCMAKE_INSTALL_RPATH=$ORIGIN" in told


def test_without_cuda_nobody_looks_for_it(seen: dict[str, Any]) -> None:
    told = seen["cpu"][2]
    assert "-DGGML_CUDA=OFF" in told
    assert not [word for word in told if "CUDA" in word and word != "-DGGML_CUDA=OFF"]


# --- the toolkit's libraries


def library(path: Path, *needs: Path, flags: str = "") -> None:
    """A shared library under its versioned name that needs others."""
    links = [word for need in needs for word in (f"-L{need.parent}", f"-l:{need.name}")]
    command = [
        "cc",
        "-shared",
        "-o",
        str(path),
        f"-Wl,-soname,{path.name}",
        "-Wl,--no-as-needed",
        "-x",
        "c",
        "/dev/null",
    ]
    extra = [f"-Wl,-rpath-link,{needs[0].parent}"] if needs else []
    subprocess.run([*command, "-x", "none", *links, *extra, *flags.split()], check=True)


def found(path: Path) -> dict[str, str]:
    """What the loader finds for each library that is needed, '' for nothing."""
    said = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    return {name: "" if where == "not" else where for name, where in re.findall(r"(\S+) => (\S+)", said)}


@pytest.mark.skipif(not shutil.which("cc"), reason="no compiler here")
@pytest.mark.parametrize("flags", ["-Wl,--disable-new-dtags", "-Wl,--enable-new-dtags"])
def test_the_libraries_of_the_toolkit_travel_with_the_programs(tmp_path: Path, flags: str) -> None:
    """As the toolkit has them: cuBLAS needs a library of its own, which the backend does not name.

    The flag is why that one is found: with the linker's default it is not.
    """
    toolkit, stage = tmp_path / "toolkit", tmp_path / "stage"
    toolkit.mkdir()
    stage.mkdir()
    runtime, blas, light, driver = (
        toolkit / name for name in ("libcudart.so.12", "libcublas.so.12", "libcublasLt.so.12", "libcuda.so.1")
    )
    for one in (runtime, light, driver):
        library(one)
    library(blas, light)
    blas.rename(toolkit / "libcublas.so.12.4.5")
    blas.symlink_to("libcublas.so.12.4.5")
    library(stage / "libggml-cuda.so", runtime, blas, driver, flags=f"{flags} -Wl,-rpath,$ORIGIN")
    subprocess.run(
        argv_of("Put the libraries of CUDA beside them"),
        cwd=stage,
        env={"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(toolkit)},
        check=True,
    )
    toolkit.rename(tmp_path / "gone")
    assert {path.name for path in stage.iterdir()} == {"libggml-cuda.so", runtime.name, blas.name, light.name}
    assert not [path for path in stage.iterdir() if path.is_symlink()]
    loaded = found(stage / "libggml-cuda.so")
    assert loaded["libcuda.so.1"] == "", "the driver's own: each host has the one that fits its driver"
    assert loaded["libcudart.so.12"] == str(stage / "libcudart.so.12")
    assert loaded["libcublasLt.so.12"] == (str(stage / "libcublasLt.so.12") if "disable" in flags else "")
