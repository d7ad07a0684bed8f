# SPDX-License-Identifier: GPL-3.0-or-later
"""The transfer as Ansible sees it: the request of a host, what people are shown, and how it ends."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conventions
import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.module_utils.testing import patch_module_args
from conventions import PROJECT

from ansible_collections.onprem.llm.plugins.action import model_transfer as action
from ansible_collections.onprem.llm.plugins.module_utils.model_store import asked, manifest, progress, store, types
from ansible_collections.onprem.llm.plugins.module_utils.model_store.pieces import TreeHash
from ansible_collections.onprem.llm.plugins.module_utils.model_store.sharing import transfer_plan
from ansible_collections.onprem.llm.plugins.module_utils.model_store.types import ModelStatus, Status
from ansible_collections.onprem.llm.plugins.module_utils.model_store.unit import Look
from ansible_collections.onprem.llm.plugins.modules import model_transfer

BODY = b"weights" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
SOURCES = {
    "hub": {"type": "modelscope", "url": "https://hub.example"},
    "mirror": {"type": "mirror", "url": "https://user:geheim@mirror.example"},
    "other": {"type": "huggingface", "url": "https://other.example"},
}
MODEL: dict[str, Any] = {
    "name": "chat",
    "repo": "o/m",
    "revision": "main",
    "source": "hub",
    "include": ["*"],
    "exclude": [],
    "entry": "",
    "commit": "",
    "origin": "hub",
    "files": [{"path": "m.gguf", "size": len(BODY), "sha256": SHA256, "git_blob": ""}],
    "quantisation": "Q4_K_M",
}
SETTINGS: dict[str, Any] = {
    "store": "/srv/models",
    "models": [MODEL],
    "sources": SOURCES,
    "tokens": {"hub": "t0ken"},
    "fleet": {},
    "parallel": 4,
    "rate_limit": 0,
    "proxy": "",
    "no_proxy": "",
    "attempts": 5,
    "stall_seconds": 60,
    "minimum_rate": 1024,
}
FLEET = {
    "name": "gpu2",
    "address": "192.0.2.2",
    "peers": [["gpu1", "192.0.2.1"], ["gpu2", "192.0.2.2"]],
    "swarm_port": 7001,
    "announce_port": 7002,
}


def status(**changes: Any) -> Status:
    whole = {
        "request": "r1",
        "state": "running",
        "started": 1000.0,
        "updated": 1100.0,
        "models": [ModelStatus("chat", 247_400_000_000, 92_100_000_000, "fetching", "hub")],
        "rate": 98_300_000.0,
        "remaining": 155_300_000_000,
        "eta": 1580.0,
    }
    return Status(**{**whole, **changes})


# --- the request


def test_sources_are_asked_in_the_site_s_order_with_their_tokens() -> None:
    model = asked.request(SETTINGS).models[0]
    assert [source.name for source in model.sources] == ["mirror", "hub", "other"]
    assert [source.token for source in model.sources] == ["", "t0ken", ""]
    assert [file.path for file in model.files] == ["m.gguf"]


def test_a_fleet_is_the_hosts_in_their_order() -> None:
    own = {"type": "mirror", "url": "https://192.0.2.9:8470", "ca": "/etc/ca.crt", "fleet": True}
    found = asked.request({**SETTINGS, "sources": {"fleet-gpu9": own, **SOURCES}}).models[0].sources
    assert [(source.name, source.ca, source.fleet) for source in found][:2] == [
        ("fleet-gpu9", "/etc/ca.crt", True),
        ("mirror", "", False),
    ]
    fleet = asked.request({**SETTINGS, "fleet": FLEET}).fleet
    assert fleet is not None
    assert fleet.peers == (("gpu1", "192.0.2.1"), ("gpu2", "192.0.2.2"))
    assert (fleet.name, fleet.swarm_port, fleet.announce_port) == ("gpu2", 7001, 7002)
    assert asked.request(SETTINGS).fleet is None


# --- who lacks what, who asks, who gives


def look(name: str, complete: bool, key: str = "") -> dict[str, Any]:
    files = [f"{name} as it is"] if complete else []
    return {"name": name, "key": key or f"K-{name}", "complete": complete, "files": files, "commit": "", "origin": "o"}


def listing(name: str) -> dict[str, Any]:
    return {"name": name, "files": [name], "commit": "c", "origin": "hub", "repo": "told/elsewhere"}


def plan(host: str, looks: dict[str, list[dict[str, Any]]], **changes: Any) -> dict[str, Any]:
    hosts = list(looks)
    models = [{"name": one["name"], "repo": "o/m"} for one in looks[host]]
    given: dict[str, Any] = {"hosts": hosts, "peers": hosts, "listings": {}}
    return transfer_plan(models, host, looks=looks, **{**given, **changes})


def names(models: list[dict[str, Any]]) -> list[str]:
    return [model["name"] for model in models]


FRESH = {"a": [look("chat", False)], "b": [look("chat", False)], "c": [look("other", False)]}


def test_the_first_that_lacks_a_model_asks_for_all() -> None:
    assert [names(plan(host, FRESH)["asks"]) for host in FRESH] == [["chat"], [], ["other"]]
    # It failed: the next one is the first.
    assert names(plan("b", FRESH, hosts=["b", "c"])["asks"]) == ["chat"]


def test_files_are_asked_for_once_whatever_models_are_called() -> None:
    looks = {"a": [look("chat", False, "K"), look("again", False, "K")], "b": [look("mine", False, "K")]}
    assert len(plan("a", looks)["asks"]) == 1
    assert plan("b", looks)["asks"] == []
    told = plan("b", looks, listings={"a": [listing("chat")]})
    assert told["request"] == [
        {
            "name": "mine",
            "repo": "o/m",
            "key": "K",
            "complete": False,
            "files": ["chat"],
            "commit": "c",
            "origin": "hub",
        }
    ]


def test_who_has_a_model_gives_it_to_who_lacks_it() -> None:
    looks = {"a": [look("chat", True), look("rest", True)], "b": [look("chat", False)], "c": [look("rest", True)]}
    giver, taker = plan("a", looks), plan("b", looks)
    assert (names(giver["mine"]), names(giver["request"])) == (["chat"], ["chat"])
    assert giver["sharers"] == taker["sharers"] == ["a", "b"]
    assert plan("c", looks)["mine"] == []
    # The fleet knows the files: no source is asked what they are.
    assert giver["asks"] == taker["asks"] == []
    assert taker["request"][0]["files"] == giver["request"][0]["files"] == ["chat as it is"]


def test_one_that_failed_meanwhile_leaves_the_asking_to_the_others() -> None:
    """Before the second round the plan is made anew, without it."""
    found = plan("b", FRESH, hosts=["b", "c"])
    assert names(found["asks_too"]) == ["chat"]


def test_nothing_is_to_do_when_all_have_all() -> None:
    done = {"a": [look("chat", True)], "b": [look("chat", True)]}
    nothing: dict[str, Any] = {key: [] for key in ("mine", "asks", "asks_too", "problems", "request", "sharers")}
    assert plan("a", done) == plan("b", done) == nothing


def test_without_peers_each_fetches_for_itself() -> None:
    looks = {"a": [look("chat", True)], "b": [look("chat", False)], "c": [look("chat", False)]}
    told = {"b": [listing("chat")]}
    assert plan("a", looks, peers=[], listings=told)["mine"] == []
    for host in ("b", "c"):
        found = plan(host, looks, peers=["a"], listings=told)
        assert (names(found["request"]), found["sharers"]) == (["chat"], [])
    assert plan("a", looks, peers=["a"], listings=told)["mine"] == [], "it cannot give to who is no peer"


def test_what_the_first_host_could_not_list_is_asked_for_again() -> None:
    said: dict[str, Any] = {
        "listings": {"c": [listing("other")]},
        "refusals": {"a": [{"name": "chat", "why": "no disk"}]},
    }
    first, second = plan("a", FRESH, **said), plan("b", FRESH, **said)
    assert (names(second["asks_too"]), second["request"]) == (["chat"], [])
    assert (names(first["asks_too"]), first["problems"]) == (
        [],
        ["model 'chat': nobody was told its files.\na: no disk"],
    )
    # The second one was told: nothing stands in the way of either.
    said["listings"]["b"] = [listing("chat")]
    for host in ("a", "b"):
        found = plan(host, FRESH, **said)
        assert (names(found["request"]), found["asks_too"], found["problems"]) == (["chat"], [], [])
        assert found["sharers"] == ["b", "a"], "who could not ask could not fetch either"


def test_when_nobody_could_ask_all_reasons_are_said() -> None:
    looks = {host: [look("chat", False), look("words", False)] for host in ("a", "b", "c")}
    words = [{"name": "words", "why": "HTTP 404"}]
    refusals = {"a": [*words, {"name": "chat", "why": "no disk"}], "b": words, "c": words}
    found = plan("b", looks, refusals=refusals, listings={"b": [listing("chat")]})
    assert found["problems"] == ["model 'words': nobody was told its files.\na, b, c: HTTP 404"]
    assert names(found["request"]) == ["chat"]
    # In check mode nobody is asked again, and who was not refused says so in a note.
    assert plan("b", looks)["problems"] == []


def test_mirrors_ask_first_and_come_first_in_the_fleet() -> None:
    looks = {"a": [look("chat", False)], "b": [look("chat", True)], "m": [look("chat", False)]}
    assert [plan(host, looks, mirrors=["m"])["sharers"] for host in looks] == [["m", "a", "b"]] * 3
    looks["b"] = [look("chat", False)]
    assert [names(plan(host, looks, mirrors=["m"])["asks"]) for host in looks] == [[], [], ["chat"]]


def test_what_one_host_was_told_counts_for_all() -> None:
    # What a host was told counts also when that host failed afterwards.
    assert names(plan("b", FRESH, hosts=["b"], listings={"a": [listing("chat")]})["request"]) == ["chat"]


# --- what people are shown


def test_a_line_says_model_percent_rate_time_and_source() -> None:
    assert progress.line("gpu1", status()) == (
        "gpu1: chat 37.2 %, 92.1 GB of 247.4 GB, 98.3 MB/s, 26 min left, from hub"
    )


def test_of_several_models_the_one_that_comes_is_shown() -> None:
    models = [
        ModelStatus("small", 10, 10, "published", "hub"),
        ModelStatus("big", 2000, 1000, "waiting"),
        ModelStatus("later", 2000),
    ]
    told = progress.line("gpu1", status(models=models, rate=0.0, eta=None))
    assert told == "gpu1: big (model 2 of 3) 50.0 %, 1.0 kB of 2.0 kB, another host fetches it"
    models[1] = ModelStatus("big", 2000, 1000, "fetching", "fleet")
    assert progress.line("gpu1", status(models=models)).endswith("26 min left for all, from the fleet")


def test_a_hundred_percent_is_all_of_it() -> None:
    assert progress.percent(ModelStatus("m", 100_000, 99_999)) == 99.9
    assert progress.percent(ModelStatus("m", 100_000, 100_000)) == 100.0
    assert progress.percent(ModelStatus("empty")) == 100.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (11100, "3 h 05 min")]
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert progress.span(seconds) == text


def test_nothing_is_said_of_a_transfer_that_does_nothing() -> None:
    assert progress.line("gpu1", status(models=[ModelStatus("chat", 1, 1, "published")])) == ""


def test_a_program_gets_everything_on_one_line() -> None:
    told = progress.json_line("gpu1", status())
    assert "\n" not in told
    assert json.loads(told)["host"] == "gpu1"
    assert json.loads(told)["models"][0]["percent"] == 37.2
    assert json.loads(told)["eta"] == 1580.0


def test_the_beginning_and_the_end() -> None:
    assert progress.first_line("gpu1", status()) == (
        "gpu1: chat: 247.4 GB, 92.1 GB of it are here. The transfer goes on by itself, whatever happens to this run."
    )
    done = status(state="done", from_hubs=4_000_000_000, from_fleet=8_000_000_000, updated=1120.0)
    assert progress.last_line("gpu1", done) == (
        "gpu1: all models are here: 4.0 GB from sources and 8.0 GB from the fleet in 2 min, 100.0 MB/s"
    )
    assert progress.last_line("gpu1", status(state="done")) == "gpu1: all models are here, nothing had to be fetched"


# --- the module


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def call(**arguments: Any) -> dict[str, Any]:
        with patch_module_args(arguments), pytest.raises(SystemExit):
            model_transfer.main()
        text = capsys.readouterr().out
        assert "geheim" not in text and "t0ken" not in text
        answer: dict[str, Any] = json.loads(text)
        return answer

    return call


class Units:
    """Stands for the host's unit."""

    def __init__(self, look: Look | None = None) -> None:
        self.requests: list[types.Request] = []
        self.begun = "started"
        self._look = look

    def __call__(self) -> Units:
        return self

    def start(self, request: types.Request, lacking: list[str]) -> tuple[str, str]:
        self.requests.append(request)
        self.lacking = lacking
        return self.begun, request.digest()

    def look(self) -> Look:
        assert self._look is not None
        return self._look


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Units]:
    def made(look: Look | None = None) -> Units:
        unit = Units(look)
        monkeypatch.setattr(model_transfer, "Unit", unit)
        return unit

    return made


