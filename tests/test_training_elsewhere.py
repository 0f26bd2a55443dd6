"""Training on a device that is not the processor: what is computed with lies there, and comes back to be kept."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shortlist.features.hashing import Hashes
from shortlist.training.rankers import network as networks
from shortlist.training.towers import fitting as learning
from shortlist.training.towers.data import TowerItems
from shortlist.training.towers.fitting import fit_towers
from tests._stand_in_device import ELSEWHERE, Drawing, StandIn
from tests.test_rankers_network import fitted, shown
from tests.test_towers_learning import FILMS, SPEC, named, one_each, two_camps


def trusted(*_: object, **__: object) -> None:
    """For the check that fused steps are made for a device."""


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "Generator", Drawing)
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", trusted)
    for module in (learning, networks):
        monkeypatch.setattr(module, "device_of", lambda: ELSEWHERE)


def test_one_operation_on_two_devices_is_refused() -> None:
    with StandIn():
        there, here = torch.ones(3, 3, device=ELSEWHERE), torch.ones(3)
        assert (there @ there).device == ELSEWHERE
        assert (there @ there).sum().item() == 27
        assert (there + here.to(ELSEWHERE)).cpu().tolist() == [[2.0] * 3] * 3
        with pytest.raises(RuntimeError, match="two devices"):
            there + here


@pytest.mark.parametrize("sequence", [False, True])
def test_towers_learn_elsewhere_what_they_learn_here(
    sequence: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, _ = two_camps(600)
    films: Hashes = named(np.arange(FILMS))
    items = TowerItems(films, {"tags": one_each("tag", np.arange(FILMS) % 2), "year": np.arange(FILMS) / 10.0})
    beside = np.random.default_rng(1).choice(films, (len(examples), 2))
    examples, spec = replace(examples, beside=beside), replace(SPEC, sequence=sequence, epochs=2)
    here = fit_towers(spec, examples, items, tmp_path / "here")
    elsewhere(monkeypatch)
    with StandIn():
        there = fit_towers(spec, examples, items, tmp_path / "there")
    assert there == here
    files = sorted((tmp_path / "here").rglob("*.npy"))
    assert len(files) >= 3
    for file in files:
        kept = np.load(tmp_path / "there" / file.relative_to(tmp_path / "here"))
        assert np.allclose(np.load(file), kept, atol=1e-3)


def test_a_network_learns_elsewhere_what_it_learns_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, validation = shown(1, 100), shown(2, 50)
    made, here = fitted(data, validation, tmp_path / "here", epochs=2)
    elsewhere(monkeypatch)
    with StandIn():
        made_there, there = fitted(data, validation, tmp_path / "there", epochs=2)
    assert made_there.figures == pytest.approx(made.figures, abs=1e-3)
    block = (validation.matrix, validation.names)
    np.testing.assert_allclose(there.score(*block), here.score(*block), atol=1e-3)
