"""Runs in Feast's own environment: a point-in-time join of events and rows. Usage: _feast_replay.py DIRECTORY.

Reads events.parquet (user, event_timestamp, created, amount; sorted by time) and rows.parquet (user, event_timestamp)
from DIRECTORY and prints one JSON object with the seconds of `get_historical_features`. Feast stores values, it does
not compute windows: what is joined is the last value of one column, less work than the 15 windowed features.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float64, String
from feast.value_type import ValueType

place = Path(sys.argv[1])
config = RepoConfig(
    project="bench",
    provider="local",
    registry=str(place / "registry.db"),
    offline_store={"type": "file"},
    online_store=None,
    entity_key_serialization_version=3,
)
store = FeatureStore(config=config)
user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
source = FileSource(path=str(place / "events.parquet"), timestamp_field="event_timestamp")
view = FeatureView(
    name="pay",
    entities=[user],
    ttl=timedelta(days=3650),
    source=source,
    schema=[Field(name="user", dtype=String), Field(name="amount", dtype=Float64)],
)
store.apply([user, view])
rows = pd.read_parquet(place / "rows.parquet")
start = time.perf_counter()
joined = store.get_historical_features(entity_df=rows, features=["pay:amount"]).to_df()
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "rows": len(joined), "missing": int(joined["amount"].isna().sum())}))
