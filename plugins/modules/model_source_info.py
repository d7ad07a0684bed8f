#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the sources of models have, before anything is fetched."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_source_info
short_description: The files of models, as their sources list them
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Asks the sources of each model for its files and for the commit its revision stands for. The first source that knows
    the revision answers; mirrors and directories are asked first, then the model's own source, then the other hubs.
  - Models that want the same files of the same revision are asked for once, and sources at which nobody answers too.
  - Fails when a model cannot be listed; what is known of the others is returned all the same.
attributes:
  check_mode:
    support: full
    description: >-
      It only reads. A model of which no source can be reached from here is no failure, and the notes say why.
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  models:
    description:
      - The models, each with C(name), C(repo), C(revision), C(source), the name of its own source, and what of it is
        wanted, C(include), C(exclude), C(entry). Other keys are ignored.
    type: list
    elements: dict
    required: true
  sources:
    description: >-
      The site's C(model_sources); by name a C(type) and a C(url) or, for directories, a C(path); a C(revision) where it
      is called otherwise there; C(ca), a file on the host with the authority that vouches for it, where it is not the
      system's; C(fleet) for a mirror on a host of the fleet.
    type: dict
    required: true
  tokens:
    description: By name of the source, the token it asks for.
    type: dict
    default: {}
  proxy: {description: Address of a proxy\, empty for none., type: str, default: ''}
  no_proxy: {description: Hosts that are asked without it\, with commas between., type: str, default: ''}
  attempts: {description: Attempts per request\, in check mode one., type: int, default: 5}
  timeout: {description: Seconds without a byte before an attempt is given up., type: int, default: 60}
"""

EXAMPLES = r"""
- name: Ask for the files
  onprem.llm.model_source_info:
    sources: {modelscope: {type: modelscope, url: "https://modelscope.cn"}}
    models:
      - name: assistant
        source: modelscope
        repo: unsloth/DeepSeek-R1-GGUF
        revision: master
        include: ['DeepSeek-R1-UD-IQ1_S/*']
"""

RETURN = r"""
models:
  description: >-
    The models in the given order with C(files) (C(path), C(size), C(sha256), C(git_blob)), C(commit), and C(origin),
    the source that listed them.
  type: list
  elements: dict
  returned: always
unlisted:
  description: The models that cannot be listed, each with C(name) and C(why).
  type: list
  elements: dict
  returned: always
notes: {description: What is worth knowing., type: list, elements: str, returned: always}
"""

from dataclasses import replace
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.model_store import asked, sources, store, types


def listed(
    models: list[types.Model], manner: transfer.Source, transport: transfer.Transport, check: bool
) -> tuple[dict[str, Any], list[str]]:
    """What is returned, and warnings."""
    away: dict[str, Exception] = {}
    known: dict[tuple[str, ...], tuple[types.Model, list[str]]] = {}
    plain: list[dict[str, Any]] = []
    unlisted: list[dict[str, str]] = []
    warnings: list[str] = []
    notes: list[str] = []
    for model in models:
        same = (store.selection_key(model), *(source.name for source in model.sources))
        try:
            if same not in known:
                known[same] = sources.listing(model, transport, manner, away)
            found, said = known[same]
            # The entry is the model's own, and may be another one than that of the model that was asked for.
            files = store.select(model, found.files, found.origin)
        except types.StoreError as error:
            if check and getattr(error, "unreachable", False):
                notes.append(f"{error} What would be fetched is not known.")
            else:
                unlisted.append({"name": model.name, "why": str(error)})
            continue
        one = types.as_json(replace(model, files=files, commit=found.commit, origin=found.origin, sources=()))
        plain.append({key: value for key, value in one.items() if key != "sources"})
        warnings += said
    if plain:
        notes += [f"The source '{name}' was passed over: {error}" for name, error in away.items()]
    return {"models": plain, "unlisted": unlisted, "notes": notes}, list(dict.fromkeys(warnings))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "models": {"type": "list", "elements": "dict", "required": True},
            "sources": {"type": "dict", "required": True},
            "tokens": {"type": "dict", "default": {}, "no_log": True},
            "proxy": {"type": "str", "default": ""},
            "no_proxy": {"type": "str", "default": ""},
            "attempts": {"type": "int", "default": 5},
            "timeout": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    p = module.params
    known = p["sources"]
    urls = [str(one.get("url") or "") for one in known.values() if isinstance(one, dict)]
    module.no_log_values.update(transfer.secrets_of(p["proxy"], *urls))
    manner = transfer.Source(attempts=1 if module.check_mode else p["attempts"], timeout=p["timeout"])
    try:
        transport = transfer.Urllib(asked.proxy(p["proxy"]), p["no_proxy"])
    except types.StoreError as error:
        module.fail_json(msg=str(error))
    models = []
    for given in p["models"]:
        names = sources.ordered(known, str(given.get("source") or ""))
        described = tuple(asked.source(name, known[name], p["tokens"]) for name in names)
        models.append(replace(types.model_from(given), sources=described))
    result, warnings = listed(models, manner, transport, module.check_mode)
    for warning in warnings:
        module.warn(warning)
    if result["unlisted"]:
        module.fail_json(msg="\n".join(one["why"] for one in result["unlisted"]), **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
