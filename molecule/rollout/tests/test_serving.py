# SPDX-License-Identifier: GPL-3.0-or-later
"""One model on three hosts: who answers, that a conversation stays, and what a lost or a drained host costs."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import INVENTORY, PROJECT, environment, lab_command, on, one_line, playbook

DOOR, DOOR_ADDRESS = "ro-web", "10.77.214.14"
SERVERS = {"10.77.214.11:9101": "ro-a", "10.77.214.12:9101": "ro-b", "10.77.214.13:9101": "ro-c"}
HOSTS = tuple(SERVERS.values())
UNIT = "llamacpp@assistant.service"
SLOTS = 4
MANY = [f"conversation {number}" for number in range(24)]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="reaching test hosts from outside needs root")


def lab(*words: str) -> None:
    """Does something to a host: command, name, and more."""
    subprocess.run(lab_command(*words), check=True, capture_output=True)


@dataclass
class Answer:
    """What became of one request."""

    name: str  # nginx logs it as the client's program
    status: int = 0
    text: str = ""
    whole: bool = False  # a stream that ended as streams end
    error: str = ""
    seconds: float = 0.0
    said: dict[str, Any] = field(default_factory=dict)


@dataclass
class Door:
    """The way in, as clients have it."""

    key: str
    ca: str

    def connect(self) -> http.client.HTTPSConnection:
        trust = ssl.create_default_context(cafile=self.ca)
        return http.client.HTTPSConnection(DOOR_ADDRESS, context=trust, timeout=180)

    def post(self, path: str, body: dict[str, Any], conversation: str = "") -> Answer:
        answer, start = Answer(name=str(uuid.uuid4())), time.monotonic()
        headers = {"Authorization": f"Bearer {self.key}", "User-Agent": answer.name, "Content-Type": "application/json"}
        headers |= {"X-Chat-Id": conversation} if conversation else {}
        connection = self.connect()
        try:
            connection.request("POST", f"/engine/v1/{path}", json.dumps(body), headers)
            response = connection.getresponse()
            answer.status = response.status
            if body.get("stream") and answer.status == 200:
                for line in response:
                    answer.whole = answer.whole or line.strip() == b"data: [DONE]"
            else:
                answer.text = response.read().decode()
                answer.said = json.loads(answer.text)
        except (OSError, http.client.HTTPException, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
            answer.seconds = time.monotonic() - start
        return answer

    def chat(self, messages: Sequence[dict[str, str]] | str, conversation: str = "", **more: Any) -> Answer:
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = {"model": "assistant", "messages": list(messages), "temperature": 0, "max_tokens": 4, **more}
        return self.post("chat/completions", body, conversation)

    def stream(self, conversation: str, tokens: int) -> Answer:
        return self.chat("Go on.", conversation, stream=True, max_tokens=tokens, ignore_eos=True)

    def log(self) -> dict[str, list[str]]:
        """By request: the servers that were tried for it, and the upstreams that had none to offer."""
        found = {}
        for line in on(DOOR, "cat /var/log/nginx/access.log").splitlines():
            said = json.loads(line)
            found[said["agent"]] = said["upstream"].replace(" : ", ", ").split(", ")
        return found

    def hosts(self, answers: Sequence[Answer]) -> list[str]:
        """Who answered them in the end."""
        log = self.log()
        return [SERVERS[log[answer.name][-1]] for answer in answers]


@pytest.fixture
def door(secrets: Callable[[str], str], ca_file: Any) -> Door:
    return Door(secrets("engine_api_key"), str(ca_file))


def quota(share: str, hosts: Sequence[str] = HOSTS) -> None:
    for host in hosts:
        on(host, f"systemctl set-property --runtime {UNIT} CPUQuota={share}")


@pytest.fixture
def slow() -> Iterator[None]:
    """Engines that have little CPU, so that answers take a while."""
    quota("5%")
    yield
    quota("")


@contextmanager
def streams(door: Door, number: int, tokens: int) -> Iterator[list[Future[Answer]]]:
    """So many answers under way at once, each a conversation of its own."""
    with ThreadPoolExecutor(number) as pool:
        yield [pool.submit(door.stream, f"stream {n}", tokens) for n in range(number)]


BUSY = """python3 -c '
import urllib.request
key = open("/etc/onprem-llm/llamacpp/api_key").read().strip()
asked = urllib.request.Request("http://{}/metrics", headers={{"Authorization": f"Bearer {{key}}"}})
for line in urllib.request.urlopen(asked).read().decode().splitlines():
    if line.startswith("llamacpp:requests_processing "):
        print(line.split()[1])
