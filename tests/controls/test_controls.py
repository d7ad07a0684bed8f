# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the tests of docs/security.md notice it: each control is removed in a copy, and its test must fail there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
CONTROLS = yaml.safe_load((HERE / "controls.yml").read_text())["controls"]


def git(folder: Path, *arguments: str | Path) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Copy:
    """The project's files in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in filter(None, git(PROJECT, "ls-files", "-co", "--exclude-standard", "-z").split("\0")):
            source, target = PROJECT / name, folder / name
            if source.exists() or source.is_symlink():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        git(folder, "init", "--quiet")  # some tests ask git which files there are
        self.sound: dict[str, tuple[dict[str, int], str]] = {}

    def outcome(self, test: str) -> tuple[dict[str, int], str]:
        """How many tests passed, failed, ended in an error and were skipped, and what pytest said."""
        report = self.folder / ".report.xml"
        report.unlink(missing_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", test],
            cwd=self.folder,
            env={**os.environ, "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
        if report.exists():
            for suite in ElementTree.parse(report).getroot().iter("testsuite"):
                counts = {key: counts[key] + int(suite.get(key, 0)) for key in counts}
        counts["passed"] = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
        return counts, done.stdout + done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return Copy(tmp_path_factory.mktemp("controls") / "copy")


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control["patch"])
def test_a_removed_control_is_noticed(copy: Copy, control: dict[str, str]) -> None:
    test = control["test"]
    counts, said = copy.sound.get(test) or copy.sound.setdefault(test, copy.outcome(test))
    if counts["skipped"] and not counts["passed"]:
        pytest.skip(f"{test} cannot be asked here")
    assert counts["passed"] and not counts["failures"] + counts["errors"], f"fails with the control in place:\n{said}"
    patch = HERE / f"{control['patch']}.patch"
    git(copy.folder, "apply", patch)
    try:
        counts, said = copy.outcome(test)
    finally:
        git(copy.folder, "apply", "--reverse", patch)
    assert counts["failures"], f"'{control['removes']}' is removed, and the test does not notice:\n{said}"
    assert not counts["errors"], f"the test could not be run with the patch, so it proves nothing:\n{said}"
