"""Writing the item tower, so that serving can make the vectors of items that training has never seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from shortlist.features.hashing import Hashes
from shortlist.retrieval.models.item_tower import FACTS, MODEL, TABLES
from shortlist.retrieval.specs import TwoTower
from shortlist.retrieval.vectors.index import Vectors
from shortlist.training.towers.data import Encoding
from shortlist.training.towers.model import Tower, write_tower


def write_item_tower(spec: TwoTower, tower: Tower, encoding: Encoding, directory: Path) -> None:
    """Write the tables of attribute values, the scalings of numbers, and the dense part as ONNX."""
    write_tower(tower, "item tower", {"item": [tower.ids.shape[1]]}, [], [], "item", directory / MODEL)
    arrays: dict[str, Hashes | Vectors] = {"unknown": tower.ids[0].detach().numpy()}
    for name, values in encoding.values.items():
        arrays[f"values_{name}"] = values
        arrays[f"table_{name}"] = tower.values[name].detach().numpy()
    np.savez(directory / TABLES, **arrays)  # type: ignore[arg-type]  # the stub takes the names for its own flag
    facts = {
        "attributes": list(spec.item_attributes),
        "texts": list(spec.item_text),
        "numbers": {name: [scaling.mean, scaling.deviation] for name, scaling in encoding.scalings.items()},
        "categories": list(encoding.values),
        "encoder": bool(encoding.widths),
    }
    (directory / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
