"""The network at serving: equal to torch, explained exactly, refused where its files are damaged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from shortlist.pipeline.candidates import Candidates
from shortlist.pipeline.explanation import Predicting, explain
from shortlist.pipeline.query import Deadline, Query
from shortlist.pipeline.stages import Decision
from shortlist.pipeline.trace import Paces, Trace
from shortlist.ranking.calibration import Head
from shortlist.ranking.linear import Linear, Term
from shortlist.ranking.network import Network, NetworkError, save_facts
from shortlist.ranking.scorer import MissingColumnsError
from shortlist.ranking.scoring import RankerStage
from shortlist.ranking.standard import FAR, Input, Inputs
from shortlist.training.rankers.network_model import DeepCrossNetwork, write_onnx

INPUTS = [Input("a", 0.0, 1.0, 2.0, True), Input("b", 1.0, 0.5, 1.5, False), Input("c", 0.0, 0.0, 1.0, True)]
HEADS = [Head("click", 1.0, 0.8, -0.3), Head("hide", -2.0, 1.2, 0.1)]
NAMES = ("a", "b", "c")
WIDTH = 5  # three columns and two flags of gaps
QUERY = Query("ann", 10, 0, "r1", Deadline.after(1000))


def model(layers: int = 2, hidden: Sequence[int] = (8, 4), seed: int = 0) -> DeepCrossNetwork:
    """A network whose weights are drawn, all of them: also those that begin at zero."""
    generator = torch.Generator().manual_seed(seed)
    made = DeepCrossNetwork(WIDTH, (0.2, 0.05), layers, hidden, generator)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        made.places[0] = 0.0
    return made


def written(directory: Path, made: DeepCrossNetwork) -> Network:
    write_onnx(made, directory / "network.onnx")
    save_facts(directory, INPUTS, HEADS)
    return Network.load(directory)


def matrix(rows: int = 40, seed: int = 1) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.normal(1, 2, rows), np.exp(rng.normal(size=rows)), rng.normal(size=rows)])
    drawn[0, ::3] = drawn[2, ::7] = np.nan
    return drawn


@pytest.mark.parametrize(("layers", "hidden"), [(2, (8, 4)), (0, (8,)), (3, ()), (1, (16, 8, 4))])
def test_scores_are_those_of_torch(layers: int, hidden: tuple[int, ...], tmp_path: Path) -> None:
    made = model(layers, hidden)
    network = written(tmp_path, made)
    with torch.no_grad():
        logits = made(torch.from_numpy(Inputs(INPUTS).of(matrix()))).double().numpy()
    click, hide = (1 / (1 + np.exp(-(head.slope * logits[:, n] + head.intercept))) for n, head in enumerate(HEADS))
    found = network.probabilities(matrix(), NAMES)
    np.testing.assert_allclose(found["click"], click, atol=1e-5)
    np.testing.assert_allclose(found["hide"], hide, atol=1e-5)
    np.testing.assert_allclose(network.score(matrix(), NAMES), click - 2 * hide, atol=1e-5)
    assert np.ptp(click) > 0.1


def test_columns_are_standardised_and_gaps_are_flagged() -> None:
    found = Inputs(INPUTS).of(np.array([[5.0, np.nan, -np.inf], [np.e**2 - 1, 0.0, 1e300], [1e9, -1e9, np.nan]]))
    missing = 0.0
    np.testing.assert_allclose(
        found,
        [[2.0, 1.0, FAR, 0, 0], [missing, -1 / 3, -FAR, 1, 0], [missing, missing, missing, 1, 1]],
        rtol=1e-6,
    )


def test_the_place_of_an_item_changes_nothing_at_serving(tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    made = model()
    score = written(tmp_path, made).score(matrix(), NAMES)
    with torch.no_grad():
        made.places.add_(5.0)
    assert written(tmp_path / "moved", made).score(matrix(), NAMES).tolist() == score.tolist()


def test_a_place_left_out_is_an_average_one() -> None:
    made, places = model(), torch.tensor([0, 1, 1, 2, 64, 0])
    inputs = torch.from_numpy(Inputs(INPUTS).of(matrix(6)))
    with torch.no_grad():
        before = (made(inputs) + made.of_places(places))[1:5]
        made.centre(places)
        after = (made(inputs) + made.of_places(places))[1:5]
        torch.testing.assert_close(after, before)
        torch.testing.assert_close(made.of_places(places)[1:5].mean(dim=0), torch.zeros(2), atol=1e-6, rtol=0)
        assert not made.of_places(torch.tensor([0])).any()


def test_contributions_add_up_to_the_blend(tmp_path: Path) -> None:
    network = written(tmp_path, model())
    many = matrix(600)
    parts = network.explain(many, NAMES)
    assert set(parts) == {"bias", *NAMES}
    np.testing.assert_allclose(sum(parts.values()), network.score(many, NAMES), atol=1e-6)
    average = np.array([[1.0], [np.expm1(0.5)], [0.0]])
    np.testing.assert_allclose(parts["bias"], network.score(average, NAMES)[0], atol=1e-6)
    some = network.explain(many[:, :7], NAMES)
    np.testing.assert_allclose(some["a"], parts["a"][:7], atol=1e-6)


def test_a_column_without_weight_contributes_nothing_and_an_average_value_neither(tmp_path: Path) -> None:
    made = model(layers=0)
    with torch.no_grad():
        made.deep[0][[0, 3]] = 0.0  # column a, and the flag of its gaps
        made.out[[0, 3]] = 0.0
    network, values = written(tmp_path, made), matrix()
    values[2, 5] = 0.0
    parts = network.explain(values, NAMES)
    np.testing.assert_allclose(parts["a"], 0.0, atol=1e-7)
    assert parts["c"][5] == pytest.approx(0.0, abs=1e-7)
    assert np.abs(parts["c"]).max() > 0.01


def test_nothing_to_score_is_no_error(tmp_path: Path) -> None:
    network, nothing = written(tmp_path, model()), np.zeros((3, 0))
    assert network.score(nothing, NAMES).shape == (0,)
    assert {name: len(column) for name, column in network.explain(nothing, NAMES).items()} == dict.fromkeys(
        ("bias", *NAMES), 0
    )
    with pytest.raises(MissingColumnsError, match="'b', 'c'"):
        network.score(np.zeros((1, 4)), ("a",))


def test_the_stage_says_how_probable_each_action_is(tmp_path: Path) -> None:
    stage = RankerStage("deep_cross", written(tmp_path, model()))
    assert isinstance(stage, Predicting)
    candidates = Candidates(np.arange(40, dtype=np.int32)).with_matrix(NAMES, matrix())
    found = stage.probabilities(QUERY, candidates)
    assert set(found) == {"click", "hide"}
    np.testing.assert_allclose(found["click"] - 2 * found["hide"], stage.score(QUERY, candidates))
    trace = Trace(QUERY.deadline, Paces())
    names, decision = [f"i{n}" for n in range(40)], Decision(np.arange(40))
    explained = explain(QUERY, trace, {}, [], names, candidates, stage, {}, decision)["items"]
    assert explained[3]["probabilities"] == {name: float(column[3]) for name, column in found.items()}
    assert [step.verb for step in trace.steps] == ["explain", "predict"]
    assert RankerStage("order", Linear([Term("a", 0.0, 0, 1, 1, 0)], 0.0)).probabilities(QUERY, candidates) == {}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"heads": [{"action": "click", "weight": 1.0, "slope": 1.0}]}, "5 inputs and 2 heads"),
        ({"heads": []}, "5 inputs and 2 heads"),
        ({"inputs": []}, "5 inputs and 2 heads"),
        ({"heads": [{"action": "click", "weight": float("nan")}] * 2}, "not finite"),
        ({"heads": [{"action": "click", "weight": "1"}] * 2}, "not a number"),
        ({"heads": None}, "not iterable"),
        ({"inputs": [{"column": "a"}]}, "missing 4 required"),
        (None, "Expecting"),
    ],
)
def test_damaged_facts_are_refused(change: dict[str, object] | None, complaint: str, tmp_path: Path) -> None:
    written(tmp_path, model())
    path = tmp_path / "network.json"
    path.write_text("{" if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(
        NetworkError, match=rf"network\.json: the network cannot be read.*({complaint}).*train the ranker"
    ):
        Network.load(tmp_path)


def test_a_damaged_model_is_refused_and_a_missing_one_named(tmp_path: Path) -> None:
    written(tmp_path, model())
    path = tmp_path / "network.onnx"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NetworkError, match=r"network\.onnx is no model that can be run"):
        Network.load(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"network\.onnx"):
        Network.load(tmp_path)
