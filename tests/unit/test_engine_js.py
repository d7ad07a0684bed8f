# SPDX-License-Identifier: GPL-3.0-or-later
"""What the front door lets through to an engine: the script of nginx, run by the JavaScript of Chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

SCRIPT = Path(__file__).parents[2] / "roles/nginx/templates/engine.js.j2"
CHAT = {"model": "tiny", "messages": []}
REQUESTS: dict[str, str] = {
    "plain": json.dumps(CHAT),
    "other model": json.dumps({**CHAT, "model": "embed"}),
    "n_discard": json.dumps({**CHAT, "n_discard": -1}),
    "n_discard null": json.dumps({**CHAT, "n_discard": None}),
    "n_discard spelt otherwise": json.dumps(CHAT)[:-1] + r', "n_disc\u0061rd": 5}',
    "unknown model": json.dumps({**CHAT, "model": "gpt-4"}),
    "inherited name": json.dumps({**CHAT, "model": "constructor"}),
    "path": json.dumps({**CHAT, "model": "../tiny"}),
    "no model": "{}",
    "list": "[1]",
    "null": "null",
    "text": "hello",
}
BEGINNING = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße, who are you?"}]
LATER = [{"role": "assistant", "content": "A model."}, {"role": "user", "content": "Whose?"}]
LONG = "x" * 5000
#: Requests of one conversation each: all of them go to one host.
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "by its beginning": [{"messages": BEGINNING}, {"messages": BEGINNING + LATER}],
    "another question": [{"messages": [BEGINNING[0], {"role": "user", "content": "Why?"}]}],
    "long, then another end": [{"messages": [{"role": "user", "content": LONG + end}]} for end in ("a", "a")],
    "the other end": [{"messages": [{"role": "user", "content": LONG + "b"}]}],
    "pictures": [{"messages": [{"role": "user", "content": [{"type": "image_url"}, {"type": "text", "text": "?"}]}]}],
    "by OpenAI's name for it": [{"prompt_cache_key": "k1", "messages": BEGINNING}, {"prompt_cache_key": "k1"}],
    "by the header": [{"header": "chat-7", "messages": BEGINNING}, {"header": "chat-7", "prompt_cache_key": "k1"}],
}
#: Requests that no host knows more of than another.
LOOSE: list[dict[str, Any]] = [
    {"prompt": "x"}, {"input": "x"}, {"messages": []}, {"messages": "x"}, {"messages": [None, 1, {"role": "system"}]},
]  # fmt: skip
for group, requests in [*CONVERSATIONS.items(), ("loose", LOOSE)]:
    REQUESTS |= {f"{group} {n}": json.dumps({"model": "tiny", **one}) for n, one in enumerate(requests)}
HARNESS = """
const answers = {};
for (const [name, text] of Object.entries(REQUESTS)) {
    const r = {requestText: text, uri: '/engine/v1/chat/completions', headersOut: {}, headersIn: {}, variables: {}};
    if (text.includes('"header"')) { r.headersIn['X-Chat-Id'] = JSON.parse(text).header; }
    r.return = (status, body) => { answers[name] = [status, body]; };
    r.internalRedirect = (where) => { answers[name] = [0, where, r.variables.engine_conversation]; };
    route(r);
}
document.body.textContent = '<<' + JSON.stringify(answers) + '>>';
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each request gets: [status, body], or [0, where it is sent, its conversation]."""
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("Chromium is not installed")
    engines = {"nginx_engines": [{"model": "tiny"}, {"model": "embed"}]}
    templar = Templar(loader=DataLoader(), variables=engines)
    script = str(templar.template(trust_as_template(SCRIPT.read_text())))
    script = re.sub(r"(?m)^export default .*$", "", script)
    folder = tmp_path_factory.mktemp("chromium")
    requests = f"const REQUESTS = {json.dumps(REQUESTS)};"
    page = folder / "page.html"
    page.write_text(f"<!DOCTYPE html><body><script>{requests}{script}{HARNESS}</script></body>")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={folder}/profile", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search("<<(.*)>>", html.unescape(done.stdout).replace("&lt;", "<"), re.DOTALL)
    assert found, done.stdout + done.stderr
    answered: dict[str, Any] = json.loads(found[1])
    assert set(answered) == set(REQUESTS)
    return answered


@pytest.mark.parametrize("name", ["n_discard", "n_discard null", "n_discard spelt otherwise"])
def test_the_parameter_behind_cve_2026_21869_goes_no_further(answers: dict[str, Any], name: str) -> None:
    """T4"""
    status, body = answers[name]
    assert status == 400, body
    assert "'n_discard' is not accepted" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(("name", "model"), [("plain", "tiny"), ("other model", "embed")])
def test_the_models_name_says_where_it_goes(answers: dict[str, Any], name: str, model: str) -> None:
    assert answers[name] == [0, f"/engine-of/{model}/v1/chat/completions", ""]


def test_all_turns_of_a_conversation_have_one_name_and_others_have_another(answers: dict[str, Any]) -> None:
    names = []
    for group, requests in CONVERSATIONS.items():
        found = {answers[f"{group} {n}"][2] for n in range(len(requests))}
        assert len(found) == 1, group
        names += found
    assert all(names) and len(set(names)) == len(names)
    assert max(map(len, names)) <= 4096


def test_what_is_no_conversation_has_no_name(answers: dict[str, Any]) -> None:
    assert {answers[f"loose {n}"][2] for n in range(len(LOOSE))} == {""}


@pytest.mark.parametrize("name", ["unknown model", "inherited name", "path", "no model"])
def test_a_name_that_is_none_is_told_the_names(answers: dict[str, Any], name: str) -> None:
    """T1, T4: no other path of an engine can be reached through the name of a model."""
    status, body = answers[name]
    assert status == 404, body
    assert "Models: tiny, embed." in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("name", ["list", "null", "text"])
def test_what_is_no_object_is_refused(answers: dict[str, Any], name: str) -> None:
    assert answers[name][0] in (400, 404)
