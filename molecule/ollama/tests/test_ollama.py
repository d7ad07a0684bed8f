# SPDX-License-Identifier: GPL-3.0-or-later
"""Models behind Ollama's door: they answer, take their space once, and nobody gets past the door."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import on, one_line, playbook

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="reaching test hosts from outside needs root")

STORES = "/srv/llm/ollama"
MODELS = "/srv/llm/models/onprem"
PARIS = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def key(secrets: Any) -> str:
    return str(secrets("engine_api_key"))


def ask(frm: str, url: str, key: str = "", body: Any = None, more: str = "") -> tuple[int, str]:
    """Status and text of a request with curl."""
    words = f"curl -sS --max-time 120 -w '\\n%{{http_code}}' {more} {url}"
    words += f" -H 'Authorization: Bearer {key}'" if key else ""
    words += f" -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}" if body is not None else ""
    text, _, status = on(frm, words).rpartition("\n")
    return int(status), text


def port(name: str, model: str) -> str:
    """ADDRESS:PORT of a model's socket."""
    return re.search(r"ListenStream=(\S+)", on(name, f"cat /etc/systemd/system/ollama@{model}.socket"))[1]


def blob(name: str, model: str) -> str:
    """The weights of the store in use."""
    place = f"{STORES}/{model}/current"
    found = json.loads(on(name, f"cat {place}/manifests/registry.ollama.ai/library/{model}/*"))
    (digest,) = [one["digest"] for one in found["layers"] if one["mediaType"].endswith(".model")]
    return f"{place}/blobs/{digest.replace(':', '-')}"


# They answer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny-chat", "tiny-parts"])
def test_a_model_answers_at_the_front_door(key: str, model: str) -> None:
    asked = {"model": model, "messages": PARIS, "max_tokens": 30}
    status, text = ask("oll-door", "http://127.0.0.1:8480/engine/v1/chat/completions", key, asked)
    assert status == 200 and "Paris" in json.loads(text)["choices"][0]["message"]["content"], text


def test_an_answer_comes_as_it_is_written(key: str) -> None:
    asked = {"model": "tiny-chat", "messages": PARIS, "max_tokens": 30, "stream": True}
    status, text = ask("oll-door", "http://127.0.0.1:8480/engine/v1/chat/completions", key, asked)
    events = [line for line in text.splitlines() if line.startswith("data: ")]
    assert status == 200 and len(events) > 2 and events[-1] == "data: [DONE]"


def test_vectors_are_computed(key: str) -> None:
    asked = {"model": "tiny-vectors", "input": ["one", "two"]}
    status, text = ask("oll-door", "http://127.0.0.1:8480/engine/v1/embeddings", key, asked)
    assert status == 200, text
    one, two = (found["embedding"] for found in json.loads(text)["data"])
    assert len(one) == 64 and one != two


def test_the_plan_reaches_llama_server() -> None:
    """Context of both slots, threads, and the parameters of the pin."""
    words = on("oll-a", "pgrep -af 'llama-server.* -c 4096 -np 2'").split()
    assert words[words.index("-t") + 1] == "1"
    parameters = on("oll-a", f"cat {STORES}/tiny-chat/current/blobs/* | grep -a num_ctx")
    assert json.loads(parameters)["temperature"] == 0 and json.loads(parameters)["num_ctx"] == 2048


# Space ---------------------------------------------------------------------------------------------------------------


def test_a_model_takes_its_space_once() -> None:
    published = f"{MODELS}/tiny/main/chat.gguf"
    assert on("oll-a", f"stat -c %d:%i {published}") == on("oll-a", f"stat -Lc %d:%i {blob('oll-a', 'tiny-chat')}")