@pytest.fixture
def request_(tmp_path: Path) -> dict[str, Any]:
    return {**{key: SETTINGS[key] for key in ("models", "sources", "tokens")}, "store": str(tmp_path / "models")}


def have(folder: Path) -> None:
    """The model is published."""
    model = types.model_from(MODEL)
    staged = store.staged(store.stage(folder, model), model.files[0])
    staged.parent.mkdir(parents=True)
    staged.write_bytes(BODY)
    tree = TreeHash(len(BODY))
    tree.update(BODY)
    store.publish(folder, model, {"m.gguf": store.Verified(staged, SHA256, tree.pieces(), "source")})
    assert (store.home(folder, model) / manifest.MANIFEST).exists()


def test_check_mode_says_what_would_be_fetched(
    run: Callable[..., dict[str, Any]], units: Callable[..., Units], request_: dict[str, Any], tmp_path: Path
) -> None:
    unit = units()
    answer = run(**request_, _ansible_check_mode=True)
    assert answer["changed"] is True
    assert answer["notes"] == ["chat: 1 file, 7.0 kB, would be fetched"]
    assert answer["files"] == [{"model": "chat", "path": "m.gguf", "size": 7000}]
    assert unit.requests == [] and list(tmp_path.iterdir()) == []


def test_a_transfer_is_started(
    run: Callable[..., dict[str, Any]], units: Callable[..., Units], request_: dict[str, Any], tmp_path: Path
) -> None:
    unit = units()
    answer = run(**request_, rate_limit=5, proxy="http://user:geheim@proxy.example:3128")
    assert (answer["changed"], answer["begun"], answer["remaining"]) == (True, "started", 7000)
    (request,) = unit.requests
    assert answer["request"] == request.digest()
    assert (request.rate_limit, request.proxy) == (5, "http://user:geheim@proxy.example:3128")
    assert (tmp_path / "models").is_dir(), "its sandbox needs the folder"


