"""The kernels of the factorisation machine's Gibbs sampler: which impressions were looked at, and what follows.

Every random number comes from a generator of its own block of rows, or was drawn before, so that the same seed gives
the same samples however many threads there are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange

BLOCK = 1_024
"""Pairs that share a stream of random numbers."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
TRUNCATION = 0.64
"""Where the two series of the Pólya-Gamma density meet."""

inner: Any = njit(fastmath=True, error_model="numpy")
outer: Any = njit(parallel=True, fastmath=True, error_model="numpy", cache=True)  # compiled when a source needs it


@inner
def _uniform(state):  # type: ignore[no-untyped-def]
    """A number between 0 and 1, neither included (splitmix64)."""
    state[0] += GOLDEN
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (np.float64(z >> np.uint64(11)) + 0.5) * 2.0**-53


def _tail(z: float) -> float:
    """The share of the exponential tail in the proposal for a Pólya-Gamma number of 2 z."""
    rate, root = math.pi**2 / 8.0 + 0.5 * z * z, math.sqrt(1.0 / TRUNCATION)
    below, above = (
        0.5 * math.erfc(-root * side * math.sqrt(0.5)) for side in (TRUNCATION * z - 1, -TRUNCATION * z - 1)
    )
    left = rate * math.exp(rate * TRUNCATION) * (math.exp(-z) * below + math.exp(z) * above)
    return 1.0 / (1.0 + 4.0 / math.pi * left)


FINENESS, HIGHEST = 256, 16
TAILS = np.array([_tail(step / FINENESS) for step in range(FINENESS * HIGHEST + 2)])
"""`_tail` in steps; between them it is a line to within 1e-6, and above the highest nothing is left of it."""


@inner
def _term(n, x):  # type: ignore[no-untyped-def]
    """The n-th term of the alternating series of the density at x, but for a factor that all terms have."""
    h = n + 0.5
    rise = h * h - 0.25
    return h * math.exp(-0.5 * math.pi**2 * rise * x if x > TRUNCATION else -2.0 * rise / x)


@inner
def _inverse_normal(z, state):  # type: ignore[no-untyped-def]
    """An inverse Gaussian number of mean 1 / z, cut off at `TRUNCATION`."""
    if z * TRUNCATION < 1.0:
        while True:
            first, second = -math.log(_uniform(state)), -math.log(_uniform(state))
            while first * first > 2.0 * second / TRUNCATION:
                first, second = -math.log(_uniform(state)), -math.log(_uniform(state))
            x = TRUNCATION / (1.0 + TRUNCATION * first) ** 2
            if _uniform(state) <= math.exp(-0.5 * z * z * x):
                return x
    mean = 1.0 / z
    while True:
        normal = math.sqrt(-2.0 * math.log(_uniform(state))) * math.cos(2.0 * math.pi * _uniform(state))
        y = mean * normal * normal
        x = mean * (1.0 + 0.5 * y - 0.5 * math.sqrt(4.0 * y + y * y))
        if _uniform(state) > mean / (mean + x):
            x = mean * mean / x
        if x <= TRUNCATION:
            return x


@inner
def _polya_gamma(log_odds, state):  # type: ignore[no-untyped-def]
    """A Pólya-Gamma(1, log_odds) number (Devroye's method; Polson, Scott, Windle, JASA 2013)."""
    z = 0.5 * abs(log_odds)
    rate = math.pi**2 / 8.0 + 0.5 * z * z
    step = min(z, HIGHEST) * FINENESS
    start = int(step)
    tail = TAILS[start] + (step - start) * (TAILS[start + 1] - TAILS[start])
    while True:
        x = TRUNCATION - math.log(_uniform(state)) / rate if _uniform(state) < tail else _inverse_normal(z, state)
        total = 0.5
        bound = _uniform(state) * total
        n = 0
        while True:
            n += 1
            if n % 2:
                total -= _term(n, x)
                if bound <= total:
                    return 0.25 * x
            else:
                total += _term(n, x)
                if bound > total:
                    break


@outer
def look(seed, shown, users, items, base, scale, noise, seen, weights, product, sums, looks):  # type: ignore[no-untyped-def]
    """Draw which impressions were looked at and what every outcome weighs, given both sides.

    `users`, `items` have their bias last; `seen` is the probability of each place to be looked at. The log-odds of an
    outcome are `base` and `scale` times the `product` of the two vectors, by group; an amount's weight is the precision
    `noise` of its group. `weights` are Pólya-Gamma numbers for the impressions, for whether they were rejected, and for
    what followed: 0 where nobody looked. Whoever acted or rejected has looked. `sums` (blocks, groups, 5) are of
    weights, weights times product and its square, outcomes and outcomes times product; `looks` (blocks, places) are
    counted.
    """
    last, against = users.shape[1] - 1, shown.against
    for block in prange(len(sums)):
        state = np.empty(1, np.uint64)
        state[0] = seed + GOLDEN * np.uint64(block) * np.uint64(1 << 32)
        sums[block], looks[block] = 0.0, 0
        for pair in range(block * BLOCK, min(len(shown.user), (block + 1) * BLOCK)):
            a, b = users[shown.user[pair]], items[shown.item[pair]]
            total = a[last] + b[last]
            for number in range(last):
                total += a[number] * b[number]
            product[pair] = total
            rejection = base[against] + scale[against] * total if against >= 0 else -100.0
            stays = 1.0 / (1.0 + math.exp(rejection))
            for row in range(shown.starts[pair], shown.starts[pair + 1]):
                group, acted, rejected = shown.group[row], shown.acted[row], shown.rejected[row]
                log_odds = base[group] + scale[group] * total
                look = seen[shown.place[row]]
                weights[0][row] = weights[1][row] = 0.0
                if look < 1.0 and not acted and not rejected:
                    left = stays / (1.0 + math.exp(log_odds))
                    if _uniform(state) >= look * left / (1.0 - look * (1.0 - left)):
                        continue
                looks[block, shown.place[row]] += 1
                weights[0][row] = _polya_gamma(log_odds, state)
                _count(sums[block, group], weights[0][row], 0.5 if acted else -0.5, total)
                if against >= 0 and not acted:
                    weights[1][row] = _polya_gamma(rejection, state)
                    _count(sums[block, against], weights[1][row], 0.5 if rejected else -0.5, total)
            for row in range(shown.further_starts[pair], shown.further_starts[pair + 1]):
                group, said = shown.further_group[row], shown.further[row]
                if shown.measured[group]:
                    weights[2][row] = noise[group]
                    said *= noise[group]
                else:
                    weights[2][row] = _polya_gamma(base[group] + scale[group] * total, state)
                _count(sums[block, group], weights[2][row], said, total)


