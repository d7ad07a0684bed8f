# SPDX-License-Identifier: GPL-3.0-or-later
"""The hubs' own clients, in an environment of their own: exactly what requirements/hubs.txt names."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LOCK = PROJECT / "requirements/hubs.txt"
FOLDER = PROJECT / ".cache/hubs"


def programs() -> Path:
    """The folder with modelscope, hf and their python; installed when it is not there, or not as locked."""
    FOLDER.parent.mkdir(exist_ok=True)
    with open(FOLDER.parent / "hubs.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = hashlib.sha256(LOCK.read_bytes()).hexdigest()
        if not (FOLDER / "stamp").exists() or (FOLDER / "stamp").read_text() != stamp:
            shutil.rmtree(FOLDER, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", FOLDER], check=True)
            pip = [str(FOLDER / "bin/pip"), "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
            subprocess.run([*pip, "--only-binary", ":all:", "-r", str(LOCK)], check=True)
            (FOLDER / "stamp").write_text(stamp)
    return FOLDER / "bin"


def environment(url: str, home: Path, token: str = "") -> dict[str, str]:
    """Both clients ask this hub alone, and leave nothing outside ``home``. Xet is not spoken here."""
    return {
        "PATH": f"{FOLDER / 'bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "NO_PROXY": "*",
        "MODELSCOPE_ENDPOINT": url,
        "MODELSCOPE_HOME": str(home / "modelscope"),
        "MODELSCOPE_CACHE": str(home / "modelscope/cache"),
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        **({"MODELSCOPE_API_TOKEN": token, "HF_TOKEN": token} if token else {}),
    }


def modelscope(repo: str, target: Path, *more: str) -> list[str]:
    return ["modelscope", "download", repo, "--local-dir", str(target), *more]


def huggingface(repo: str, target: Path, *more: str) -> list[str]:
    return ["hf", "download", repo, "--local-dir", str(target), *more]
