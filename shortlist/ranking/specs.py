"""Which rankers to train, as the project file declares them; the defaults are meant to be kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Order = Literal["pointwise", "pairwise", "listwise"]


@dataclass(frozen=True)
class LogisticRegression:
    """The linear baseline: the probability that an item is acted on, each column with one weight.

    Its penalty is the strongest one that is as good on held-out requests (NDCG@10) as any, give or take chance.
    """

    name: str = "logistic_regression"


@dataclass(frozen=True)
class BoostedTrees:
    """Gradient-boosted trees. What they learn from a request's rows is the `objective`:

    - pointwise: of each row, whether it was acted on (log loss);
    - pairwise: of each two rows, which one has the greater gain (RankNet; Burges et al., ICML 2005);
    - listwise: of all rows, the order, by gradients that follow NDCG (LambdaMART; Burges, 2010).

    At most `trees` trees of at most `leaves` leaves, each leaf with at least `rows_per_leaf` training rows; training
    stops when NDCG@10 on held-out requests has not risen for a while.
    """

    objective: Order = "pairwise"
    name: str = ""
    trees: int = 300
    leaves: int = 15
    learning_rate: float = 0.05
    rows_per_leaf: int = 20

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"{self.objective}_trees")


@dataclass(frozen=True)
class LambdaMART(BoostedTrees):
    """Gradient-boosted trees whose gradients follow NDCG (Burges, From RankNet to LambdaRank to LambdaMART, 2010)."""

    objective: Order = field(default="listwise", init=False)
    name: str = "lambdamart"


@dataclass(frozen=True)
class DeepCross:
    """A deep cross network: feature crosses beside a multilayer perceptron (DCN V2; Wang et al., WWW 2021).

    It has a head for every action of the labels and of the objective's proxies (click, watch, hide: multi-task), each
    the calibrated probability of its action; the score is their sum, weighed by the proxies. `layers` crosses and
    hidden layers of `hidden` units; training stops when the heads' log loss on held-out requests no longer falls, after
    `epochs` at the latest.
    """

    name: str = "deep_cross"
    layers: int = 2
    hidden: tuple[int, ...] = (128, 64)
    epochs: int = 20
    learning_rate: float = 0.001


@dataclass(frozen=True)
class Ensemble:
    """The mean of the rankers declared beside it and of the linear baseline, each on the scale of its own spread.

    Rankers of different kinds err in different places, so their mean is rarely worse than the best of them (Dietterich,
    Ensemble methods in machine learning, 2000), and less is lost where the choosing slice is too small to tell which
    one that is. Each kind counts once: two sets of trees share what one linear model has for itself. It takes as long
    as all of them together.
    """

    name: str = "ensemble"


RankerSpec = LogisticRegression | BoostedTrees | DeepCross | Ensemble
