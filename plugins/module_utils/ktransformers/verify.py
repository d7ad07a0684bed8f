# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what was compiled is what was asked for: by its files, libraries, symbols, GPU code and a run.

A build log is never looked at. Every refusal is one line: object, value, what it should be, way out.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.cuda import versions
from ansible_collections.onprem.llm.plugins.module_utils.hardware.tree import Run
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers import elf
from ansible_collections.onprem.llm.plugins.module_utils.ktransformers.build import (
    EXTENSIONS,
    PACKAGE,
    Build,
    key,
)

#: Written last into the folder of a finished build.
RECORD = "build.json"
#: Debian packages of libraries a build may ask for.
PACKAGES = {"libnuma": "libnuma1", "libhwloc": "libhwloc15", "libgomp": "libgomp1", "libstdc++": "libstdc++6"}
#: What torch brings along in its own folder, which a wheel that is not installed cannot see.
TORCH = re.compile(r"lib(torch|c10|cudart|cublas|cusparse|cusolver|cufft|curand|nv|caffe2)")
REBUILD = "Nothing was published; run again to build anew"
#: What a CUDA_HOME must hold to compile with.
TOOLKIT = ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so")
#: Files without which a source tree is not whole, by what brings them.
SUBMODULES = ("third_party/llama.cpp/CMakeLists.txt", "third_party/pybind11/CMakeLists.txt")
WHOLE = {
    "source": ("version.py", "kt-kernel/CMakeLists.txt", "third_party/llamafile", *SUBMODULES),
    "classic": ("setup.py", "third_party/llamafile", *SUBMODULES),
}
#: Loads one extension as Python does, torch first as the program does where there is one, and says so.
LOAD = """
import importlib.util, sys
name, path = sys.argv[1:3]
try:
    import torch
except ModuleNotFoundError:
    pass
spec = importlib.util.spec_from_file_location(name, path)
spec.loader.exec_module(importlib.util.module_from_spec(spec))
print("loaded")
"""


class VerifyError(Exception):
    """It is not what it should be. One line."""


def source(folder: Path, build: Build, root: Path = Path("/")) -> None:
    """A source tree before it is compiled. GitHub's archives leave the submodules' folders empty.

    Where NUMA is wanted, libnuma's header and link must be there first: 0.2.1 to 0.2.3 silently go on without.
    """
    headers = [*root.glob("usr/include/numa.h"), *root.glob("usr/lib*/**/libnuma.so")]
    if build.numa and len(headers) < 2:
        raise VerifyError(
            f"NUMA is wanted, and {root} has {headers[0].name + ' alone' if headers else 'no numa.h'}: the build would "
            "go on without NUMA. Install libnuma-dev, then run again."
        )
    for name in WHOLE[build.method]:
        if not (folder / name).exists():
            raise VerifyError(
                f"The source in {folder} lacks {name}: the archive is cut short, or a submodule's is missing from "
                "ktransformers_archive.submodules. Compare with `git ls-tree` of the tag, correct the lock file."
            )
    if build.method == "source":
        found = re.search(r'__version__ = "([^"]+)"', (folder / "version.py").read_text())
        said = found[1] if found else "nothing"
        if said != build.version:
            raise VerifyError(
                f"The source in {folder} says version {said}, and {build.version} was asked for. Correct url and "
                "sha256 of ktransformers_archive."
            )


def toolkit(home: str, build: Build, run: Run) -> None:
    """The CUDA toolkit on the machine that compiles. Debian's own layout does not do."""
    way_out = (
        "Put this host into the group cuda_toolkit and run playbooks/drivers.yml, or put one that has the toolkit into "
        "the group builder."
    )
    missing = [name for name in TOOLKIT if not (Path(home) / name).exists()]
    if missing:
        raise VerifyError(
            f"This host compiles with CUDA {build.cuda}, and ktransformers_cuda_home is {home!r}, which has no "
            f"{missing[0]}. {way_out}"
        )
    code, out, err = run([f"{home}/bin/nvcc", "--version"])
    found = versions.release(out)
    if code != 0 or not found:
        raise VerifyError(f"{home}/bin/nvcc does not tell its version ({(err or out).strip()[-99:]}). Install it anew.")
    if found != build.cuda:
        raise VerifyError(
            f"{home}/bin/nvcc is release {found}, and ktransformers_cuda_version is {build.cuda}, after which every "
            "host's build is named. Correct one of the two."
        )


