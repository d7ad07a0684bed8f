# SPDX-License-Identifier: GPL-3.0-or-later
"""Who goes back: hosts that serve alike, and of these whoever has something to go back to."""

from __future__ import annotations

from typing import Any

from ansible_collections.onprem.llm.plugins.module_utils.rollout import back

STORE = "/srv/llm/models/hub/onprem/tiny"


def host(
    version: str = "2", revision: str = "v2", before: str = "1", owes: str = "", state: str = ""
) -> dict[str, Any]:
    """``state``: empty for facts of an older release, which do not have it."""
    models = {"assistant": {"pointer": f"{STORE}/{revision}", "previous": f"{STORE}/v1" if before else ""}}
    previous = {"version": before, "pointer": "/opt/1"} if before else {}
    section = {"version": version, "pointer": f"/opt/{version}", "previous": previous, "models": models}
    section |= {"state": state} if state else {}
    debts = [{"component": owes, "what": "rollout", "why": "it broke off"}] if owes else []
    return {"format": 1, "components": {"llamacpp": section}, "debts": debts}


def turns(**hosts: dict[str, Any] | None) -> back.Turns:
    return back.turns("llamacpp", hosts)


def test_hosts_that_serve_alike_go_together() -> None:
    found = turns(a=host(), b=host())
    step = "llamacpp from 2 to 1, assistant from v2 to v1"
    assert found == {"going": {"a": step, "b": step}, "left": {}, "refused": ""}
    # What the change brought goes, and what it did not touch is not named.
    new = host(version="1")
    new["components"]["llamacpp"]["models"] |= {
        "vectors": {"pointer": f"{STORE}/v9", "previous": ""},
        "same": {"pointer": f"{STORE}/v3", "previous": f"{STORE}/v3"},
    }
    assert turns(a=new)["going"] == {"a": "assistant from v2 to v1, vectors goes"}
    new["components"]["llamacpp"]["models"].clear()
    assert turns(a=new)["going"] == {"a": "the settings of llamacpp"}
    new["components"]["llamacpp"]["pointer"] = "/opt/1-other"
    assert turns(a=new)["going"] == {"a": "llamacpp 1 to the build before"}


def test_a_host_that_is_still_on_the_former_version_is_not_taken_further_back() -> None:
    found = turns(a=host(), b=host("1", "v1", "0"))
    assert found["refused"] == (
        f"The hosts of this run do not serve llamacpp alike: 2 on a and 1 on b; assistant from {STORE}/v2 on a and "
        f"{STORE}/v1 on b. One step back is not the same for all of them. Name those that shall go back with --limit. "
        "Nothing was changed."
    )
    assert "assistant from" in turns(a=host(revision="v2"), b=host(revision="v3"))["refused"]
    # Options differ in neither: whoever still owes the change has not come to it, or not to its end.
    assert "none on a and a change is under way on b" in turns(a=host(), b=host(owes="llamacpp"))["refused"]
    assert turns(a=host(), b=host(owes="nginx"))["refused"] == ""


def test_another_build_of_the_same_version_is_a_step_too() -> None:
    def built(tree: str, before: str) -> dict[str, Any]:
        one = host()
        section = one["components"]["llamacpp"]
        section["pointer"], section["previous"]["pointer"] = f"/opt/{tree}", f"/opt/{before}"
        return one

    assert "alike: 2-b on a and 2-a on b." in turns(a=built("2-b", "2-a"), b=built("2-a", "1"))["refused"]
    # Another system has other trees.
    assert turns(a=built("2-deb", "1-deb"), b=built("2-ubu", "1-ubu"))["refused"] == ""


def test_models_that_one_host_alone_serves_are_no_difference() -> None:
    other = host()
    other["components"]["llamacpp"]["models"] = {"vectors": {"pointer": f"{STORE}/v7", "previous": f"{STORE}/v6"}}
    assert turns(a=host(), b=other)["refused"] == ""


def test_a_lost_host_and_a_new_one_stay_as_they_are() -> None:
    found = turns(a=host(), lost=None, new=host("3", before=""), empty={"format": 1, "components": {}, "debts": []})
    assert (list(found["going"]), found["refused"]) == (["a"], "")
    assert found["left"] == {
        "lost": "nobody could ask it; when it answers: the same again with --limit lost",
        "new": "it has served with no other llamacpp before",
        "empty": "it has served with no other llamacpp before",
    }
    assert turns(lost=None)["refused"] == (
        "No host of this run can go back with llamacpp. lost: nobody could ask it; when it answers: the same again "
        "with --limit lost. Nothing was changed."
    )


def test_a_change_that_is_not_through_is_what_it_goes_back_from() -> None:
    found = turns(a=host(before="", owes="llamacpp"), b=host(owes="llamacpp"))
    step = "llamacpp from a change that is not through"
    assert found["going"] == {"a": step, "b": step}
    begun = {now: turns(a=host(before="", owes="llamacpp", state=now)) for now in ("switching", "watching", "failed")}
    assert {now: found["going"]["a"] for now, found in begun.items()} == dict.fromkeys(begun, step)
    nothing = {"format": 1, "components": {}, "debts": [{"component": "llamacpp", "what": "rollout", "why": "?"}]}
    assert list(turns(a=nothing)["going"]) == ["a"]


def test_a_change_that_is_owed_and_has_not_begun_is_none() -> None:
    """A run that ended in the canary's turn: the others owe the change, and serve with what they had."""
    waits = host(owes="llamacpp", state="good")
    assert turns(b=waits, c=waits)["going"]["b"] == "llamacpp from 2 to 1, assistant from v2 to v1"
    assert turns(b=host(before="", owes="llamacpp", state="good"))["left"] == {
        "b": "it has served with no other llamacpp before"
    }
    refused = turns(a=host(owes="llamacpp", state="watching"), b=waits, c=waits)["refused"]
    assert "a change is under way on a and none on b, c. One step back is not the same for all of them" in refused
