"""Softmax averages of tokens that stay in their tables, on a CPU: each reader's tokens are found, used, forgotten.

A vector holds one number for each of 16 queries, so a token is scored, weighed and summed without a word between
lanes. Logits and weights of one reader at a time live in the processor's nearest cache; nothing of the size of all
readers' tokens is ever written. Backward scores the tokens again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from infnet.layers.simd import (
    LANES,
    add,
    address,
    begin,
    columns,
    exp,
    fma,
    load,
    maximum,
    multiply,
    past,
    prefetch,
    product_of,
    reciprocal,
    scaled,
    store,
    subtract,
    zeros,
)

__all__ = ["MAX_GROUPS", "MAX_KINDS", "num_lanes", "read_backward", "read_forward"]

MAX_GROUPS = 3
"""Tables."""
MAX_KINDS = 4
"""Tensors of queries."""
_STRIP = 8
"""Tokens scored together."""
_LINE = 64
"""Bytes in a line of the cache."""


def num_lanes(num_queries: int) -> int:
    """Queries in whole vectors."""
    return -(-num_queries // LANES) * LANES


def _compiled(function: Any) -> Any:
    return njit(nogil=True, cache=True, error_model="numpy")(function)


_score_strip = product_of(_STRIP, left_rows="anywhere")
_read8, _read4, _read2, _read1 = (product_of(n, right_rows="anywhere") for n in (8, 4, 2, 1))
_spread_strip = product_of(_STRIP, out_rows="anywhere")


@_compiled
def _score(tokens, count, d, queries, out, step):
    """out (count, 16), rows ``step`` apart = tokens (count, d) queries (d, 16); count up to a multiple of a strip."""
    for j in range(0, count, _STRIP):
        _score_strip(past(tokens, j), 0, 1, d, queries, LANES, past(out, j * step), step)


@_compiled
def _read(weights, step, num, count, tokens, d, out):
    """out (num, d) = weights (count, num)^t tokens (count, d); rows of the weights ``step`` apart."""
    i = 0
    while i + 8 <= num:
        for c in range(0, d, LANES):
            _read8(past(weights, i), 1, step, count, tokens, c, past(out, i * d + c), d)
        i += 8
    if num & 4:
        for c in range(0, d, LANES):
            _read4(past(weights, i), 1, step, count, tokens, c, past(out, i * d + c), d)
        i += 4
    if num & 2:
        for c in range(0, d, LANES):
            _read2(past(weights, i), 1, step, count, tokens, c, past(out, i * d + c), d)
        i += 2
    if num & 1:
        for c in range(0, d, LANES):
            _read1(past(weights, i), 1, step, count, tokens, c, past(out, i * d + c), d)


@_compiled
def _spread(weights, step, inner, rows, d, count, tokens):
    """tokens (count, d) += weights (count, inner) rows (inner, d); count up to a multiple of a strip."""
    for j in range(0, count, _STRIP):
        for c in range(0, d, LANES):
            _spread_strip(past(weights, j * step), step, 1, inner, past(rows, c), d, past(tokens, j), c)


@_compiled
def _turn(rows, num, d, addresses, out):
    """out (d, 16) = rows (num, d)^t; columns from ``num`` on are the first one again."""
    first = address(rows)
    row_bytes = address(past(rows, d)) - first
    for i in range(LANES):
        addresses[i] = first + i * row_bytes if i < num else first
    for c in range(0, d, LANES):
        columns(addresses, c, past(out, c * LANES))


@_compiled
def _kinds(arrays):
    """Pointer and rows of a reader, for each array (B, rows, d)."""
    a, b, c, d = arrays
    return (begin(a), a.shape[1]), (begin(b), b.shape[1]), (begin(c), c.shape[1]), (begin(d), d.shape[1])


@_compiled
def _collect(kinds, reader, first, num, d, gates, gate_step, out):
    """out (num, d) = the reader's rows from ``first`` on, all kinds one after the other, times their gates."""
    before = 0
    for rows, count in kinds:
        for i in range(max(first - before, 0), min(first + num - before, count)):
            at, to = (reader * count + i) * d, (before + i - first) * d
            for c in range(0, d, LANES):
                row = load(rows, at + c)
                if gate_step >= 0:
                    row = multiply(load(gates, (before + i) * gate_step + c), row)
                store(out, to + c, row)
        before += count


