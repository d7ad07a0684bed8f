# SPDX-License-Identifier: GPL-3.0-or-later
"""T1 and T12, as far as no host is needed: where engines listen, who must show a key, what is kept quiet."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

import conventions
import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from conventions import PROJECT, ROLE_NAMES, module_of, role

HOSTS = {"gpu1": {"fleet_address": "192.0.2.11"}, "web1": {"fleet_address": "192.0.2.12"}}
SITE = {
    "inventory_hostname": "gpu1",
    "hostvars": HOSTS,
    "etc_dir": "/etc/onprem-llm",
    "opt_dir": "/opt/onprem-llm",
    "served_dir": "/srv/llm/served",
    "fleet_address": "192.0.2.11",
    "tls_dir": "/etc/onprem-llm/tls",
}


def rendered(name: str, template: str, **variables: Any) -> str:
    """A text of a role: a template's file name, or an expression; with the role's own variables below these."""
    path = PROJECT / f"roles/{name}/templates/{template}"
    text = path.read_text() if path.exists() else template
    known = {**role(name).defaults, **role(name).vars, **SITE, **variables}
    templar = Templar(loader=DataLoader(), variables={key: trusted(value) for key, value in known.items()})
    return str(templar.template(trust_as_template(text)))


def trusted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


@pytest.mark.parametrize(
    ("clients", "address"),
    [([], "127.0.0.1"), (["gpu1"], "127.0.0.1"), (["web1"], "192.0.2.11"), (["gpu1", "web1"], "192.0.2.11")],
)
@pytest.mark.parametrize("engine", ["llamacpp", "ollama", "ktransformers"])
def test_an_engine_listens_no_further_than_its_clients(engine: str, clients: list[str], address: str) -> None:
    """T1"""
    assert rendered(engine, f"{{{{ __{engine}_address }}}}", **{f"{engine}_clients": clients}) == address


@pytest.mark.parametrize(
    ("engine", "starts"),
    [("llamacpp", "/llama-server --api-key-file %d/api_key "), ("ktransformers", "/bin/python /opt/onprem-llm/")],
)
def test_an_engine_is_started_with_a_key_that_no_argument_tells(engine: str, starts: str) -> None:
    """T1, T12"""
    given = {f"{engine}_clients": ["web1"], f"{engine}_api_key": "canary", "models_dir": "/srv/llm/models"}
    unit = rendered(engine, f"{engine}@.service.j2", **given)
    assert re.search(rf"(?m)^ExecStart=\S+{re.escape(starts)}", unit)
    assert re.search(r"(?m)^LoadCredential=api_key:", unit)
    assert re.search(r"(?m)^IPAddressDeny=any\nIPAddressAllow=localhost( 192\.0\.2\.1[12])+$", unit)
    assert "canary" not in unit


def locations(config: str) -> list[tuple[str, str]]:
    """Each location of an nginx configuration: what it is for, and what is in its braces."""
    found = []
    for start in re.finditer(r"\blocation ([^{]+?) \{", config):
        depth, end = 1, start.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(config[end], 0)
            end += 1
        found.append((start[1], config[start.end() : end - 1]))
    return found


def test_every_way_to_a_model_wants_the_key() -> None:
    """T1: at the door, each place that answers for a model first looks at the key, on every server."""
    servers = [{"address": address, "port": 9101, "slots": 2} for address in ("192.0.2.1", "2001:db8::1")]
    engine = {"model": "tiny", "kind": "chat", "servers": servers}
    config = rendered(
        "nginx",
        "nginx.conf.j2",
        nginx_engines=[engine],
        nginx_vhosts=[{"server_name": "x", "upstream": "127.0.0.1:3000"}],
        ansible_facts={"distribution": "Debian", "distribution_major_version": "13"},
        nginx_certificate="x",
        nginx_certificate_key="x",
        nginx_public_name="x",
    )
    places = [(place, body) for place, body in locations(config) if "engine" in place]
    assert len(places) == 2 * 6, places
    for place, body in places:
        guarded = "if ($engine_key_ok = 0) { return 401" in body
        closed = "internal;" in body or re.fullmatch(r"\s*return 404;\s*", body)
        assert guarded or closed, f"location {place}: {body}"
    keys = rendered("nginx", "engine_key.conf.j2", nginx_engine_api_key="k\nformer")
    assert re.search(r'default 0;\n.*\n  "~\^Bearer k\$" 1;\n  "~\^Bearer former\$" 1;\n\}', keys)


def test_a_mirror_answers_its_clients_and_nobody_else() -> None:
    """T1: on the fleet's address, over TLS, what is published; nothing is written."""
    given = {"model_mirror_clients": ["gpu1", "web1"], "models_dir": "/srv/llm/models"}
    config = rendered("model_mirror", "nginx.conf.j2", **given)
    assert re.findall(r"listen (.*);", config) == ["192.0.2.11:8470 ssl"]
    assert re.search(r"if \(\$request_method !~ \^\(GET\|HEAD\)\$\) \{ return 405; \}", config)
    assert (r"~ /\.", " return 404; ") in locations(config)
    unit = rendered("model_mirror", "model_mirror.service.j2", **given)
    assert re.search(r"(?m)^IPAddressDeny=any\nIPAddressAllow=localhost 192\.0\.2\.11 192\.0\.2\.12$", unit)
    assert "User=www-data" in unit and re.search(r"(?m)^CapabilityBoundingSet=$", unit)