def test_what_is_wrong_here_is_said_to_who_works_already(
    run: Callable[..., dict[str, Any]], units: Callable[..., Units], request_: dict[str, Any], tmp_path: Path
) -> None:
    unit = units()
    unit.begun = "replaced"
    assert run(**request_)["notes"] == [model_transfer.REPLACED]
    assert unit.lacking == ["chat"]
    have(tmp_path / "models")
    run(**request_)
    assert unit.lacking == []
    run(**{**request_, "models": [{**MODEL, "complete": False}]})
    assert unit.lacking == ["chat"]


@pytest.mark.parametrize("proxy", ["http://u:geheim/x@proxy:3128", "http://u:geheim#@proxy:1", "htp://u:geheim@p:1"])
def test_a_proxy_that_cannot_be_one_is_refused_without_its_password(
    run: Callable[..., dict[str, Any]], units: Callable[..., Units], request_: dict[str, Any], proxy: str
) -> None:
    unit = units()
    said = run(**request_, proxy=proxy)["msg"]
    assert "`model_store_proxy` is no address of the form" in said and "%2F" in said
    assert unit.requests == []


def test_a_host_that_only_gives_is_not_changed(
    run: Callable[..., dict[str, Any]], units: Callable[..., Units], request_: dict[str, Any], tmp_path: Path
) -> None:
    unit = units()
    have(tmp_path / "models")
    assert run(**request_)["changed"] is False
    assert len(unit.requests) == 1