def test_parts_are_one_file_that_is_named_after_its_content() -> None:
    path = blob("oll-a", "tiny-parts")
    assert on("oll-a", f"sha256sum {path}").split()[0] == path.rpartition("-")[2]
    assert on("oll-a", f"stat -c %a:%U:%h {path}") == "444:root:1"
    parts = int(on("oll-a", f"cat {MODELS}/tiny-rag-GGUF/*/F16/*.gguf | wc -c"))
    assert 0.95 < int(on("oll-a", f"stat -c %s {path}")) / parts < 1.05


# The door ------------------------------------------------------------------------------------------------------------


def test_nobody_on_the_host_reaches_ollama_itself() -> None:
    assert ":11434" not in on("oll-a", "ss -Hltn")
    assert on("oll-a", "curl -sS --max-time 5 http://127.0.0.1:11434/api/tags 2>&1 || true").startswith("curl: (7)")


@pytest.mark.parametrize("frm", ["oll-a", "oll-door"])
def test_the_door_wants_the_key(key: str, frm: str) -> None:
    url = f"http://{port('oll-a', 'tiny-chat')}/v1/chat/completions"
    asked = {"model": "tiny-chat", "messages": PARIS}
    assert ask(frm, url, "", asked)[0] == 401
    assert ask(frm, url, "x" * 32, asked)[0] == 401
    assert ask(frm, url, key, asked)[0] == 200


def test_only_what_was_listed_goes_through(key: str) -> None:
    url = f"http://{port('oll-a', 'tiny-chat')}"
    for path in (
        "create",
        "push",
        "pull",
        "copy",
        "show",
        "generate",
        "chat",
        "embed",
        "tags",
        "ps",
        "version",
        "blobs/sha256:0",
    ):
        assert ask("oll-door", f"{url}/api/{path}", key, {"model": "tiny-chat"})[0] == 404, path
    assert ask("oll-door", f"{url}/api/delete", key, {"model": "tiny-chat"}, "-X DELETE")[0] == 404
    for path in (
        "/",
        "/v1/responses",
        "/v1/models/tiny-chat",
        "//api/tags",
        "/v1/../api/tags",
        "/v1/chat/completions/",
    ):
        assert ask("oll-door", f"{url}{path}", key, {"model": "tiny-chat"}, "--path-as-is")[0] == 404, path
    assert ask("oll-door", f"{url}/v1/chat/completions", key)[0] == 405
    assert ask("oll-door", f"{url}/v1/models", key, {})[0] == 405
    assert [one["id"] for one in json.loads(ask("oll-door", f"{url}/v1/models", key)[1])["data"]] == ["tiny-chat"]
    assert ask("oll-door", f"{url}/health") == (200, '{"status": "ok"}')


def test_no_second_request_hides_behind_the_first(key: str) -> None:
    """One request per connection, of exactly its length: what follows reaches nobody."""
    address, _, number = port("oll-a", "tiny-chat").rpartition(":")
    chat = json.dumps({"model": "tiny-chat", "messages": PARIS, "max_tokens": 4})
    head = f"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nAuthorization: Bearer {key}\\r\\n"
    hidden = 'DELETE /api/delete HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 21\\r\\n\\r\\n{"model":"tiny-chat"}'

    def said(text: str) -> str:
        program = (
            f"import socket; s = socket.create_connection(('{address}', {number}), 60); s.sendall(b'''{text}'''); "
            "print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
        )
        return on("oll-door", f"python3 -c {shlex.quote(program)}")

    answer = said(f"{head}Content-Length: {len(chat)}\\r\\n\\r\\n{chat}{hidden}")
    assert answer.count("HTTP/1.1 ") <= 1 and "success" not in answer
    assert said(f"{head}Transfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n").startswith("HTTP/1.1 411 ")
    assert said(f"{head}Content-Length: 1\\r\\nContent-Length: 2\\r\\n\\r\\nxx").startswith("HTTP/1.1 400 ")
    assert said(f"{head}Content-Length: 99999999\\r\\n\\r\\n").startswith("HTTP/1.1 413 ")
    assert ask("oll-door", f"http://{address}:{number}/health")[0] == 200


