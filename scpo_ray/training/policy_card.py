"""The `README.md` beside every policy: what it is, what it was made of, what it must not be used for."""

import json
from collections.abc import Mapping


def policy_card(name: str, facts: Mapping[str, object]) -> str:
    """Markdown with the hub's metadata block; `facts` are shown as a table."""
    rows = "\n".join(
        f"| {key} | {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)} |"
        for key, value in facts.items()
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: other
license_name: that-of-the-training-data
tags: [policy, preference, scpo]
---

# {name}

A policy: a causal language model made by scpo_ray. `manifest.json` has every setting and the hashes of the inputs.

| | |
| --- | --- |
{rows}

## Intended use and limits

For research on how communities' preferences differ. It was trained towards reward models, which stand for the annotators in
their data and not for a country or a people; what a reward model likes and what a person would like are two things, and the
run's `ppo.html` shows how far apart they came. The licence of the data binds it as well.
"""
