"""The minimum of a smooth function of a few numbers, to rounding error: L-BFGS, then Newton steps.

L-BFGS with a line search comes near from far away. It compares values, which near a minimum tell
points apart only to the square root of the rounding error; the Newton steps at the end look at the
gradient alone, and get the rest.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MOST_STEPS = 500  # of L-BFGS
MOST_NEWTON_STEPS = 50
SMALLEST_CURVATURE = 1e-10  # of the largest; along a flatter direction Newton's step is none

Function = Callable[[Tensor], Tensor]  # (N,) -> ()


def minimise(function: Function, start: Tensor) -> Tensor:
    """(N,) a local minimum near `start` (N,), float64; the function is differentiable twice.

    A direction along which nothing changes, as a constant added to logits, is left alone.
    """
    assert start.dtype == torch.float64, start.dtype
    x = start.detach().clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [x],
        max_iter=MOST_STEPS,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = function(x)
        value.backward()
        return value

    optimiser.step(closure)
    return polish(function, x.detach())


def polish(function: Function, x: Tensor) -> Tensor:
    """Newton steps from (N,) near a minimum, for as long as they make the gradient smaller."""
    gradient = gradient_at(function, x)
    for _ in range(MOST_NEWTON_STEPS):
        curvature = torch.autograd.functional.hessian(function, x)  # (N, N)
        inverse = torch.linalg.pinv(curvature, rtol=SMALLEST_CURVATURE, hermitian=True)
        closer = x - inverse @ gradient
        smaller = gradient_at(function, closer)
        if not smaller.norm() < gradient.norm():
            break
        x, gradient = closer, smaller
    return x


def gradient_at(function: Function, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]
