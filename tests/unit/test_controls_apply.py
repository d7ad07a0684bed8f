# SPDX-License-Identifier: GPL-3.0-or-later
"""The patches of tests/controls fit the code of today. Whether they are noticed is asked by `tools/test controls`."""

from __future__ import annotations

import re
import subprocess

import pytest
from conventions import PROJECT, load

FOLDER = PROJECT / "tests/controls"
CONTROLS = load(FOLDER / "controls.yml")["controls"]
SECURITY = (PROJECT / "docs/security.md").read_text()


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control["patch"])
def test_a_patch_applies(control: dict[str, str]) -> None:
    patch = FOLDER / f"{control['patch']}.patch"
    done = subprocess.run(["git", "apply", "--check", patch], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (
        f"tests/controls/{patch.name} no longer fits. It removes: {control['removes']}. Remove that by hand, "
        f"write `git diff` to the patch, and take the change back.\n{done.stderr}"
    )


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control["patch"])
def test_its_test_exists(control: dict[str, str]) -> None:
    file, _, function = control["test"].partition("::")
    assert f"def {function}(" in (PROJECT / file).read_text(), f"controls.yml names {control['test']}"


def test_every_threat_has_a_control_and_every_patch_is_used() -> None:
    threats = set(re.findall(r"(?m)^\| (T\d+) \|", SECURITY))
    patched = {control["patch"] for control in CONTROLS}
    assert threats == {patch.partition("-")[0] for patch in patched}, "docs/security.md and tests/controls differ"
    assert patched == {path.stem for path in FOLDER.glob("*.patch")}, "patches and tests/controls/controls.yml differ"
