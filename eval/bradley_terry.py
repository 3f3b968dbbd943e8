"""The logistic regression behind Bradley-Terry strengths: finite whatever the games.

A game's outcome is 1 (won), 0 (lost) or 1/2 (a tie: half a win and half a loss), and the log-odds
of winning are a sum of coefficients. Where one side wins always the likelihood has no maximum; so
Firth's penalty log det(information) / 2 is added (Firth 1993, "Bias reduction of maximum likelihood
estimates"; Heinze and Schemper 2002, "A solution to the problem of separation in logistic
regression"). For each coefficient it adds half a win and half a loss, however many games there are,
and a change of units changes nothing. With two players it is log((wins + 1/2) / (losses + 1/2)).
"""

import numpy as np

TOLERANCE = 1e-9  # of log-odds, and in proportion where they are large
LONGEST_STEP = 20.0  # in log-odds
MOST_STEPS = 1000


def fit_logistic(
    features: np.ndarray, outcomes: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """(K,) coefficients of the log-odds, by Newton steps in float64.

    features: (N, K), with a column of ones where an intercept is wanted; outcomes: (N,) in [0, 1];
    weights: (N,), how many games each row stands for. Where columns depend on each other: the
    shortest of the coefficients that are equally good.
    """
    y = np.asarray(outcomes, dtype=np.float64)  # (N,)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)  # (N,)
    assert ((y >= 0) & (y <= 1)).all() and (w > 0).all(), (y, w)
    U, S, Vt = np.linalg.svd(np.asarray(features, dtype=np.float64), full_matrices=False)
    rank = int((S > 1e-10 * S.max(initial=0)).sum())
    beta = maximise(U[:, :rank], y, w)  # (R,)
    return Vt[:rank].T @ (beta / S[:rank])  # (K, R) x (R,) -> (K,)


def maximise(X: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(R,) where the penalised likelihood is largest; X (N, R) has independent columns."""
    beta = np.zeros(X.shape[1])
    value = penalised_likelihood(X, y, w, beta)
    for _ in range(MOST_STEPS):
        step = newton_step(X, y, w, beta)
        size = np.abs(X @ step).max(initial=0)  # in log-odds
        step *= min(1.0, LONGEST_STEP / max(size, LONGEST_STEP))
        least = TOLERANCE * (1 + np.abs(X @ beta).max(initial=0))
        while size > least:
            new = penalised_likelihood(X, y, w, beta + step)
            if new >= value - 1e-12 * abs(value):  # but for rounding
                break
            step, size = step / 2, size / 2
        beta = beta + step
        if size <= least:
            return beta
        value = new
    raise AssertionError(f"no maximum in {MOST_STEPS} steps: {beta}, the last one {step}")


def newton_step(X: np.ndarray, y: np.ndarray, w: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """(R,) uphill: a game of leverage h counts as y + h/2 wins in 1 + h games (Firth's score)."""
    p = sigmoid(X @ beta)  # (N,)
    inverse = np.linalg.inv(information(X, w, p))  # (R, R)
    h = p * (1 - p) * ((X @ inverse) * X).sum(axis=1)  # (N,) of one game; sums to R over games
    score = X.T @ (w * (y + h / 2 - (1 + h) * p))
    return np.linalg.solve(information(X, w * (1 + h), p), score)


def penalised_likelihood(X: np.ndarray, y: np.ndarray, w: np.ndarray, beta: np.ndarray) -> float:
    z = X @ beta  # (N,) log-odds
    likelihood = -(w * (y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z))).sum()
    return float(likelihood + np.linalg.slogdet(information(X, w, sigmoid(z)))[1] / 2)


def information(X: np.ndarray, w: np.ndarray, p: np.ndarray) -> np.ndarray:
    """(R, R) Fisher information of the coefficients."""
    return X.T @ ((w * p * (1 - p))[:, None] * X)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(z / 2)) / 2  # exp(-z) would overflow
