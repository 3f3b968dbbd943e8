"""The minimum of a smooth function of a few numbers, to rounding error, by Newton's method.

A step goes down along each axis of the Hessian, by the slope over the size of the curvature,
whatever its sign (Dauphin et al. 2014, arXiv 1406.2572). None is longer than 1: a longer one can
lead from logits that have far to go into the flat part of a softmax, where every gradient is zero.
Steps are judged by the values they lead to, which near a minimum tell points apart only to the
square root of the rounding error; the last ones look at the gradient alone, and get the rest.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MOST_STEPS = 500  # judged by values
MOST_LAST_STEPS = 50  # judged by gradients
SHORTEST = 1e-9  # step that values are asked about
SMALLEST_CURVATURE = 1e-10  # of the largest; along a flatter direction a step is none

Function = Callable[[Tensor], Tensor]  # (N,) -> ()


def minimise(function: Function, start: Tensor) -> Tensor:
    """(N,) a local minimum near `start` (N,), float64; the function is differentiable twice.

    A direction along which nothing changes, as a constant added to logits, is left alone.
    """
    assert start.dtype == torch.float64, start.dtype
    return polish(function, descend(function, start.detach()))


def descend(function: Function, x: Tensor) -> Tensor:
    """Steps from (N,) to ever smaller values; each is halved until it leads to one."""
    value = function(x)
    for _ in range(MOST_STEPS):
        step = newton_step(function, x)
        step = step / max(1.0, step.norm().item())
        while not (smaller := function(x + step)) < value:
            step = step / 2
            if not step.norm() > SHORTEST:
                return x
        x, value = x + step, smaller
    return x


def polish(function: Function, x: Tensor) -> Tensor:
    """Steps from (N,) near a minimum, for as long as they make the gradient smaller."""
    gradient = gradient_at(function, x)
    for _ in range(MOST_LAST_STEPS):
        closer = x + newton_step(function, x)
        smaller = gradient_at(function, closer)
        if not smaller.norm() < gradient.norm():
            break
        x, gradient = closer, smaller
    return x


def newton_step(function: Function, x: Tensor) -> Tensor:
    """(N,) down from x, as far as a parabola with the slope and |curvature| of each axis goes."""
    curvatures, axes = torch.linalg.eigh(torch.autograd.functional.hessian(function, x))
    sizes, slopes = curvatures.abs(), axes.T @ gradient_at(function, x)  # (N,) each
    steep = sizes > SMALLEST_CURVATURE * sizes.max()
    return axes @ torch.where(steep, -slopes / sizes, 0.0)


def gradient_at(function: Function, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]
