# SPDX-License-Identifier: GPL-3.0-or-later
"""T9: what comes from elsewhere is taken by its checksum only."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import conventions
from conventions import PROJECT


def test_an_artifact_without_checksum_is_refused(tmp_path: Path) -> None:
    """Before anything is fetched; and the way out is named."""
    entry = {"name": "llamacpp_source", "version": "1.0", "url": (tmp_path / "x.tar.gz").as_uri(), "sha256": None}
    (tmp_path / "x.tar.gz").write_text("anything")
    task = {
        "name": "Install",
        "ansible.builtin.include_role": {"name": "onprem.llm.artifact"},
        "vars": {"artifact": entry, "artifact_dest": str(tmp_path / "dest"), "artifact_mirror": ""},
    }
    play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}]
    (tmp_path / "play.yml").write_text(json.dumps(play))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", tmp_path / "play.yml"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "The artifact 'llamacpp_source' (version 1.0) has the checksum null: it was never fetched" in said
    assert "playbooks/lock.yml -i inventories/prod -e lock_only=llamacpp_source" in said
    assert not (tmp_path / "dest").exists()


def test_every_installation_of_python_packages_asks_for_hashes() -> None:
    installs = re.compile(r"""\bpip["']?\)?,? +["']?(?:install|sync)\b""")
    files = [p for p in conventions.files() if p.relative_to(PROJECT).parts[0] in ("plugins", "roles", "tools")]
    found = {path: len(installs.findall(conventions.text(path))) for path in files}
    found = {path: count for path, count in found.items() if count}
    assert {"setup", "python_tree.py"} <= {path.name for path in found}
    for path, count in found.items():
        assert conventions.text(path).count("--require-hashes") >= count, f"{conventions.name(path)}: --require-hashes"
        assert "--only-binary" in conventions.text(path), f"{conventions.name(path)}: wheels only"
