#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: rollout_switch
short_description: Switches what a host serves with, asks it, and goes back when it may not serve
version_added: 0.2.0
author: The onprem.llm developers
description:
  - A component's links, files and services are one configuration, switched as one. Each service is then asked through
    the gate - that it is ready, that it lists the model, for a real answer, for its decode speed. On any failure what
    was good is put back and serves again, and the task fails with the reason and the journal.
  - What is good, what was before, and where a switch stands is in a record on the host. A run that breaks off at any
    step is taken up by the next one. What the record calls good has passed the gate.
  - A switch that finds another run at work on the component waits for its end, up to I(timeout).
attributes:
  check_mode: {support: full, description: Says what is owed and changes nothing.}
  diff_mode: {support: full, description: Shows the links and files that differ.}
  idempotent: {support: full, description: "What serves with what it shall, and is recorded so, is left alone."}
options:
  component: {description: Name of the component., type: str, required: true}
  state:
    description:
      - C(compared) says what is owed and changes nothing.
      - C(present) switches to the configuration in the other options.
      - C(watched) looks at what was switched until I(gate.watch) seconds after the switch; then it is good.
      - C(previous) switches to what was good before.
      - C(beside) starts copies of what is good, 1000 ports further, that answer while the originals of I(models) are
        replaced. C(alone) stops copies; in check mode it only says which there are.
    type: str
    choices: [compared, present, watched, previous, beside, alone]
    required: true
  record: {description: Folder of the records., type: path, default: /var/lib/onprem-llm/rollout}
  facts: {description: "The host's file of local facts, kept in step with the record; empty for none.", type: path,
    default: ''}
  version: {description: What people call this configuration., type: str, default: ''}
  links: {description: What each link leads to. The targets must be there already., type: dict, default: {}}
  files:
    description: "Files of root's. They are kept in the record, so none may hold a secret."
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: Its path., type: path, required: true}
      content: {description: Its content., type: str, required: true}
      mode: {description: "Its mode, octal.", type: str, default: '0644'}
  services:
    description: The services.
    type: list
    elements: dict
    default: []
    suboptions:
      unit: {description: Name of the unit., type: str, required: true}
      model: {description: The model., type: str, required: true}
      model_name: {description: What requests call it; empty for I(model)., type: str, default: ''}
      kind: {description: What it answers., type: str, choices: [chat, embedding], default: chat}
      restart_on: {description: "All links, files and folders whose change restarts it.", type: list, elements: path,
        default: []}
      url: {description: Where it answers., type: str, required: true}
      ready: {description: Path that answers 200 when it is ready., type: str, default: /health}
      key_file: {description: File with the key that requests must carry; empty for none., type: path, default: '',
        no_log: false}
      predicted: {description: "Decode speed that the plan expects, in tok/s.", type: float}
      beside: {description: Whether a copy of it fits beside it., type: bool, default: false}
      dimensions: {description: Of an embedding's vectors; 0 for any., type: int, default: 0}
  models: {description: "Models to copy, with C(beside).", type: list, elements: str, default: []}
  gone:
    description:
      - Units that shall serve no more, and what is theirs. Those that the record knows need not be named.
    type: list
    elements: dict
    default: []
    suboptions:
      unit: {description: Name of the unit., type: str, required: true}
      paths: {description: Its files and folders; the last is removed first., type: list, elements: path, default: []}
  gate:
    description: What a service must answer.
    type: dict
    required: true
    suboptions:
      question: {description: The question., type: str, required: true}
      expect: {description: "Regular expression that the answer must hold, in any case. Empty - any but gibberish.",
        type: str, default: ''}
      tokens: {description: The most tokens of an answer., type: int, default: 64}
      models: {description: "By model, where I(question), I(expect) or I(tokens) differ.", type: dict, default: {}}
      speed_ratio: {description: "Least decode speed, as a part of the one before.", type: float, default: 0.5}
      watch: {description: Seconds that a service must live on before it is good., type: int, default: 90}
  timeout: {description: Seconds a model may take to load., type: int, default: 1800}
"""

EXAMPLES = r"""
- name: Serve with the new version, or with the old one as before
  onprem.llm.rollout_switch:
    component: llamacpp
    state: present
    version: 0.7.0
    links: {/opt/onprem-llm/llamacpp/current: 0.7.0-source-1a2b3c4d}
    services:
      - unit: llamacpp@assistant.service
        model: assistant
        restart_on: [/opt/onprem-llm/llamacpp/current]
        url: http://127.0.0.1:9101
    gate: {question: "What is the capital of France?", expect: paris}
"""

RETURN = r"""
needed:
  description: C(no), C(start) when nothing that serves is replaced, C(swap) when it is, C(watch) when that is owed.
  type: str
  returned: success
reasons: {description: Why., type: list, elements: str, returned: success}
restarts:
  description:
    - Services that would be, or were, replaced or taken away - unit, model, url where it answers until then and that
      which it C(becomes), and whether a copy may answer meanwhile.
  type: list
  elements: dict
  returned: success
urls: {description: Where the services of the configuration answer., type: list, elements: str, returned: success}
ports:
  description: Ports of the services of the configuration, and of the one it replaces or would go back to; copies' too.
  type: list
  elements: int
  returned: C(compared), C(present) and C(previous)
moves: {description: "By C(ADDRESS:PORT) of a service that of its copy.", type: dict, returned: C(beside) and C(alone)}
state: {description: State of the record; empty where there is none., type: str, returned: success}
watching: {description: Whether C(watched) is owed., type: bool, returned: success}
version: {description: Version that is good., type: str, returned: success}
previous: {description: Version that was good before., type: str, returned: success}
pointer: {description: The links of what is good., type: dict, returned: success}
speeds: {description: "Decode speed by unit as measured, in tok/s.", type: dict, returned: success}
rolled_back: {description: Whether what was good before serves again., type: bool, returned: failure}
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import local_facts, systemctl
from ansible_collections.onprem.llm.plugins.module_utils.rollout import beside, compare, facts, gate, record, switch

FILE = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str", "required": True},
    "mode": {"type": "str", "default": "0644"},
}
SERVICE = {
    "unit": {"type": "str", "required": True},
    "model": {"type": "str", "required": True},
    "model_name": {"type": "str", "default": ""},
    "kind": {"type": "str", "choices": ["chat", "embedding"], "default": "chat"},
    "restart_on": {"type": "list", "elements": "path", "default": []},
    "url": {"type": "str", "required": True},
    "ready": {"type": "str", "default": "/health"},
    "key_file": {"type": "path", "default": "", "no_log": False},
    "predicted": {"type": "float"},
    "beside": {"type": "bool", "default": False},
    "dimensions": {"type": "int", "default": 0},
}
GATE = {
    "question": {"type": "str", "required": True},
    "expect": {"type": "str", "default": ""},
    "tokens": {"type": "int", "default": 64},
    "models": {"type": "dict", "default": {}},
    "speed_ratio": {"type": "float", "default": 0.5},
    "watch": {"type": "int", "default": 90},
}
STATES = ["compared", "present", "watched", "previous", "beside", "alone"]
GONE = {"unit": {"type": "str", "required": True}, "paths": {"type": "list", "elements": "path", "default": []}}


