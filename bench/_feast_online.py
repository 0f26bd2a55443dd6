"""Runs in Feast's own environment: online reads from Redis. Arguments: DIRECTORY PORT ENTITIES COLUMNS ROWS.

Stores COLUMNS float values for ENTITIES entities in Redis and prints one JSON object with the milliseconds of
`get_online_features` of ROWS of them, over and over.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64, String
from feast.value_type import ValueType

place, port = Path(sys.argv[1]), int(sys.argv[2])
entities, columns, rows = map(int, sys.argv[3:6])
config = RepoConfig(
    project="bench",
    provider="local",
    registry=str(place / "registry.db"),
    offline_store={"type": "file"},
    online_store={"type": "redis", "connection_string": f"127.0.0.1:{port}"},
    entity_key_serialization_version=3,
)
rng = np.random.default_rng(1)
names = [f"value{number}" for number in range(columns)]
frame = pd.DataFrame({name: rng.random(entities) for name in names})
frame["film"] = [f"f{number}" for number in range(entities)]
frame["event_timestamp"] = pd.Timestamp.now(tz="UTC")
frame.to_parquet(place / "films.parquet")
store = FeatureStore(config=config)
film = Entity(name="film", join_keys=["film"], value_type=ValueType.STRING)
source = FileSource(path=str(place / "films.parquet"), timestamp_field="event_timestamp")
schema = [Field(name="film", dtype=String), *(Field(name=name, dtype=Float64) for name in names)]
store.apply([film, FeatureView(name="films", entities=[film], ttl=timedelta(days=1), source=source, schema=schema)])
store.write_to_online_store("films", frame)
wanted = [f"films:{name}" for name in names]
times = []
for _ in range(60):
    chosen = [{"film": f"f{number}"} for number in rng.integers(0, entities, rows)]
    start = time.perf_counter()
    answer = store.get_online_features(features=wanted, entity_rows=chosen).to_dict()
    times.append((time.perf_counter() - start) * 1000)
assert all(value is not None for value in answer["value0"])
print(json.dumps({"p50_ms": float(np.percentile(times[10:], 50)), "p99_ms": float(np.percentile(times[10:], 99))}))
