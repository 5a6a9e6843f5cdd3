"""From appeal to feedback: the probabilities of a world in closed form, and draws from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from infnet.data.sources.latent import Floats

__all__ = ["Intercepts", "Reaction", "sigmoid"]

# Rarer feedback after a click: intercept and how much the appeal adds.
_AFTER_CLICK = {"follow": (-6.0, 0.6), "comment": (-5.6, 0.5), "forward": (-6.2, 0.5), "profile_enter": (-4.2, 0.5)}
_HATE = (-7.0, -0.6)
_LIKE_AFTER_LONG_VIEW = 1.2
_CLICK_MS, _LONG_VIEW_MS = 7_000, 18_000


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)), float32."""
    return np.asarray(1.0 / (1.0 + np.exp(-logits)), np.float32)


@dataclass(frozen=True)
class Intercepts:
    """Base levels of the tasks."""

    click: float = 0.0
    long_view: float = 0.0
    like: float = 0.0
    purchase: float = -3.0


@dataclass(frozen=True)
class Reaction:
    """What decides the feedback to n impressions; every array is (n,). The formulae stand in the world's docstring."""

    intercepts: Intercepts
    appeal: Floats
    readiness: Floats
    """To click at all: the user, the tab and the hour."""
    examination: Floats
    """Probability that the position is looked at."""
    patience: Floats
    like_bias: Floats
    spend_bias: Floats
    duration_ms: NDArray[np.int32]
    price: Floats

    @cached_property
    def p_click(self) -> Floats:
        """(n,)."""
        return self.examination * sigmoid(np.float32(self.intercepts.click) + self.readiness + self.appeal)

    @cached_property
    def _click_ms(self) -> NDArray[np.int32]:
        return np.minimum(self.duration_ms, _CLICK_MS)

    @cached_property
    def _scale_ms(self) -> Floats:
        """Median play time after the click, in ms."""
        longer = 0.5 * np.log(self.duration_ms.astype(np.float32) / 20_000)
        return 1000 * np.exp(np.float32(self.intercepts.long_view) + self.patience + 0.5 * self.appeal + longer)

    @cached_property
    def _long_view_given_click(self) -> Floats:
        more = (np.minimum(self.duration_ms, _LONG_VIEW_MS) - self._click_ms).astype(np.float32)
        return np.asarray(1.0 / (1.0 + (more / self._scale_ms) ** 2), np.float32)

    @cached_property
    def _like_logit(self) -> Floats:
        return np.float32(self.intercepts.like) + self.like_bias + 0.5 * self.appeal

    @cached_property
    def _purchase_given_click(self) -> Floats:
        return (self.price > 0) * sigmoid(np.float32(self.intercepts.purchase) + self.spend_bias + 0.6 * self.appeal)

    def probabilities(self) -> dict[str, Floats]:
        """``p_click, p_like, p_long_view, p_follow, p_comment, p_forward, p_hate``, ``expected_watch_time`` in seconds
        and ``expected_revenue``, each (n,)."""
        click, long_view = self.p_click, self._long_view_given_click
        like = long_view * sigmoid(self._like_logit + _LIKE_AFTER_LONG_VIEW) + (1 - long_view) * sigmoid(
            self._like_logit
        )
        rare = {f"p_{name}": click * self._after_click(name) for name in _AFTER_CLICK if name != "profile_enter"}
        start, scale = self._click_ms, self._scale_ms
        played = start + scale * np.arctan((2 * self.duration_ms - start) / scale)
        watch_ms = click * played + (1 - click) * start / 4
        return {
            "p_click": click,
            "p_like": click * like,
            "p_long_view": click * long_view,
            **rare,
            "p_hate": (1 - click) * sigmoid(_HATE[0] + _HATE[1] * self.appeal),
            "expected_watch_time": (watch_ms / 1000).astype(np.float32),
            "expected_revenue": click * self._purchase_given_click * self.price,
        }

    def _after_click(self, name: str) -> Floats:
        intercept, slope = _AFTER_CLICK[name]
        return sigmoid(intercept + slope * self.appeal)

    def sample(self, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
        """One draw of all feedback columns of the log, each (n,): times in ms, flags int8, revenue float32."""
        n = len(self.appeal)

        def uniform() -> Floats:
            return rng.random(n, dtype=np.float32)

        click = uniform() < self.p_click
        start, duration = self._click_ms, self.duration_ms
        u = uniform()
        more = np.minimum(self._scale_ms * np.sqrt(u / (1 - u)), 2 * duration - start)
        glance = np.minimum(start * uniform() ** 3, start - 1)
        play_ms = np.where(click, start + more, glance).astype(np.int32)
        long_view = click & (play_ms >= np.minimum(duration, _LONG_VIEW_MS))
        like = click & (uniform() < sigmoid(self._like_logit + np.float32(_LIKE_AFTER_LONG_VIEW) * long_view))
        after = {name: click & (uniform() < self._after_click(name)) for name in _AFTER_CLICK}
        hate = ~click & (uniform() < sigmoid(_HATE[0] + _HATE[1] * self.appeal))
        reads_comments = click & (uniform() < 0.1)
        stay_ms = -12_000 * np.log1p(-uniform())
        bought = click & (uniform() < self._purchase_given_click)
        return {
            "is_click": click.astype(np.int8),
            "is_like": like.astype(np.int8),
            "is_follow": after["follow"].astype(np.int8),
            "is_comment": after["comment"].astype(np.int8),
            "is_forward": after["forward"].astype(np.int8),
            "is_hate": hate.astype(np.int8),
            "long_view": long_view.astype(np.int8),
            "play_time_ms": play_ms,
            "duration_ms": duration,
            "profile_stay_time": (after["profile_enter"] * stay_ms).astype(np.int32),
            "comment_stay_time": (reads_comments * stay_ms).astype(np.int32),
            "is_profile_enter": after["profile_enter"].astype(np.int8),
            "revenue": (bought * self.price).astype(np.float32),
        }
