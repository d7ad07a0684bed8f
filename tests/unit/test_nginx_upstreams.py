# SPDX-License-Identifier: GPL-3.0-or-later
"""The way from a model's name to its hosts, as nginx's configuration says it."""

from __future__ import annotations

import re
from typing import Any

from test_exposure import rendered

from ansible_collections.onprem.llm.plugins.module_utils import nginx_drain


def server(address: str, slots: int = 4, port: int = 9101) -> dict[str, Any]:
    return {"address": address, "port": port, "slots": slots}


ENGINES = [
    {
        "model": "shared",
        "kind": "chat",
        "servers": [server("192.0.2.1"), server("2001:db8::1", 2), server("192.0.2.3", 0)],
    },
    {"model": "single", "kind": "chat", "servers": [server("192.0.2.1", port=9102)]},
    {
        "model": "vectors",
        "kind": "embedding",
        "servers": [server("192.0.2.1", port=9103), server("192.0.2.3", port=9103)],
    },
]


def config(vhosts: list[dict[str, str]] | None = None) -> str:
    text: str = rendered(
        "nginx",
        "nginx.conf.j2",
        nginx_engines=ENGINES,
        nginx_vhosts=vhosts or [],
        ansible_facts={"distribution": "Debian", "distribution_major_version": "12"},
        nginx_certificate="x",
        nginx_certificate_key="x",
        nginx_public_name="llm.example",
    )
    return text


def upstreams() -> dict[str, list[str]]:
    found = re.findall(r"upstream (\S+) \{\n(.*?)\n  \}", config(), re.DOTALL)
    return {name: re.findall(r"server (.*);", body) for name, body in found}


def test_a_conversation_needs_a_choice_of_hosts_and_a_free_slot() -> None:
    """A host that did not answer has its place, and nobody knows how many slots."""
    health = "max_fails=1 fail_timeout=10s"
    assert upstreams() == {
        "sticky_shared": [
            f"192.0.2.1:9101 max_conns=4 {health}",
            f"[2001:db8::1]:9101 max_conns=2 {health}",
            f"192.0.2.3:9101 {health}",
        ],
        "engine_shared": [f"{one}:9101 {health}" for one in ("192.0.2.1", "[2001:db8::1]", "192.0.2.3")],
        "engine_single": [f"192.0.2.1:9102 {health}"],
        "engine_vectors": [f"{one}:9103 {health}" for one in ("192.0.2.1", "192.0.2.3")],
    }


def test_a_host_is_drained_in_all_of_them() -> None:
    text = nginx_drain.marked(config(), {"192.0.2.1:9101"}, True)
    assert len(re.findall(r"server 192\.0\.2\.1:9101 .* down;", text)) == 2
    assert nginx_drain.marked(text, {"192.0.2.1:9101"}, False) == config()


def test_a_request_sees_three_engines_at_most() -> None:
    """One that ends an engine shall not end them all; what the first could not answer goes on, also while it loads."""
    ways = dict(re.findall(r"location (?:\^~ )?(\S+) \{(.*?)\n    \}", config(), re.DOTALL))
    tries = {name: re.findall(r"proxy_next_upstream_tries (\d);", body) for name, body in ways.items()}
    assert (tries["/engine-of/shared/"], tries["@engine_shared"]) == (["1"], ["2"])
    assert tries["/engine-of/single/"] == tries["/engine-of/vectors/"] == ["2"]
    first = ways["/engine-of/shared/"]
    assert "proxy_intercept_errors on;" in first and "error_page 502 503 504 = @engine_shared;" in first


def test_what_llama_cpp_takes_for_its_own_is_not_passed_on() -> None:
    """A second request with the same X-Conversation-Id would end the answer of the first."""
    ways = [body for body in re.findall(r"location [^{]+ \{(.*?)\n    \}", config(), re.DOTALL) if "proxy_pass" in body]
    assert len(ways) == 2 * (len(ENGINES) + 1)
    assert all('proxy_set_header X-Conversation-Id "";' in way for way in ways)


def test_a_site_with_models_only_has_a_door_too() -> None:
    assert "listen 443 ssl" in config()
    assert re.search(r"location / \{\s+return 403;", config())
    assert "return 403" not in config([{"server_name": "llm.example", "upstream": "127.0.0.1:3000"}])
