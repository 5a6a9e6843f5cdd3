"""The definition of a page written out in plain Python, position by position."""

import math

import numpy as np

from infnet.ranking.rerank.spec import AdLoad, AtLeast, AtMost, Floor


def ordered(constraints, diversity, scores, columns, items, limit, vectors=None, wanted=None):
    """Places of a page, and what was given up as (position from 1, place of the constraint).

    ``wanted`` has for each quota's formula a row of booleans.
    """
    shown, relevance = shown_by_relevance(constraints, scores, columns)
    rules = [c for c in constraints if not isinstance(c, Floor)]
    page, gave_up = [], []
    while len(page) < min(limit, len(shown)):
        able, given = feasible_after(rules, page, shown, items, wanted)
        gave_up += [(len(page) + 1, number) for number in given]

        def key(s):
            by = scores[s] if diversity is None else adjusted(diversity, relevance[s], s, page, items, vectors)
            return by, scores[s], -s

        page.append(max(able, key=key))
    return page, gave_up


def shown_by_relevance(constraints, scores, columns):
    """Who passes the floors, and each one's relevance."""
    floors = [c for c in constraints if isinstance(c, Floor)]
    shown = [s for s in range(len(scores)) if all(columns[c.floor][s] >= c.at_least for c in floors)]
    low, high = (min(scores[s] for s in shown), max(scores[s] for s in shown)) if shown else (0, 0)
    return shown, {s: (scores[s] - low) / (high - low) if high > low else 0.0 for s in shown}


def feasible_after(rules, page, shown, items, wanted):
    """Who may stand next, and the rules that are given up for it."""
    left = [s for s in shown if s not in page]

    def able(kept):
        return [s for s in left if all(_holds(rules[k], page, s, left, items, wanted) for k in kept)]

    kept, given = list(range(len(rules))), []
    while not able(kept):
        given.append(kept.pop())
    gave_up = []
    for number in sorted(given):
        if able([*kept, number]):
            kept.append(number)
        else:
            gave_up.append(number)
    return able(kept), gave_up


def values(items, field, place):
    value = items.get(field, [None] * 99)[place]
    if isinstance(value, list):
        return {one for one in value if one is not None}
    return set() if value is None else {value}


def _holds(rule, page, s, left, items, wanted):
    position = len(page) + 1
    if isinstance(rule, AtLeast):
        is_wanted = wanted[rule.where]
        began = (position - 1) // rule.within * rule.within
        lacking = rule.at_least - sum(is_wanted[p] for p in page[began:])
        remaining = began + rule.within - position + 1
        binds = remaining <= lacking and any(is_wanted[one] for one in left)
        return not binds or is_wanted[s]
    if isinstance(rule, AdLoad):
        limit = rule.ad_load
        is_ad = [bool(value) for value in items[limit.field or "is_ad"]]
        recent = page[max(0, position - limit.per) :]
        return not is_ad[s] or (position >= limit.first and sum(is_ad[p] for p in recent) < limit.at_most)
    at_most, within = (rule.at_most, rule.within) if isinstance(rule, AtMost) else (1, rule.spacing + 1)
    recent = page if within is None else page[max(0, position - within) :]
    return all(
        sum(value in values(items, rule.per, p) for p in recent) < at_most for value in values(items, rule.per, s)
    )


def similarity(diversity, one, other, items, vectors):
    if diversity.by is None:
        a, b = vectors[one], vectors[other]
        lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
        cosine = a @ b / lengths if lengths else 0.0
        return (1 + cosine) / 2 if diversity.method == "dpp" else max(cosine, 0.0)
    total = 0.0
    for field in diversity.by:
        mine, yours = values(items, field, one), values(items, field, other)
        total += len(mine & yours) / len(mine | yours) if mine and yours else 0.0
    return total / len(diversity.by)


def adjusted(diversity, relevance, s, page, items, vectors):
    past = page if diversity.window is None else page[-diversity.window :]
    if not past:
        return (1 - diversity.strength) * relevance
    if diversity.method == "mmr":
        largest = max(similarity(diversity, s, p, items, vectors) for p in past)
        return (1 - diversity.strength) * relevance - diversity.strength * largest
    among = [*past, s]
    kernel = np.array([[1.0 if a == b else similarity(diversity, a, b, items, vectors) for b in among] for a in among])
    inside, across = kernel[:-1, :-1], kernel[:-1, -1]
    rest = 1.0 - across @ np.linalg.lstsq(inside, across, rcond=1e-6)[0]
    return (1 - diversity.strength) * relevance + diversity.strength * math.log(max(rest, 1e-6))