def test_even_from_inside_a_model_stays() -> None:
    """The store is read-only for the service: whatever hole Ollama has, it can neither lose a model nor get one."""
    inside = "nsenter -n -t $(systemctl show -P MainPID ollama@tiny-chat) curl -sS -o /dev/null -w '%{http_code}'"
    url = "http://127.0.0.1:11434/api"
    assert on("oll-a", f"{inside} {url}/tags") == "200"
    assert on("oll-a", f'{inside} -X DELETE {url}/delete -d \'{{"model": "tiny-chat"}}\'') == "500"
    weights = blob("oll-a", "tiny-chat").rpartition("sha256-")[2]
    files = json.dumps({"model": "other", "files": {"a.gguf": f"sha256:{weights}"}})
    assert on("oll-a", f"{inside} {url}/create -d {shlex.quote(files)}") == "500"


def test_who_leaves_ends_the_answer(key: str) -> None:
    asked = {"model": "tiny-chat", "messages": PARIS, "max_tokens": 1900, "ignore_eos": True, "stream": True}
    url = f"http://{port('oll-a', 'tiny-chat')}/v1/chat/completions"
    command = f"curl -sS --max-time 0.7 {url} -H 'Authorization: Bearer {key}' -d {shlex.quote(json.dumps(asked))}"
    assert "data: " in on("oll-door", f"{command} || true")
    inner = on("oll-a", "pgrep -af 'llama-server.* -c 4096 -np 2'").split()
    slots = f"curl -sS http://127.0.0.1:{inner[inner.index('--port') + 1]}/slots"
    inside = f"nsenter -n -t $(systemctl show -P MainPID ollama@tiny-chat) {slots}"
    deadline = time.monotonic() + 20
    while any(slot["is_processing"] for slot in json.loads(on("oll-a", inside))):
        assert time.monotonic() < deadline, "it still computes for a client that left"
        time.sleep(0.5)


# The service ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["oll-a", "oll-b"])
def test_the_unit_is_sound_and_closed(name: str) -> None:
    assert on(name, "systemd-analyze verify ollama@tiny-chat.service ollama@tiny-chat.socket 2>&1") == ""
    rated = on(name, "systemd-analyze security --no-pager ollama@tiny-chat.service | tail -n 1")
    assert float(re.search(r": ([0-9.]+)", rated)[1]) <= 1.5, rated


def test_with_the_service_goes_its_port(key: str) -> None:
    """What is stopped is not started by the next request, and the door's host passes it over at once."""
    address = port("oll-a", "tiny-chat")
    on("oll-a", "systemctl stop ollama@tiny-chat.service")
    assert on("oll-a", f"curl -sS --max-time 5 http://{address}/health 2>&1 || true").startswith("curl: (7)")
    asked = {"model": "tiny-chat", "messages": PARIS, "max_tokens": 30}
    assert ask("oll-door", "http://127.0.0.1:8480/engine/v1/chat/completions", key, asked)[0] == 200
    on("oll-a", "systemctl restart ollama@tiny-chat.service")
    ready("oll-a", "tiny-chat")


def ready(name: str, model: str) -> None:
    deadline = time.monotonic() + 60
    while (
        on(name, f"curl -sS -o /dev/null -w '%{{http_code}}' http://{port(name, model)}/health 2>&1 || true") != "200"
    ):
        assert time.monotonic() < deadline, on(name, f"journalctl -n 30 -o cat -u ollama@{model}")
        time.sleep(0.5)


