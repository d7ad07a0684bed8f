# SPDX-License-Identifier: GPL-3.0-or-later
"""Who builds, what counts as complete, and that an archive is the tree, byte for byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from conventions import PROJECT

from ansible_collections.onprem.llm.plugins.module_utils import build

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
SAID = {"component": "hello", "builder": "h1", "facts": {"version": "1"}}


def look(key: str = "k", complete: bool = False) -> dict[str, Any]:
    return {"key": key, "complete": complete}


def who(looks: dict[str, dict[str, Any]], *builders: str) -> dict[str, str]:
    """By host: builds, gives or receives, and with whom."""
    said = {}
    for host, part in build.plan(looks, builders).items():
        words = ["builds"] if part["builds"] else []
        words += [f"receives from {part['source']}"] if part["receives"] else []
        words += [f"gives to {' '.join(part['gives'])}"] if part["gives"] else []
        said[host] = ", ".join(words)
    return said


# --- who builds


def test_the_first_host_builds_for_its_equals() -> None:
    assert who({"a": look(), "b": look(), "c": look()}) == {
        "a": "builds, gives to b c",
        "b": "receives from a",
        "c": "receives from a",
    }


def test_a_host_of_the_group_builder_comes_first() -> None:
    assert who({"a": look(), "b": look(), "c": look()}, "c", "b")["b"] == "builds, gives to a c"


def test_each_key_has_a_builder_of_its_own() -> None:
    looks = {"a": look("new"), "b": look("old"), "c": look("new"), "d": look("old")}
    assert who(looks, "c") == {
        "a": "receives from c",
        "b": "builds, gives to d",
        "c": "builds, gives to a",
        "d": "receives from b",
    }


def test_nothing_is_built_that_a_host_has() -> None:
    """Not even on a builder: it receives like any other."""
    assert who({"a": look(), "b": look(), "c": look(complete=True)}, "b") == {
        "a": "receives from c",
        "b": "receives from c",
        "c": "gives to a b",
    }
    assert who({"a": look(complete=True), "b": look(), "c": look(complete=True)}, "c")["c"] == "gives to b"


def test_who_needs_nothing_does_nothing() -> None:
    done = {"a": look(complete=True), "b": look(complete=True)}
    assert set(who(done, "a").values()) == {""}
    assert all(part["source"] == "" for part in build.plan(done).values())
    assert who({**done, "c": look("other")}) == {"a": "", "b": "", "c": "builds"}


def test_any_fleet_is_served_once() -> None:
    """Seeded: every host ends with its key, each missing key is built exactly once, only by who lacks it everywhere."""
    for seed in range(300):
        chance = random.Random(seed)
        hosts = [f"h{number}" for number in range(chance.randint(1, 9))]
        looks = {host: look(chance.choice("xyz"), chance.random() < 0.4) for host in hosts}
        parts = build.plan(looks, chance.sample(hosts, chance.randint(0, len(hosts))))
        for key in {its["key"] for its in looks.values()}:
            equal = [host for host in hosts if looks[host]["key"] == key]
            lacking = [host for host in equal if not looks[host]["complete"]]
            builds = [host for host in equal if parts[host]["builds"]]
            assert len(builds) == (1 if lacking == equal else 0), seed
            given = [to for host in equal for to in parts[host]["gives"]]
            assert sorted(given + builds) == sorted(lacking), seed
            assert [host for host in equal if parts[host]["receives"]] == [h for h in lacking if h not in builds], seed


# --- what counts as complete


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tmp_path / "hello" / "1-trixie"


def filled(tree: Path) -> Path:
    """A stage with what builds hold: programs, links, hard links, folders, odd names."""
    tree.parent.mkdir(parents=True, exist_ok=True)
    build.prepare(tree)
    stage = build.beside(tree, "stage")
    (stage / "bin").mkdir()
    (stage / "bin/run").write_text("#!/bin/sh\necho hello\n")
    (stage / "bin/run").chmod(0o755)
    (stage / "bin/again").hardlink_to(stage / "bin/run")
    (stage / "lib.so.1.2").write_bytes(bytes(range(256)) * 300)
    (stage / "lib.so.1").symlink_to("lib.so.1.2")
    (stage / "empty").mkdir()
    (stage / ("long" * 40)).write_text("ä")
    os.utime(stage / "lib.so.1.2", (1, 1_700_000_000.75))
    return stage


def test_a_build_is_complete_when_its_marker_is_there(tree: Path) -> None:
    stage = filled(tree)
    for left in ("0-trixie.tar.part", "0-trixie.log"):
        (tree.parent / left).touch()
    assert build.marker(tree) == {}
    said = build.complete(tree, SAID)
    assert build.marker(tree) == said == {**SAID, "key": "1-trixie", "sha256": build.digest(tree)}
    assert [path.name for path in tree.parent.iterdir()] == ["1-trixie"]
    assert not stage.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"key": "2-trixie", "sha256": "aa"}', '{"key": "1-trixie"}', "\0\0\0"]
)
def test_a_marker_that_is_not_whole_is_none(tree: Path, content: str) -> None:
    tree.mkdir(parents=True)
    (tree / build.MARKER).write_text(content)
    assert build.marker(tree) == {}


def test_an_empty_stage_is_no_build(tree: Path) -> None:
    tree.parent.mkdir()
    build.prepare(tree)
    with pytest.raises(build.BuildError, match=r"left nothing in .*1-trixie\.stage"):
        build.complete(tree, SAID)
    assert not tree.exists()


def test_a_half_tree_of_the_same_name_makes_way(tree: Path) -> None:
    tree.mkdir(parents=True)
    (tree / "half").touch()
    filled(tree)
    build.complete(tree, SAID)
    assert not (tree / "half").exists() and (tree / "bin/run").exists()


def test_what_a_killed_run_compiled_stays_until_the_host_goes_down(tree: Path, tmp_path: Path) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("one")
    tree.parent.mkdir()
    build.prepare(tree, boot)
    (build.beside(tree, "work") / "a.o").touch()
    (build.beside(tree, "stage") / "half").touch()
    build.prepare(tree, boot)
    assert (build.beside(tree, "work") / "a.o").exists()
    assert list(build.beside(tree, "stage").iterdir()) == []
    boot.write_text("two")
    build.prepare(tree, boot)
    assert not (build.beside(tree, "work") / "a.o").exists()


# --- steps


def test_a_step_that_fails_says_why_and_where(tree: Path) -> None:
    filled(tree)
    script = "echo compiling; echo 'a.c:3: error: no such thing'; echo 'ninja: build stopped'; exit 4"
    with pytest.raises(build.BuildError) as caught:
        build.step(tree, ["sh", "-c", script], build.beside(tree, "work"))
    log = build.beside(tree, "log")
    assert str(caught.value) == f"`sh -c` ended with 4: a.c:3: error: no such thing\nThe whole log is {log}."
    assert "compiling" in log.read_text()


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("one\ntwo\n", "two"),
        ("", "it said nothing"),
        ("x.cu(8): error: y\nc++: fatal error: Killed signal\n", "x.cu(8): error: y\nc++: fatal error: Killed signal"),
        ("CMake Error at CMakeLists.txt:3 (find):\n  No CUDA", "CMake Error at CMakeLists.txt:3 (find):"),
        ("[2/9] -Werror=x src/error.c\nld: No space left on device\nninja: stopped", "ld: No space left on device"),
        ("\n".join(f"error: {number}" for number in range(9)), "error: 0\nerror: 1\nerror: 2"),
    ],
)
def test_the_lines_that_say_why(log: str, cause: str) -> None:
    assert build.cause(log) == cause


def test_a_program_that_is_not_there(tree: Path) -> None:
    filled(tree)
    with pytest.raises(build.BuildError, match=r"`no-such-compiler` ended with 127: .*No such file"):
        build.step(tree, ["no-such-compiler"], tree.parent)


def test_what_a_killed_step_left_behind_is_waited_for(tree: Path) -> None:
    """The compiler holds the lock, not only the process that started it."""
    filled(tree)
    work = build.beside(tree, "work")
    code = (
        "import sys, pathlib; from ansible_collections.onprem.llm.plugins.module_utils import build;"
        "build.step(*map(pathlib.Path, sys.argv[1:2]), ['sh', '-c', 'touch begun; sleep 1; touch ended'], sys.argv[2])"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tree), str(work)], env={**os.environ, "PYTHONPATH": paths}
    )
    while not (work / "begun").exists():
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    with pytest.raises(build.BuildError, match=r"something builds in .*End it and run again"), build.alone(tree, 0.0):
        pass
    with build.alone(tree):
        assert (work / "ended").exists()


# --- the archive


def test_an_archive_is_the_tree(tree: Path, tmp_path: Path) -> None:
    filled(tree)
    made = build.complete(tree, SAID)
    packed = build.pack(tree, tmp_path / "offered")
    archive = tmp_path / "offered" / packed["name"]
    assert packed == {"name": "1-trixie.tar", "sha256": made["sha256"], "size": archive.stat().st_size}

    other = tmp_path / "other" / "1-trixie"
    other.parent.mkdir()
    shutil.copy(archive, build.beside(other, "tar"))
    build.unpack(other)
    assert not (build.beside(other, "stage") / build.MARKER).exists()
    assert build.complete(other, SAID, made["sha256"]) == made
    assert [path.name for path in other.parent.iterdir()] == ["1-trixie"]
    # What it received it can give: the same bytes.
    assert build.pack(other, tmp_path / "again") == packed
    assert (tmp_path / "again" / packed["name"]).read_bytes() == archive.read_bytes()
    for path in tree.rglob("*"):
        twin = other / path.relative_to(tree)
        assert twin.lstat().st_mode == path.lstat().st_mode
        if path.is_file() and path.name != build.MARKER:
            assert int(twin.stat().st_mtime) == int(path.stat().st_mtime)


def spoil_content(tree: Path) -> None:
    (tree / "lib.so.1.2").write_bytes(b"x")


def spoil_mode(tree: Path) -> None:
    (tree / "bin/run").chmod(0o4755)


def spoil_file(tree: Path) -> None:
    (tree / "new").touch()


def spoil_link(tree: Path) -> None:
    (tree / "lib.so.1").unlink()
    (tree / "lib.so.1").symlink_to("/tmp/lib.so")


@pytest.mark.parametrize("spoil", [spoil_content, spoil_mode, spoil_file, spoil_link], ids=lambda one: one.__name__)
def test_an_altered_tree_is_given_to_nobody(tree: Path, tmp_path: Path, spoil: Any) -> None:
    filled(tree)
    made = build.complete(tree, SAID)
    spoil(tree)
    with pytest.raises(
        build.BuildError, match=f"altered since it was built: its sha256 was {made['sha256']} and is [0-9a-f]+"
    ):
        build.pack(tree, tmp_path / "offered")


def test_what_was_unpacked_must_be_what_was_built(tree: Path) -> None:
    filled(tree)
    with pytest.raises(build.BuildError, match=f"has the sha256 [0-9a-f]{{64}}, what was built {'0' * 64}. Run again"):
        build.complete(tree, SAID, "0" * 64)
    assert not tree.exists()


def test_a_pipe_is_no_part_of_a_build(tree: Path) -> None:
    stage = filled(tree)
    os.mkfifo(stage / "pipe")
    with pytest.raises(build.BuildError, match="pipe is no file, folder or link"):
        build.complete(tree, SAID)


# --- what lets the others in


@pytest.mark.parametrize(
    ("opened", "gives", "check", "closes"),
    [
        (False, [], False, False),
        (False, ["b"], False, True),
        (False, ["b"], True, False),
        # A run that died, or an earlier release.
        (True, [], False, True),
        (True, [], True, True),
    ],
)
def test_who_gave_closes_the_port(opened: bool, gives: list[str], check: bool, closes: bool) -> None:
    tasks = yaml.safe_load((PROJECT / "roles/build/tasks/main.yml").read_text())
    (close,) = (one for one in tasks if one.get("ansible.builtin.include_role", {}).get("tasks_from") == "close")
    assert close["vars"] == {"firewall_rule": {"name": "build"}}
    said = jinja2.Environment(autoescape=False).compile_expression(close["when"])
    given = {"__build_look": {"open": opened}, "__build_part": {"gives": gives}, "ansible_check_mode": check}
    assert said(**given) is closes


# --- as Ansible runs them


def module(name: str, **given: Any) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", f"ansible_collections.onprem.llm.plugins.modules.{name}"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": {"_ansible_remote_tmp": "/tmp", **given}}),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_the_modules_make_a_build(tree: Path) -> None:
    at = {"tree": str(tree)}
    seen = module("build_info", component="hello", **at)
    assert (seen["changed"], seen["complete"], seen["key"], seen["marker"]) == (False, False, "1-trixie", {})
    assert module("build_tree", state="prepared", _ansible_check_mode=True, **at)["changed"]
    assert not tree.parent.exists()
    begun = module("build_tree", state="prepared", **at)
    assert begun["changed"] and not begun["complete"]
    assert module("build_step", argv=["cp", "/bin/sh", f"{tree}.stage/"], _ansible_check_mode=True, **at)["changed"]
    failed = module("build_tree", state="complete", component="hello", builder="h1", facts={}, **at)
    assert "left nothing" in failed["msg"]
    assert module("build_step", argv=["cp", "/bin/sh", f"{tree}.stage/"], **at)["log"] == f"{tree}.log"
    made = module("build_tree", state="complete", component="hello", builder="h1", facts={"a": 1}, **at)
    assert made["changed"] and made["marker"]["facts"] == {"a": 1}
    for state in ("prepared", "complete"):
        again = module("build_tree", state=state, **at)
        assert not again["changed"] and again["complete"] and again["marker"] == made["marker"]
    assert module("build_info", component="hello", **at)["marker"] == made["marker"]
    assert [module("build_info", component="hello", rule=one, **at)["open"] for one in (str(tree), f"{tree}/no")] == [
        True,
        False,
    ]
    assert "altered" not in module("build_tree", state="packed", folder=f"{tree}.offered", **at).get("msg", "")
    assert "folder" in module("build_tree", state="packed", **at)["msg"]
