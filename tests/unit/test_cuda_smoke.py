# SPDX-License-Identifier: GPL-3.0-or-later
"""CUDA_HOME and its proof. Forged toolkits only ever show how one is refused; what works is shown by a real one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.onprem.llm.plugins.module_utils.cuda import home, smoke, versions
from ansible_collections.onprem.llm.plugins.modules import cuda_home, cuda_smoke

#: Of Debian 13's packages.
FILES = [
    "/.",
    "/usr/bin/nvcc",
    "/usr/bin/cuobjdump",
    "/usr/include",
    "/usr/include/cuda_runtime.h",
    "/usr/include/crt",
    "/usr/include/crt/host_config.h",
    "/usr/lib/x86_64-linux-gnu/libcudart.so",
    "/usr/lib/x86_64-linux-gnu/libcudart.so.12.4.127",
    "/usr/lib/x86_64-linux-gnu/libcudart_static.a",
    "/usr/lib/x86_64-linux-gnu/stubs",
    "/usr/lib/x86_64-linux-gnu/stubs/libcuda.so",
    "/usr/lib/x86_64-linux-gnu/pkgconfig",
    "/usr/lib/nvidia-cuda-toolkit/bin/nvcc",
    "/usr/share/man/man1/nvcc.1.gz",
]


# --- homes


def test_a_home_has_the_toolkits_programs_libraries_and_headers_and_nothing_else() -> None:
    made = home.of_files(FILES)
    assert made.links == {
        "bin/cuobjdump": "/usr/bin/cuobjdump",
        "bin/nvcc": "/usr/bin/nvcc",
        **{
            f"lib64/{name}": f"/usr/lib/x86_64-linux-gnu/{name}"
            for name in ("libcudart.so", "libcudart.so.12.4.127", "libcudart_static.a", "stubs")
        },
    }
    assert made.files == {"include/cuda_runtime.h": "#pragma GCC system_header\n#include_next <cuda_runtime.h>\n"}


def test_a_home_is_put_right_and_then_left_alone(tmp_path: Path) -> None:
    made, folder = home.of_files(FILES), tmp_path / "12.4"
    assert len(home.differences(folder, made)) == len(made.links) + len(made.files)
    home.write(folder, made)
    assert home.differences(folder, made) == []
    (folder / "bin/nvcc").unlink()
    (folder / "include/cuda_runtime.h").write_text("")
    (folder / "lib64/libstray.so").symlink_to("/nowhere")
    assert home.differences(folder, made) == ["bin/nvcc", "include/cuda_runtime.h", "lib64/libstray.so"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_forwarding_header_leaves_the_systems_order_alone(tmp_path: Path) -> None:
    """What a link to /usr/include breaks: C++ headers that look for those of C behind them."""
    include = tmp_path / "include"
    include.mkdir()
    (include / "stdint.h").write_text(home.HEADER.format("stdint.h"))
    (tmp_path / "usr").symlink_to("/usr/include")
    source = tmp_path / "a.cpp"
    source.write_text("#include <cstdlib>\n#include <stdint.h>\nint main() { return (int)(uint8_t)std::abs(0); }\n")

    def compiles(*options: str) -> bool:
        command = ["g++", "-Wall", "-Wextra", "-Wpedantic", "-Werror", *options, "-fsyntax-only", str(source)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    assert compiles("-I", str(include)) and compiles("-isystem", str(include))
    assert not compiles("-isystem", str(tmp_path / "usr")), "a link works here: the forwarding headers are not needed"


def ran(module: Any, arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return answer


def test_the_home_of_nvidias_layout_is_a_link(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    packages_folder = tmp_path / "cuda-12.8"
    for name in home.NEEDED:
        (packages_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (packages_folder / name).touch()
    monkeypatch.setattr(home, "native", lambda version: str(tmp_path / f"cuda-{version}"))
    task = {"path": str(tmp_path / "homes/12.8"), "version": "12.8", "package": "cuda-toolkit-12-8"}
    assert ran(cuda_home, {**task, "_ansible_check_mode": True}, capsys)["changed"]
    assert not (tmp_path / "homes").exists()
    assert ran(cuda_home, task, capsys)["changed"]
    assert (tmp_path / "homes/12.8").readlink() == packages_folder
    assert not ran(cuda_home, task, capsys)["changed"]
    (packages_folder / "lib64/libcudart.so").unlink()
    refused = ran(cuda_home, task, capsys)
    assert refused["failed"] and "it has no lib64/libcudart.so" in refused["msg"]


# --- the proof: what is refused


def toolkit(folder: Path, **programs: str) -> str:
    """A forged toolkit: shell scripts by name."""
    (folder / "bin").mkdir()
    for name, text in programs.items():
        (folder / "bin" / name).write_text("#!/bin/sh\n" + text)
        (folder / "bin" / name).chmod(0o755)
    return str(folder)


TELLS = """case "$1" in
--version) echo "Cuda compilation tools, release 12.8, V12.8.93"; exit ;;
--list-*) echo "sm_80 sm_89"; exit ;;
esac
"""
#: Writes what it is asked to write: a program that claims a GPU and its numbers.
WRITES = TELLS + 'while [ "$1" != -o ]; do shift; done; printf "#!/bin/sh\\necho devices=1\\n" >"$2"; chmod +x "$2"\n'


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ({}, "its nvcc says it is none"),
        ({"nvcc": "echo release 12.4, V12.4.131"}, "should hold CUDA 12.8, and its nvcc says it is 12.4"),
        (
            {"nvcc": TELLS + "echo 'x.cu(3): error: no such thing' >&2; exit 2"},
            "nvcc ended with 2: x.cu(3): error: no such",
        ),
        ({"nvcc": TELLS + "exit 1"}, "nvcc ended with 1: nvcc said nothing"),
        ({"nvcc": TELLS}, "nvcc ended with 0 and wrote no program"),
        ({"nvcc": WRITES}, "no code for sm_89 (cuobjdump -lelf finds none)"),
        (
            {"nvcc": WRITES, "cuobjdump": "echo 'ELF file    1: smoke.1.sm_80.cubin'"},
            "no code for sm_89 (cuobjdump -lelf finds sm_80)",
        ),
        # Even where every tool lies: the program must answer right.
        ({"nvcc": WRITES, "cuobjdump": "echo 'ELF file    1: smoke.1.sm_89.cubin'"}, "printed no number"),
    ],
)
def test_a_toolkit_that_only_says_so_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], programs: dict[str, str], said: str
) -> None:
    task = {
        "home": toolkit(tmp_path, **programs),
        "version": "12.8",
        "architectures": ["8.9"],
        "gpus": 0,
        "driver": "none",
    }
    answer = ran(cuda_smoke, task, capsys)
    assert answer.get("failed") and said in answer["msg"], answer


def test_an_architecture_that_nvcc_does_not_list_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"home": toolkit(tmp_path, nvcc=TELLS), "version": "12.8", "gpus": 0, "driver": "none"}
    answer = ran(cuda_smoke, {**task, "architectures": ["8.9", "12.0"]}, capsys)
    assert "does not compile for 12.0: its nvcc lists 8.0 to 8.9" in answer["msg"]


NONE = "devices=0 error=100 no CUDA-capable device is detected\n"
RIGHT = f"sum={smoke.expected()} error=0 no error\n"


@pytest.mark.parametrize(
    ("output", "gpus", "driver", "report", "refusal"),
    [
        (NONE, 0, "none", "compiled, not run: no GPU (cudaGetDeviceCount 100: no CUDA-capable", ""),
        ("devices=0 error=35 insufficient\n", 0, "none", "compiled, not run: no GPU", ""),
        (NONE, 1, "not_loaded", "compiled, not run: the driver is not ready (nvidia-smi: not_loaded", ""),
        (NONE, 1, "ok", "", "does not reach the GPU that nvidia-smi shows"),
        ("devices=0 error=999 unknown error\n", 0, "none", "", "answers cudaGetDeviceCount 999"),
        ("", 0, "none", "", "printed no number: nothing"),
        (
            f"devices=1 error=0 no error\ndevice=0 capability=8.9 {RIGHT}",
            1,
            "ok",
            "run on 1 GPU, the numbers are right",
            "",
        ),
        ("devices=1 error=0 no error\ndevice=0 capability=8.9 sum=7 error=0 no error\n", 1, "ok", "", "sum=7 error=0"),
        ("devices=1 error=0 no error\n", 1, "ok", "", "GPU 0 computes something else: nothing"),
        (
            f"devices=2 error=0 no error\ndevice=0 capability=8.9 {RIGHT}device=1 capability=8.9 sum=0 error=700 "
            "illegal\n",
            2,
            "ok",
            "",
            "GPU 1 computes something else: sum=0 error=700 illegal",
        ),
        # What a card answers whose memory a model has filled, and one that is in exclusive mode.
        (
            "devices=1 error=0 no error\ndevice=0 capability=8.9 sum=0 error=2 out of memory\n",
            1,
            "ok",
            "compiled, not run: GPU 0 is in use (CUDA 2 out of memory)",
            "",
        ),
        # The numbers are those of the GPU before it.
        (
            f"devices=2 error=0 no error\ndevice=0 capability=8.9 {RIGHT}"
            f"device=1 capability=8.9 sum={smoke.expected()} error=46 busy or unavailable\n",
            2,
            "ok",
            "run on 1 GPU, the numbers are right; not run: GPU 1 is in use (CUDA 46 busy or unavailable)",
            "",
        ),
        (
            f"devices=2 error=0 no error\ndevice=0 capability=7.5 {RIGHT}device=1 capability=8.9 sum=0 error=2 full\n",
            2,
            "ok",
            "run: GPU 1 is in use (CUDA 2 full); GPU 0 has compute capability 7.5, and it was compiled for 8.0, 8.9",
            "",
        ),
        (
            "devices=2 error=0 no error\ndevice=0 capability=8.9 sum=0 error=2 full\n"
            "device=1 capability=8.9 sum=7 error=0 no error\n",
            2,
            "ok",
            "",
            "GPU 1 computes something else: sum=7",
        ),
        (
            "devices=1 error=0 no error\ndevice=0 capability=8.9 sum=0 error=214 uncorrectable ECC error\n",
            1,
            "ok",
            "",
            "GPU 0 computes something else: sum=0 error=214",
        ),
        (
            "devices=1 error=0 no error\ndevice=0 capability=7.5 sum=0 error=209 no\n",
            1,
            "ok",
            "GPU 0 has compute capability 7.5",
            "",
        ),
    ],
)
def test_verdict(output: str, gpus: int, driver: str, report: str, refusal: str) -> None:
    said, why = smoke.verdict(output, ["8.0", "8.9"], gpus, driver)
    assert report in said and refusal in why
    assert bool(said) != bool(why)


def test_the_callers_toolkit_takes_no_part() -> None:
    env = smoke.environment("/opt/home")
    assert env["PATH"].split(":") == ["/opt/home/bin", "/usr/bin", "/bin"]
    assert set(env) == {"PATH", "CUDA_HOME", "LD_LIBRARY_PATH", "LC_ALL"}


# --- the proof: what works, where this machine has a toolkit


def own_toolkit() -> str:
    """A CUDA_HOME of this machine, empty without one."""
    folders = [Path(found).resolve().parents[1] for found in [shutil.which("nvcc")] if found]
    folders += sorted(Path("/usr/local").glob("cuda*"))
    return next((str(folder) for folder in folders if not home.missing(folder)), "")


@pytest.fixture
def real() -> Callable[[list[str]], list[str]]:
    folder = own_toolkit()
    if not folder:
        pytest.skip("this machine has no CUDA toolkit")

    def listed(words: list[str]) -> list[str]:
        done = subprocess.run([f"{folder}/bin/nvcc", *words], capture_output=True, text=True, check=True)
        return [folder, done.stdout]

    return listed


def test_the_program_compiles_with_a_real_toolkit(real: Callable[[list[str]], list[str]], tmp_path: Path) -> None:
    """It is CUDA, with what any release has; whether it computes right only a GPU tells."""
    folder, said = real(["--list-gpu-code"])
    capability = versions.compilers(said)[0]
    source, program = tmp_path / "smoke.cu", tmp_path / "smoke"
    source.write_text(smoke.PROGRAM)
    env = {**smoke.environment(folder), "TMPDIR": str(tmp_path)}
    command = smoke.command(folder, [capability], str(source), str(program))
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert smoke.compile_refusal(folder, done.returncode, done.stdout + done.stderr, program.is_file()) == ""
    answer = subprocess.run([program], env=env, capture_output=True, text=True, check=False).stdout
    gpus = len([path for path in os.listdir("/dev") if path.startswith("nvidia") and path[6:].isdigit()])
    said, why = smoke.verdict(answer, [capability], gpus, "ok" if gpus else "none")
    assert said and not why, answer