def stamp(folder: Path, build: Build) -> str:
    """The wheel's name of a finished build, once its record has been compared with the build that is wanted."""
    path = folder / RECORD
    try:
        said = json.loads(path.read_text())
        made, name, digest = dict(said["build"]), str(said["wheel"]), str(said["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerifyError(
            f"{path} cannot be read as the record of a build ({error!r}). Remove {folder}. {REBUILD}."
        ) from None
    for field, value in plain(build).items():
        if made.get(field) != value:
            raise VerifyError(
                f"{path} records {field} {made.get(field)!r}, and {value!r} is wanted for {key(build)}. Remove "
                f"{folder}. {REBUILD}."
            )
    if not (folder / name).is_file():
        raise VerifyError(f"{path} is there, but its wheel {name} is not. Remove {folder}. {REBUILD}.")
    found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if found != digest:
        raise VerifyError(
            f"{folder / name} has sha256 {found[:12]}…, and {digest[:12]}… is recorded. Remove {folder}. {REBUILD}."
        )
    return name


def plain(build: Build) -> dict[str, Any]:
    """As JSON has it."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(build)))
    return values


def record(wheel_file: Path, build: Build) -> str:
    """The text of a finished build's record."""
    digest = hashlib.sha256(wheel_file.read_bytes()).hexdigest()
    return json.dumps({"build": plain(build), "wheel": wheel_file.name, "sha256": digest}, indent=1) + "\n"


def only_wheel(folder: Path) -> Path:
    """The one wheel a build left."""
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise VerifyError(
            f"The build ended without an error and left {len(wheels)} wheels in {folder}, not one. {REBUILD} from an "
            "empty folder."
        )
    return wheels[0]


def wheel_name(name: str, build: Build) -> None:
    """A wheel's name tells package, version, Python and machine; classic's version also toolkit and instruction set."""
    found = re.fullmatch(r"(\w+)-([^-]+)-(\w+)-(\w+)-(\w+)\.whl", name)
    tag = "cp" + build.python.replace(".", "")
    if not found or found[1] != PACKAGE[build.method]:
        raise VerifyError(f"{name} is no wheel of {PACKAGE[build.method]}. {REBUILD}.")
    version, _, local = found[2].partition("+")
    # Releases 0.3 and later of classic still call themselves by the number before.
    if build.method == "source" and version != build.version:
        raise VerifyError(
            f"{name} is version {version}, and {build.version} was asked for. Correct ktransformers_archive."
        )
    if found[3] != tag:
        raise VerifyError(
            f"{name} is for Python tag {found[3]}, and the service runs {tag}. {REBUILD} with ktransformers_python."
        )
    if not found[5].endswith("x86_64"):
        raise VerifyError(
            f"{name} is for {found[5]}, and this machine is x86_64. {REBUILD} on a machine of this class."
        )
    if build.method == "classic":
        cuda = "cu" + build.cuda.replace(".", "")
        if not re.fullmatch(rf"{cuda}torch\d+{build.isa.lower()}", local):
            raise VerifyError(
                f"{name} was built as {local!r}, and {cuda}torch…{build.isa.lower()} is wanted. {REBUILD}."
            )


def wheel(path: Path, build: Build, run: Run, *, python: str = "", cuobjdump: str = "") -> dict[str, Any]:
    """A wheel that is not installed: its name, its archive, its extensions.

    Without ``python`` nothing is loaded; with it, that one loads them (torch first where it has it).
    """
    wheel_name(path.name, build)
    with tempfile.TemporaryDirectory(prefix="onprem-llm-verify-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise VerifyError(f"{path} is cut short or damaged ({error}). {REBUILD}.") from None
        return extensions(Path(folder), path.name, build, run, python=python, cuobjdump=cuobjdump)


def installed(tree: Path, build: Build, run: Run) -> dict[str, Any]:
    """A virtual environment that holds the build: every library found, every extension loaded by its Python."""
    packages = tree / f"lib/python{build.python}/site-packages"
    return extensions(packages, str(tree), build, run, python=str(tree / "bin/python"))


def extensions(
    folder: Path, of: str, build: Build, run: Run, *, python: str = "", cuobjdump: str = ""
) -> dict[str, Any]:
    """Facts of each extension below ``folder``, which error messages call ``of``."""
    names = EXTENSIONS[build.method]
    return {name: extension(folder, of, name, build, run, python=python, cuobjdump=cuobjdump) for name in names}


def extension(
    folder: Path, of: str, name: str, build: Build, run: Run, *, python: str = "", cuobjdump: str = ""
) -> dict[str, Any]:
    """With ``python``, every library must be found (torch's in its environment) and it loads the extension."""
    path = find(folder, of, name, build)
    where = f"{of}: {path.name}"
    try:
        about = elf.parse(path.read_bytes())
    except elf.ElfError as error:
        raise VerifyError(f"{where} {error}. {REBUILD}.") from None
    if about.machine != "x86_64":
        raise VerifyError(f"{where} is for {about.machine}, and this machine is x86_64. {REBUILD} on this class.")
    # KTransformersOps is for the GPU alone.
    if name != "KTransformersOps":
        numa(where, about, build)
    cuda_runtime(where, about, build, required=build.method == "classic")
    libraries(where, path, run, search(python, build), whole=bool(python))
    if cuobjdump and build.cuda:
        gpu_code(where, path, build, run, cuobjdump, required=name == "KTransformersOps")
    if python:
        load(where, name, path, build, run, python)
    return {"needed": list(about.needed), "numa": sorted(one for one in about.undefined if one.startswith("numa_"))}


def find(folder: Path, of: str, name: str, build: Build) -> Path:
    """The file of one extension; another Python's does not count."""
    there = sorted(path for path in folder.rglob(f"{name}*.so") if path.name.split(".")[0] == name)
    mine = "cpython-" + build.python.replace(".", "")
    fitting = [path for path in there if mine in path.name or path.name in (f"{name}.so", f"{name}.abi3.so")]
    if fitting:
        return fitting[0]
    if there:
        raise VerifyError(
            f"{of}: {there[0].name} is for another Python, and the service runs {build.python}. {REBUILD} with "
            "ktransformers_python."
        )
    raise VerifyError(
        f"{of} holds no extension {name}: the build ended without an error and without its result. {REBUILD} from an "
        "empty folder."
    )


def numa(where: str, about: elf.Elf, build: Build) -> None:
    """libnuma is linked, and used, exactly when it is wanted."""
    linked = [name for name in about.needed if name.startswith("libnuma")]
    used = [name for name in about.undefined if name.startswith("numa_")]
    if build.numa and not linked:
        raise VerifyError(
            f"{where} is not linked with libnuma, and NUMA is wanted: the build goes on silently without libnuma-dev "
            f"or USE_NUMA. Install libnuma-dev. {REBUILD}."
        )
    if build.numa and not used:
        raise VerifyError(
            f"{where} is linked with {linked[0]} and uses no symbol of it (numa_bind …): NUMA is off. {REBUILD}."
        )
    if not build.numa and (linked or used):
        raise VerifyError(
            f"{where} is linked with {(linked or used)[0]}, and NUMA is not wanted: USE_NUMA was in the environment, "
            f"where 0 and an empty value turn it on too. Remove it there. {REBUILD}."
        )


def cuda_runtime(where: str, about: elf.Elf, build: Build, *, required: bool) -> None:
    """The CUDA runtime of the wanted major version; kt-kernel links it statically."""
    linked = [found[0] for name in about.needed if (found := re.match(r"libcudart\.so\.(\d+)", name))]
    majors = [name.rpartition(".")[2] for name in linked]
    wanted = build.cuda.split(".")[0]
    if not build.cuda and linked:
        raise VerifyError(f"{where} asks for {linked[0]}, and no CUDA was to be in it. {REBUILD} without nvcc in PATH.")
    if any(major != wanted for major in majors):
        raise VerifyError(
            f"{where} asks for {linked[0]}, and the toolkit is CUDA {build.cuda}: another one was found first. Point "
            f"ktransformers_cuda_home at {build.cuda}. {REBUILD}."
        )
    if required and build.cuda and not linked:
        raise VerifyError(
            f"{where} does not ask for libcudart.so.{wanted}: CUDA is not in it. {REBUILD} with CUDA_HOME set."
        )


def search(python: str, build: Build) -> list[str]:
    """Folders where that Python's torch keeps its libraries; a program that has imported torch finds them."""
    packages = Path(python).parent.parent / f"lib/python{build.python}/site-packages"
    return [str(path) for path in [packages / "torch/lib", *sorted(packages.glob("nvidia/*/lib"))] if path.is_dir()]


def libraries(where: str, path: Path, run: Run, folders: Sequence[str], *, whole: bool) -> None:
    """What the loader does not find. ``whole`` is false where torch's own libraries cannot be there yet."""
    code, out, err = run(["env", f"LD_LIBRARY_PATH={':'.join(folders)}", "LC_ALL=C", "ldd", str(path)])
    if code != 0:
        raise VerifyError(f"{where}: ldd ended with {code} ({last_line(err or out)}). {REBUILD}.")
    missing = [
        name for name in re.findall(r"^\s*(\S+) => not found", out, re.MULTILINE) if whole or not TORCH.match(name)
    ]
    if missing:
        package = next(
            (deb for stem, deb in PACKAGES.items() if missing[0].startswith(stem)), "the package that brings it"
        )
        raise VerifyError(
            f"{where} needs {missing[0]}, which this host does not have. Install {package}, then run again."
        )


def gpu_code(where: str, path: Path, build: Build, run: Run, cuobjdump: str, *, required: bool) -> None:
    """GPU code for every wanted architecture, as the toolkit's own lister shows it."""
    code, out, err = run([cuobjdump, "--list-elf", str(path)])
    there = set(re.findall(r"\.sm_(\d+)", out))
    wanted = [one.replace(".", "") for one in build.architectures]
    missing = [one for one in wanted if one not in there]
    if missing and (there or required):
        raise VerifyError(
            f"{where} has GPU code for {', '.join(sorted(there)) or 'nothing'} and none for "
            f"sm_{missing[0]}{'' if code == 0 else f' (cuobjdump: {last_line(err or out)})'}. {REBUILD} with "
            "ktransformers_cuda_architectures."
        )


def load(where: str, name: str, path: Path, build: Build, run: Run, python: str) -> None:
    """Loads it in a process of its own: that dies, not we."""
    code, out, err = run([python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
    if code != 0 or out.strip() != build.python:
        said = out.strip() or last_line(err)
        raise VerifyError(
            f"{python} is Python {said}, and {build.python} is wanted. Set ktransformers_python. {REBUILD}."
        )
    judge(where, build, *run([python, "-c", LOAD, name, str(path)]), expected="loaded")


def judge(where: str, build: Build, code: int, out: str, err: str, *, expected: str) -> None:
    """What a run's end says of the build. ``code`` below 0, or above 128 as a shell says it, is a signal."""
    number = -code if code < 0 else code - 128 if 128 < code < 160 else 0
    if number == signal.SIGILL:
        raise VerifyError(
            f"{where} dies with SIGILL (illegal instruction): it was compiled for more than this CPU has (build: "
            f"{build.isa}{', AMX' if build.amx else ''}). Build on a machine of this class. {REBUILD}."
        )
    if number:
        raise VerifyError(
            f"{where} dies with {signal.Signals(number).name}. {REBUILD}; if it stays so, use method wheel."
        )
    symbol = re.search(r"undefined symbol: (\S+)", err)
    if symbol:
        raise VerifyError(
            f"{where} does not fit the torch or Python it runs with: undefined symbol {symbol[1]}. Remove its tree. "
            f"{REBUILD} in the same environment."
        )
    if code != 0 or expected not in out.splitlines():
        raise VerifyError(f"{where} does not run (rc {code}): {last_line(err or out)}. {REBUILD}.")


def answers(program: str, tree: Path, build: Build, run: Run) -> None:
    """Runs a script with the tree's Python; it ends with 0 and the line `answers` when the results are right."""
    judge(f"{tree}: {Path(program).name}", build, *run([str(tree / "bin/python"), program]), expected="answers")


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


def lock_with(lock: str, package: str, url: str, sha256: str) -> str:
    """A lock file with the built wheel instead of the published ``package`` (whose hashes go with its entry)."""
    kept, skip = [], False
    for line in lock.splitlines(keepends=True):
        if re.match(r"[A-Za-z0-9]", line):
            skip = re.split(r"[=\[ @]", line)[0].lower() == package
        if not skip:
            kept.append(line)
    text = "".join(kept)
    return text + ("" if text.endswith("\n") else "\n") + f"{package} @ {url} --hash=sha256:{sha256}\n"
