# SPDX-License-Identifier: GPL-3.0-or-later
"""A Python application in a folder of its own, built from a lock file with hashes.

uv does the work: it is installed by pip (with its own lock), then it makes the environment. uv does not read pip's
configuration, so what the host's administrator told pip (a mirror, a certificate, a proxy) is passed on.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

MARKER = ".complete"


class PythonTreeError(Exception):
    """The tree could not be built. The text says what to do."""


def locked_version(lock: str, package: str) -> str:
    """The version of ``package`` in a lock file."""
    found = re.search(rf"(?m)^{re.escape(package)}==([^\s;\\]+)", lock)
    if not found:
        raise PythonTreeError(f"The lock file holds no exact version of {package}. Write it anew with `make lock`.")
    return found[1]


def unhashed(lock: str) -> list[str]:
    """Requirements of a lock file that have no hash."""
    found = []
    for requirement in re.sub(r"\\\n", " ", lock).splitlines():
        text = requirement.split(" #")[0].strip()
        if text and not text.startswith("#") and "--hash=sha256:" not in text:
            found.append(text.split()[0])
    return found


def pip_settings(config_list: str) -> dict[str, str]:
    """What ``pip config list`` prints, as {option: value}; a later line of pip's own order of precedence wins."""
    ranks = {"global": 0, "install": 1, "download": -1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in config_list.splitlines():
        match = re.fullmatch(r"(:env:|[a-z]+)\.([a-z-]+)=(['\"])(.*)\3", line.strip())
        if not match or ranks.get(match[1], -1) < 0:
            continue
        rank, option = ranks[match[1]], match[2]
        if option not in found or rank >= found[option][0]:
            found[option] = (rank, match[4].replace("\\n", " ").strip())
    return {option: value for option, (_, value) in found.items()}


def uv_environment(pip: Mapping[str, str], index: str, wheels: str, cache: str) -> dict[str, str]:
    """Environment for uv: ``index`` and ``wheels`` where given, else what pip was told on this host.

    UV_NO_INDEX is ours: uv has it as an option only. Copies: a hard link to the cache changes a file of every tree
    whenever another one is linked.
    """
    env = {"UV_NO_CONFIG": "1", "UV_SYSTEM_CERTS": "1", "UV_CACHE_DIR": cache, "UV_NO_PROGRESS": "1"}
    env["UV_LINK_MODE"] = "copy"
    if pip.get("cert"):
        env["SSL_CERT_FILE"] = pip["cert"]
    if pip.get("proxy"):
        env["HTTPS_PROXY"] = env["HTTP_PROXY"] = pip["proxy"]
    if pip.get("default-timeout") or pip.get("timeout"):
        env["UV_HTTP_TIMEOUT"] = pip.get("timeout") or pip["default-timeout"]
    if pip.get("trusted-host"):
        env["UV_INSECURE_HOST"] = pip["trusted-host"]
    if wheels:
        env.update(UV_NO_INDEX="1", UV_FIND_LINKS=wheels)
    elif index:
        env["UV_DEFAULT_INDEX"] = index
    else:
        if pip.get("index-url"):
            env["UV_DEFAULT_INDEX"] = pip["index-url"]
        if pip.get("extra-index-url"):
            # The hash decides which file is taken, so it does not matter which of the indexes has it.
            env.update(UV_INDEX=pip["extra-index-url"], UV_INDEX_STRATEGY="unsafe-best-match")
        if pip.get("find-links"):
            env["UV_FIND_LINKS"] = ",".join(pip["find-links"].split())
        if pip.get("no-index") in ("1", "true", "True", "yes"):
            env["UV_NO_INDEX"] = "1"
    return env


def redact(text: str) -> str:
    """Without the credentials of addresses."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


def sources(env: Mapping[str, str]) -> str:
    """Where packages are taken from, in words."""
    if "UV_NO_INDEX" in env:
        return env.get("UV_FIND_LINKS", "nowhere: pip is told no-index and no find-links")
    index = env.get("UV_DEFAULT_INDEX", "Python's public package index (the host's pip names no other)")
    return redact(" ".join(filter(None, [index, env.get("UV_INDEX", "")])))


@dataclass(frozen=True)
class Tree:
    """A built version: its folder's name and when it was finished."""

    name: str
    finished: float


def superfluous(trees: Iterable[Tree], current: str, keep: int, needed: Collection[str] = ()) -> list[str]:
    """Names of trees beyond the newest ``keep``, where the current one counts among them. What is needed never goes."""
    others = sorted((tree for tree in trees if tree.name != current), key=lambda tree: tree.finished, reverse=True)
    return sorted(tree.name for tree in others[max(keep - 1, 0) :] if tree.name not in needed)