@inner
def _count(sums, weight, outcome, product):  # type: ignore[no-untyped-def]
    sums[0] += weight
    sums[1] += weight * product
    sums[2] += weight * product * product
    sums[3] += outcome
    sums[4] += outcome * product


@outer
def fold(shown, base, scale, weights, weight, outcome):  # type: ignore[no-untyped-def]
    """All that is known of a pair as one observation of its product, which `weight` and weighted `outcome` say."""
    against = shown.against
    for pair in prange(len(shown.user)):
        heavy, right = 0.0, 0.0
        for row in range(shown.starts[pair], shown.starts[pair + 1]):
            w = weights[0][row]
            if w > 0.0:
                slope, start = scale[shown.group[row]], base[shown.group[row]]
                heavy += w * slope * slope
                right += slope * ((0.5 if shown.acted[row] else -0.5) - w * start)
            w = weights[1][row]
            if w > 0.0:
                heavy += w * scale[against] * scale[against]
                right += scale[against] * ((0.5 if shown.rejected[row] else -0.5) - w * base[against])
        for row in range(shown.further_starts[pair], shown.further_starts[pair + 1]):
            w, group, said = weights[2][row], shown.further_group[row], shown.further[row]
            if shown.measured[group]:
                said *= w
            heavy += w * scale[group] * scale[group]
            right += scale[group] * (said - w * base[group])
        weight[pair], outcome[pair] = heavy, right


@outer
def update(starts, order, other, weight, outcome, partners, prior, precision, noise, means, drawn):  # type: ignore[no-untyped-def]
    """One side, given the other: the mean of each vector, and a vector that is drawn around it.

    The pairs of vector i are `order[starts[i]:starts[i + 1]]`; `partners` are the other side's vectors, bias last.
    `prior` is the mean of each vector before anything is seen, `precision` that of each of its numbers.
    """
    d = prior.shape[1]
    for one in prange(len(starts) - 1):
        matrix, line, right = np.zeros((d, d)), np.ones(d), np.empty(d)
        for a in range(d):
            matrix[a, a] = precision[a]
            right[a] = precision[a] * prior[one, a]
        for number in range(starts[one], starts[one + 1]):
            pair = order[number]
            w = weight[pair]
            if w == 0.0:
                continue
            partner = partners[other[pair]]
            left = outcome[pair] - w * partner[d - 1]
            for a in range(d - 1):
                line[a] = partner[a]
            for a in range(d):
                right[a] += left * line[a]
                scaled = w * line[a]
                for b in range(a + 1):
                    matrix[a, b] += scaled * line[b]
        for a in range(d):  # Cholesky, in place
            for b in range(a + 1):
                total = matrix[a, b]
                for c in range(b):
                    total -= matrix[a, c] * matrix[b, c]
                matrix[a, b] = math.sqrt(total) if a == b else total / matrix[b, b]
        for a in range(d):
            total = right[a]
            for c in range(a):
                total -= matrix[a, c] * right[c]
            right[a] = total / matrix[a, a]
        for a in range(d - 1, -1, -1):
            mean, around = right[a], noise[one, a]
            for c in range(a + 1, d):
                mean -= matrix[c, a] * means[one, c]
                around -= matrix[c, a] * drawn[one, c]
            means[one, a] = mean / matrix[a, a]
            drawn[one, a] = around / matrix[a, a]
        for a in range(d):
            drawn[one, a] += means[one, a]


@njit(fastmath=True, error_model="numpy", cache=True)
def sweep(starts, rows, shares, rest, precision, own, noise, table):  # type: ignore[no-untyped-def]
    """Draw the vectors of an attribute's values, one after the other, given `rest`: what nothing else explains.

    Value v is held by `rows[starts[v]:starts[v + 1]]`, each with its share; `own` is the precision of the values.
    """
    d = table.shape[1]
    right = np.empty(d)
    for value in range(len(starts) - 1):
        held = 0.0
        right[:] = 0.0
        for number in range(starts[value], starts[value + 1]):
            share, left = shares[number], rest[rows[number]]
            held += share * share
            for a in range(d):
                right[a] += share * (left[a] + share * table[value, a])
        for a in range(d):
            total = precision[a] * held + own[a]
            right[a] = precision[a] * right[a] / total + noise[value, a] / math.sqrt(total) - table[value, a]
            table[value, a] += right[a]
        for number in range(starts[value], starts[value + 1]):
            for a in range(d):
                rest[rows[number], a] -= shares[number] * right[a]