@_compiled
def _hand_out(rows, kinds, reader, first, num, d, gates, gate_step):
    """The way back: rows (num, d) times their gates to where the reader's rows from ``first`` on belong."""
    before = 0
    for out, count in kinds:
        for i in range(max(first - before, 0), min(first + num - before, count)):
            at, to = (before + i - first) * d, (reader * count + i) * d
            for c in range(0, d, LANES):
                row = load(rows, at + c)
                if gate_step >= 0:
                    row = multiply(load(gates, (before + i) * gate_step + c), row)
                store(out, to + c, row)
        before += count


@_compiled
def _add_products(left, right, num, d, out, step):
    """out += left (num, d) times right (num, d); rows of out ``step`` apart."""
    for i in range(num):
        for c in range(0, d, LANES):
            product = fma(load(left, i * d + c), load(right, i * d + c), load(out, i * step + c))
            store(out, i * step + c, product)


@_compiled
def _largest(rows, count):
    """The largest number in each lane of (count, 16)."""
    a = b = c = d = load(rows, 0)  # four at a time, since each comparison waits for the one before
    for j in range(0, count - 3, 4):
        row = past(rows, j * LANES)
        a, b = maximum(a, load(row, 0)), maximum(b, load(row, LANES))
        c, d = maximum(c, load(row, 2 * LANES)), maximum(d, load(row, 3 * LANES))
    for j in range(count // 4 * 4, count):
        a = maximum(a, load(rows, j * LANES))
    return maximum(maximum(a, b), maximum(c, d))


@_compiled
def _clear(pointer, count):
    for c in range(0, count, LANES):
        store(pointer, c, zeros(pointer))


@_compiled
def _aligned(array):
    """Pointer to the first number of the array that begins a line of the cache."""
    pointer = begin(array)
    return past(pointer, -address(pointer) % _LINE // array.itemsize)


@_compiled
def _hold(arrays):
    """Mention arrays that are used through pointers: Numba frees an array after the last time it is mentioned."""
    return len(arrays)


@_compiled
def _pointers(group):
    table, rows, starts = group
    return address(begin(table)), begin(rows), begin(starts), table.shape[1]


@_compiled
def _places(groups):
    return _pointers(groups[0]), _pointers(groups[1]), _pointers(groups[2])


@_compiled
def _sum_places(groups, tables):
    """Where the groups' rows are in other tables."""
    return (
        _pointers((tables[0], groups[0][1], groups[0][2])),
        _pointers((tables[1], groups[1][1], groups[1][2])),
        _pointers((tables[2], groups[2][1], groups[2][2])),
    )


@_compiled
def _padded(count):
    return (count + _STRIP - 1) // _STRIP * _STRIP


@_compiled
def _find(places, reader, row_bytes, tokens):
    """Write the addresses of the reader's tokens, the first again up to whole strips; return how many it has."""
    count = 0
    for table, rows, starts, m in places:
        for at in range(starts[reader], starts[reader + 1] if m else 0):
            row = table + rows[at] * (m * row_bytes)
            for k in range(m):
                tokens[count] = row + k * row_bytes
                count += 1
    for padding in range(count, _padded(count)):
        tokens[padding] = tokens[0]
    return count


@_compiled
def _fetch(tokens, count, row_bytes):
    """Begin to bring the tokens near."""
    for j in range(count):
        for c in range(0, row_bytes, _LINE):
            prefetch(tokens[j] + c)


@_compiled
def _longest(groups, num_readers):
    """Tokens of the reader who has the most, in whole strips."""
    longest = 1
    for reader in range(num_readers):
        count = 0
        for table, _, starts in groups:
            count += (starts[reader + 1] - starts[reader]) * table.shape[1]
        longest = max(longest, count)
    return _padded(longest)


@_compiled
def _num_queries(queries):
    return queries[0].shape[1] + queries[1].shape[1] + queries[2].shape[1] + queries[3].shape[1]


@_compiled
def _gate_step(gates, d):
    """From a query's gate to the next one's: 0 if all share it, -1 without gates."""
    return d if gates.shape[1] > 1 else gates.shape[1] - 1


@_compiled
def read_forward(queries, gates, groups, out, plain, mass):
    """Fill out, plain and mass.

    Args:
        queries: ``MAX_KINDS`` times (B, q_i, d), scaled; d a multiple of ``LANES``. q is the sum of the q_i.
        gates: (B, q, d), or (B, 1, d) for all queries of a reader, or (B, 0, d) for none: of the tokens' channels.
        groups: ``MAX_GROUPS`` times (table (G, m, d), rows (n,), starts (B + 1,)): reader b has the m tokens of each
            table row rows[starts[b]:starts[b + 1]].
        out: Like queries.
        plain: (B, q, d), for the way back: what was read before the gates; (B, 0, d) without them.
        mass: (B, 2, num_lanes(q)), for the way back: the largest logit, and one over the sum of what exceeds it.

    All are contiguous.
    """
    num_readers, d, q = mass.shape[0], gates.shape[2], _num_queries(queries)
    row_bytes, lanes, gate_step = d * gates.itemsize, mass.shape[2], _gate_step(gates, d)
    most = _longest(groups, num_readers)
    found, found_turned = np.empty(2 * most, np.intp), np.empty(LANES, np.intp)
    space_rows, space_turned = np.empty((d + 1) * LANES, gates.dtype), np.empty((d + 1) * LANES, gates.dtype)
    space_weights, space_read = np.empty((most + 1) * LANES, gates.dtype), np.empty((d + 1) * LANES, gates.dtype)
    shares = np.empty(LANES, gates.dtype)

    tokens, ahead, turning = begin(found), past(begin(found), most), begin(found_turned)
    rows, turned, weights = _aligned(space_rows), _aligned(space_turned), _aligned(space_weights)
    read = _aligned(space_read)
    places, queries_of, out_of = _places(groups), _kinds(queries), _kinds(out)
    next_count = _find(places, 0, row_bytes, ahead) if num_readers else 0
    for reader in range(num_readers):
        count, tokens, ahead = next_count, ahead, tokens
        if reader + 1 < num_readers:
            next_count = _find(places, reader + 1, row_bytes, ahead)
            _fetch(ahead, next_count, row_bytes)
        own_gates, own_mass = past(begin(gates), reader * gates.shape[1] * d), past(begin(mass), reader * 2 * lanes)
        for first in range(0, q, LANES):
            num = min(q - first, LANES)
            if gate_step >= 0:
                read = past(begin(plain), (reader * q + first) * d)
            if count:
                _collect(queries_of, reader, first, num, d, own_gates, gate_step, rows)
                _turn(rows, num, d, turning, turned)
                _score(tokens, count, d, turned, weights, LANES)
                top = _largest(weights, count)
                total = zeros(weights)
                for j in range(count):
                    weight = exp(subtract(load(weights, j * LANES), top))
                    store(weights, j * LANES, weight)
                    total = add(weight, total)
                share = reciprocal(total)
                store(own_mass, first, top)
                store(own_mass, lanes + first, share)
                store(begin(shares), 0, share)
                _read(weights, LANES, num, count, tokens, d, read)
                for i in range(num):
                    for c in range(i * d, (i + 1) * d, LANES):
                        store(read, c, scaled(shares[i], load(read, c)))
            else:
                _clear(read, num * d)
            _hand_out(read, out_of, reader, first, num, d, own_gates, gate_step)
    _hold((found, found_turned, space_rows, space_turned, space_weights, space_read, shares))


@_compiled
def read_backward(queries, gates, groups, plain, mass, d_out, d_queries, d_gates, d_tables):
    """Fill d_queries and d_gates, and add to d_tables, one (G, m, d) per group."""
    num_readers, d, q = mass.shape[0], gates.shape[2], _num_queries(queries)
    row_bytes, lanes, gate_step = d * gates.itemsize, mass.shape[2], _gate_step(gates, d)
    most, step = _longest(groups, num_readers), 2 * LANES
    found, found_turned = np.empty(3 * most, np.intp), np.empty(LANES, np.intp)
    space_turned, space_rows = np.empty((d + 1) * LANES, gates.dtype), np.empty((d + 1) * LANES, gates.dtype)
    space_scores, space_weights = np.empty((most + 1) * step, gates.dtype), np.empty((most + 1) * step, gates.dtype)
    space_both = np.empty((2 * d + 1) * LANES, gates.dtype)

    tokens, ahead, token_sums = begin(found), past(begin(found), most), past(begin(found), 2 * most)
    turning, turned, rows = begin(found_turned), _aligned(space_turned), _aligned(space_rows)
    scores, weights, both = _aligned(space_scores), _aligned(space_weights), _aligned(space_both)
    places, sum_places = _places(groups), _sum_places(groups, d_tables)
    queries_of, d_out_of, d_queries_of = _kinds(queries), _kinds(d_out), _kinds(d_queries)
    next_count = _find(places, 0, row_bytes, ahead) if num_readers else 0
    for reader in range(num_readers):
        count, tokens, ahead = next_count, ahead, tokens
        if reader + 1 < num_readers:
            next_count = _find(places, reader + 1, row_bytes, ahead)
            _fetch(ahead, next_count, row_bytes)
        gate_at, own_mass = reader * gates.shape[1] * d, past(begin(mass), reader * 2 * lanes)
        own_gates, own_d_gates = past(begin(gates), gate_at), past(begin(d_gates), gate_at)
        _clear(own_d_gates, gates.shape[1] * d)
        if count:
            _find(sum_places, reader, row_bytes, token_sums)
            _fetch(token_sums, count, row_bytes)
        for first in range(0, q, LANES):
            num = min(q - first, LANES)
            if count:
                d_rows, query_rows = both, past(both, num * d)
                _collect(d_out_of, reader, first, num, d, own_gates, gate_step, d_rows)
                _collect(queries_of, reader, first, num, d, own_gates, gate_step, query_rows)
                # A token's scores are its d weights and, ``apart`` further, its logits: in one vector if both fit.
                apart = num if 2 * num <= LANES else LANES
                score_step = LANES if 2 * num <= LANES else step
                _turn(both, min(2 * num, LANES) if apart == num else num, d, turning, turned)
                _score(tokens, count, d, turned, scores, score_step)
                if apart == LANES:
                    _turn(query_rows, num, d, turning, turned)
                    _score(tokens, count, d, turned, past(scores, LANES), score_step)
                top, share = load(own_mass, first), load(own_mass, lanes + first)
                mean = zeros(weights)
                for j in range(count):
                    row = past(scores, j * score_step)
                    weight = multiply(share, exp(subtract(load(row, apart), top)))
                    store(weights, j * step, weight)
                    mean = fma(weight, load(row, 0), mean)
                for j in range(count):  # right after the weights of all queries, their d logits
                    weight = load(weights, j * step)
                    d_logit = multiply(weight, subtract(load(scores, j * score_step), mean))
                    store(weights, j * step + num, d_logit)
                _clear(past(weights, count * step), (_padded(count) - count) * step)
                _read(past(weights, num), step, num, count, tokens, d, rows)
                _spread(weights, step, 2 * num, both, d, count, token_sums)
            else:
                _clear(rows, num * d)
            _hand_out(rows, d_queries_of, reader, first, num, d, own_gates, gate_step)
            if gate_step >= 0 and count:
                d_gate = past(own_d_gates, first * gate_step)
                _collect(queries_of, reader, first, num, d, own_gates, -1, both)
                _add_products(rows, both, num, d, d_gate, gate_step)
                _collect(d_out_of, reader, first, num, d, own_gates, -1, both)
                _add_products(past(begin(plain), (reader * q + first) * d), both, num, d, d_gate, gate_step)
    _hold((found, found_turned, space_rows, space_turned, space_scores, space_weights, space_both))
