"""The kernels of the factorisation machine's Gibbs sampler: which impressions were looked at, and what follows.

Every random number comes from a generator of its own block of rows, or was drawn before, so that the same seed gives
the same samples however many threads there are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit, prange

BLOCK = 4_096
"""Rows that share a stream of random numbers."""
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


@inner
def _log_normal_cdf(x):  # type: ignore[no-untyped-def]
    if x < -30.0:
        return -0.5 * x * x - math.log(-x) - 0.9189385332046727
    return math.log(0.5 * math.erfc(-x * math.sqrt(0.5)))


@inner
def _term(n, x):  # type: ignore[no-untyped-def]
    """The n-th term of the alternating series of the density at x."""
    h = n + 0.5
    if x > TRUNCATION:
        return math.pi * h * math.exp(-0.5 * h * h * math.pi**2 * x)
    return (2.0 / (math.pi * x)) ** 1.5 * math.pi * h * math.exp(-2.0 * h * h / x)


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
    root = math.sqrt(1.0 / TRUNCATION)
    start = math.log(rate) + rate * TRUNCATION
    left = math.exp(start - z + _log_normal_cdf(root * (TRUNCATION * z - 1.0)))
    right = math.exp(start + z + _log_normal_cdf(-root * (TRUNCATION * z + 1.0)))
    tail = 1.0 / (1.0 + 4.0 / math.pi * (left + right))
    while True:
        x = TRUNCATION - math.log(_uniform(state)) / rate if _uniform(state) < tail else _inverse_normal(z, state)
        total = _term(0, x)
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
def look(seed, user, item, place, group, acted, users, items, base, scale, seen, weight, product):  # type: ignore[no-untyped-def]
    """Draw which impressions were looked at and their Pólya-Gamma `weight`, 0 for the others, given both sides.

    `users`, `items` have their bias last; `seen` is the probability of each place to be looked at. The log-odds are
    `base` and `scale` times the `product` of the two vectors, by group. Whoever acted has looked.
    """
    last = users.shape[1] - 1
    for block in prange((len(user) + BLOCK - 1) // BLOCK):
        state = np.empty(1, np.uint64)
        state[0] = seed + GOLDEN * np.uint64(BLOCK) * np.uint64(64) * np.uint64(block)
        for row in range(block * BLOCK, min(len(user), (block + 1) * BLOCK)):
            a, b = users[user[row]], items[item[row]]
            total = a[last] + b[last]
            for number in range(last):
                total += a[number] * b[number]
            product[row] = total
            log_odds = base[group[row]] + scale[group[row]] * total
            look = seen[place[row]]
            looked = True
            if look < 1.0 and not acted[row]:
                chance = 1.0 / (1.0 + math.exp(-log_odds))
                looked = _uniform(state) < look * (1.0 - chance) / (1.0 - look * chance)
            weight[row] = _polya_gamma(log_odds, state) if looked else 0.0


@outer
def update(starts, order, other, group, acted, weight, base, scale, partners, prior, precision, noise, means, drawn):  # type: ignore[no-untyped-def]
    """One side, given the other: the mean of each vector, and a vector that is drawn around it.

    Row i of the log is `order[...]`, sorted by this side; `partners` are the other side's vectors, bias last. `prior`
    is the mean of each vector before anything is seen, `precision` that of each of its numbers.
    """
    d = prior.shape[1]
    for one in prange(len(starts) - 1):
        matrix, line, right = np.zeros((d, d)), np.empty(d), np.empty(d)
        for a in range(d):
            matrix[a, a] = precision[a]
            right[a] = precision[a] * prior[one, a]
        for number in range(starts[one], starts[one + 1]):
            row = order[number]
            w = weight[row]
            if w == 0.0:
                continue
            partner, slope = partners[other[row]], scale[group[row]]
            outcome = (0.5 if acted[row] else -0.5) - w * (base[group[row]] + slope * partner[d - 1])
            for a in range(d - 1):
                line[a] = slope * partner[a]
            line[d - 1] = slope
            for a in range(d):
                right[a] += outcome * line[a]
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