WIRING = trusted(conventions.load(PROJECT / "group_vars/all/wiring.yml"))


def wired(expression: str, **variables: Any) -> Any:
    known = {**WIRING, **SITE, "groups": {"inference": ["gpu1"], "model_mirror": ["web1"]}, **trusted(variables)}
    return Templar(loader=DataLoader(), variables=known).template(trust_as_template(expression))


def test_who_takes_from_a_mirror_trusts_the_sites_authority_for_that_alone() -> None:
    """T1: the CA is named at the source; no task puts it into the system's list."""
    here = {"type": "mirror", "url": "https://192.0.2.12:8470", "ca": "/etc/onprem-llm/tls/ca.crt", "fleet": True}
    hub = {"hub": {"type": "modelscope", "url": "https://hub.example"}}
    assert wired("{{ model_store_sources }}", model_sources=hub) == {"fleet-web1": here, **hub}
    own = wired("{{ model_store_sources }}", model_sources=hub, inventory_hostname="web1")
    assert own == hub, "a mirror is no source for itself"
    system = [name for name in ROLE_NAMES if "ca-certificates" in str(role(name).tasks)]
    assert not system, f"{', '.join(system)}: tell the program the CA's file instead"


@pytest.mark.parametrize(("share", "peers"), [({}, ["gpu1", "web1"]), ({"share_models": False}, [])])
def test_hosts_that_share_nothing_are_verified_all_the_same(share: dict[str, Any], peers: list[str]) -> None:
    """T10"""
    given = {"group_names": ["inference"], "model_damage_file": "/var/lib/damage.json", **share}
    assert wired("{{ model_store_peers }}", **given) == peers
    assert wired("{{ doctor_damage }}", **given) == "/var/lib/damage.json"
    assert "model_store-verify.timer" in wired("{{ doctor_units }}", **given)
    assert wired("{{ doctor_damage }}", **given, inventory_hostname="else1") == ""


@pytest.mark.parametrize(
    ("code", "found", "said"),
    [
        (0, {"damaged": []}, ""),
        (
            1,
            {"damaged": [{"repo": "o/m", "revision": "r", "path": "a", "pieces": [3, 4]}]},
            "o/m (r): a is damaged, pieces 3, 4.",
        ),
        (1, {"damaged": []}, "did not come to its end; journalctl -u model_store-verify says why: broken"),
        (1, None, "did not come to its end; journalctl -u model_store-verify says why: broken"),
        (0, None, "did not come to its end"),
        (5, None, "gpu1 has no model_store-verify.service: run playbooks/models.yml on it first."),
    ],
)
def test_a_verification_says_what_came_of_it(code: int, found: dict[str, Any] | None, said: str) -> None:
    """T10"""
    slurped = {} if found is None else {"content": base64.b64encode(json.dumps(found).encode()).decode()}
    told = rendered(
        "model_store",
        "{{ __model_store_untrue | join(' ') }}",
        __model_store_verified={"rc": code, "stderr": "broken"},
        __model_store_damage=slurped,
    )
    assert said in told and bool(said) == bool(told)


def test_a_verification_needs_no_plan() -> None:
    """To check an option is to compute it, and the models of a host are known only after a plan."""
    assert not role("model_store").specs["verify"].get("options")


SECRET = re.compile(r"password|api_key|secret_key|private")


@pytest.mark.parametrize("name", ROLE_NAMES)
def test_a_task_that_writes_a_secret_is_quiet(name: str) -> None:
    """T12: neither what it wrote nor the difference to before is shown. Modules of our own declare it themselves."""
    loud = []
    for task in role(name).tasks:
        arguments = module_of(task, "copy", "template", "lineinfile", "blockinfile", "command", "shell", "uri") or {}
        text = str(arguments)
        if isinstance(arguments, dict) and (source := arguments.get("src")):
            path = PROJECT / f"roles/{name}/templates/{source}"
            text += path.read_text() if path.exists() and "template" in str(sorted(task)) else ""
        variables = " ".join(re.findall(r"\{\{(.*?)\}\}", text, re.DOTALL))
        quiet = task.get("no_log") is True and task.get("diff") is False
        if SECRET.search(re.sub(r"\w*(folder|path|file|_dir)\b", "", variables)) and not quiet:
            loud.append(task.get("name"))
    assert not loud, f"roles/{name}: no_log: true and diff: false belong on: {', '.join(loud)}"


def test_a_certificate_of_a_ca_that_is_replaced_is_signed_anew() -> None:
    lasting = {"subject_alt_name": ["DNS:gpu1"], "not_after": "20991231235959Z"}
    given = {"__certificate_exists": True, "__certificate_is": lasting, "__certificate_san": ["DNS:gpu1"]}
    due = [
        rendered("certificate", "{{ __certificate_due }}", **given, certificate_replace_ca=on) for on in (False, True)
    ]
    assert due == ["False", "True"]


def test_a_port_that_the_site_opens_is_declared_to_the_doctor() -> None:
    wiring = conventions.load(PROJECT / "group_vars/all/wiring.yml")
    ports = {"__wiring_door_ports": [], "__wiring_fleet_ports": [], "__wiring_own_ports": wiring["__wiring_own_ports"]}
    said = rendered("doctor", wiring["doctor_declared_ports"], **ports, firewall_open_tcp_ports=[22, "9100"])
    assert said == str([{"port": port, "sources": [], "optional": True} for port in (22, 9100)])