def said(now: record.Record | None) -> dict[str, Any]:
    """What the record says, for a playbook."""
    good = now.good if now else None
    return {
        "state": now.state if now else "",
        "watching": now is not None and now.state == record.WATCHING,
        "version": good.version if good else "",
        "previous": now.previous.version if now and now.previous else "",
        "pointer": dict(good.links) if good else {},
        "speeds": dict(good.speeds) if good else {},
    }


def shown(look: compare.Look, wanted: record.Configuration) -> dict[str, Any]:
    urls = {one.unit: one.url for one in wanted.services if one.url}
    return {
        "needed": look.needed,
        "reasons": list(look.reasons),
        "restarts": [
            {
                **{"unit": one.unit, "model": one.model, "beside": one.beside},
                **{"url": one.url, "becomes": urls.get(one.unit, "")},
            }
            for one in look.restarts
        ],
        "urls": list(urls.values()),
        "diff": [
            {"before_header": one.path, "after_header": one.path, "before": one.before or "", "after": one.after or ""}
            for one in look.changes
        ],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "component": {"type": "str", "required": True},
            "state": {"type": "str", "choices": STATES, "required": True},
            "record": {"type": "path", "default": "/var/lib/onprem-llm/rollout"},
            "facts": {"type": "path", "default": ""},
            "version": {"type": "str", "default": ""},
            "links": {"type": "dict", "default": {}},
            "files": {"type": "list", "elements": "dict", "default": [], "options": FILE},
            "services": {"type": "list", "elements": "dict", "default": [], "options": SERVICE},
            "models": {"type": "list", "elements": "str", "default": []},
            "gone": {"type": "list", "elements": "dict", "default": [], "options": GONE},
            "gate": {"type": "dict", "required": True, "options": GATE},
            "timeout": {"type": "int", "default": 1800},
        },
        supports_check_mode=True,
    )
    p = module.params
    wanted = record.configuration(p)
    gone = [compare.Gone(one["unit"], tuple(one["paths"])) for one in p["gone"] if beside.SUFFIX not in one["unit"]]

    def tell(now: record.Record, check: bool = False) -> bool:
        """Keep the local facts in step; whether they were not."""
        if not p["facts"]:
            return False
        return local_facts.keep(Path(p["facts"]), p["component"], facts.section(now), facts.debts(now), check).changed

    one = switch.Switch(p["component"], p["record"], p["gate"], p["timeout"], systemctl.Units(module.run_command), tell)
    result: dict[str, Any] = {"changed": False, "needed": compare.NO, "reasons": [], "restarts": []}
    try:
        now = one.read()
        gate.check_rules(p["gate"])
        if p["facts"]:
            local_facts.read(Path(p["facts"]))  # refused before anything is changed
        if p["state"] == "previous":
            wanted, gone = one.before(), []
        if p["state"] in ("compared", "present", "previous"):
            look = one.look(wanted, gone)
            if look.needed == compare.NO and now and tell(now, check=True):
                look = compare.Look(compare.START, ("the local facts of the host say otherwise",), (), ())
            result |= shown(look, wanted) | {"ports": beside.ports(wanted, now)}
            # A run that compares has changed nothing; a check says what the run would change.
            owed = look.needed in (compare.START, compare.SWAP)
            result["changed"] = owed and (module.check_mode or p["state"] != "compared")
        elif p["state"] == "watched":
            result["changed"] = now is not None and now.state == record.WATCHING
        else:
            result["moves"] = one.copies()
            result["changed"] = bool(result["moves"]) == (p["state"] == "alone")
        if not module.check_mode:
            if p["state"] in ("present", "previous"):
                one.present(wanted, gone)
            elif p["state"] == "watched":
                one.watched()
            elif p["state"] == "beside":
                result["moves"] = one.beside(p["models"])
            elif p["state"] == "alone":
                one.without_copies()
        result |= said(one.read())
    except switch.SwitchError as error:
        module.fail_json(msg=str(error), rolled_back=error.rolled_back, **result)
    except (record.RecordError, local_facts.LocalFactsError, *switch.FAULTS) as error:
        module.fail_json(msg=f"{p['component']}: {error}", rolled_back=False, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
