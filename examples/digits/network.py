"""Small dense networks in plain numpy: training, answering, scoring.

A network is a tuple of layers with ReLU between them and softmax at the end; one layer alone is multinomial
logistic regression.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.digits.data import CLASSES, PIXELS, Digits

Floats = NDArray[np.float64]
_MOMENTUM = 0.9
_DECIMALS = 4


class Layer(NamedTuple):
    """`weights` (in, out) and `bias` (out,)."""

    weights: Floats
    bias: Floats


Network = tuple[Layer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a network is trained: stochastic gradient descent whose rate falls to zero in a straight line."""

    epochs: int
    rate: float
    l2: float
    batch_rows: int
    seed: int


def fresh_network(hidden: int, seed: int) -> Network:
    """Random weights (He's scale); without hidden units a single layer."""
    random = np.random.RandomState(seed)
    sizes = [PIXELS, hidden, CLASSES] if hidden else [PIXELS, CLASSES]
    return tuple(
        Layer(random.normal(0, np.sqrt(2 / rows), (rows, columns)), np.zeros(columns))
        for rows, columns in pairwise(sizes)
    )


def train(start: Network, digits: Digits, schedule: Schedule) -> Network:
    """`start`, trained on `digits`. The same arguments give the same network on every machine.

    Another processor or BLAS moves the last bits (2e-15, measured on four OpenBLAS kernels), so the weights
    are rounded to four decimals, which costs no accuracy and leaves no trace of them.
    """
    random = np.random.RandomState(schedule.seed)
    images, wanted = digits.images.astype(np.float64), np.eye(CLASSES)[digits.labels]
    network = start
    speed = tuple(Layer(np.zeros_like(w), np.zeros_like(b)) for w, b in start)
    for epoch in range(schedule.epochs):
        rate = schedule.rate * (1 - epoch / schedule.epochs)
        for rows in np.array_split(random.permutation(len(digits)), len(digits) // schedule.batch_rows):
            slopes = _gradient(network, images[rows], wanted[rows], schedule.l2)
            speed = _combined(speed, _MOMENTUM, slopes, -rate)
            network = _combined(network, 1.0, speed, 1.0)
    return tuple(Layer(w.round(_DECIMALS), b.round(_DECIMALS)) for w, b in network)


def probabilities(network: Network, images: NDArray[np.float32]) -> Floats:
    """(n, 64) → (n, 10)."""
    return _softmax(_activations(network, images.astype(np.float64))[-1])


def accuracy(answers: Floats, labels: NDArray[np.int64]) -> float:
    """Part of the rows whose most probable class is the label."""
    return float((answers.argmax(axis=1) == labels).mean())


def log_loss(answers: Floats, labels: NDArray[np.int64]) -> float:
    """Mean of -ln p(label)."""
    of_label = answers[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_label, np.finfo(np.float64).tiny)).mean())


def with_shifted_copies(digits: Digits) -> Digits:
    """Five times the rows: as they are, and moved by one pixel to each of the four sides."""
    moves = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))
    images = np.concatenate([_moved(digits.images, down, right) for down, right in moves])
    return Digits(images, np.tile(digits.labels, len(moves)))


def _moved(images: NDArray[np.float32], down: int, right: int) -> NDArray[np.float32]:
    framed = np.pad(images.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    return framed[:, 1 - down : 9 - down, 1 - right : 9 - right].reshape(-1, PIXELS)


def _activations(network: Network, images: Floats) -> list[Floats]:
    """What enters each layer, and last the logits."""
    found = [images]
    for number, (weights, bias) in enumerate(network, start=1):
        out = found[-1] @ weights + bias
        found.append(out if number == len(network) else np.maximum(out, 0))
    return found


def _gradient(network: Network, images: Floats, wanted: Floats, l2: float) -> Network:
    *entering, logits = _activations(network, images)
    error = (_softmax(logits) - wanted) / len(images)
    slopes: list[Layer] = []
    for (weights, _), inputs in zip(reversed(network), reversed(entering), strict=True):
        slopes.insert(0, Layer(inputs.T @ error + l2 * weights, error.sum(axis=0)))
        error = (error @ weights.T) * (inputs > 0)
    return tuple(slopes)


def _combined(left: Network, by: float, right: Network, times: float) -> Network:
    return tuple(
        Layer(by * a.weights + times * b.weights, by * a.bias + times * b.bias)
        for a, b in zip(left, right, strict=True)
    )


def _softmax(logits: Floats) -> Floats:
    powers: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
    totals: Floats = powers.sum(axis=1, keepdims=True)
    return powers / totals
