#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_models
short_description: Fetches model files into a folder of the controller
version_added: 0.1.0
author: The onprem.llm developers
description:
  - The controller's counterpart of M(onprem.llm.model_transfer), without a service - the same files in the same layout,
    verified in the same way. It ends with the run; the next one goes on from there.
  - A line every few seconds says how far it is.
attributes:
  check_mode: {support: partial, description: Names the models that are missing and fetches nothing.}
  diff_mode: {support: none, description: Shows nothing.}
  idempotent: {support: full, description: What is there is neither fetched nor read again; no hub is asked.}
options:
  store: {description: Folder of published models., type: path, required: true}
  models: {description: The models., type: list, elements: dict, required: true}
  sources: {description: The site's sources by name., type: dict, required: true}
  tokens: {description: Tokens of the sources by name., type: dict, default: {}}
  parallel: {description: Files at once., type: int, default: 4}
  rate_limit: {description: Bytes per second; 0 is no limit., type: int, default: 0}
  proxy: {description: Proxy for all sources., type: str, default: ''}
  no_proxy: {description: Hosts reached without it., type: str, default: ''}
"""

EXAMPLES = r"""
- name: Fetch the models
  onprem.llm.bundle_models:
    store: /media/disk/models
    models: "{{ bundle_models | onprem.llm.bundled_models([]) }}"
    sources: "{{ model_sources }}"
"""

RETURN = r"""
fetched: {description: Names of models that were not complete before., type: list, elements: str, returned: success}
transferred: {description: Bytes that came over the network., type: int, returned: success}
"""
