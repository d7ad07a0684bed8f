# SPDX-License-Identifier: GPL-3.0-or-later
"""One version of Open WebUI after the other, with people's data inside: there, refused, broken off, and back.

The tests follow one another; each takes the host as the one before left it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest
from conftest import PROJECT, command, environment, on, one_line
from killing import Run
from lab import DATA, DOCUMENTS, KEPT, OLD, WEB, Chat, Content, embeddings, host, sql, way_back, web

# The tasks in which a run is killed: before the data are kept, while the new version meets them, and after.
THERE = [
    "Stop the version that serves, and keep its uploads",
    "Keep its database",
    "Try the version where nobody reaches it",
    "Point to it",
    "Restart the service",
]
BACK = ["End the trial", "Restore the database as it was", "Start the version that served"]


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    server, chat = embeddings(), Chat()
    for _ in range(60):
        if chat.ready():
            break
        time.sleep(1)
    yield chat
    chat.close()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def content(chat, secrets) -> Content:
    content = Content(chat, secrets("openwebui_admin_password"))
    assert chat.version() == "0.11.4"
    content.fill()
    content.check()
    return content


def facts() -> tuple[dict, list]:
    """What the web host says of Open WebUI, and what it owes."""
    said = json.loads(host(WEB).check_output("cat /etc/ansible/facts.d/onprem_llm.fact"))
    return said["components"]["openwebui"], said["debts"]


def dumps() -> list[str]:
    return host(DATA).check_output(f"ls {KEPT}").split()


def killed(step: str) -> None:
    """SIGKILL to a run and all it started here, in that task."""
    run = Run(command("playbooks/web.yml", *DOCUMENTS), environment(), PROJECT)
    assert run.reaches(lambda begun: any(name.endswith(step) for name, _ in begun)), run.output
    run.goes_on(2)
    run.kill(everything=True)


@pytest.mark.long
def test_a_check_says_what_would_happen_and_changes_nothing(chat, content):
    result = web("--check", "--diff")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Open WebUI 0.11.4 would be replaced by 0.12.4-py3.11" in one_line(result.stdout)
    assert chat.version() == "0.11.4"
    assert not host(DATA).file(KEPT).exists


@pytest.fixture(scope="module")
def obstacle() -> None:
    """The migration wants to make a table of this name, after it has changed others."""
    sql("SET ROLE openwebui; CREATE TABLE app (id int)")


@pytest.mark.long
@pytest.mark.parametrize("step", BACK)
def test_a_run_that_is_killed_on_its_way_back(chat, content, obstacle, step):
    """Whatever it left, the next run tries again, and fails with the old version in service: the test after these."""
    killed(step)


def test_a_failing_migration_leaves_the_old_version_with_all_data(chat, content, obstacle):
    before = sql("SELECT version_num FROM alembic_version")
    result = web()
    said = one_line(result.stdout)
    assert result.returncode == 2, said
    assert "did not take over on chatweb1. 0.11.4-py3.11-" in said
    assert 'relation "app" already exists' in said, said
    assert chat.ready() and chat.version() == "0.11.4"
    content.check()
    assert sql("SELECT version_num FROM alembic_version") == before
    now, debts = facts()
    assert now["version"] == "0.11.4"
    assert [debt["what"] for debt in debts if debt["component"] == "openwebui"] == ["rollout"]
    assert not host(WEB).file("/run/systemd/system/openwebui-trial.service").exists
    assert host(WEB).service("openwebui").is_enabled
    # Nobody's rights on the database are others than before, and no dump of a change that is over is left.
    assert sql("SELECT has_database_privilege($$public$$, $$openwebui$$, $$CONNECT$$)") == "f"
    assert dumps() == []
    sql("DROP TABLE app")


@pytest.mark.long
def test_another_server_than_the_applications_is_refused(chat, content):
    result = web("-e", f"openwebui_database_server={WEB}")
    assert result.returncode == 2
    said = one_line(result.stdout)
    assert f"{WEB}: No PostgreSQL answers at port 5432 of this host. Let openwebui_database_host" in said, said
    assert chat.ready() and chat.version() == "0.11.4"


@pytest.mark.long
def test_the_database_host_is_lost_when_the_service_is_down(chat, content):
    """Ansible skips a rescue where a host is not reached; here the old version must serve again."""
    run = Run(command("playbooks/web.yml", *DOCUMENTS), environment(), PROJECT)
    assert run.reaches(lambda begun: any(name.endswith(THERE[0]) for name, _ in begun)), run.output
    on(DATA, "systemctl stop ssh.socket ssh; pkill -x sshd; pkill -x sshd-session; true")
    try:
        run.process.wait(300)
    finally:
        on(DATA, "systemctl start ssh")
    said = one_line(run.output)
    assert f"{DATA}, which has the database of Open WebUI on {WEB}, is not reached, so that it was not kept" in said
    assert chat.ready() and chat.version() == "0.11.4"
    content.check()


@pytest.mark.long
def test_asking_for_the_old_version_again_pays_the_debt(chat, content):
    result = web(*OLD)
    assert result.returncode == 0, result.stdout + result.stderr
    assert facts()[1] == []
    assert chat.version() == "0.11.4"


@pytest.mark.long
@pytest.mark.parametrize("step", THERE)
def test_a_run_that_is_killed(chat, content, step):
    """The next run goes on from there; the last one ends with the new version: the test after these."""
    killed(step)


def test_the_next_run_brings_the_new_version_with_all_data(chat, content):
    result = web()
    assert result.returncode == 0, result.stdout + result.stderr
    assert chat.ready() and chat.version() == "0.12.4"
    content.check()
    now, debts = facts()
    assert (now["version"], now["previous"]["version"], debts) == ("0.12.4", "0.11.4", [])
    kept = dumps()
    assert len(kept) == 1 and kept[0].endswith(".dump"), kept
    assert host(DATA).file(KEPT).mode == 0o700
    assert host(DATA).file(f"{KEPT}/{kept[0]}").mode == 0o600
    assert host(WEB).check_output(f"ls {KEPT}").split() == sorted([kept[0].removesuffix(".dump"), "record.json"])


@pytest.mark.long
def test_a_second_run_changes_nothing():
    again = web()
    assert re.search(r"chatweb1 .*changed=0 ", again.stdout), again.stdout


@pytest.mark.long
def test_a_downgrade_is_refused_with_the_way_back(chat, content):
    result = web(*OLD)
    assert result.returncode == 2
    said = one_line(result.stdout)
    assert "openwebui_version is 0.11.4, but chatweb1 serves 0.12.4" in said
    assert "-e rollback=openwebui --limit chatweb1" in said
    assert "changed=0" in said
    assert chat.version() == "0.12.4"


@pytest.mark.long
def test_the_way_back_brings_the_data_of_before_and_forward_those_of_after(chat, content):
    email = "bo@chat.test"
    late = content.say(email, "written with the new version")
    back = way_back()
    assert back.returncode == 0, back.stdout + back.stderr
    assert chat.ready() and chat.version() == "0.11.4"
    words = content.chats[email].pop(late)
    content.check()
    now, debts = facts()
    assert (now["version"], now["previous"]["version"], debts) == ("0.11.4", "0.12.4", [])
    forward = way_back()
    assert forward.returncode == 0, forward.stdout + forward.stderr
    assert chat.ready() and chat.version() == "0.12.4"
    content.chats[email][late] = words
    content.check()


@pytest.mark.long
def test_a_new_web_host_keeps_the_database_it_finds(chat, content):
    """The host was lost, and nothing of it is left but what people wrote."""
    host(WEB).check_output("systemctl disable --now openwebui && rm -r /opt/onprem-llm/openwebui/current %s", KEPT)
    before = set(dumps())
    result = web()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "The database openwebui was not new." in one_line(result.stdout)
    (kept,) = set(dumps()) - before
    assert kept.startswith("found-") and len(dumps()) == 1
    assert chat.ready()
    content.check()
    again = web()
    assert re.search(r"chatweb1 .*changed=0 ", again.stdout), again.stdout
    assert dumps() == [kept]
