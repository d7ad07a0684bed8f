# SPDX-License-Identifier: GPL-3.0-or-later
"""rollout_switch on a small host: what it serves with after each switch, refusal and broken-off run."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rollouts import GATE, Host

from ansible_collections.onprem.llm.plugins.module_utils.rollout import beside
from ansible_collections.onprem.llm.plugins.module_utils.rollout.record import (
    Configuration,
    Record,
    Service,
    configuration,
)

UNIT = "engine@chat.service"


@pytest.fixture(scope="module")
def runner() -> Iterator[subprocess.Popen[str]]:
    program = [sys.executable, str(Path(__file__).with_name("rollout_runner.py"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, text=True, env=environment) as running:
        yield running
        assert running.stdin
        running.stdin.close()


class Lab(Host):
    """A host, and the module run on it."""

    def __init__(self, root: Path, runner: subprocess.Popen[str]) -> None:
        super().__init__(root)
        self.runner = runner

    def run(self, state: str, kill: int = 0, check: bool = False, **options: Any) -> dict[str, Any]:
        args = {
            **{"component": "engine", "state": state, "record": str(self.root / "record"), "timeout": 10, **options},
            **{"gate": {**GATE, **options.get("gate", {})}, "_ansible_check_mode": check},
            **{"_ansible_remote_tmp": str(self.root), "_ansible_tmpdir": str(self.root)},
        }
        assert self.runner.stdin and self.runner.stdout
        self.runner.stdin.write(json.dumps({"args": args, "kill": kill, "path": str(self.root / "bin")}) + "\n")
        self.runner.stdin.flush()
        answer: dict[str, Any] = json.loads(self.runner.stdout.readline())
        return answer

    def good(self, state: str = "present", **options: Any) -> dict[str, Any]:
        answer = self.run(state, **options)
        assert not answer.get("failed"), answer["msg"]
        return answer


@pytest.fixture
def lab(tmp_path: Path, runner: subprocess.Popen[str]) -> Iterator[Lab]:
    host = Lab(tmp_path, runner)
    yield host
    host.close()


def serving(lab: Lab, engine: str = "1.0", **behaviour: Any) -> str:
    """A host that serves `chat` and is recorded as good; where its model is."""
    place = lab.weights("chat", "old", **behaviour)
    lab.good(**lab.wanted(engine, {"chat": place}))
    assert lab.serves("chat") == f"{place} {engine}"
    lab.log.clear()
    lab.asked.clear()
    return place


# --- what is owed


def test_a_first_installation(lab: Lab) -> None:
    wanted = lab.wanted("1.0", {"chat": lab.weights("chat", "old")})
    said = lab.good("compared", **wanted)
    assert (said["needed"], said["changed"], said["state"]) == ("start", False, "")
    assert lab.good("compared", check=True, **wanted)["changed"]
    assert not (lab.root / "served").exists() and not lab.log
    said = lab.good(gate={"watch": 90}, **wanted)
    assert (said["needed"], said["changed"], said["state"], said["watching"]) == ("start", True, "good", False)
    assert lab.unit("chat").enabled
    assert lab.record()["previous"] is None
    assert lab.good("compared", **wanted)["needed"] == "no"
    assert not lab.good(**wanted)["changed"]


def test_a_service_that_is_down_is_started_with_what_it_had(lab: Lab) -> None:
    place = serving(lab)
    lab.unit("chat").stop()
    said = lab.good("compared", **lab.wanted("1.0", {"chat": place}))
    assert (said["needed"], said["reasons"]) == ("start", [f"{UNIT}: it is inactive"])
    lab.good(gate={"watch": 90}, **lab.wanted("1.0", {"chat": place}))
    assert lab.record()["state"] == "good" and lab.serves("chat") == f"{place} 1.0"


def test_only_what_changed_is_restarted(lab: Lab) -> None:
    old = {name: lab.weights(name, "old") for name in ("chat", "other")}
    lab.good(**lab.wanted("1.0", old))
    lab.log.clear()
    wanted = lab.wanted("1.0", {**old, "other": lab.weights("other", "new")})
    said = lab.good("compared", **wanted)
    assert said["needed"] == "swap"
    assert [one["model"] for one in said["restarts"]] == ["other"]
    assert {one["before_header"] for one in said["diff"]} == {str(lab.root / "served/other"), str(lab.env("other"))}
    lab.good(**wanted)
    assert [line for line in lab.log if "chat" in line] == []
    assert lab.serves("other") == f"{lab.weights('other', 'new')} 1.0"


def test_what_one_needs_may_be_what_another_has_until_then(lab: Lab) -> None:
    old = {name: lab.weights(name, "old") for name in ("chat", "other")}
    lab.good(**lab.wanted("1.0", old))
    urls = [f"http://127.0.0.1:{lab.port(name)}" for name in ("chat", "other")]
    lab.ports["chat"], lab.ports["other"] = lab.ports["other"], lab.ports["chat"]
    wanted = lab.wanted("1.0", old)
    said = lab.good("compared", **wanted)
    assert [one["url"] for one in said["restarts"]] == urls, "that is where requests reach them until then"
    assert [one["becomes"] for one in said["restarts"]] == said["urls"] == urls[::-1]
    lab.good(**wanted)
    whole(lab)


def test_a_host_of_an_older_release_is_taken_over_as_it_is(lab: Lab) -> None:
    place = serving(lab)
    (lab.root / "record/engine.json").unlink()
    said = lab.good(**lab.wanted("1.0", {"chat": place}))
    assert (said["needed"], said["state"], said["version"]) == ("start", "good", "1.0")
    assert lab.log == [], "nothing is restarted"
    assert lab.asked, "and nothing is good that was not asked"


# --- a switch that goes well


def test_a_switch(lab: Lab) -> None:
    old = serving(lab)
    new = lab.weights("chat", "new")
    wanted = lab.wanted("2.0", {"chat": new})
    assert lab.good("compared", **wanted)["needed"] == "swap"
    said = lab.good(gate={"watch": 2}, **wanted)
    assert (said["state"], said["watching"], said["version"]) == ("watching", True, "1.0")
    assert lab.good("compared", **wanted)["needed"] == "watch"
    assert not lab.good(gate={"watch": 2}, **wanted)["changed"]
    said = lab.good("watched", gate={"watch": 2})
    assert (said["state"], said["version"], said["previous"]) == ("good", "2.0", "1.0")
    assert not lab.good("watched")["changed"]
    assert lab.serves("chat") == f"{new} 2.0"
    assert lab.record()["previous"]["links"][str(lab.root / "served/chat")] == old
    assert lab.good("compared", **wanted)["needed"] == "no"


def test_a_host_that_went_down_is_no_service_that_died(lab: Lab) -> None:
    """What came up with it is asked, and watched from then on; only what then dies, or answers badly, goes back."""
    old = serving(lab)
    for version, answer in (("2.0", "Paris"), ("3.0", "Rome")):
        new = lab.weights("chat", version, answer="Paris")
        lab.good(gate={"watch": 2}, **lab.wanted(version, {"chat": new}))
        lab.weights("chat", version, answer=answer)
        record = lab.record()
        (lab.root / "record/engine.json").write_text(json.dumps(record | {"boot": "the one before", "since": 0}))
        lab.unit("chat").start()
        begun, said = time.monotonic(), lab.run("watched", gate={"watch": 2})
        if answer == "Paris":
            assert (said["state"], said["version"], said["previous"]) == ("good", "2.0", "1.0")
            assert time.monotonic() - begun > 1.5, "it was not watched anew"
            old = new
    assert "does not match /paris/" in said["msg"] and said["rolled_back"]
    assert lab.serves("chat") == f"{old} 2.0"


def test_where_what_is_only_watched_answers(lab: Lab) -> None:
    """The run before may have ended before it sent requests here again."""
    old, url = serving(lab), f"http://127.0.0.1:{lab.port('chat')}"
    wanted = lab.wanted("2.0", {"chat": lab.weights("chat", "new")})
    lab.good(gate={"watch": 2}, **wanted)
    said = lab.good("compared", **wanted)
    assert (said["needed"], said["restarts"], said["urls"]) == ("watch", [], [url])
    # Or before it sent them to another port.
    record = lab.record()
    record["good"]["services"][0]["url"] = "http://127.0.0.1:9"
    (lab.root / "record/engine.json").write_text(json.dumps(record))
    said = lab.good("compared", **wanted)
    assert (said["needed"], said["urls"]) == ("watch", [url])
    assert [(one["url"], one["becomes"], one["beside"]) for one in said["restarts"]] == [
        ("http://127.0.0.1:9", url, False)
    ]
    record["good"]["services"][0]["url"] = url
    (lab.root / "record/engine.json").write_text(json.dumps(record))
    lab.good("watched", gate={"watch": 1})
    lab.good("previous", gate={"watch": 2})
    said = lab.good("previous", check=True)
    assert (said["needed"], said["urls"]) == ("watch", [url])
    assert lab.serves("chat") == f"{old} 1.0"


def test_a_way_back_that_broke_off_is_gone_to_its_end(lab: Lab) -> None:
    old = serving(lab)
    lab.good(**lab.wanted("2.0", {"chat": lab.weights("chat", "new")}))
    lab.good("previous", gate={"watch": 2})
    assert lab.record()["state"] == "watching"
    lab.good("previous", gate={"watch": 0})
    lab.good("watched", gate={"watch": 0})
    assert (lab.serves("chat"), lab.record()["good"]["version"]) == (f"{old} 1.0", "1.0")


def test_back_from_what_was_refused_changes_nothing(lab: Lab) -> None:
    lab.good(**lab.wanted("0.9", {"chat": lab.weights("chat", "oldest")}))
    serving(lab)
    lab.run("present", **lab.wanted("2.0", {"chat": lab.weights("chat", "new", answer="Rome")}))
    lab.log.clear()
    said = lab.run("previous", check=True)
    assert "engine 2.0 was refused here, and 1.0 from before it serves already" in said["msg"]
    assert lab.run("previous")["failed"] and not lab.log


def test_back_to_what_was_before_and_forth_again(lab: Lab) -> None:
    old = serving(lab)
    assert "nothing to go back to" in lab.run("previous")["msg"]
    new = lab.weights("chat", "new")
    lab.good(**lab.wanted("2.0", {"chat": new}))
    said = lab.run("previous", check=True)
    assert said["changed"] and [one["model"] for one in said["restarts"]] == ["chat"]
    assert lab.serves("chat") == f"{new} 2.0"
    said = lab.good("previous")
    assert (said["version"], said["previous"]) == ("1.0", "2.0")
    assert lab.serves("chat") == f"{old} 1.0" and lab.env("chat").read_text() == lab.start_text("chat", old)
    lab.good("previous")
    assert lab.serves("chat") == f"{new} 2.0"


def test_a_model_that_is_placed_here_no_more(lab: Lab) -> None:
    old = {name: lab.weights(name, "old") for name in ("chat", "other")}
    lab.good(**lab.wanted("1.0", old))
    wanted = lab.wanted("1.0", {"chat": old["chat"]})
    said = lab.good("compared", **wanted)
    assert said["needed"] == "swap" and "engine@other.service: it is placed here no more" in said["reasons"]
    gone = {"unit": "engine@other.service", "model": "other", "url": f"http://127.0.0.1:{lab.port('other')}"}
    assert said["restarts"] == [{**gone, "becomes": "", "beside": False}], "its answers end first"
    lab.asked.clear()
    lab.good(**wanted)
    assert "engine@other.service" not in [unit for unit, _ in lab.asked], "nobody needs its speed"
    assert lab.unit("other").active == "inactive" and not lab.unit("other").enabled
    assert not lab.env("other").exists() and lab.unit("chat").active == "active"
    lab.good("previous")
    assert lab.serves("other") and lab.env("other").exists()


def test_one_that_no_record_knows_is_brought_back_too(lab: Lab) -> None:
    old = {name: lab.weights(name, "old") for name in ("chat", "other")}
    lab.good(**lab.wanted("1.0", old))
    (lab.root / "record/engine.json").unlink()
    wanted = lab.wanted("2.0", {"chat": lab.weights("chat", "new", starts=False)})
    gone = [{"unit": "engine@other.service", "paths": [str(lab.env("other"))]}]
    said = lab.good("compared", gone=gone, **wanted)
    assert [one for one in said["restarts"] if one["unit"] == "engine@other.service" and not one["url"]]
    assert lab.run("present", gone=gone, **wanted)["rolled_back"]
    assert lab.serves("chat") == f"{old['chat']} 1.0" and lab.serves("other") == f"{old['other']} 1.0"


# --- what is refused

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "cannot be loaded": ({"starts": False}, f"{UNIT} "),
    "dies when asked": ({"dies": True}, "broke its answer off"),
    "gibberish": ({"answer": "GGGGGGGGGGGGGGGGGGGGGGGGGGGGGGGGGGGG"}, "the same signs over and over"),
    "says nothing": ({"answer": " "}, "nothing but blanks"),
    "wrong": ({"answer": "It is Rome."}, "which does not match /paris/"),
    "another model": ({"models": ["stranger"]}, "does not list 'chat', only stranger"),
    "three times slower": ({"speed": 40}, "tok/s before, so at least"),
    "dies soon after": ({"lives": 1.0}, "died after it had passed the gate"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_model_is_refused_and_the_old_one_serves_again(lab: Lab, name: str) -> None:
    behaviour, why = BAD[name]
    old = serving(lab, speed=120)
    wanted = lab.wanted("2.0", {"chat": lab.weights("chat", "new", **{"speed": 120, **behaviour})})
    gate = {"watch": 4, "speed_ratio": 0.5}
    answer = lab.run("present", gate=gate, **wanted)
    if not answer.get("failed"):
        assert name == "dies soon after", answer
        answer = lab.run("watched", gate=gate)
    assert why in answer["msg"] and "It serves again with 1.0." in answer["msg"], answer
    assert f"End of its journal (journalctl -u {UNIT}):\n" in answer["msg"]
    assert answer["rolled_back"]
    assert lab.serves("chat") == f"{old} 1.0"
    record = lab.record()
    assert (record["state"], record["good"]["version"], record["wanted"]["version"]) == ("failed", "1.0", "2.0")
    assert why in record["why"]
    # Asked for again it is tried again; asked for no more, all is well without a restart.
    assert lab.good("compared", **wanted)["needed"] == "swap"
    lab.log.clear()
    lab.good(**lab.wanted("1.0", {"chat": old}))
    assert lab.record()["state"] == "good" and not [line for line in lab.log if "restart" in line]


def test_a_first_installation_has_nothing_to_go_back_to(lab: Lab) -> None:
    answer = lab.run("present", **lab.wanted("1.0", {"chat": lab.weights("chat", "old", answer="Rome")}))
    assert "there is nothing to go back to" in answer["msg"] and not answer["rolled_back"]
    assert lab.record()["good"] is None and lab.record()["state"] == "failed"
    place = lab.weights("chat", "old", answer="Paris")
    lab.unit("chat").start()
    assert lab.good(**lab.wanted("1.0", {"chat": place}))["state"] == "good"


def test_a_host_of_an_older_release_whose_model_answers_otherwise(lab: Lab) -> None:
    place = serving(lab)
    (lab.root / "record/engine.json").unlink()
    lab.weights("chat", "old", answer="Rome")
    lab.unit("chat").start()
    lab.log.clear()
    said = lab.run("present", **lab.wanted("1.0", {"chat": place}))["msg"]
    assert "It was not touched and serves on" in said and "rollout_gates" in said, said
    assert not lab.log and lab.record()["good"] is None


def test_what_was_found_serves_again_and_is_not_called_good(lab: Lab) -> None:
    """A host of an older release whose model the gate would not let pass."""
    old = serving(lab)
    (lab.root / "record/engine.json").unlink()
    lab.weights("chat", "old", answer="Rome")
    lab.unit("chat").start()
    answer = lab.run("present", **lab.wanted("2.0", {"chat": lab.weights("chat", "new", answer="Rome")}))
    assert answer["rolled_back"] and lab.serves("chat") == f"{old} 1.0"
    assert lab.record()["good"] is None


def test_a_slower_model_may_be_as_slow_as_the_plan_says(lab: Lab) -> None:
    old = lab.weights("chat", "old", speed=200)
    lab.good(**lab.wanted("1.0", {"chat": old}, predicted=60.0))
    wanted = lab.wanted("1.0", {"chat": lab.weights("chat", "new", speed=60)}, predicted=20.0)
    assert lab.good(gate={"speed_ratio": 0.5}, **wanted)["state"] == "good"


def test_a_target_that_is_not_there_changes_nothing(lab: Lab) -> None:
    serving(lab)
    answer = lab.run("present", **lab.wanted("2.0", {"chat": str(lab.root / "models/chat/absent")}))
    assert "is not there" in answer["msg"] and "nothing was changed" in answer["msg"]
    assert not lab.log and lab.record()["state"] == "good"


def test_something_else_in_the_place_of_a_file_changes_nothing(lab: Lab) -> None:
    serving(lab)
    (lab.root / "etc/stone").mkdir()
    wanted = lab.wanted("2.0", {"chat": lab.weights("chat", "new")})
    wanted["files"].append({"path": str(lab.root / "etc/stone"), "content": "x"})
    assert "is no plain file" in lab.run("present", **wanted)["msg"]
    assert not lab.log and lab.record()["state"] == "good"


def test_a_step_that_fails_goes_back(lab: Lab) -> None:
    old = serving(lab)
    lab.fails = "daemon-reload"
    answer = lab.run("present", **lab.wanted("2.0", {"chat": lab.weights("chat", "new")}))
    assert "systemctl daemon-reload failed" in answer["msg"] and answer["rolled_back"]
    assert lab.serves("chat") == f"{old} 1.0"


def test_whatever_goes_wrong_goes_back(lab: Lab) -> None:
    old = serving(lab)
    (lab.root / "odd").write_bytes(b"\xff")
    new = lab.weights("chat", "new")
    answer = lab.run("present", **lab.wanted("2.0", {"chat": new}, key_file=str(lab.root / "odd")))
    assert "UnicodeDecodeError" in answer["msg"] and answer["rolled_back"]
    assert lab.serves("chat") == f"{old} 1.0"


def test_embeddings(lab: Lab) -> None:
    place = lab.weights("chat", "old", vectors=[[1.0, 0.0], [0.0, 1.0]])
    lab.good(**lab.wanted("1.0", {"chat": place}, kind="embedding", dimensions=2))
    for vectors, why in [
        ([[1.0, 0.0], [1.0, 0.0]], "same vector"),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "3 dimensions"),
        ([[float("nan"), 0.0], [0.0, 1.0]], "no numbers"),
        ([[0.0, 0.0], [0.0, 0.0]], "all zero"),
        ([[1.0, 0.0]], "1 vectors"),
    ]:
        new = lab.weights("chat", "new", vectors=vectors)
        answer = lab.run("present", **lab.wanted("1.0", {"chat": new}, kind="embedding", dimensions=2))
        assert why in answer["msg"] and answer["rolled_back"]
        assert lab.serves("chat") == f"{place} 1.0"


# --- a copy that answers meanwhile


def test_a_copy_answers_while_the_original_is_replaced(lab: Lab) -> None:
    old = lab.weights("chat", "old")
    lab.good(**lab.wanted("1.0", {"chat": old}, beside=True))
    wanted = lab.wanted("2.0", {"chat": lab.weights("chat", "new")}, beside=True)
    assert [one["beside"] for one in lab.good("compared", **wanted)["restarts"]] == [True]
    here, there = f"127.0.0.1:{lab.port('chat')}", f"127.0.0.1:{lab.port('chat') + 1000}"
    said = lab.good("beside", models=["chat"])
    assert (said["changed"], said["moves"]) == (True, {here: there})
    assert lab.serves("chat") == f"{old} 1.0", "the original is left alone"
    assert lab.serves("chat--beside") == f"{old} 1.0"
    assert lab.unit("chat--beside").enabled, "a host that starts again here is asked at the copy"
    assert not lab.good("beside", models=["chat"])["changed"]
    lab.good(**wanted)
    assert lab.serves("chat").endswith("2.0") and lab.serves("chat--beside") == f"{old} 1.0"
    # A run that ends here leaves it, and the next one sees it.
    said = lab.good("compared", **wanted)
    assert (said["needed"], said["reasons"]) == (
        "watch",
        ["engine@chat--beside.service still runs beside the original"],
    )
    assert lab.good("alone", check=True)["moves"] == {here: there}
    assert lab.good("alone")["changed"]
    assert lab.serves("chat--beside") == "" and not lab.env("chat--beside").exists()
    assert not lab.unit("chat--beside").enabled and not lab.good("alone")["changed"]
    assert lab.good("compared", **wanted)["needed"] == "no"
    whole(lab)


def test_a_copy_answers_on_where_the_way_back_fails_too(lab: Lab) -> None:
    old = lab.weights("chat", "old")
    lab.good(**lab.wanted("1.0", {"chat": old}, beside=True))
    lab.good("beside", models=["chat"])
    lab.weights("chat", "old", starts=False)
    answer = lab.run("present", **lab.wanted("2.0", {"chat": lab.weights("chat", "new", answer="Rome")}, beside=True))
    assert "Going back to 1.0 did not succeed either" in answer["msg"]
    assert "Until then its copy answers on (engine@chat--beside.service)." in answer["msg"]
    assert lab.good("alone", check=True)["moves"] == {} and not lab.good("alone")["changed"]
    assert (lab.serves("chat"), lab.serves("chat--beside")) == ("", f"{old} 1.0")
    lab.good(**lab.wanted("3.0", {"chat": lab.weights("chat", "newer")}, beside=True))
    assert lab.good("alone")["changed"]
    whole(lab)


def test_a_copy_of_what_lost_its_files_and_links(lab: Lab) -> None:
    """It runs on, could not be started again as it stands, and is put right without a moment of silence."""
    old = lab.weights("chat", "old")
    wanted = lab.wanted("1.0", {"chat": old}, beside=True)
    lab.good(**wanted)
    for link in map(Path, configuration(wanted).links):
        link.unlink()
        link.symlink_to("nowhere")
    lab.env("chat").write_text("damaged\n")
    assert lab.good("beside", models=["chat"])["moves"]
    assert lab.serves("chat") == lab.serves("chat--beside") == f"{old} 1.0"
    lab.good(**wanted)
    lab.good("alone")
    whole(lab)


def test_where_requests_may_come_in() -> None:
    """The same before and after the switch, so that nothing is closed in between and a rollback finds it open."""

    def at(*ports: int, twice: bool = False) -> Configuration:
        services = [
            Service(f"engine@{port}.service", url=f"http://[2001:db8::1]:{port}", beside=twice) for port in ports
        ]
        return Configuration(f"{ports} {twice}", services=(*services, Service("engine@found.service")))

    old, new, older = at(9101), at(9201, twice=True), at(9001)
    asked = functools.partial(Record, "engine")
    assert beside.ports(new, None) == [9201, 10201]
    assert beside.ports(old, asked(good=old, previous=older)) == [9001, 9101]
    assert beside.ports(new, asked(good=old, previous=older)) == [9101, 9201, 10201]
    assert beside.ports(new, asked(good=old, previous=older, wanted=new)) == [9101, 9201, 10201]
    assert beside.ports(new, asked(good=new, previous=old)) == [9101, 9201, 10201]
    assert beside.ports(new, asked(found=old)) == [9101, 9201, 10201]
    assert beside.ports(new, asked(good=new)) == [9201, 10201]
    assert beside.ports(Configuration(""), None) == []


def test_no_copy_where_one_does_not_fit(lab: Lab) -> None:
    lab.good(**lab.wanted("1.0", {"chat": lab.weights("chat", "old")}, beside=False))
    wanted = lab.wanted("2.0", {"chat": lab.weights("chat", "new")}, beside=True)
    assert [one["beside"] for one in lab.good("compared", **wanted)["restarts"]] == [False]
    assert lab.good("beside", models=["chat"])["moves"] == {}


def test_a_copy_that_does_not_answer_leaves_all_as_it_is(lab: Lab) -> None:
    old = lab.weights("chat", "old")
    lab.good(**lab.wanted("1.0", {"chat": old}, beside=True))
    lab.weights("chat", "old", starts=False)
    answer = lab.run("beside", models=["chat"])
    assert "serves as before" in answer["msg"] and "rollout_beside" in answer["msg"]
    assert lab.serves("chat") == f"{old} 1.0" and not lab.env("chat--beside").exists()


def test_a_copys_port_that_is_taken(lab: Lab) -> None:
    old = lab.weights("chat", "old")
    lab.good(**lab.wanted("1.0", {"chat": old}, beside=True))
    lab.log.clear()
    with socket.create_server(("127.0.0.1", lab.port("chat") + 1000)):
        answer = lab.run("beside", models=["chat"])
    assert (
        f"http://127.0.0.1:{lab.port('chat') + 1000} is taken" in answer["msg"] and "serves as before" in answer["msg"]
    )
    assert not lab.log and not lab.env("chat--beside").exists()
    lab.ports["chat"] = 64600
    with pytest.raises(beside.BesideError, match="the last one is 65535"):
        wanted = lab.wanted("1.0", {"chat": old})
        beside.copy(configuration(wanted), configuration(wanted).services[0])


def test_what_fits_twice() -> None:
    def placed(model: str, weights: int, node: int = 0, **more: Any) -> dict[str, Any]:
        ram: dict[str, Any] = {**dict.fromkeys(("kv_cache", "compute", "overhead"), 1), "weights": weights, "others": 0}
        ram |= {"device": "ram", "capacity": 100, "reserve": 10}
        return {
            "model": model,
            "fits": "memory",
            "memory": [ram],
            "nodes": [{"node": node, "capacity": 50, "used": weights}],
        } | more

    assert beside.fits([placed("a", 25)]) == {"a": True}
    assert beside.fits([placed("a", 20), placed("b", 35, 1)]) == {"a": True, "b": False}
    assert beside.fits([placed("a", 26)]) == {"a": False}, "not on its node"
    assert beside.fits([placed("a", 20, fits="paged")]) == {"a": False}


# --- records that cannot be read


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "is not what onprem.llm writes"),
        ('{"format": 2}', "a newer onprem.llm was here"),
        ('{"format": 1, "state": "odd"}', "is not what onprem.llm writes"),
        ("[]", "is not what onprem.llm writes"),
    ],
)
def test_a_record_that_cannot_be_read(lab: Lab, text: str, why: str) -> None:
    place = serving(lab)
    (lab.root / "record/engine.json").write_text(text)
    answer = lab.run("present", **lab.wanted("1.0", {"chat": place}))
    assert why in answer["msg"] and "Move it away" in answer["msg"] and "Traceback" not in answer["msg"]
    assert (lab.root / "record/engine.json").read_text() == text and not lab.log


def test_the_local_facts_are_kept_in_step(lab: Lab) -> None:
    place = serving(lab)
    facts = str(lab.root / "facts")
    wanted = {**lab.wanted("1.0", {"chat": place}), "facts": facts}
    assert lab.good("compared", **wanted)["needed"] == "start"
    lab.good(**wanted)
    assert json.loads(Path(facts).read_text())["components"]["engine"]["version"] == "1.0"
    assert lab.good("compared", **wanted)["needed"] == "no"
    bad = lab.wanted("2.0", {"chat": lab.weights("chat", "new", answer="Rome")})
    assert lab.run("present", facts=facts, **bad)["rolled_back"]
    assert [debt["what"] for debt in json.loads(Path(facts).read_text())["debts"]] == ["rollout"]
    Path(facts).write_text("{")
    assert "is no JSON" in lab.run("present", **wanted)["msg"]


# --- runs that break off


def whole(lab: Lab) -> dict[str, Any]:
    """The record, after it was held against the host: what is good serves, and nothing half-done is left."""
    record = lab.record()
    good = record["good"]
    for service in good["services"]:
        model = service["model"]
        place = good["links"][str(lab.root / "served" / model)]
        assert lab.serves(model) == f"{place} {good['version']}" and lab.unit(model).enabled
        assert os.readlink(lab.root / "served" / model) == place
        assert lab.env(model).read_text() == lab.start_text(model, place)
    served = {service["unit"] for service in good["services"]}
    assert not [unit.name for unit in lab.units.values() if unit.active == "active" and unit.name not in served]
    assert {path.stem for path in (lab.root / "etc").iterdir()} == {one["model"] for one in good["services"]}
    assert not [path for path in lab.root.rglob(".*.new")]
    return record


def again(lab: Lab, wanted: dict[str, Any], gate: dict[str, Any]) -> dict[str, Any]:
    """What site.yml does with a host; the last answer."""
    if lab.run("compared", **wanted)["needed"] != "no":
        answer = lab.run("present", gate=gate, **wanted)
        if answer.get("failed"):
            return answer
    return lab.run("watched", gate=gate)


@pytest.mark.parametrize("case", ["good", "wrong answer", "dies", "other models", "back"])
def test_a_run_that_is_killed_at_any_step_is_taken_up(lab: Lab, case: str) -> None:
    """Killed before its first step, its second, and so on; each time the next run ends with what passed the gate."""
    every = 1 if os.environ.get("ONPREM_LONG") else 23
    behaviour = {"wrong answer": {"answer": "Rome"}}.get(case, {})
    gate = {"watch": 1 if case == "dies" else 0}
    bad = case in ("wrong answer", "dies")
    kill, killed = 1, True
    while killed:
        models = {"chat": lab.weights("chat", "old"), "leaves": lab.weights("leaves", "old")}
        old = lab.wanted("1.0", models)
        lab.good(**old)
        models = {**models, "chat": lab.weights("chat", f"new-{kill}", **behaviour)}
        if case == "other models":
            models = {"chat": models["chat"], "comes": lab.weights("comes", "new")}
        new = lab.wanted("2.0", models)
        if case == "back":
            # What was before is 2.0, so that is what the way back leads to.
            lab.good(**new)
            lab.good(**old)
            killed = lab.run("previous", kill=kill).get("killed", False)
        elif case == "dies":
            lab.good(gate=gate, **new)
            lab.unit("chat").crash(lab.unit("chat").pid)
            killed = lab.run("watched", kill=kill, gate=gate).get("killed", False)
            lab.weights("chat", f"new-{kill}", starts=False)
        else:
            killed = lab.run("present", kill=kill, gate=gate, **new).get("killed", False)
        record = lab.record()
        assert record["good"]["version"] == "1.0" or (record["state"] == "good" and not bad)
        last = again(lab, new, gate)
        assert bool(last.get("failed")) == bad, last
        record = whole(lab)
        assert (record["state"], record["good"]["version"]) == (("failed", "1.0") if bad else ("good", "2.0"))
        kill += every
    assert kill > 30, "the kills reached every part of the switch"


def test_two_runs_at_once(lab: Lab) -> None:
    """The second waits: the run of a controller that died may still be at it."""
    place = serving(lab)
    wanted = lab.wanted("1.0", {"chat": place})
    lab.unit("chat").stop()
    with open(lab.root / "record/.engine.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "another run switches engine" in lab.run("present", **wanted, timeout=0)["msg"]
        assert not lab.log
        threading.Timer(0.3, fcntl.flock, [held, fcntl.LOCK_UN]).start()
        lab.good(**wanted)
    assert lab.serves("chat") == f"{place} 1.0"
