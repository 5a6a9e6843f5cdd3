"""Softmax averages of tokens that stay in their tables, on a CPU: each reader's tokens are looked up, used, forgotten.

Tokens, logits and weights of one reader at a time live in the processor's nearest cache; nothing of the size of all
readers' tokens is ever written. Backward looks the tokens up again.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from infnet.layers.simd import (
    LANES,
    add,
    exp,
    fma,
    largest,
    load,
    maximum,
    product_of,
    scaled,
    store,
    subtract,
    total,
    transpose,
    zeros,
)

__all__ = ["MAX_GROUPS", "read_backward", "read_forward"]

MAX_GROUPS = 3


def _compiled(function: Any) -> Any:
    return njit(nogil=True, cache=True, error_model="numpy")(function)


def _strips(num_rows: int) -> Any:
    product = product_of(num_rows)

    @_compiled
    def strips(i, left, row_step, step, rows, inner, right, out, width):
        while i + num_rows <= rows:
            for c in range(0, width, LANES):
                product(left, i * row_step, row_step, step, inner, right, c, width, out, i * width + c)
            i += num_rows
        return i

    return strips


_eight, _four, _two, _one = _strips(8), _strips(4), _strips(2), _strips(1)


@_compiled
def _product(left, row_step, step, rows, inner, right, out, width):
    """out (rows, width) = left (rows, inner) right (inner, width); entry (i, k) of left at i * row_step + k * step."""
    i = _eight(0, left, row_step, step, rows, inner, right, out, width)
    i = _four(i, left, row_step, step, rows, inner, right, out, width)
    i = _two(i, left, row_step, step, rows, inner, right, out, width)
    _one(i, left, row_step, step, rows, inner, right, out, width)


@_compiled
def _look_up(groups, reader, d, length, tokens, columns):
    """The reader's tokens as rows (length, d) and as columns (d, length); zeros in the padding."""
    j = 0
    for table, rows, offsets in groups:
        size = table.shape[1] * d
        flat = table.reshape(-1)
        for at in range(offsets[reader], offsets[reader + 1]):
            first = rows[at] * size
            for k in range(0, size, LANES):
                store(tokens, j + k, load(flat, first + k))
            j += size
    while j < length * d:
        store(tokens, j, zeros(tokens))
        j += LANES
    for j in range(0, length, LANES):
        for k in range(0, d, LANES):
            transpose(tokens, j * d + k, d, columns, k * length + j, length)


@_compiled
def _add_up(groups, reader, d, gradient, d_tables):
    j = 0
    for group, d_table in zip(groups, d_tables):  # noqa: B905 - Numba's has no strict
        rows, offsets = group[1], group[2]
        size = d_table.shape[1] * d
        flat = d_table.reshape(-1)
        for at in range(offsets[reader], offsets[reader + 1]):
            first = rows[at] * size
            for k in range(0, size, LANES):
                store(flat, first + k, add(load(flat, first + k), load(gradient, j + k)))
            j += size


@_compiled
def _count(groups, reader):
    count = 0
    for table, _, offsets in groups:
        count += (offsets[reader + 1] - offsets[reader]) * table.shape[1]
    return count


@_compiled
def _padded(count):
    return (count + LANES - 1) // LANES * LANES


@_compiled
def _longest(groups, num_readers):
    longest = 0
    for reader in range(num_readers):
        longest = max(longest, _count(groups, reader))
    return _padded(longest)


@_compiled
def read_forward(queries, groups, out, mass):
    """Fill out (B, q, d) and mass (B, q), the logarithms of the softmax's denominators.

    Args:
        queries: (B, q, d), scaled; d a multiple of ``LANES``.
        groups: (table (G, m, d), rows (n,), offsets (B + 1,)) each: reader b has the m tokens of each table row
            rows[offsets[b]:offsets[b + 1]].
    """
    num_readers, q, d = queries.shape
    most = _longest(groups, num_readers)
    tokens = np.empty(most * d, queries.dtype)
    columns = np.empty(most * d, queries.dtype)
    weights = np.empty(most * q, queries.dtype)
    flat_queries, flat_out = queries.reshape(-1), out.reshape(-1)
    for reader in range(num_readers):
        count = _count(groups, reader)
        if count == 0:
            out[reader] = 0
            mass[reader] = 0
            continue
        length = _padded(count)
        _look_up(groups, reader, d, length, tokens, columns)
        own = reader * q * d
        _product(flat_queries[own:], d, 1, q, d, columns, weights, length)
        for i in range(q):
            row = i * length
            for j in range(row + count, row + length):
                weights[j] = -np.inf
            best = load(weights, row)
            for c in range(LANES, length, LANES):
                best = maximum(best, load(weights, row + c))
            top = largest(best)
            sums = zeros(weights)
            for c in range(0, length, LANES):
                w = exp(subtract(load(weights, row + c), top))
                store(weights, row + c, w)
                sums = add(w, sums)
            sum_of_weights = total(sums)
            mass[reader, i] = top + math.log(sum_of_weights)
            share = 1 / sum_of_weights
            for c in range(0, length, LANES):
                store(weights, row + c, scaled(share, load(weights, row + c)))
        _product(weights, length, 1, q, length, tokens, flat_out[own:], d)


@_compiled
def read_backward(queries, groups, mass, d_out, d_queries, d_tables):
    """Fill d_queries and add to d_tables, one (G, m, d) per group."""
    num_readers, q, d = queries.shape
    most = _longest(groups, num_readers)
    tokens = np.empty(most * d, queries.dtype)
    columns = np.empty(most * d, queries.dtype)
    gradient = np.empty(most * d, queries.dtype)
    weights = np.empty(2 * most * q, queries.dtype)
    both = np.empty(2 * q * d, queries.dtype)
    flat_queries, flat_d_out, flat_d_queries = queries.reshape(-1), d_out.reshape(-1), d_queries.reshape(-1)
    for reader in range(num_readers):
        count = _count(groups, reader)
        if count == 0:
            d_queries[reader] = 0
            continue
        length = _padded(count)
        _look_up(groups, reader, d, length, tokens, columns)
        own = reader * q * d
        for c in range(0, q * d, LANES):
            store(both, c, load(flat_d_out, own + c))
            store(both, q * d + c, load(flat_queries, own + c))
        # Rows [d weights; logits] become [weights; d logits].
        _product(both, d, 1, 2 * q, d, columns, weights, length)
        for i in range(q):
            upper, lower = i * length, (q + i) * length
            for j in range(lower + count, lower + length):
                weights[j] = -np.inf
            top = mass[reader, i]
            sums = zeros(weights)
            for c in range(0, length, LANES):
                w = exp(subtract(load(weights, lower + c), top))
                store(weights, lower + c, w)
                sums = fma(w, load(weights, upper + c), sums)
            mean = total(sums)
            for c in range(0, length, LANES):
                w = load(weights, lower + c)
                store(weights, lower + c, scaled(w, subtract(load(weights, upper + c), mean)))
                store(weights, upper + c, w)
        _product(weights[q * length :], length, 1, q, length, tokens, flat_d_queries[own:], d)
        _product(weights, 1, length, length, 2 * q, both, gradient, d)
        _add_up(groups, reader, d, gradient, d_tables)