def test_a_damaged_model_is_a_change(
    run: Callable[..., dict[str, Any]], units: Callable[..., Units], request_: dict[str, Any], tmp_path: Path
) -> None:
    units()
    have(tmp_path / "models")
    answer = run(**{**request_, "models": [{**MODEL, "complete": False}]}, _ansible_check_mode=True)
    assert answer["notes"] == ["chat: what is here would be verified, and mended where it is damaged"]
    assert answer["changed"] is True


def test_what_does_not_fit_is_refused_before_anything_starts(
    run: Callable[..., dict[str, Any]], units: Callable[..., Units], request_: dict[str, Any], tmp_path: Path
) -> None:
    unit = units()
    huge = {**MODEL, "files": [{**MODEL["files"][0], "size": 10**18}]}
    answer = run(**{**request_, "models": [huge]})
    assert answer["failed"] is True
    assert "must still be stored in" in answer["msg"] and "Nothing was downloaded" in answer["msg"]
    assert unit.requests == [] and list(tmp_path.iterdir()) == []


def test_a_failure_is_what_the_models_say(run: Callable[..., dict[str, Any]], units: Callable[..., Units]) -> None:
    models = [
        ModelStatus("chat", 1, 1, "published"),
        ModelStatus("big", 2, 1, "failed", message="model 'big': the disk is full: 1 B more is needed"),
    ]
    units(Look(status(state="failed", models=models), False, "exit-code"))
    answer = run(state="watched")
    assert answer["failed"] is True
    assert answer["msg"] == "model 'big': the disk is full: 1 B more is needed"


