"""A deep cross network at serving: a calibrated probability for every action, blended into one score. Needs no torch.

A directory holds `network.onnx`, from standardised columns to the log-odds of each action, and `network.json`: how
columns are standardised, and of each action its weight in the blend and its calibration. Where an item stood when it
was shown is not among the columns: training knew it, serving is neutral to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from shortlist.onnx_session import session_of
from shortlist.ranking.calibration import Head
from shortlist.ranking.scorer import ColumnFinder, Matrix, as_matrix
from shortlist.ranking.standard import Input, Inputs

NETWORK, FACTS = "network.onnx", "network.json"
ORDERS = 4
"""Orders of the columns that an explanation averages over, each forwards and backwards."""
ROWS_AT_ONCE = 256

Floats = NDArray[np.float64]


class NetworkError(ValueError):
    """The files hold no network that can be run: where, what was found, and what to do."""


@njit(
    "void(float32[:,::1], float64[::1], float64[::1], float64[::1], float64[:,::1], float64[::1])",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def blend(logits, slope, intercept, weight, chances, blended):  # type: ignore[no-untyped-def]
    """Fill the calibrated `chances` [rows, heads], and their sum of `weight`s, of each row's log-odds."""
    for row in range(len(logits)):
        worth = 0.0
        for head in range(len(weight)):
            chances[row, head] = 1.0 / (1.0 + math.exp(-(slope[head] * logits[row, head] + intercept[head])))
            worth += weight[head] * chances[row, head]
        blended[row] = worth


class Network:
    """Columns in, the blend out: the sum of every action's weight times its probability."""

    def __init__(self, session: Any, inputs: Sequence[Input], heads: Sequence[Head]) -> None:
        self.names = tuple(each.column for each in inputs)
        self.heads = tuple(heads)
        self._session = session
        self._inputs = Inputs(inputs)
        self._columns = ColumnFinder(self.names)
        self._weight, self._slope, self._intercept = (
            np.array([getattr(head, name) for head in heads], float) for name in ("weight", "slope", "intercept")
        )

    @property
    def columns(self) -> tuple[Input, ...]:
        """How each column becomes an input."""
        return self._inputs.columns

    def score(self, matrix: Matrix, names: Sequence[str]) -> Floats:
        """The blend of each row of `matrix` [features, rows], whose features are named by `names`."""
        return self._blend(self._inputs_of(matrix, names))

    def margin(self, matrix: Matrix, names: Sequence[str]) -> Floats:
        """The score itself."""
        return self.score(matrix, names)

    def probabilities(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, Floats]:
        """The probability of each action on each row, were it shown at an average place."""
        columns = self._answers(self._inputs_of(matrix, names))[0].T
        return {head.action: column for head, column in zip(self.heads, columns, strict=True)}

    def explain(self, matrix: Matrix, names: Sequence[str]) -> Mapping[str, Floats]:
        """What each column, and `bias`, adds to the blend: sampled Shapley values (Castro et al., 2009).

        `bias` is the blend of a row that is average everywhere. From there the row's own values are put in, column
        after column, and each is given what it changes; this is averaged over a few drawn orders, forwards and
        backwards, the same for all rows. The sum is exact, whatever the orders.
        """
        inputs = self._inputs_of(matrix, names)
        bias = float(self._blend(np.zeros((1, inputs.shape[1]), np.float32))[0])
        parts = [self._shares(inputs[start : start + ROWS_AT_ONCE]) for start in range(0, len(inputs), ROWS_AT_ONCE)]
        shares = np.concatenate([np.empty((len(self.names), 0)), *parts], axis=1)
        return {"bias": np.full(len(inputs), bias), **dict(zip(self.names, shares, strict=True))}

    def _inputs_of(self, matrix: Matrix, names: Sequence[str]) -> NDArray[np.float32]:
        return self._inputs.of(as_matrix(matrix, names), self._columns.positions(names))

    def _answers(self, inputs: NDArray[np.float32]) -> tuple[Floats, Floats]:
        """The probabilities, [rows, heads], and the blend of each row."""
        chances, blended = np.empty((len(inputs), len(self.heads))), np.empty(len(inputs))
        if len(inputs):
            (logits,) = self._session.run(["logits"], {"inputs": inputs})
            blend(logits, self._slope, self._intercept, self._weight, chances, blended)
        return chances, blended

    def _blend(self, inputs: NDArray[np.float32]) -> Floats:
        return self._answers(inputs)[1]

    def _shares(self, inputs: NDArray[np.float32]) -> Floats:
        """[columns, rows]: what each column changes, averaged over orders."""
        columns, rows = len(self.names), len(inputs)
        shares = np.zeros((columns, rows))
        rng = np.random.default_rng(0)
        for order in (
            way for _ in range(ORDERS) for drawn in [rng.permutation(columns)] for way in (drawn, drawn[::-1])
        ):
            turn = np.empty(columns, np.int64)
            turn[order] = np.arange(columns)
            put_in = turn[self._inputs.owner] < np.arange(columns + 1)[:, None]  # [steps, inputs]
            steps = (inputs * put_in[:, None, :]).reshape(-1, inputs.shape[1])
            shares[order] += np.diff(self._blend(steps).reshape(columns + 1, rows), axis=0)
        return shares / (2 * ORDERS)

    @classmethod
    def load(cls, directory: Path) -> Network:
        """What training wrote. Raises NetworkError, saying which file, OSError where one cannot be read."""
        path = directory / FACTS
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            inputs = [Input(**each) for each in stored["inputs"]]
            heads = [Head(**each) for each in stored["heads"]]
            numbers = [number for each in inputs for number in (each.unit, each.mean, each.scale)]
            if not all(map(math.isfinite, numbers)):
                raise ValueError("found a number that is not finite")
            session = session_of(directory / NETWORK)
            network = cls(session, inputs, heads)
            found = [ends[0].shape[1] for ends in (session.get_inputs(), session.get_outputs())]
            if found != [len(network._inputs.owner), len(heads)]:
                raise ValueError(f"{NETWORK} has {found[0]} inputs and {found[1]} heads, not those of {FACTS}")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise NetworkError(f"{path}: the network cannot be read ({error}); train the ranker again") from error
        return network


def save_facts(directory: Path, inputs: Sequence[Input], heads: Sequence[Head]) -> None:
    """Write everything but the model."""
    facts = {"inputs": [asdict(each) for each in inputs], "heads": [asdict(head) for head in heads]}
    (directory / FACTS).write_text(json.dumps(facts, indent=1, allow_nan=False), encoding="utf-8")