'"""


def busy(host: str) -> int:
    """Requests that the engine of a host works on."""
    (server,) = (server for server, name in SERVERS.items() if name == host)
    return int(on(host, BUSY.format(server)))


def until(what: Callable[[], Any], seconds: float) -> float:
    """Seconds until it is so."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds, f"not within {seconds} s"
        time.sleep(0.5)
    return time.monotonic() - start


def all_good(answers: Sequence[Answer]) -> None:
    bad = [one for one in answers if one.status != 200 or one.error or not (one.whole or one.said)]
    assert not bad, bad


def test_every_host_has_its_share_and_each_conversation_its_host(door):
    answers = [door.chat("Hello", conversation) for conversation in MANY for _ in range(2)]
    all_good(answers)
    hosts = door.hosts(answers)
    assert hosts[0::2] == hosts[1::2]
    counts = Counter(hosts[0::2])
    assert min(counts[host] for host in HOSTS) >= 4, counts


def test_the_turns_of_a_conversation_find_its_beginning_in_the_cache(door):
    """Without a name for it: its beginning says where it belongs."""
    for topic in ("France", "Kenya", "Peru", "Japan"):
        messages = [{"role": "user", "content": f"{topic} {uuid.uuid4()}: tell me about it. " * 8}]
        answers = []
        for _ in range(3):
            answers.append(door.chat(messages))
            all_good(answers)
            text = answers[-1].said["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Go on."}]
        assert len(set(door.hosts(answers))) == 1
        first, *later = [answer.said["timings"] for answer in answers]
        assert all(turn["prompt_n"] < first["prompt_n"] / 2 for turn in later), (first, later)


def test_no_host_works_beyond_its_slots_while_another_has_one_free(door, slow):
    with streams(door, SLOTS * len(HOSTS), tokens=150) as under_way:
        until(lambda: sum(map(busy, HOSTS)) == SLOTS * len(HOSTS), 30)
        assert [busy(host) for host in HOSTS] == [SLOTS] * len(HOSTS)
        # More than there are slots: they wait, one at each host.
        with streams(door, len(HOSTS), tokens=4) as waiting:
            late = [one.result() for one in waiting]
    answers = [one.result() for one in under_way]
    all_good(answers + late)
    assert Counter(door.hosts(answers)) == dict.fromkeys(HOSTS, SLOTS)
    assert Counter(door.hosts(late)) == dict.fromkeys(HOSTS, 1)


def test_who_leaves_is_not_answered_any_further(door, slow):
    connection = door.connect()
    body = {"model": "assistant", "messages": [{"role": "user", "content": "Go on."}], "stream": True}
    headers = {"Authorization": f"Bearer {door.key}", "Content-Type": "application/json"}
    connection.request(
        "POST", "/engine/v1/chat/completions", json.dumps({**body, "max_tokens": 1500, "ignore_eos": True}), headers
    )
    response = connection.getresponse()
    assert response.read(1)
    assert sum(map(busy, HOSTS)) == 1
    response.close()
    connection.close()
    # By itself it would go on for a minute.
    until(lambda: sum(map(busy, HOSTS)) == 0, 10)


def drain(state: str) -> None:
    """As the rollout does it."""
    arguments = json.dumps({"servers": ["10.77.214.12:9101"], "state": state})
    subprocess.run(
        [PROJECT / ".venv/bin/ansible", "-i", INVENTORY, DOOR, "-m", "onprem.llm.nginx_drain", "-a", arguments],
        cwd=PROJECT,
        env=environment(),
        check=True,
        capture_output=True,
    )


def test_a_drained_host_ends_its_answers_and_gets_no_more(door, slow):
    with streams(door, SLOTS * len(HOSTS), tokens=1000) as under_way:
        until(lambda: busy("ro-b") == SLOTS, 30)
        drain("drained")
        try:
            assert busy("ro-b") == SLOTS
            quota("")
            answers = [one.result() for one in under_way]
            during = [door.chat("Hello", conversation) for conversation in MANY]
        finally:
            drain("serving")
    all_good(answers + during)
    assert Counter(door.hosts(answers))["ro-b"] == SLOTS
    assert set(door.hosts(during)) == {"ro-a", "ro-c"}
    after = [door.chat("Hello", conversation) for conversation in MANY]
    all_good(after)
    assert "ro-b" in door.hosts(after)


def test_a_host_without_power_costs_its_own_answers_and_no_others(door, slow):
    with streams(door, SLOTS * len(HOSTS), tokens=1000) as under_way:
        until(lambda: sum(map(busy, HOSTS)) == SLOTS * len(HOSTS), 30)
        # Nothing of it is heard any more, no connection is closed.
        lab("net", "ro-a", "cut")
        try:
            lab("kill", "ro-a")
            quota("", HOSTS[1:])
            with ThreadPoolExecutor(4) as pool:
                during = list(pool.map(lambda name: door.chat("Hello", name, max_tokens=1), MANY))
            answers = [one.result() for one in under_way]
        finally:
            lab("net", "ro-a", "heal")
            lab("start", "ro-a")
    all_good(during)
    assert "ro-a" not in door.hosts(during)
    log = door.log()
    lost = [number for number, answer in enumerate(answers) if SERVERS[log[answer.name][-1]] == "ro-a"]
    assert len(lost) == SLOTS
    all_good([answer for number, answer in enumerate(answers) if number not in lost])
    for number in lost:
        # Its client would have waited longer.
        assert not answers[number].whole and "Timeout" not in answers[number].error
        print(f"lost after {answers[number].seconds:.0f} s: {answers[number].error}")
    print(f"slowest of those after: {max(one.seconds for one in during):.1f} s")


def test_a_host_that_came_back_is_used_again(door):
    def used() -> bool:
        answers = [door.chat("Hello", conversation, max_tokens=1) for conversation in MANY]
        all_good(answers)
        return "ro-a" in door.hosts(answers)

    until(used, 60)


def recap(said: str) -> dict[str, dict[str, int]]:
    """By host, what the end of a run counts."""
    lines = [line.split() for line in said.split("PLAY RECAP")[1].splitlines() if " ok=" in line]
    return {words[0]: {key: int(value) for key, value in (word.split("=") for word in words[2:])} for words in lines}


def test_any_hosts_files_tell_the_plan_what_a_model_is():
    """Its first host has lost its copy, and no source has one."""
    manifest = "/srv/llm/models/onprem/tiny/*/manifest.json"
    on("ro-a", f"for one in {manifest}; do mv $one $one.away; done")
    try:
        nowhere = json.dumps({"model_sources": {"lab": {"type": "directory", "path": "/nowhere"}}})
        done = playbook("playbooks/plan.yml", "--extra-vars", nowhere)
        said = one_line(done.stdout)
        assert done.returncode == 0 and "of 1 model on 3 hosts: 3 fit in memory" in said, said
    finally:
        on("ro-a", f"for one in {manifest}.away; do mv $one ${{one%.away}}; done")


@pytest.mark.long
def test_a_run_does_what_it_can_without_a_dead_host_and_says_what_is_owed(door, tmp_path):
    lab("net", "ro-c", "cut")
    try:
        lab("kill", "ro-c")
        alone = playbook("site.yml", "--limit", "!ro-c", "-e", f"doctor_json={tmp_path}/alone.json")
        everything = playbook("site.yml", "-e", f"doctor_json={tmp_path}/everything.json")
        answers = [door.chat("Hello", conversation, max_tokens=1) for conversation in MANY]
        conf = on(DOOR, "cat /etc/nginx/nginx.conf")
    finally:
        lab("net", "ro-c", "heal")
        lab("start", "ro-c")
    assert alone.returncode == 0, alone.stdout[-4000:]
    # Ansible's own word for a host that it could not reach; everything else went well.
    assert everything.returncode == 4, everything.stdout[-4000:]
    counts = recap(everything.stdout)
    assert counts.pop("ro-c")["unreachable"] == 1
    assert not any(one["failed"] or one["unreachable"] for one in counts.values()), counts
    for run, report in ((alone, "alone"), (everything, "everything")):
        assert "ro-c did not answer and is left out" in one_line(run.stdout)
        said = json.loads((tmp_path / f"{report}.json").read_text())
        assert said["ok"] is False
        (owed,) = [one for one in said["findings"] if one["check"] == "host.reachable"]
        assert (owed["host"], owed["state"]) == ("ro-c", "not_asked")
    all_good(answers)
    assert "server 10.77.214.13:9101 " in conf, "it may come back by itself, and is used again then"
    again = playbook("site.yml")
    assert again.returncode == 0, again.stdout[-4000:]
