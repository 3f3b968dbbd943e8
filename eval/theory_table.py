"""A statement of theory beside what was computed, and the table of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import torch
from torch import Tensor

CLAIM_WIDTH = 62  # characters of a claim; what stands beside it makes up the 110 of a line


@dataclass(frozen=True)
class Statement:
    """Does theory say what was computed? `refutes`: this one is a misreading, and must not."""

    part: str  # what it belongs to
    claim: str
    computed: float
    theory: float  # of a misreading: what it says
    tolerance: float  # how far the two may be apart
    refutes: bool = False

    @property
    def difference(self) -> float:
        return abs(self.computed - self.theory)

    @property
    def holds(self) -> bool:
        """As it has to be: within the tolerance, or, for a misreading, beyond it."""
        if self.refutes:
            return self.difference > self.tolerance
        return self.difference <= self.tolerance  # NaN does neither

    @property
    def verdict(self) -> str:
        if self.refutes:
            return "refuted" if self.holds else "NOT REFUTED"
        return "holds" if self.holds else "DOES NOT HOLD"


def worst(part: str, claim: str, computed: Tensor, theory: Tensor, tolerance: float) -> Statement:
    """The statement of the two tensors' elements that are furthest apart; NaN is furthest."""
    computed, theory = torch.broadcast_tensors(computed.detach(), theory.detach())
    i = (computed - theory).abs().nan_to_num(nan=torch.inf).argmax()
    values = (computed.flatten()[i].item(), theory.flatten()[i].item())
    return Statement(part, claim, *values, tolerance)


def to_rows(statements: Sequence[Statement]) -> list[dict]:
    """The statements as JSON."""
    found = ("difference", "holds", "verdict")
    return [asdict(one) | {name: getattr(one, name) for name in found} for one in statements]


def print_statements(statements: Sequence[Statement]) -> None:
    names = f"{'computed':>12} {'theory':>12} {'difference':>10} {'tolerance':>9}"
    for part, group in groupby(statements, key=lambda one: one.part):
        print(f"\n{part:{CLAIM_WIDTH}} {names}")
        for one in group:
            numbers = f"{one.computed:12.7g} {one.theory:12.7g}"
            numbers += f" {one.difference:10.1e} {one.tolerance:9.0e}"
            print(f"  {one.claim:{CLAIM_WIDTH - 2}} {numbers}  {one.verdict}")
