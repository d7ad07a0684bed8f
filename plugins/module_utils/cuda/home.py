# SPDX-License-Identifier: GPL-3.0-or-later
"""One folder per release that builds can use as CUDA_HOME, whatever the packages' layout is.

NVIDIA's packages have such a folder, /usr/local/cuda-12.8, and a link to it is enough. A distribution spreads the
toolkit over /usr, so the folder is made of parts:

bin      links to the toolkit's programs, and to no other
lib64    links to its libraries
include  a header for each of its headers that hands over to the one in /usr/include. With a link to /usr/include a C++
         compiler does not find its own headers (``-isystem`` changes their order: fatal error in <cstdlib>), and with
         links to single files nvcc rejects what it tolerates in headers of the system (seen with 12.4 on glibc 2.41).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

#: What every build looks for.
NEEDED = ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so")
HEADER = "#pragma GCC system_header\n#include_next <{}>\n"


class Home(NamedTuple):
    """Content of a home: path below it -> target of a link, and path below it -> text of a file."""

    links: dict[str, str]
    files: dict[str, str]


def of_files(paths: Iterable[str]) -> Home:
    """The home for a toolkit whose packages have these files."""
    links, files = {}, {}
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        if folder == "/usr/bin":
            links[f"bin/{name}"] = path
        elif folder == "/usr/include" and name.endswith((".h", ".hpp")):
            files[f"include/{name}"] = HEADER.format(name)
        elif re.fullmatch(r"/usr/lib/[^/]+-linux-gnu", folder) and (
            re.match(r"lib.*\.(a|so)\b", name) or name == "stubs"
        ):
            links[f"lib64/{name}"] = path
    return Home(links, files)


def native(version: str) -> str:
    """Where NVIDIA's packages put a release."""
    return f"/usr/local/cuda-{version}"


def missing(folder: Path) -> list[str]:
    """What a folder lacks to be a CUDA_HOME."""
    return [name for name in NEEDED if not (folder / name).exists()]


def differences(folder: Path, home: Home) -> list[str]:
    """Paths below a home that are not as they should be, and those that should not be there. Reads only."""
    found = [name for name, target in home.links.items() if not _links(folder / name, target)]
    found += [name for name, text in home.files.items() if _text(folder / name) != text]
    wanted = {*home.links, *home.files}
    for path in sorted(folder.glob("*/*")) if folder.is_dir() and not folder.is_symlink() else ():
        name = str(path.relative_to(folder))
        found += [name] if name not in wanted else []
    return found


def _links(path: Path, target: str) -> bool:
    return path.is_symlink() and str(path.readlink()) == target


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() and not path.is_symlink() else None


def write(folder: Path, home: Home) -> None:
    """Make a folder exactly this home; ``folder`` does not exist."""
    for name in ("bin", "include", "lib64"):
        (folder / name).mkdir(parents=True)
    for name, target in home.links.items():
        (folder / name).symlink_to(target)
    for name, text in home.files.items():
        (folder / name).write_text(text)
