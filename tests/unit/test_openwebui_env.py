# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.onprem.llm.plugins.module_utils import openwebui_env as env
from ansible_collections.onprem.llm.plugins.module_utils.drift import events
from ansible_collections.onprem.llm.plugins.modules import openwebui_env

# The ways in which an address comes to be somebody else's, as an application may write them.
SOURCE = """
import os

CHAT_URL = os.getenv('CHAT_URL', '')
if CHAT_URL == '':
    CHAT_URL = 'https://chat.example.com/v1'

CHAT_URLS = os.getenv('CHAT_URLS', '')
CHAT_URLS = CHAT_URLS if CHAT_URLS != '' else CHAT_URL
CHAT_URLS = [url for url in CHAT_URLS.split(';')]

EMBED_BASE_URL = os.getenv('EMBED_BASE_URL', CHAT_URL)
OCR_BASE_URL = os.environ.get('OCR_BASE_URL', 'https://ocr.example.com').rstrip('/')
NEIGHBOUR_URL = os.getenv('NEIGHBOUR_URL', 'http://docling:5001')
OWN_URL = os.getenv('OWN_URL', 'http://localhost:7000')
EMPTY_URL = os.getenv('EMPTY_URL', '')
CHAT_KEY = os.getenv('CHAT_KEY', '') if CHAT_URL == 'https://chat.example.com/v1' else ''
LATER_URL = os.getenv('OTHER_NAME_URL') or 'wss://later.example.com'
"""


def test_finds_addresses_that_default_to_another_host() -> None:
    assert env.outside_defaults(SOURCE) == {
        "CHAT_URL": "https://chat.example.com/v1",
        "CHAT_URLS": "https://chat.example.com/v1",
        "EMBED_BASE_URL": "https://chat.example.com/v1",
        "NEIGHBOUR_URL": "http://docling:5001",
        "OCR_BASE_URL": "https://ocr.example.com",
        "OTHER_NAME_URL": "wss://later.example.com",
    }


@pytest.mark.parametrize("left_out", ["CHAT_URL", "EMBED_BASE_URL", "NEIGHBOUR_URL"])
def test_refuses_an_address_left_out_or_empty(left_out: str) -> None:
    settings = dict.fromkeys(env.outside_defaults(SOURCE), env.NOWHERE)
    env.check(settings, [SOURCE])
    for settings[left_out] in ("", "  "):
        with pytest.raises(env.OpenWebuiEnvError, match=rf"{left_out} \(http.*Nothing was written.*openwebui_settings"):
            env.check(settings, [SOURCE])


def test_names_settings_that_nothing_reads() -> None:
    assert env.unread(["CHAT_URL", "CHAT_URLL", "HOME", "GONE"], [SOURCE, 'x = os.environ["GONE"]']) == ["CHAT_URLL"]


@pytest.mark.parametrize("value", ["", "plain", 'say "hi" \\ `now` $HOME', "two\nlines", "#no comment", "trailing\\"])
def test_a_quoted_value_is_read_back(value: str) -> None:
    text = f"# about\n\nFIRST={env.quote(value)}\nSECOND={env.quote('x')}\n"
    assert env.parse(text) == {"FIRST": value, "SECOND": "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('A="1"\nB=2\n', "Line 2 .* neither"),
        ('A="1\n', "Line 1 .* neither"),
        ('A="1"\nA="2"\n', "A stands twice"),
    ],
)
def test_refuses_a_broken_file(text: str, message: str) -> None:
    with pytest.raises(env.OpenWebuiEnvError, match=message):
        env.parse(text)


def test_a_diff_names_secrets_and_never_shows_them() -> None:
    before = {"WEBUI_SECRET_KEY": "old-canary", "TOP_K": "3", "DATABASE_URL": "postgresql://u:canary@h/d", "SAME": "1"}
    after = {"WEBUI_SECRET_KEY": "new-canary", "TOP_K": "4", "SAME": "1", "LDAP_APP_PASSWORD": "canary"}
    old, new = env.difference(before, after)
    assert old == "DATABASE_URL=(old secret)\nTOP_K=3\nWEBUI_SECRET_KEY=(old secret)\n"
    assert new == "LDAP_APP_PASSWORD=(new secret)\nTOP_K=4\nWEBUI_SECRET_KEY=(new secret)\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("redis://chat:canary@10.0.0.5:6379/0", False),
        ("redis://:canary@10.0.0.5", False),
        ("https://canary@10.0.0.5", False),
        ("http://proxy:can/ary@10.0.0.5", False),
        ('{"url": "http://10.0.0.5", "auth": ["canary"]}', False),
        ('["canary"]', False),
        ("http://10.0.0.5:9101/v1", True),
        ("https://chat.example.org", True),
        ("someone@example.org", True),
        ("", True),
    ],
)
def test_a_diff_hides_values_that_may_hold_a_secret(value: str, shown: bool) -> None:
    assert env.difference({"SITES_OWN": value}, {})[0] == f"SITES_OWN={value if shown else '(old secret)'}\n"


@pytest.mark.parametrize(
    ("address", "outside"),
    [
        ("https://api.example.com", True),
        ("http://10.0.0.5:9101/v1", True),
        ("http://localhost:1/x", False),
        ("http://127.0.0.1:9", False),
        ("http://[::1]:80/", False),
        ("not an address", False),
    ],
)
def test_tells_this_host_from_others(address: str, outside: bool) -> None:
    assert env.is_outside(address) is outside


@pytest.mark.parametrize(
    ("mode", "content", "how"),
    [
        ("0600", 'A="1"', None),
        ("0644", 'A="1"', "mode 0644 -> 0600"),
        ("0644", 'A="2"', "content, mode 0644 -> 0600"),
        ("0600", 'A="1"\nB="2"', "content"),
    ],
)
def test_drift_names_the_file_and_its_mode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, content: str, how: str | None
) -> None:
    path = tmp_path / "openwebui.env"
    (tmp_path / "tree/lib/python3/site-packages/open_webui").mkdir(parents=True)
    for name in ("config.py", "env.py"):
        (tmp_path / "tree/lib/python3/site-packages/open_webui" / name).touch()

    def ran(content: str, check: bool) -> dict[str, Any]:
        given = {"path": str(path), "content": content, "stamp": "S", "tree": str(tmp_path / "tree"), "mode": "0600"}
        with patch_module_args({**given, "_ansible_check_mode": check}), pytest.raises(SystemExit):
            openwebui_env.main()
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    assert ran('A="1"', False)["changed"]
    path.chmod(int(mode, 8))
    result = ran(content, True)
    assert result["changed"] is bool(how)
    if how:
        assert [row[:2] for row in events.differences("onprem.llm.openwebui_env", result, {})] == [(str(path), how)]
