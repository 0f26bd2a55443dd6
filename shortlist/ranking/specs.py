"""Which rankers to train, as the project file declares them; the defaults are meant to be kept."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LogisticRegression:
    """The linear baseline: the probability that an item is acted on, each column with one weight.

    The strength of its penalty is the one with the least log loss on held-out requests.
    """

    name: str = "logistic_regression"


@dataclass(frozen=True)
class LambdaMART:
    """Gradient-boosted trees whose gradients follow NDCG (Burges, From RankNet to LambdaRank to LambdaMART, 2010).

    At most `trees` trees of at most `leaves` leaves, each leaf with at least `rows_per_leaf` training rows; training
    stops when NDCG@10 on held-out requests has not risen for a while.
    """

    name: str = "lambdamart"
    trees: int = 300
    leaves: int = 31
    learning_rate: float = 0.05
    rows_per_leaf: int = 20


RankerSpec = LogisticRegression | LambdaMART
