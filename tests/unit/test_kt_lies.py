# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds that claim to be what they are not. Each is made for real, refused in one line, and nothing is published.

The extensions are tiny, compiled here with gcc; they are what upstream's build scripts leave when something went wrong.
Forged programs (nvcc, cuobjdump) only ever lead to refusals.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

sys.path.insert(0, str(Path(__file__).parents[1]))

import machines

from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import elf, verify
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers.build import Build
from ansible_collections.onprem.llm.plugins.modules import artifact_file, ktransformers_build_info, ktransformers_native

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the builds are for x86-64")

PYTHON = "{}.{}".format(*sys.version_info[:2])
TAG = "cp" + PYTHON.replace(".", "")
WANTED = Build(
    method="classic",
    version="0.2.3post2",
    sources=("0" * 64,),
    lock="0" * 64,
    system="debian 12",
    python=PYTHON,
    isa="FANCY",
    amx=False,
    numa=True,
    cuda="12.4",
    architectures=("8.9",),
)
WHEEL = f"ktransformers-0.2.3.post2+cu124torch26fancy-{TAG}-{TAG}-linux_x86_64.whl"
NUMA = "numa_alloc_onnode numa_bind"
#: A Python module without Python's headers: its definition is laid out by hand.
MODULE = """
extern void *PyModule_Create2(void *, int);
struct definition { long head[5]; const char *name, *doc; long size; void *rest[5]; };
static struct definition defined = { {1}, "NAME", "", -1 };
CALLED
void *PyInit_NAME(void) { BODY return PyModule_Create2(&defined, 1013); }
"""


def gcc(folder: Path, text: str, output: Path, *options: str) -> Path:
    code = folder / f"{output.name}.c"
    code.write_text(text)
    assert shutil.which("gcc"), "gcc is missing: apt-get install build-essential"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(output), str(code), *options], check=True)
    return output


