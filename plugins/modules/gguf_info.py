#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the files of models say about them, without fetching the files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_info
short_description: The shape of models, read from the headers of their files
version_added: 0.1.0
author: The onprem.llm developers
description:
  - Reads the header and the tensor table of GGUF files, local or behind a hub, where a few MB of each are fetched
    through HTTP Range. Of safetensors repositories it reads C(config.json), the index, and the headers of the files
    where there are few.
  - Gives what memory and speed depend on; bytes by layer and by what reads them, what a token costs in the cache,
    experts, context, quantisation.
  - A variant that cannot be read is no failure; its result says why.
attributes:
  check_mode: {support: full, description: It only reads.}
  diff_mode: {support: none, description: It changes nothing.}
  idempotent: {support: full, description: It changes nothing.}
options:
  variants:
    description:
      - Variants of models, as in the catalogue. Each has C(source), C(repo), C(revision), C(include) and, when its
        C(format) is C(gguf), C(entry), the first file; the other parts are found by their names.
      - What occurs twice is read once.
    type: list
    elements: dict
    default: []
  path:
    description: A GGUF file on this host, read after the variants. Its other parts lie beside it.
    type: path
  sources:
    description: The site's C(model_sources); by name a C(type) and a C(url) or, for directories, a C(path).
    type: dict
    default: {}
  tokens:
    description: By name of the source, the token it asks for.
    type: dict
    default: {}
  models_dir:
    description: Where models are published. What was published here is read here, without the network.
    type: path
  budget:
    description: Bytes that all variants together may cost; one costs 10 MB at most.
    type: int
    default: 20000000
  timeout: {description: Seconds without a byte before a request is given up., type: int, default: 20}
  attempts: {description: Attempts per request., type: int, default: 2}
  proxy: {description: Address of a proxy\, empty for what the environment says., type: str, default: ''}
  no_proxy: {description: Hosts that are asked without it\, with commas between., type: str, default: ''}
"""

EXAMPLES = r"""
- name: Look at a model before it is fetched
  onprem.llm.gguf_info:
    sources: {modelscope: {type: modelscope, url: "https://modelscope.cn"}}
    variants:
      - format: gguf
        source: modelscope
        repo: unsloth/DeepSeek-R1-GGUF
        revision: master
        include: ['DeepSeek-R1-UD-IQ1_S/*']
        entry: DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S-00001-of-00003.gguf

- name: Look at a file
  onprem.llm.gguf_info:
    path: /srv/llm/served/assistant/Qwen3-4B-Q4_K_M.gguf
"""

RETURN = r"""
results:
  description: >-
    Per variant C(key), C(shape) or C(error), and what it cost, C(bytes) and C(requests).
  type: list
  elements: dict
  returned: success
bytes: {description: Bytes that came over the network., type: int, returned: success}
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.onprem.llm.plugins.module_utils import transfer
from ansible_collections.onprem.llm.plugins.module_utils.shape import variants


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "variants": {"type": "list", "elements": "dict", "default": []},
            "path": {"type": "path"},
            "sources": {"type": "dict", "default": {}},
            "tokens": {"type": "dict", "default": {}, "no_log": True},
            "models_dir": {"type": "path"},
            "budget": {"type": "int", "default": 20_000_000},
            "timeout": {"type": "int", "default": 20},
            "attempts": {"type": "int", "default": 2},
            "proxy": {"type": "str", "default": ""},
            "no_proxy": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    p = module.params
    urls = [str(one.get("url") or "") for one in p["sources"].values() if isinstance(one, dict)]
    module.no_log_values.update(transfer.secrets_of(p["proxy"], *urls))
    reader = variants.Reader(
        p["sources"],
        p["tokens"],
        p["models_dir"],
        p["budget"],
        timeout=p["timeout"],
        attempts=p["attempts"],
        transport=transfer.Urllib(p["proxy"] or None, p["no_proxy"]),
    )
    results = [reader.read(variant) for variant in p["variants"]]
    if p["path"]:
        results.append(reader.read_file(p["path"]))
    said = f"{transfer.human(reader.transferred)} read from the network for {len(results)} models"
    module.exit_json(changed=False, results=results, bytes=reader.transferred, msg=said)


if __name__ == "__main__":
    main()