def test_a_death_shows_the_journal(run: Callable[..., dict[str, Any]], units: Callable[..., Units]) -> None:
    units(Look(status(), False, "oom-kill", ("loading", "Killed")))
    said = run(state="watched")["msg"]
    assert "systemd: oom-kill" in said and said.endswith("loading\nKilled")
    units(Look(None, False, "", ()))
    assert "systemd: unknown" in run(state="watched")["msg"]


def test_a_watch_cut_short_is_no_success(run: Callable[..., dict[str, Any]], units: Callable[..., Units]) -> None:
    units(Look(status(), True, "success"))
    answer = run(state="watched")
    assert answer["failed"] is True
    assert answer["msg"].startswith("The watch ended before the transfer, which goes on by itself")


def test_success_hands_on_warnings(
    run: Callable[..., dict[str, Any]], units: Callable[..., Units], monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(model_transfer.AnsibleModule, "warn", lambda _self, text: warned.append(text))
    units(Look(status(state="seeding", warnings=["it may move"], notes=["n"]), True, "success"))
    answer = run(state="watched")
    assert answer["changed"] is False
    assert answer["notes"] == ["n"]
    assert warned == ["it may move"]
    assert answer["status"]["state"] == "seeding"


# --- the action plugin: what is printed, and when it ends


class Task:
    def __init__(self, **args: Any) -> None:
        self.args = args
        self.check_mode = False


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """Watches a host that gives these answers, the last one for ever: (result, what was printed)."""

    def call(answers: list[Any], terminal: bool = True, **args: Any) -> tuple[dict[str, Any], list[str]]:
        printed: list[str] = []
        clock = Clock()
        monkeypatch.setattr(action, "time", clock)
        monkeypatch.setattr(action, "TERMINAL", terminal)
        monkeypatch.setattr(action.Display, "display", lambda _self, text, **_kwargs: printed.append(text))
        monkeypatch.setattr(action.ActionBase, "run", lambda *_args, **_kwargs: {})
        plugin = action.ActionModule.__new__(action.ActionModule)
        plugin._task = Task(state="watched", request="r1", **args)
        left = list(answers)

        def execute(_command: str, sudoable: bool = True) -> dict[str, str]:
            assert not sudoable, "no privileges are needed to look"
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, Exception):
                raise answer
            unit, found = answer
            return {"stdout": f"{unit}\n" + (json.dumps(types.as_json(found)) if found else "")}

        plugin._low_level_execute_command = execute
        plugin._execute_module = lambda **_kwargs: {"changed": False, "module": True}
        return plugin.run(task_vars={"inventory_hostname": "gpu1"}), printed

    return call