class Workshop:
    """Makes extensions, wheels and the folder in which a build is finished."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.stage = folder, folder / "stage"
        self.stage.mkdir()

    def library(self, soname: str, functions: str) -> Path:
        text = "\n".join(f"int {name}(void) {{ return 0; }}" for name in functions.split())
        return gcc(self.folder, text, self.folder / soname, f"-Wl,-soname,{soname}")

    def extension(
        self, name: str, *, calls: str = "", needs: tuple[Path, ...] = (), body: str = "", suffix: str = ""
    ) -> Path:
        """``calls``: functions of others that it refers to. ``needs``: libraries it is linked with, used or not."""
        called = "\n".join(f"extern int {one}(void); int (*keep_{one})(void) = {one};" for one in calls.split())
        text = MODULE.replace("NAME", name).replace("CALLED", called).replace("BODY", body)
        output = self.folder / f"{name}{suffix or f'.cpython-{TAG[2:]}-x86_64-linux-gnu.so'}"
        options = ["-Wl,--no-as-needed", *map(str, needs), f"-Wl,-rpath,{self.folder}"]
        return gcc(self.folder, text, output, *options)

    def cpu(self, **changes: Any) -> Path:
        """The CPU kernels as they should be."""
        libraries = (self.library("libnuma.so.1", NUMA), self.library("libcudart.so.12", "cudaLaunch"))
        return self.extension(**{"name": "cpuinfer_ext", "calls": NUMA, "needs": libraries, **changes})

    def gpu(self, **changes: Any) -> Path:
        return self.extension(
            **{"name": "KTransformersOps", "needs": (self.library("libcudart.so.12", "cudaLaunch"),), **changes}
        )

    def wheel(self, *extensions: Path, name: str = WHEEL) -> Path:
        path = self.stage / name
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("ktransformers/__init__.py", "")
            for one in extensions:
                archive.write(one, one.name)
        return path

    def good(self) -> Path:
        return self.wheel(self.cpu(), self.gpu())

    def recorded(self) -> Path:
        path = self.good()
        assert ask(ktransformers_native, **self.look(record=True))["changed"]
        return path

    def look(self, wanted: Build = WANTED, **more: Any) -> dict[str, Any]:
        """Arguments of the module for this folder."""
        return {"build": verify.plain(wanted), "folder": str(self.stage), "python": sys.executable, **more}

    def program(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def ask(module: Any, check_mode: bool = False, **arguments: Any) -> dict[str, Any]:
    """What a module answers, in this process."""
    said: list[dict[str, Any]] = []

    class Ended(Exception):
        pass

    def end(self: Any, **result: Any) -> None:
        said.append(result)
        raise Ended

    with pytest.MonkeyPatch.context() as patch, patch_module_args({**arguments, "_ansible_check_mode": check_mode}):
        patch.setattr("ansible.module_utils.basic.AnsibleModule.exit_json", end)
        patch.setattr(
            "ansible.module_utils.basic.AnsibleModule.fail_json", lambda self, **r: end(self, failed=True, **r)
        )
        with pytest.raises(Ended):
            module.main()
    return said[0]


def refused(answer: dict[str, Any], *words: str) -> None:
    assert answer.get("failed"), answer
    text = answer["msg"]
    assert "\n" not in text, f"one line: {text}"
    missing = [word for word in words if word not in text]
    assert not missing, f"no {missing} in: {text}"


# --- the truth


def test_a_build_that_is_what_was_asked_for_is_recorded_once(shop: Workshop) -> None:
    shop.good()
    record = shop.stage / verify.RECORD
    assert ask(ktransformers_native, check_mode=True, **shop.look(record=True))["changed"]
    assert not record.exists(), "check mode writes nothing"
    answer = ask(ktransformers_native, **shop.look(record=True))
    assert answer["changed"] and answer["wheel"] == WHEEL
    assert answer["extensions"]["cpuinfer_ext"]["numa"] == ["numa_alloc_onnode", "numa_bind"]
    assert not ask(ktransformers_native, **shop.look(record=True))["changed"]
    # A host that received it has no torch yet, and loads nothing.
    assert ask(ktransformers_native, **shop.look(python=""))["sha256"] == answer["sha256"]


def test_nothing_to_look_at_is_no_failure_in_check_mode(tmp_path: Path) -> None:
    arguments = {"build": verify.plain(WANTED), "folder": str(tmp_path / "absent")}
    assert ask(ktransformers_native, check_mode=True, **arguments) == {"changed": False}
    refused(ask(ktransformers_native, **arguments), "absent", "cannot be read")


def test_an_extension_is_read_as_binutils_reads_it(shop: Workshop) -> None:
    made = shop.cpu()
    about = elf.parse(made.read_bytes())
    listed = subprocess.run(["readelf", "-dW", str(made)], capture_output=True, text=True, check=True).stdout
    assert list(about.needed) == re.findall(r"Shared library: \[(.*?)\]", listed)
    nm = ["nm", "-D", "-u", "--without-symbol-versions", str(made)]
    listed = subprocess.run(nm, capture_output=True, text=True, check=True).stdout
    assert about.undefined == {line.split()[-1] for line in listed.splitlines()}
    assert about.machine == "x86_64"


# --- lies of what was just compiled: refused before it is recorded

LIES: dict[str, tuple[Callable[[Workshop], Any], Build, tuple[str, ...]]] = {}


def lie(name: str, *words: str, wanted: Build = WANTED) -> Callable[[Callable[[Workshop], Any]], None]:
    def keep(make: Callable[[Workshop], Any]) -> None:
        LIES[name] = (make, wanted, words)

    return keep


@lie("use-numa-ignored", "cpuinfer_ext", "not linked with libnuma", "Install libnuma-dev")
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(calls="", needs=(shop.library("libcudart.so.12", "cudaLaunch"),)), shop.gpu())


@lie("numa-linked-and-not-used", "libnuma.so.1", "uses no symbol", "NUMA is off")
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(calls=""), shop.gpu())


@lie(
    "use-numa-0-and-linked",
    "libnuma.so.1",
    "NUMA is not wanted",
    "0 and an empty value",
    wanted=replace(WANTED, numa=False),
)
def _(shop: Workshop) -> None:
    shop.good()


@lie(
    "amx-flag-forged",
    "cpuinfer_ext",
    "SIGILL",
    "more than this CPU has",
    "FANCY, AMX",
    wanted=replace(WANTED, amx=True),
)
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(body='__asm__("ud2");'), shop.gpu())


@lie("dies-otherwise", "SIGSEGV", "method wheel")
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(body="*(volatile int *)0 = 1;"), shop.gpu())


@lie("wrong-cuda-major", "libcudart.so.11", "12.4", "ktransformers_cuda_home")
def _(shop: Workshop) -> None:
    libraries = (shop.library("libnuma.so.1", NUMA), shop.library("libcudart.so.11.0", "cudaLaunch"))
    shop.wheel(shop.cpu(needs=libraries), shop.gpu())


@lie("no-cuda-in-it", "does not ask for libcudart.so.12", "CUDA_HOME")
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(needs=(shop.library("libnuma.so.1", NUMA),)), shop.gpu())


@lie("torch-abi", "KTransformersOps", "undefined symbol", "_ZN3c106detail23torchInternalAssertFailEPKcS2_jS2_RKSs")
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(), shop.gpu(calls="_ZN3c106detail23torchInternalAssertFailEPKcS2_jS2_RKSs"))


@lie("missing-library", "libgone.so.9", "does not have")
def _(shop: Workshop) -> None:
    gone = shop.library("libgone.so.9", "gone")
    made = shop.cpu(calls=f"{NUMA} gone", needs=(gone, shop.folder / "libnuma.so.1", shop.folder / "libcudart.so.12"))
    gone.unlink()
    shop.wheel(made, shop.gpu())


@lie("no-wheel", "left 0 wheels", "without an error")
def _(shop: Workshop) -> None:
    pass


@lie("no-extension", WHEEL, "no extension cpuinfer_ext", "without its result")
def _(shop: Workshop) -> None:
    shop.wheel(shop.gpu())


@lie("extension-of-another-python", "cpython-39", "another Python", PYTHON)
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(suffix=".cpython-39-x86_64-linux-gnu.so"), shop.gpu())


@lie("wheel-of-another-python", "cp39", TAG, "ktransformers_python")
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(), shop.gpu(), name=WHEEL.replace(TAG, "cp39"))


@lie("wheel-with-other-flags", "cu118torch26avx2", "cu124", "fancy")
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(), shop.gpu(), name=WHEEL.replace("cu124torch26fancy", "cu118torch26avx2"))


@lie("another-package", "no wheel of ktransformers")
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(), shop.gpu(), name=f"kt_kernel-0.7.2-{TAG}-{TAG}-linux_x86_64.whl")


@lie("another-version", "version 0.7.0", "0.7.2", wanted=replace(WANTED, method="source", version="0.7.2"))
def _(shop: Workshop) -> None:
    shop.wheel(shop.cpu(), name=f"kt_kernel-0.7.0-{TAG}-{TAG}-linux_x86_64.whl")


@lie("another-architecture", "cpuinfer_ext", "aarch64", "x86_64")
def _(shop: Workshop) -> None:
    made = shop.cpu()
    data = bytearray(made.read_bytes())
    data[18] = 183
    made.write_bytes(data)
    shop.wheel(made, shop.gpu())


@lie("truncated-wheel", WHEEL, "cut short or damaged")
def _(shop: Workshop) -> None:
    path = shop.good()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@lie("truncated-extension", "cpuinfer_ext", "cut short or damaged")
def _(shop: Workshop) -> None:
    made = shop.cpu()
    made.write_bytes(made.read_bytes()[:6000])
    shop.wheel(made, shop.gpu())


@lie("no-elf-at-all", "cpuinfer_ext", "no ELF file")
def _(shop: Workshop) -> None:
    made = shop.cpu()
    made.write_bytes(b"<html>404</html>")
    shop.wheel(made, shop.gpu())


@pytest.mark.parametrize("name", LIES)
def test_what_was_compiled_is_refused_and_not_recorded(name: str, shop: Workshop) -> None:
    make, wanted, words = LIES[name]
    make(shop)
    refused(ask(ktransformers_native, **shop.look(wanted, record=True)), *words)
    assert not (shop.stage / verify.RECORD).exists(), "published"


def test_gpu_code_for_another_card_is_refused(shop: Workshop) -> None:
    shop.good()
    shop.program("cuda/bin/cuobjdump", "#!/bin/sh\necho 'ELF file    1: KTransformersOps.1.sm_80.cubin'\n")
    answer = ask(ktransformers_native, **shop.look(record=True, cuda_home=str(shop.folder / "cuda")))
    refused(answer, "GPU code for 80", "sm_89", "ktransformers_cuda_architectures")
    assert not (shop.stage / verify.RECORD).exists()


def test_no_gpu_code_at_all_is_refused(shop: Workshop) -> None:
    shop.good()
    shop.program("cuda/bin/cuobjdump", "#!/bin/sh\necho 'does not contain device code' >&2; exit 255\n")
    answer = ask(ktransformers_native, **shop.look(record=True, cuda_home=str(shop.folder / "cuda")))
    refused(answer, "KTransformersOps", "nothing", "sm_89", "does not contain device code")


def test_the_wrong_python_loads_nothing(shop: Workshop) -> None:
    shop.good()
    other = shop.program("python3.9", "#!/bin/sh\necho 3.9\n")
    refused(
        ask(ktransformers_native, **shop.look(record=True, python=str(other))), "3.9", PYTHON, "ktransformers_python"
    )


# --- lies of what lies there since an earlier run


def stale(shop: Workshop, field: str, value: Any) -> None:
    path = shop.stage / verify.RECORD
    said = json.loads(path.read_text())
    said["build"][field] = value
    path.write_text(json.dumps(said))


LATER: dict[str, tuple[Callable[[Workshop, Path], Any], tuple[str, ...]]] = {
    "stale-record-of-other-flags": (lambda shop, _: stale(shop, "isa", "AVX2"), ("isa", "'AVX2'", "'FANCY'", "Remove")),
    "stale-record-without-numa": (lambda shop, _: stale(shop, "numa", False), ("numa", "False", "True")),
    "record-and-no-wheel": (lambda _, wheel: wheel.unlink(), (WHEEL, "is not", "Remove")),
    "tampered-record": (
        lambda shop, _: (shop.stage / verify.RECORD).write_text("{}"),
        ("cannot be read as the record",),
    ),
    "no-record": (lambda shop, _: (shop.stage / verify.RECORD).unlink(), ("cannot be read as the record",)),
    "wheel-changed-since": (lambda _, wheel: wheel.write_bytes(wheel.read_bytes() + b"x"), ("sha256", "recorded")),
}


@pytest.mark.parametrize("name", LATER)
def test_what_was_recorded_is_not_believed(name: str, shop: Workshop) -> None:
    harm, words = LATER[name]
    harm(shop, shop.recorded())
    refused(ask(ktransformers_native, **shop.look()), *words)


# --- lies of sources and tools, before anything is compiled


def test_a_truncated_or_wrong_archive_never_lands(tmp_path: Path) -> None:
    archive = tmp_path / "source.tar.gz"
    archive.write_bytes(b"\x1f\x8b" + bytes(500))
    place = {"url": f"file:{archive}", "dest": str(tmp_path / "there/source.tar.gz")}
    answer = ask(artifact_file, **place, sha256="0" * 64)
    assert answer.get("failed") and "0" * 12 in answer["msg"]
    answer = ask(artifact_file, **place, sha256="0" * 64, size=501)
    assert answer.get("failed")
    assert not Path(place["dest"]).exists()


def sources(folder: Path, build: Build, leave_out: str = "") -> dict[str, Any]:
    for name in verify.WHOLE[build.method]:
        path = folder / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != leave_out:
            path.write_text('__version__ = "0.7.2"\n')
    return {"build": verify.plain(build), "source": str(folder / "source")}


KERNELS = replace(WANTED, method="source", version="0.7.2", numa=False, cuda="", architectures=())


def test_a_whole_source_is_taken(tmp_path: Path) -> None:
    assert ask(ktransformers_native, **sources(tmp_path, KERNELS)) == {"changed": False}


@pytest.mark.parametrize("name", verify.SUBMODULES)
def test_a_source_without_a_submodule_is_refused(name: str, tmp_path: Path) -> None:
    refused(ask(ktransformers_native, **sources(tmp_path, KERNELS, name)), name, "ktransformers_archive.submodules")


def test_the_source_of_another_version_is_refused(tmp_path: Path) -> None:
    other = replace(KERNELS, version="0.7.0")
    refused(ask(ktransformers_native, **sources(tmp_path, other)), "0.7.2", "0.7.0", "ktransformers_archive")


def test_numa_without_libnuma_dev_is_refused_before_it_is_compiled(tmp_path: Path) -> None:
    sources(tmp_path, WANTED)
    (tmp_path / "usr/include").mkdir(parents=True)
    with pytest.raises(verify.VerifyError, match=r"has no numa\.h: the build would go on without NUMA"):
        verify.source(tmp_path / "source", WANTED, root=tmp_path)
    (tmp_path / "usr/include/numa.h").touch()
    with pytest.raises(verify.VerifyError, match=r"has numa\.h alone"):
        verify.source(tmp_path / "source", WANTED, root=tmp_path)
    (tmp_path / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    (tmp_path / "usr/lib/x86_64-linux-gnu/libnuma.so").touch()
    verify.source(tmp_path / "source", WANTED, root=tmp_path)


GPU_KERNELS = replace(KERNELS, cuda="12.4", architectures=("8.9",))


def toolkit(shop: Workshop, says: str) -> dict[str, Any]:
    """Arguments of the module on a machine with a whole source, and a toolkit whose nvcc says this."""
    shop.program("cuda/bin/nvcc", f"#!/bin/sh\necho '{says}'\n")
    for name in verify.TOOLKIT[1:]:
        shop.program(f"cuda/{name}", "")
    return {**sources(shop.folder, GPU_KERNELS), "cuda_home": str(shop.folder / "cuda")}


def test_the_toolkit_that_was_asked_for_is_taken(shop: Workshop) -> None:
    assert ask(ktransformers_native, **toolkit(shop, "release 12.4, V12.4.131")) == {"changed": False}


def test_a_toolkit_of_another_release_is_refused(shop: Workshop) -> None:
    answer = ask(ktransformers_native, **toolkit(shop, "release 12.8, V12.8.93"))
    refused(answer, "12.8", "ktransformers_cuda_version is 12.4")


def test_the_host_that_compiles_must_have_a_toolkit(tmp_path: Path) -> None:
    refused(ask(ktransformers_native, **sources(tmp_path, GPU_KERNELS)), "12.4", "bin/nvcc", "cuda_toolkit", "builder")


def test_a_toolkit_in_debians_layout_is_refused(shop: Workshop) -> None:
    given = toolkit(shop, "release 12.4, V12.4.131")
    (shop.folder / "cuda/lib64/libcudart.so").unlink()
    refused(ask(ktransformers_native, **given), "lib64/libcudart.so", "cuda_toolkit")


def test_an_nvcc_that_says_nothing_is_refused(shop: Workshop) -> None:
    refused(ask(ktransformers_native, **toolkit(shop, "")), "does not tell its version")


def test_hosts_decide_without_a_toolkit() -> None:
    given: dict[str, Any] = {"method": "classic", "version": "0.2.3post2", "sources": ["0" * 64], "lock": "0" * 64}
    given |= {"hardware": machines.hardware("spr-2s-xeon-gold-6430"), "architectures": "8.9", "python": "3.11"}
    answer = ask(ktransformers_build_info, **given, cuda="12.4")
    assert json.loads(json.dumps(answer["build"])) == {**verify.plain(WANTED), "python": "3.11"}
    assert answer["environment"]["USE_NUMA"] == "1" and "libnuma-dev" in answer["packages"]
    refused(
        ask(ktransformers_build_info, **given, cuda="13.2", blocked={"13.2": "gibberish"}), "13.2: gibberish", "12.4"
    )


# --- lies of what is installed


def test_an_installed_build_must_answer(shop: Workshop) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(shop.folder / "tree")], check=True)
    packages = shop.folder / f"tree/lib/python{PYTHON}/site-packages"
    look = {"build": verify.plain(WANTED), "tree": str(shop.folder / "tree")}
    refused(ask(ktransformers_native, **look), "no extension cpuinfer_ext")
    for made in (shop.cpu(), shop.gpu()):
        shutil.copy(made, packages)
    assert not ask(ktransformers_native, **look).get("failed")
    for text, words in (
        ("print('answers')", ()),
        ("print('wrong')", ("forward.py", "does not run", "wrong")),
        ("import os; os.kill(os.getpid(), 4)", ("SIGILL",)),
        ("import cpuinfer_ext; cpuinfer_ext.CPUInfer", ("does not run", "CPUInfer")),
    ):
        program = shop.program("forward.py", text + "\n")
        answer = ask(ktransformers_native, **look, program=str(program))
        refused(answer, *words) if words else None
        assert bool(answer.get("failed")) == bool(words)
