# SPDX-License-Identifier: GPL-3.0-or-later
"""What the role refuses before it touches the host, and the environment it would write: one run of Ansible for all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.onprem.llm.plugins.module_utils import openwebui_env, openwebui_switch

PROJECT = Path(__file__).parents[2]
ENDPOINT = {"url": "http://127.0.0.1:8480/engine/v1", "key": "canary-engine", "models": ["tiny-chat"]}
EMBEDDING = {"model": "tiny-embedding", "dimensions": 128, "url": ENDPOINT["url"], "key": "canary-engine"}
GOOD: dict[str, Any] = {
    "__openwebui_python": "3.11",
    "openwebui_public_url": "https://chat.example.org",
    "openwebui_endpoints": [ENDPOINT],
    "openwebui_embedding": EMBEDDING,
    "openwebui_secret_key": "canary-secret-canary-secret-canary",
    "openwebui_admin_password": 'canary "$admin\\',
    "openwebui_database_host": "10.0.0.3",
    "openwebui_database_password": "p@ss/w:rd#1",
    "openwebui_ldap_host": "ldap.example.org",
    "openwebui_ldap_base": "dc=example,dc=org",
    "openwebui_ldap_bind_dn": "cn=reader",
    "openwebui_ldap_bind_password": "canary-ldap",
    "openwebui_ldap_probe": False,
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a version with published holes": (
        {"openwebui_version": "0.8.12"},
        r"openwebui_version is 0\.8\.12, below 0\.9\.0.*floors\.yml",
    ),
    "a version that is not in the lock": (
        {"openwebui_version": "0.12.5"},
        r"openwebui_version is 0\.12\.5, but requirements/openwebui/py3\.11\.txt holds another.*make lock",
    ),
    "an older version than the one that serves": (
        {"__openwebui_root": "NEWER"},
        r"openwebui_version is 0\.12\.4, but localhost serves 9\.0\.1, and an older version cannot read.*"
        r"Set openwebui_version to 9\.0\.1 or newer",
    ),
    "an older version, where there is a way back": (
        {"__openwebui_root": "NEWER", "__openwebui_kept": "KEPT"},
        r"To go back to 0\.11\.4 with the data as they were then, run `ansible-playbook playbooks/rollback\.yml .*"
        r"-e rollback=openwebui --limit localhost`",
    ),
    "an upgrade without a place for the dump": (
        {"__openwebui_root": "OLDER", "openwebui_database_server": "elsewhere"},
        r"localhost serves 0\.11\.4, but openwebui_database_server is 'elsewhere'.*no way back.*group postgresql",
    ),
    "a Python outside the range": (
        {"__openwebui_python": "3.13"},
        r"Python on localhost is 3\.13.*supports 3\.11 and 3\.12.*Debian 12 or Ubuntu.*openwebui_python.*"
        r"openwebui_allow_unsupported_python",
    ),
    "the same, refused on the command line": (
        {"__openwebui_python": "3.13", "openwebui_allow_unsupported_python": "false"},
        r"Python on localhost is 3\.13",
    ),
    "a Python without a lock": (
        {"__openwebui_python": "3.14", "openwebui_allow_unsupported_python": True},
        r"no lock file requirements/openwebui/py3\.14\.txt",
    ),
    "a public address without TLS": (
        {"openwebui_public_url": "http://chat.example.org"},
        "openwebui_public_url is 'http://chat.example.org'.*https://",
    ),
    "no secret key": ({"openwebui_secret_key": ""}, r"openwebui_secret_key \(at least 32 characters\)"),
    "an endpoint without address": (
        {"openwebui_endpoints": [{"url": "", "key": "x"}]},
        "openwebui_endpoints has an entry whose url is empty.*public service.*nothing was written",
    ),
    "embeddings without address": (
        {"openwebui_embedding": {"model": "m", "dimensions": 128}},
        "openwebui_embedding.url is ''.*documents would be sent to a public service",
    ),
    "embeddings of unknown length": (
        {"openwebui_embedding": {"model": "m", "url": "http://x/v1"}},
        r"openwebui_embedding\.dimensions is not set",
    ),
    "vectors too long for pgvector": (
        {"openwebui_embedding": {"model": "m", "url": "http://x/v1", "dimensions": 8192}},
        r"dimensions is 8192.*4000",
    ),
    "pieces shorter than their overlap": (
        {"openwebui_chunk_size": 100, "openwebui_chunk_overlap": 100},
        "openwebui_chunk_overlap is 100 and openwebui_chunk_size 100",
    ),
    "clear text LDAP": ({"openwebui_ldap_port": "389"}, "openwebui_ldap_port is 389.*clear text.*636"),
    "half an LDAP login": ({"openwebui_ldap_bind_password": ""}, "openwebui_ldap_bind_password is empty"),
    "LDAP by address with a Python that cannot verify it": (
        {"__openwebui_python": "3.12", "openwebui_ldap_host": "10.0.0.4"},
        r"openwebui_ldap_host is 10\.0\.0\.4\. With Python 3\.12.*Set ldap_host to a name",
    ),
    "an override of an address that has a variable": (
        {"openwebui_settings": {"OPENAI_API_BASE_URLS": "https://api.example.com/v1"}},
        r"OPENAI_API_BASE_URLS \(set instead: openwebui_endpoints\)",
    ),
    "an override of a secret": (
        {"openwebui_settings": {"DATABASE_URL": "x", "WEBUI_SECRET_KEY": "y"}},
        r"DATABASE_URL \(set instead: openwebui_database_\*\), WEBUI_SECRET_KEY \(set instead: openwebui_secret_key\)",
    ),
    "open sign-up and a login by header": (
        {"openwebui_settings": {"ENABLE_SIGNUP": True, "WEBUI_AUTH_TRUSTED_EMAIL_HEADER": "X-Mail"}},
        "ENABLE_SIGNUP .*WEBUI_AUTH_TRUSTED_EMAIL_HEADER .*name themselves anybody",
    ),
}
RENDERED: dict[str, dict[str, Any]] = {
    "full": {"openwebui_settings": {"RAG_TOP_K": 7, "DEFAULT_MODEL_PARAMS": {"num_ctx": 4096}}},
    "bare": {"openwebui_endpoints": [], "openwebui_embedding": {}, "openwebui_ldap_host": ""},
    "local": {"openwebui_database_host": "127.0.0.1", "openwebui_embedding": {**EMBEDDING, "dimensions": 3072}},
    "IPv6": {"openwebui_database_host": "fd00::3"},
}


def placed(folder: Path, change: dict[str, Any]) -> dict[str, Any]:
    """With folders of this test where only their names stand."""
    return {key: str(folder / value) if value in ("NEWER", "OLDER", "KEPT") else value for key, value in change.items()}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The message of each refusal, '' where nothing was refused, and the rendered environments."""
    folder = tmp_path_factory.mktemp("openwebui")
    for name, pointer in (("NEWER", "9.0.1-py3.11-aaaaaaaa"), ("OLDER", "0.11.4-py3.11-bbbbbbbb")):
        (folder / name / pointer).mkdir(parents=True)
        (folder / name / "current").symlink_to(pointer)
    (folder / "NEWER/0.11.4-py3.11-bbbbbbbb").mkdir()
    (folder / "NEWER/0.11.4-py3.11-bbbbbbbb/.complete").touch()
    record = openwebui_switch.begun(
        openwebui_switch.first("0.11.4-py3.11-bbbbbbbb"), "9.0.1-py3.11-aaaaaaaa", "d", "", True
    )
    (folder / "KEPT").mkdir()
    (folder / "KEPT/record.json").write_text(openwebui_switch.render(openwebui_switch.passed(record)))
    tasks: list[dict[str, Any]] = []
    for number, (_, (change, _)) in enumerate([("good", ({}, "")), *REFUSED.items()]):
        include = {"name": "onprem.llm.openwebui", "tasks_from": "preflight"}
        keep = {"refusals": f"{{{{ refusals | default({{}}) | combine({{'{number}': ansible_failed_result.msg}}) }}}}"}
        tasks.append(
            {
                "name": f"Case {number}",
                "block": [{"ansible.builtin.include_role": include, "vars": {**GOOD, **placed(folder, change)}}],
                "rescue": [{"ansible.builtin.set_fact": keep}],
            }
        )
    tasks.append(
        {
            "name": "Keep what was said",
            "ansible.builtin.copy": {
                "content": "{{ refusals | to_json }}",
                "dest": f"{folder}/refusals",
                "mode": "0600",
            },
        }
    )
    play = {"hosts": "localhost", "connection": "local", "gather_subset": ["!all", "python"], "tasks": tasks}
    files = [str(PROJECT / f"roles/openwebui/{kind}/main.yml") for kind in ("defaults", "vars")]
    template = PROJECT / "roles/openwebui/templates/openwebui.env.j2"
    content = f"{{{{ lookup('onprem.llm.template', '{template}') }}}}"
    renders = [
        {
            "name": f"Render {name}",
            "ansible.builtin.copy": {"content": content, "dest": f"{folder}/{name}", "mode": "0600"},
            "vars": {**GOOD, **change},
        }
        for name, change in RENDERED.items()
    ]
    second = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars_files": files, "tasks": renders}
    (folder / "play.yml").write_text(yaml.safe_dump([play, second], sort_keys=False))
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", str(folder / "play.yml")]
    command += ["-e", f"ansible_python_interpreter={sys.executable}"]
    for name in ("paths", "floors"):
        command += ["-e", f"@group_vars/all/{name}.yml"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    refusals = json.loads((folder / "refusals").read_text())
    cases = {name: refusals.get(str(number), "") for number, name in enumerate(["good", *REFUSED])}
    assert "canary" not in done.stdout, "a secret was shown"
    return {**cases, "rendered": {name: (folder / name).read_text() for name in RENDERED}}


def test_good_settings_are_taken(seen: dict[str, Any]) -> None:
    assert seen["good"] == ""


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_with_one_clear_message(seen: dict[str, Any], case: str) -> None:
    assert re.search(REFUSED[case][1], seen[case]), seen[case]
    assert "\n" not in seen[case]


def settings(seen: dict[str, Any], name: str) -> dict[str, str]:
    return openwebui_env.parse(seen["rendered"][name])


@pytest.mark.parametrize("name", RENDERED)
def test_strangers_stay_out_and_data_stays_in(seen: dict[str, Any], name: str) -> None:
    """First user race, sign-up, direct connections, stale settings, downloads, telemetry."""
    got = settings(seen, name)
    for key in ("ENABLE_SIGNUP", "ENABLE_DIRECT_CONNECTIONS", "ENABLE_PERSISTENT_CONFIG", "ENABLE_WEB_SEARCH"):
        assert got[key] == "false", key
    for key in ("OFFLINE_MODE", "WEBUI_SESSION_COOKIE_SECURE", "WEBUI_AUTH_COOKIE_SECURE"):
        assert got[key] == "true", key
    assert got["WEBUI_ADMIN_EMAIL"] and got["WEBUI_ADMIN_PASSWORD"] == GOOD["openwebui_admin_password"]
    assert not [key for key in got if key.startswith("WEBUI_AUTH_TRUSTED")]
    addresses = {key: value for key, value in got.items() if re.match("https?://", value)}
    known = {ENDPOINT["url"], openwebui_env.NOWHERE, GOOD["openwebui_public_url"]}
    assert set(addresses.values()) <= known, addresses
    # The addresses that the locked version would otherwise fill in; the host's own copy is asked at every run.
    for key in ("OPENAI_API_BASE_URLS", "OPENAI_API_BASE_URL", "RAG_OPENAI_API_BASE_URL", "IMAGES_OPENAI_API_BASE_URL"):
        assert got[key]
    for key in ("AUDIO_STT_OPENAI_API_BASE_URL", "AUDIO_TTS_OPENAI_API_BASE_URL", "OLLAMA_BASE_URLS"):
        assert got[key] == openwebui_env.NOWHERE


def test_ldap_is_encrypted_and_verified(seen: dict[str, Any]) -> None:
    got = settings(seen, "full")
    assert got["ENABLE_LDAP"] == got["LDAP_USE_TLS"] == got["LDAP_VALIDATE_CERT"] == "true"
    assert got["LDAP_CA_CERT_FILE"] == "/etc/onprem-llm/tls/ca.crt"
    assert got["LDAP_SERVER_PORT"] == "636"
    bare = settings(seen, "bare")
    assert bare["ENABLE_LDAP"] == "false"
    assert "LDAP_SERVER_HOST" not in bare


def test_a_database_elsewhere_is_verified(seen: dict[str, Any]) -> None:
    remote = settings(seen, "full")["DATABASE_URL"]
    assert remote == (
        "postgresql://openwebui:p%40ss%2Fw%3Ard%231@10.0.0.3:5432/openwebui"
        "?sslmode=verify-full&sslrootcert=/etc/onprem-llm/tls/ca.crt"
    )
    assert settings(seen, "local")["DATABASE_URL"].endswith("@127.0.0.1:5432/openwebui")
    assert "@[fd00::3]:5432/openwebui?sslmode" in settings(seen, "IPv6")["DATABASE_URL"]


def test_vectors_have_the_models_length(seen: dict[str, Any]) -> None:
    assert settings(seen, "full")["PGVECTOR_INITIALIZE_MAX_VECTOR_LENGTH"] == "128"
    assert settings(seen, "full")["PGVECTOR_USE_HALFVEC"] == "false"
    long = settings(seen, "local")
    assert (long["PGVECTOR_INITIALIZE_MAX_VECTOR_LENGTH"], long["PGVECTOR_USE_HALFVEC"]) == ("3072", "true")


def test_without_models_nothing_is_asked(seen: dict[str, Any]) -> None:
    bare = settings(seen, "bare")
    assert bare["ENABLE_OPENAI_API"] == "false"
    assert bare["BYPASS_EMBEDDING_AND_RETRIEVAL"] == "true"
    assert bare["RAG_OPENAI_API_BASE_URL"] == bare["OPENAI_API_BASE_URLS"] == openwebui_env.NOWHERE


def test_the_sites_own_settings_win(seen: dict[str, Any]) -> None:
    got = settings(seen, "full")
    assert got["RAG_TOP_K"] == "7"
    assert json.loads(got["DEFAULT_MODEL_PARAMS"]) == {"num_ctx": 4096}
    # Open WebUI fills in the conversation; the front door sends it to the same host again.
    headers = {"X-Chat-Id": "{{CHAT_ID}}"}
    assert json.loads(got["OPENAI_API_CONFIGS"]) == {
        "0": {"enable": True, "model_ids": ["tiny-chat"], "headers": headers}
    }