Watch = Callable[..., tuple[dict[str, Any], list[str]]]


def test_a_line_comes_at_least_every_ten_seconds(watch: Watch) -> None:
    answers = [("active", status())] * 41 + [("active", status(state="seeding"))]
    result, printed = watch(answers)
    assert result["module"] is True
    lines = [text for text in printed if "% " in text or "%," in text]
    assert 41 * action.LOOK / 10 <= len(lines) <= 41 * action.LOOK / 5
    assert action.LINE + action.LOOK <= 10
    assert printed[0].startswith("gpu1: chat: 247.4 GB") and printed[-1].startswith("gpu1: all models are here")


def test_without_a_terminal_only_the_beginning_and_the_end(watch: Watch) -> None:
    answers = [("active", status())] * 20 + [("active", status(state="done"))]
    _, printed = watch(answers, terminal=False)
    assert len(printed) == 2
    _, printed = watch(answers, terminal=False, progress="lines")
    assert len(printed) > 2
    _, printed = watch(answers, terminal=True, progress="none")
    assert printed == []


def test_programs_read_json(watch: Watch) -> None:
    answers = [("active", status())] * 9 + [("inactive", status(state="done"))]
    _, printed = watch(answers, terminal=False, progress="json")
    states = [json.loads(text)["state"] for text in printed]
    assert states[:-1] and set(states[:-1]) == {"running"} and states[-1] == "done"


def test_a_dead_transfer_ends_the_watch(watch: Watch) -> None:
    result, printed = watch([("active", status()), ("failed", status())])
    assert result == {"changed": False, "module": True}, "the module says why"
    assert not any("all models are here" in text for text in printed)


def test_a_crashed_transfer_that_comes_back_is_waited_for(watch: Watch) -> None:
    answers = [("active", status()), ("activating", None), ("active", status()), ("inactive", status(state="done"))]
    _, printed = watch(answers)
    assert printed[-1].startswith("gpu1: all models are here")


def test_a_host_that_does_not_answer_for_a_while(watch: Watch) -> None:
    gone = AnsibleConnectionFailure("no route")
    result, printed = watch([("active", status()), gone, gone, ("inactive", status(state="done"))])
    assert result["module"] is True
    assert printed.count("gpu1: does not answer; its transfer goes on by itself") == 2
    with pytest.raises(AnsibleConnectionFailure):
        watch([("active", status()), gone])


def test_a_transfer_that_was_replaced_is_not_taken_for_ours(watch: Watch) -> None:
    result, _ = watch([("active", status(request="r2", state="done"))])
    assert result["failed"] is True
    assert "Another run has replaced the transfer" in result["msg"]


# --- what the role installs


def test_the_program_is_all_that_it_imports() -> None:
    utils = PROJECT / "plugins/module_utils"
    role = conventions.role("model_store")
    given = re.findall(r"'(\w+\.py)'", role.vars["__model_store_modules"])
    shipped = {utils / name for name in given} | set(utils.glob("model_store/*.py"))
    package = "ansible_collections.onprem.llm.plugins.module_utils"
    lacking = set()
    for file in [*shipped, PROJECT / "roles/model_store/files/model-store"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("ansible"):
                continue
            assert node.module and node.module.startswith(package), f"{file} imports {node.module}"
            inside = node.module.removeprefix(package).strip(".").replace(".", "/")
            for wanted in [inside, *(f"{inside}/{name.name}".strip("/") for name in node.names)]:
                found = utils / f"{wanted}.py"
                if wanted and found.is_file() and found not in shipped:
                    lacking.add(f"{file.name}: {wanted}.py")
    assert not lacking
    assert all(file.is_file() for file in shipped)
