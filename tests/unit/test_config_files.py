# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.onprem.llm.plugins.module_utils.config_files import (
    FileError,
    Wanted,
    compare,
    question,
    write,
)

ME = {"owner": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name}


def accept(command: str) -> tuple[int, str]:
    return 0, ""


def test_a_new_file_and_its_folders_are_made(tmp_path: Path) -> None:
    wanted = Wanted(str(tmp_path / "a/b/c.conf"), "x=1\n", 0o640, **ME)
    difference = compare(wanted)
    assert difference is not None and difference.before is None
    write(difference, accept)
    assert (tmp_path / "a/b/c.conf").read_text() == "x=1\n"
    assert (tmp_path / "a/b/c.conf").stat().st_mode & 0o777 == 0o640
    assert compare(wanted) is None


def test_a_wrong_mode_alone_is_a_difference(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("secret")
    path.chmod(0o644)
    difference = compare(Wanted(str(path), "secret", 0o600, **ME))
    assert difference is not None and difference.attributes == ("mode 0644 -> 0600",) and not difference.content
    write(difference, accept)
    assert path.stat().st_mode & 0o777 == 0o600


def test_refused_content_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "nginx.conf"
    path.write_text("good")
    seen = []

    def refuse(command: str) -> tuple[int, str]:
        seen.append(Path(command.split()[-1]).read_text())
        return 1, "unknown directive"

    difference = compare(Wanted(str(path), "bad", 0o644, validate="nginx -t -c %s", **ME))
    assert difference is not None
    with pytest.raises(FileError, match=r"nginx\.conf: the new content is refused .* unknown directive"):
        write(difference, refuse)
    assert (seen, path.read_text(), os.listdir(tmp_path)) == (["bad"], "good", ["nginx.conf"])


def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(FileError, match="is no plain file"):
        compare(Wanted(str(tmp_path / "link"), "x", **ME))


def test_an_unknown_owner_is_named(tmp_path: Path) -> None:
    difference = compare(Wanted(str(tmp_path / "x"), "x", owner="nobody-there", group=ME["group"]))
    assert difference is not None
    with pytest.raises(FileError, match="nobody-there"):
        write(difference, accept)
    assert os.listdir(tmp_path) == []


def test_a_secret_is_never_shown(tmp_path: Path) -> None:
    """T12: neither in the difference nor in what a talkative run prints."""
    files = [{"path": str(tmp_path / "key"), "content": "canary-4711\n", "mode": "0600", "secret": True, **ME}]
    done = subprocess.run(
        [
            *["ansible", "localhost", "-i", "localhost,", "-c", "local", "--diff", "-vvv"],
            *["-e", f"ansible_python_interpreter={sys.executable}"],
            *["-m", "onprem.llm.config_files", "-a", json.dumps({"files": files})],
        ],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "key").read_text() == "canary-4711\n"
    assert "(new secret)" in done.stdout
    assert "canary-4711" not in done.stdout + done.stderr


def right(files: list[dict[str, Any]]) -> bool:
    """Whether a host would say that all is as wanted."""
    asked = question({"files": files})
    assert asked is not None
    said = subprocess.run(["/bin/sh", "-c", asked[0]], capture_output=True, text=True, check=False)
    return said.returncode == 0 and said.stdout.splitlines() == asked[1]


def test_one_command_tells_that_nothing_differs(tmp_path: Path) -> None:
    one, two = tmp_path / "unit@.service", tmp_path / "empty"
    files = [
        {"path": str(one), "content": "ü = 1\n", "mode": "0640", "secret": True, **ME},
        {"path": str(two), "content": "", **ME},
    ]
    assert not right(files)
    for file in files:
        write(compare(Wanted(file["path"], file["content"], int(file.get("mode", "0644"), 8), **ME)), accept)  # type: ignore[arg-type]
    assert right(files)

    def spoilt(spoil: Any, mend: Any) -> bool:
        spoil()
        found = not right(files)
        mend()
        return found and right(files)

    assert spoilt(lambda: one.write_text("ü = 2\n"), lambda: one.write_text("ü = 1\n"))
    assert spoilt(lambda: two.chmod(0o4644), lambda: two.chmod(0o644))
    assert spoilt(lambda: two.rename(tmp_path / "x"), lambda: (tmp_path / "x").rename(two))
    assert spoilt(
        lambda: (two.rename(tmp_path / "x"), two.symlink_to(tmp_path / "x")),
        lambda: (two.unlink(), (tmp_path / "x").rename(two)),
    )
    assert not right([{**files[1], "owner": "nobody"}]) and not right([{**files[1], "group": "nogroup"}])


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"files": []},
        {"files": "x"},
        {"files": [{"path": "/a", "content": "x"}], "more": 1},
        {"files": [{"path": "/a"}]},
        {"files": [{"path": "/a", "content": "x", "state": "absent"}]},
        {"files": [{"path": "/a", "content": 1}]},
        {"files": [{"path": "/a", "content": "x", "mode": 0o644}]},
        {"files": [{"path": "/a", "content": "x", "mode": "u=rw"}]},
        {"files": [{"path": "a", "content": "x"}]},
        {"files": [{"path": "/$HOME/a", "content": "x"}]},
        {"files": [{"path": "/a b", "content": "x"}]},
    ],
)
def test_what_only_the_module_can_judge_it_is_asked(arguments: dict[str, Any]) -> None:
    assert question(arguments) is None
