# SPDX-License-Identifier: GPL-3.0-or-later
"""The all-in-one host: what runs, what listens, what a stranger gets."""

from __future__ import annotations

import base64
import json
import re
import socket
from pathlib import Path

import pytest
from conftest import SSH_CONFIG, ask

testinfra_hosts = ["ansible://box"]

UNITS = ["llamacpp@tiny-chat", "llamacpp@tiny-embedding", "postgresql", "slapd", "openwebui", "nginx"]
ADDRESS = "10.77.1.11"
URL = f"https://{ADDRESS}"
# Scores of systemd-analyze security; lower is better. Ours, and what the drop-ins make of the distribution's.
SCORES = {"llamacpp@tiny-chat": 1.5, "openwebui": 1.5, "nginx": 3.0, "slapd": 3.5}


@pytest.mark.parametrize("unit", UNITS)
def test_unit_runs_and_starts_at_boot(host, running, unit):
    running(unit)
    assert host.service(unit).is_enabled


@pytest.mark.parametrize(("unit", "limit"), SCORES.items())
def test_unit_is_sandboxed(host, unit, limit):
    text = host.check_output(f"systemd-analyze security --no-pager {unit}.service | tail -n 1")
    assert float(re.search(r"(\d+\.\d)", text).group(1)) <= limit, text


def test_only_the_front_door_is_open(host):
    """T1: every other port is closed to whoever is outside."""
    listening = {
        int(line.split()[3].rsplit(":", 1)[1]) for line in host.check_output("ss -Htln").splitlines() if line.split()
    }
    assert {22, 80, 443, 636, 3000, 5432, 9101, 9102} <= listening
    for port in sorted(listening):
        with socket.socket() as probe:
            probe.settimeout(1)
            reachable = probe.connect_ex((ADDRESS, port)) == 0
        assert reachable == (port in (22, 80, 443)), f"port {port}: reachable from outside is {reachable}"


def test_engine_wants_its_key(ca_file, secrets):
    """T1: no model without the key, neither through the door nor beside it."""
    chat = {"model": "tiny-chat", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    assert ask(f"{URL}/engine/v1/models", ca_file)[0] == 401
    assert ask(f"{URL}/engine/v1/chat/completions", ca_file, chat)[0] == 401
    assert ask(f"{URL}/engine/v1/chat/completions", ca_file, chat, "wrong")[0] == 401
    status, answer = ask(f"{URL}/engine/v1/chat/completions", ca_file, chat, secrets("engine_api_key"))
    assert (status, "Paris" in answer["choices"][0]["message"]["content"]) == (200, True), answer


def test_engine_api_accepts_only_what_it_knows(ca_file, secrets):
    """T4: the parameter behind CVE-2026-21869 and paths that nobody needs do not reach an engine."""
    key = secrets("engine_api_key")
    bad = {"model": "tiny-chat", "messages": [], "n_discard": -1}
    status, answer = ask(f"{URL}/engine/v1/chat/completions", ca_file, bad, key)
    assert (status, "n_discard" in answer["error"]["message"]) == (400, True)
    for path in ("slots", "props", "../health", "completions/../../slots"):
        assert ask(f"{URL}/engine/v1/{path}", ca_file, None, key)[0] in (400, 403, 404)
    status, answer = ask(f"{URL}/engine/v1/chat/completions", ca_file, {"model": "gpt-4", "messages": []}, key)
    assert (status, "tiny-chat" in answer["error"]["message"]) == (404, True)


def test_embedding_has_the_declared_length(ca_file, secrets):
    body = {"model": "tiny-embedding", "input": "The access code of the Kelora server is QX-4711."}
    status, answer = ask(f"{URL}/engine/v1/embeddings", ca_file, body, secrets("engine_api_key"))
    assert (status, len(answer["data"][0]["embedding"])) == (200, 128)


def test_engine_runs_a_build_above_the_floor(host):
    """T4"""
    version = host.check_output("/opt/onprem-llm/llamacpp/current/llama-server --version 2>&1")
    assert int(re.search(r"build (\d+)", version).group(1)) >= 8146


def test_model_files_are_verified_and_read_only(host):
    """T10"""
    folder = host.file("/srv/llm/served/tiny-chat").linked_to
    manifest = json.loads(host.file(f"{folder}/manifest.json").content_string)
    assert manifest["files"]
    for entry in manifest["files"]:
        assert host.file(f"{folder}/{entry['path']}").sha256sum == entry["sha256"]
        assert host.file(f"{folder}/{entry['path']}").mode & 0o222 == 0


def test_sign_up_is_closed_and_strangers_see_nothing(ca_file):
    """T7: the first to come must not become administrator."""
    body = {"name": "x", "email": "x@example.org", "password": "Very-long-password-1"}
    assert ask(f"{URL}/api/v1/auths/signup", ca_file, body)[0] in (400, 403)
    assert ask(f"{URL}/api/models", ca_file)[0] in (401, 403)
    assert ask(f"{URL}/api/v1/users/", ca_file)[0] in (401, 403)


@pytest.mark.parametrize("password", ["", "wrong"])
def test_wrong_and_empty_passwords_are_refused(ca_file, password):
    """T8"""
    assert ask(f"{URL}/api/v1/auths/ldap", ca_file, {"user": "alice", "password": password})[0] in (400, 401, 403)


def test_headers_that_name_a_user_are_stripped(host, ca_file):
    text = host.file("/etc/nginx/nginx.conf").content_string
    assert text.count('proxy_set_header X-Auth-Email "";') >= 5


def test_no_secret_in_logs_arguments_or_world_readable_files(host, secrets):
    """T12"""
    names = ["engine_api_key", "postgresql_openwebui_password", "openldap_admin_password", "openldap_reader_password"]
    names += ["openwebui_secret_key", "openwebui_admin_password", "user_alice"]
    journal = host.check_output("journalctl --no-pager -q -o cat")
    arguments = host.check_output("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")
    for name in names:
        value = secrets(name)
        assert value not in journal, f"{name} is in the journal"
        assert value not in arguments, f"{name} is in the arguments of a process"
        # Encoded, because this very command would otherwise be the one that tells it to the journal.
        coded = base64.b64encode(value.encode()).decode()
        paths = host.check_output(
            f"echo {coded} | base64 -d > /dev/shm/pattern;"
            "grep -rlF -f /dev/shm/pattern /etc /var/log /opt 2>/dev/null;"
            "rm /dev/shm/pattern"
        ).split()
        readable = [path for path in paths if host.file(path).mode & 0o004]
        assert not readable, f"{name} can be read by everybody in {readable}"


def test_who_guesses_passwords_is_slowed_down(ca_file):
    """Last of all: this address may not log in for a while afterwards."""
    guess = {"user": "bob", "password": "guess"}
    answers = [ask(f"{URL}/api/v1/auths/ldap", ca_file, guess)[0] for _ in range(40)]
    assert 429 in answers, answers
    assert set(answers) <= {400, 401, 403, 429}


def test_the_lab_is_really_another_host():
    assert SSH_CONFIG.exists() and Path("/etc/onprem-llm").exists() is False
