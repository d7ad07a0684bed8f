# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.onprem.llm.plugins.module_utils import python_tree as tree
from ansible_collections.onprem.llm.plugins.module_utils.python_tree import Tree
from ansible_collections.onprem.llm.plugins.modules import python_tree

LOCKS = sorted((Path(__file__).parents[2] / "requirements/openwebui").glob("*.txt"))
LOCK = """# about
alpha==1.0 \\
    --hash=sha256:aa
    # via beta
beta[x]==2.1 ; python_version >= "3.13" \\
    --hash=sha256:bb \\
    --hash=sha256:cc
"""


@pytest.mark.parametrize("path", [p for p in LOCKS if p.name != "excludes.txt"], ids=lambda path: path.name)
def test_every_requirement_of_a_lock_file_has_a_hash_and_no_address(path: Path) -> None:
    text = path.read_text()
    assert tree.unhashed(text) == []
    assert "://" not in text
    assert "index-url" not in text


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_holds_the_application_and_no_torch(python: str) -> None:
    text = (LOCKS[0].parent / f"py{python}.txt").read_text()
    assert tree.locked_version(text, "open-webui")
    for package in ("torch", "transformers", "chromadb", "onnxruntime"):
        with pytest.raises(tree.PythonTreeError, match=f"no exact version of {package}"):
            tree.locked_version(text, package)
    assert ("\naudioop-lts==" in text) == (python == "3.13")


def test_a_requirement_without_hash_is_found() -> None:
    assert tree.unhashed(LOCK) == []
    assert tree.unhashed(LOCK + "gamma==3\ndelta>=1 # why\n") == ["gamma==3", "delta>=1"]


def test_pip_is_asked_in_its_own_order() -> None:
    listed = (
        ":env:.index-url='https://env.example/simple'\n"
        "global.cert='/etc/ca.crt'\n"
        "global.index-url='https://global.example/simple'\n"
        "install.index-url='https://install.example/simple'\n"
        "install.trusted-host='a.example\\nb.example'\n"
        "download.index-url='https://download.example'\n"
    )
    assert tree.pip_settings(listed) == {
        "index-url": "https://env.example/simple",
        "cert": "/etc/ca.crt",
        "trusted-host": "a.example b.example",
    }


def test_what_pip_was_told_reaches_uv() -> None:
    pip = {
        "index-url": "https://mirror.example/simple",
        "extra-index-url": "https://more.example/simple",
        "cert": "/etc/ca.crt",
        "proxy": "http://proxy:3128",
        "find-links": "/a /b",
        "default-timeout": "180",
    }
    env = tree.uv_environment(pip, "", "", "/cache")
    assert env["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert env["UV_INDEX"] == "https://more.example/simple"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["SSL_CERT_FILE"] == "/etc/ca.crt"
    assert env["HTTPS_PROXY"] == "http://proxy:3128"
    assert env["UV_FIND_LINKS"] == "/a,/b"
    assert env["UV_HTTP_TIMEOUT"] == "180"
    assert env["UV_SYSTEM_CERTS"] == "1"


def test_the_sites_own_word_wins_over_pip() -> None:
    pip = {"index-url": "https://mirror.example/simple", "extra-index-url": "https://more.example/simple"}
    env = tree.uv_environment(pip, "https://site.example/simple", "", "/cache")
    # Linked files would look changed in a tree whenever the next one is made.
    assert env["UV_LINK_MODE"] == "copy"
    assert env["UV_DEFAULT_INDEX"] == "https://site.example/simple"
    assert "UV_INDEX" not in env
    env = tree.uv_environment(pip, "https://site.example/simple", "/srv/wheels", "/cache")
    assert env["UV_NO_INDEX"] == "1"
    assert env["UV_FIND_LINKS"] == "/srv/wheels"
    assert "UV_DEFAULT_INDEX" not in env


def test_credentials_are_never_shown() -> None:
    env = tree.uv_environment({"index-url": "https://me:canary@mirror.example/simple"}, "", "", "/cache")
    assert tree.sources(env) == "https://***@mirror.example/simple"
    assert "canary" not in tree.redact("error: https://me:canary@mirror.example/simple/x: 404")


def test_the_current_version_and_the_newest_stay() -> None:
    trees = [Tree("a", 1.0), Tree("b", 2.0), Tree("c", 3.0), Tree("d", 4.0)]
    assert tree.superfluous(trees, "d", 2) == ["a", "b"]
    assert tree.superfluous(trees, "a", 2) == ["b", "c"]
    assert tree.superfluous(trees, "d", 1) == ["a", "b", "c"]
    assert tree.superfluous(trees, "d", 0) == ["a", "b", "c"]
    assert tree.superfluous(trees, "d", 9) == []
    assert tree.superfluous(trees, "d", 2, ["a"]) == ["b"]


def test_what_lies_beside_a_version_goes_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in "123":
        (tmp_path / number).mkdir()
        for name in (f"{number}/.complete", f"{number}.txt", f"{number}.proofs"):
            (tmp_path / name).touch()
        os.utime(tmp_path / number / ".complete", (int(number), int(number)))
    (tmp_path / "current").symlink_to("3")
    with patch_module_args({"state": "pruned", "root": str(tmp_path)}), pytest.raises(SystemExit):
        python_tree.main()
    assert json.loads(capsys.readouterr().out)["removed"] == ["1"]
    assert {path.name for path in tmp_path.iterdir()} == {
        "current", "2", "2.txt", "2.proofs", "3", "3.txt", "3.proofs",
    }  # fmt: skip
