"""What the levels of a description claim about themselves, held against ``specs/levels.md`` and the tables.

Nothing of featreg runs here: a description is read field by field.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.records import Finding

__all__ = ["SPECS", "check_levels", "check_table", "tables"]

SPECS = Path(__file__).parent.parent / "specs"


def check_levels(features: Sequence[Any], order: Sequence[str], dilated: bool) -> Iterator[Finding]:
    """Each level once, from fine to coarse, at the stride of its name, and made in this order (``order``).

    Names with an index, as ``forward_intermediates[3]``, are made in a pass of their own.
    """
    levels = [feature for feature in features if feature.level is not None]
    numbers = [int(feature.level[1:]) for feature in levels]
    if numbers != sorted(set(numbers)):
        yield Finding("levels", "each once, from fine to coarse", ", ".join(f.level for f in levels))
    for feature, number in zip(levels, numbers, strict=True):
        if feature.kind != "map":
            yield Finding(f"kind of {feature.level}", "map", feature.kind)
        nearest = None if feature.reduction is None else round(math.log2(feature.reduction))
        if nearest != number and not (dilated and nearest is not None and nearest < number):
            yield Finding(f"reduction of {feature.level}", f"{2**number} or nearest to it", str(feature.reduction))
    for one_pass in ([name for name in order if "[" in name], [name for name in order if "[" not in name]):
        made = [feature.name for feature in levels if feature.name in one_pass]
        if made != sorted(made, key=one_pass.index):
            yield Finding("order of the levels", "that of the forward pass", ", ".join(made))


@functools.cache
def tables() -> tuple[Mapping[str, Any], ...]:
    """``specs/architectures/*.json``."""
    return tuple(json.loads(path.read_text("utf-8")) for path in sorted((SPECS / "architectures").glob("*.json")))


def check_table(backend: str, model: str, info: Any) -> Iterator[Finding]:
    """Hold a description at the table's input size against every architecture table that names the model."""
    found = {feature.level: feature for feature in info.features if feature.level is not None}
    for table in tables():
        entry = table["backends"].get(backend)
        if entry is None or entry["model"] != model:
            continue
        what = f"architectures/{table['architecture']}.json"
        expected = [level["level"] for level in table["levels"]]
        if sorted(found) != sorted(expected):
            yield Finding(f"levels of {what}", ", ".join(expected), ", ".join(found))
            continue
        for level in table["levels"]:
            feature = found[level["level"]]
            got = (feature.channels, feature.reduction, *feature.shape(1, *table["input_size"])[1:])
            if got != (level["channels"], level["reduction"], *level["shape"]):
                yield Finding(f"{level['level']} of {what}", str(level), str(got))
        for field, key in (("name", "names"), ("index", "indices")):
            for name, value in entry.get(key, {}).items():
                if getattr(found[name], field) != value:
                    yield Finding(f"{field} of {name} of {what}", str(value), str(getattr(found[name], field)))