@contextmanager
def told(name: str, model: str, **variables: Any) -> Iterator[None]:
    """Meanwhile the service has these variables as well."""
    folder, again = f"/run/systemd/system/ollama@{model}.service.d", f"systemctl restart ollama@{model}"
    text = "".join(f"{key}={value}\\n" for key, value in variables.items())
    on(name, f"mkdir -p {folder} && printf '{text}' > {folder}/env")
    on(
        name,
        f"printf '[Service]\\nEnvironmentFile={folder}/env\\n' > {folder}/t.conf && systemctl daemon-reload && {again}",
    )
    try:
        yield
    finally:
        on(name, f"rm -r {folder} && systemctl daemon-reload && systemctl reset-failed ollama@{model}; {again}")
        ready(name, model)


def test_a_model_that_fell_back_to_the_cpu_is_not_served() -> None:
    """The plan has it on the GPU, and Ollama put nothing there, without a word."""
    with told("oll-b", "tiny-chat", DOOR_GPU_BYTES=2**30):
        deadline = time.monotonic() + 60
        while on("oll-b", "systemctl show -P NRestarts ollama@tiny-chat") == "0":
            assert time.monotonic() < deadline
            time.sleep(0.5)
        said = one_line(on("oll-b", "journalctl -o cat -u ollama@tiny-chat | grep 'door:' | tail -n 1"))
        assert said.startswith(
            "door: The plan has 1.0 GiB of tiny-chat on the GPU, and Ollama put 0.0 GiB there: it would"
        )
        assert "nvidia-smi" in said
    with told("oll-b", "tiny-chat", DOOR_GPU_BYTES=2**30, TEST_OLLAMA_VRAM=2**30):
        ready("oll-b", "tiny-chat")


def test_a_service_that_is_stopped_ends_whole_and_did_not_fail() -> None:
    """Not after a timeout: what shall be switched needs its memory and its port."""
    try:
        ended = "systemctl stop ollama@tiny-chat; systemctl show -P ActiveState ollama@tiny-chat"
        assert on("oll-b", ended) == "inactive"
        assert on("oll-b", "systemctl show -P Result ollama@tiny-chat") == "success"
    finally:
        on("oll-b", "systemctl start ollama@tiny-chat")
        ready("oll-b", "tiny-chat")


# Runs of the playbooks -----------------------------------------------------------------------------------------------

ENGINES = "playbooks/engines.yml"


@pytest.mark.long
def test_what_may_not_run_is_refused_before_anything_changes() -> None:
    before = on("oll-a", "systemctl show -P InvocationID ollama@tiny-chat; ls /opt/onprem-llm/ollama")
    for version, why in (
        (
            "0.17.0",
            "and the lowest that may run is 0.17.1 (version_floors.ollama in group_vars/all/floors.yml says why)",
        ),
        ("0.29.9", "and this role lays models out for 0.30.0 and later"),
    ):
        archive = {"version": version, "url": "file:///srv/lab/ollama-linux-amd64.tar.zst", "sha256": "0" * 64}
        done = playbook(ENGINES, "--limit", "oll-a", "-e", json.dumps({"ollama_archive": archive}))
        assert done.returncode and f"ollama_archive.version is {version} on oll-a, {why}" in one_line(done.stdout), (
            done.stdout
        )
    assert on("oll-a", "systemctl show -P InvocationID ollama@tiny-chat; ls /opt/onprem-llm/ollama") == before


@pytest.mark.long
def test_another_context_is_another_store_and_the_one_before_stays() -> None:
    before = on("oll-a", f"readlink {STORES}/tiny-chat/current")
    done = playbook(ENGINES, "-e", json.dumps({"lab": {"context": 1024}}))
    assert done.returncode == 0, done.stdout[-4000:]
    after = on("oll-a", f"readlink {STORES}/tiny-chat/current")
    assert after != before and on("oll-a", "pgrep -af 'llama-server.* -c 2048 -np 2'")
    assert set(on("oll-a", f"ls {STORES}/tiny-chat").split()) == {
        "current",
        *(one.rpartition("/")[2] for one in (before, after)),
    }
    assert on("oll-a", f"stat -Lc %h {blob('oll-a', 'tiny-chat')}") == "3"
