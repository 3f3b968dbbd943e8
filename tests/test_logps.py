"""The fused head against float64 and autograd on its one-screen definition.

pytest tests/test_logps.py
"""

import math

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from model import logps
from model.logps import HeadOptions, token_logps, token_logps_ref


def problem(C: int, D: int, V: int, dtype: torch.dtype, scale: float = 1.0):
    generator = torch.Generator().manual_seed(C * 1000 + V)
    hidden = (torch.randn(C, D, generator=generator, dtype=torch.float64) * scale).to(dtype)
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(V, (C,), generator=generator)
    return hidden, weight, targets


def gradients(function, hidden, weight, targets, train_head: bool):
    """logps, entropy and the gradients of sum(w * logps) for fixed row weights w."""
    hidden = hidden.clone().requires_grad_()
    weight = weight.clone().requires_grad_(train_head)
    stats = function(hidden, weight, targets)
    rows = torch.linspace(-1, 2, len(targets), dtype=stats.logps.dtype, device=hidden.device)
    (stats.logps * rows).sum().backward()
    return stats.logps.detach(), stats.entropy.detach(), hidden.grad, weight.grad


def test_hand_worked():
    """Logits log 1, log 2, log 5: p = 1/8, 2/8, 5/8; the entropy is 0.900256 nats.

    -(1/8 ln 1/8 + 2/8 ln 2/8 + 5/8 ln 5/8) = 0.259930 + 0.346574 + 0.293752
    d logp_2 / d hidden = (1[y] - p) @ W = (-1/8, -2/8, 3/8), as W is the identity.
    """
    hidden = torch.tensor([[0.0, math.log(2), math.log(5)]], dtype=torch.float64)
    out = gradients(token_logps, hidden, torch.eye(3).double(), torch.tensor([2]), False)
    assert out[0].item() == pytest.approx(math.log(5 / 8), abs=1e-12)
    assert out[1].item() == pytest.approx(0.900256, abs=1e-6)
    # the row's weight is linspace(-1, 2, 1) = -1
    torch.testing.assert_close(out[2], -torch.tensor([[-1 / 8, -2 / 8, 3 / 8]]).double())


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize(("C", "V"), [(1, 3), (5, 129), (300, 1134), (513, 2003)])
def test_float64_matches_the_definition(C, V, train_head):
    data = problem(C, 16, V, torch.float64)
    ours = gradients(token_logps, *data, train_head)
    theirs = gradients(token_logps_ref, *data, train_head)
    for one, two in zip(ours, theirs, strict=True):
        if two is None:
            assert one is None
        else:
            torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("train_head", [False, True])
def test_float32_is_within_rounding_of_float64(train_head):
    hidden, weight, targets = problem(300, 64, 5003, torch.float32)
    ours = gradients(token_logps, hidden, weight, targets, train_head)
    exact = gradients(token_logps_ref, hidden.double(), weight.double(), targets, train_head)
    for one, two in zip(ours, exact, strict=True):
        if two is not None:
            assert one.dtype == torch.float32
            torch.testing.assert_close(one.double(), two, rtol=2e-5, atol=2e-5)


def test_the_softmax_of_bfloat16_is_taken_in_float32():
    """Logits 1.0078125 and -8: log p of the second is -9.0078125 - log(1 + e^-9.0078), of which
    bfloat16 has -9."""
    hidden = torch.tensor([[1.0078125, -8.0]], dtype=torch.bfloat16)
    stats = token_logps(hidden, torch.eye(2, dtype=torch.bfloat16), torch.tensor([1]))
    expected = -9.0078125 - math.log1p(math.exp(-9.0078125))
    assert stats.logps.item() == pytest.approx(expected, abs=1e-5)


def test_bfloat16_sums_in_float32():
    """The hidden states and weights are rounded; logps are float32 and no worse than a bfloat16
    product's own rounding (2^-8 of the largest logit)."""
    hidden, weight, targets = problem(64, 32, 301, torch.bfloat16, scale=0.5)
    stats = token_logps(hidden, weight, targets)
    exact = token_logps_ref(hidden.double(), weight.double(), targets)
    largest = (hidden.double() @ weight.double().T).abs().max().item()
    assert stats.logps.dtype == stats.entropy.dtype == torch.float32
    assert (stats.logps.double() - exact.logps).abs().max().item() < largest * 2**-8


@pytest.mark.parametrize("gap", [math.log(999), math.log(1e6 - 1), 20.0])
def test_a_nearly_certain_target_keeps_its_precision(gap):
    """p_y = 0.999, 1 - 1e-6 and 1 - 2e-9: log p_y and 1 - p_y are good to float32's relative
    precision, though float32 cannot hold the last p_y itself: they never pass through it."""
    hidden = torch.tensor([[gap, 0.0]]).requires_grad_()
    stats = token_logps(hidden, torch.eye(2), torch.tensor([0]))
    stats.logps.backward()
    z = hidden.detach().double()[0, 0]
    assert stats.logps.item() == pytest.approx(-torch.nn.functional.softplus(-z).item(), rel=1e-6)
    p_other = torch.sigmoid(-z).item()
    assert hidden.grad[0].tolist() == pytest.approx([p_other, -p_other], rel=1e-6)


@pytest.mark.parametrize("gap", [math.log(999), math.log(1e6 - 1)])
def test_its_gradient_is_formed_before_rounding(gap):
    """A p rounded to bfloat16 first would leave 0 or 2^-8 of 1 - p_y."""
    hidden = torch.tensor([[gap, 0.0]], dtype=torch.bfloat16).requires_grad_()
    token_logps(hidden, torch.eye(2, dtype=torch.bfloat16), torch.tensor([0])).logps.backward()
    p_other = torch.sigmoid(-hidden.detach().double()[0, 0]).item()
    assert hidden.grad[0].tolist() == pytest.approx([p_other, -p_other], rel=2**-8)


def test_a_trained_head_s_gradient_is_summed_in_float32():
    """Weights of 0, so that p = 1/2: 257 rows of 1 make 128.5, which bfloat16 does not have."""
    head = torch.zeros(2, 1, requires_grad=True)
    hidden = torch.ones(257, 1, dtype=torch.bfloat16)
    token_logps(hidden, head, torch.zeros(257, dtype=torch.int64)).logps.sum().backward()
    assert head.grad.flatten().tolist() == [128.5, -128.5]


def test_a_gradient_is_scaled_before_rounding():
    """3 * (1 + 2^-8) = 3.0117, in bfloat16 3.015625; a scale that is rounded first is 1."""
    scale = torch.tensor([1 + 2.0**-8])
    scaled = logps.scale_rows(torch.tensor([[3.0]], dtype=torch.bfloat16), scale)
    assert scaled.dtype == torch.bfloat16 and scaled.item() == 3.015625


def test_a_hardly_possible_target():
    """p_y = e^-200 is no float32 at all; its log-probability is."""
    stats = token_logps(torch.tensor([[0.0, 200.0]]), torch.eye(2), torch.tensor([0]))
    assert stats.logps.item() == -200.0 and stats.hits.item() == 0.0


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_large_logits(size):
    stats = token_logps(torch.tensor([[size, 0.0]]), torch.eye(2), torch.tensor([0]))
    assert stats.logps.item() == (0.0 if size > 0 else -1e4)
    assert stats.entropy.item() == 0.0 and stats.hits.item() == (1.0 if size > 0 else 0.0)


def test_hits_count_ties():
    """No token is likelier than the target: true for both of two equal ones."""
    hidden = torch.tensor([[1.0, 1.0, 0.0]]).expand(3, 3)
    assert token_logps(hidden, torch.eye(3), torch.arange(3)).hits.tolist() == [1.0, 1.0, 0.0]
    assert token_logps_ref(hidden, torch.eye(3), torch.arange(3)).hits.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("target", [-1, 5, 2**40])
def test_a_target_out_of_range_is_never_a_number(target):
    hidden = torch.ones(2, 3, requires_grad=True)
    stats = token_logps(hidden, torch.ones(5, 3), torch.tensor([4, target]))
    stats.logps.sum().backward()
    for values in stats:
        assert values.isnan().tolist() == [False, True]
    assert hidden.grad.isnan().any(dim=1).tolist() == [False, True]


def test_no_rows():
    hidden = torch.zeros(0, 4, requires_grad=True)
    stats = token_logps(hidden, torch.ones(3, 4), torch.zeros(0, dtype=torch.long))
    stats.logps.sum().backward()
    assert stats.logps.shape == stats.entropy.shape == (0,) and hidden.grad.shape == (0, 4)


@pytest.mark.parametrize("train_head", [False, True])
def test_the_entropy_carries_a_gradient_when_asked(train_head):
    hidden, weight, targets = problem(40, 16, 129, torch.float64)
    hidden = hidden * 0.1  # not one-hot: the entropy has something to say
    results = []
    for exact in (False, True):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(train_head)
        if exact:
            log_p = (h @ w.T).log_softmax(-1)
            logps, entropy = log_p[range(40), targets], -(log_p.exp() * log_p).sum(-1)
        else:
            logps, entropy, _ = token_logps(h, w, targets, entropy_gradient=True)
        (logps * torch.linspace(-1, 2, 40) + entropy * torch.linspace(1, -3, 40)).sum().backward()
        results.append([h.grad, w.grad if train_head else torch.zeros(1)])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


def test_statistics_carry_no_gradient():
    hidden, weight, targets = problem(3, 4, 5, torch.float32)
    stats = token_logps(hidden.requires_grad_(), weight, targets)
    assert stats.logps.requires_grad
    assert not stats.entropy.requires_grad and not stats.hits.requires_grad


# ------------------------------------------------------------------------------------------------
# what it costs


class Products(torch.utils._python_dispatch.TorchDispatchMode):
    """The matrix products, and the largest tensor made, inside an operator's body."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize(
    ("train_hidden", "train_head", "products"),
    [(False, False, 1), (True, False, 2), (True, True, 4)],
)
def test_matrix_products(monkeypatch, train_hidden, train_head, products):
    """One chunk: one product for the numbers, a second one for a frozen head's gradient; a trained
    head's logits once more and two gradients."""
    counted = [0]
    real = torch.mm

    def mm(*args, **kwargs):
        counted[0] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(logps, "wide_product", mm)
    hidden, weight, targets = problem(3, 4, 5, torch.float32)
    hidden.requires_grad_(train_hidden)
    stats = token_logps(hidden, weight.requires_grad_(train_head), targets)
    if train_hidden:
        stats.logps.sum().backward()
    assert counted[0] == products
    counted[0] = 0
    with torch.no_grad():
        token_logps(hidden, weight, targets)
    assert counted[0] == 1


@pytest.mark.parametrize("with_gradient", [False, True])
def test_whole_logits_never_exist(with_gradient):
    """With a workspace of 8 rows no tensor of more than 8 x V elements is made in an operator."""
    hidden, weight, targets = problem(64, 4, 1000, torch.float32)
    bytes_of_8_rows = 8 * 1000 * 4
    with Products() as seen:
        logps.token_logps_op._init_fn(
            hidden, weight, targets, with_gradient, bytes_of_8_rows, "auto"
        )
        logps.token_logps_backward_op._init_fn(
            hidden, weight, targets, torch.ones(64), torch.ones(64), False, bytes_of_8_rows, "auto"
        )
    assert seen.largest == 8 * 1000
    assert seen.products == (1 + with_gradient + 2) * 64 // 8


def test_chunks_do_not_change_the_numbers():
    hidden, weight, targets = problem(100, 8, 77, torch.float64)
    results = []
    for workspace in (2**20, 7 * 80 * 8, 1):  # all rows at once, seven rows, one row

        def function(*args, workspace=workspace):
            return token_logps(*args, options=HeadOptions(workspace))

        results.append(gradients(function, hidden, weight, targets, True))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------
# as PyTorch operators


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_operators_keep_their_contracts(device):
    hidden, weight, targets = (x.to(device) for x in problem(5, 8, 33, torch.float32))
    hidden.requires_grad_()
    forward = torch.ops.preference.token_logps.default
    torch.library.opcheck(forward, (hidden, weight, targets, True, 2**20, "auto"))
    backward = torch.ops.preference.token_logps_backward.default
    rows = torch.ones(5, device=device)
    frozen = (hidden.detach(), weight, targets, rows, rows)
    torch.library.opcheck(backward, (*frozen, True, 2**20, "auto"))
    weight.requires_grad_()
    torch.library.opcheck(forward, (hidden, weight, targets, False, 2**20, "auto"))


def test_compiles_without_a_graph_break():
    hidden, weight, targets = problem(5, 8, 33, torch.float32)

    def loss(hidden):
        return token_logps(hidden, weight, targets).logps.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    grads = []
    for function in (loss, compiled):
        h = hidden.clone().requires_grad_()
        function(h).backward()
        grads.append(h.grad)
    torch.testing.assert_close(*grads)


def test_the_kernel_is_chosen_and_refused_in_words(monkeypatch, capsys):
    hidden, weight, targets = problem(3, 4, 5, torch.float32)
    with pytest.raises(ValueError, match="--head_kernel cuda expects float32 or half precision"):
        token_logps(hidden, weight, targets, options=HeadOptions(kernel="cuda"))

    def broken(device):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(logps, "cuda_kernels", broken)
    logps.kernel_builds.cache_clear()
    device = torch.device("cuda", 0)
    assert not logps.choose_kernel(device, torch.float32, "auto")
    assert not logps.choose_kernel(device, torch.float32, "auto")
    assert capsys.readouterr().out.count("no compiler") == 1  # said once
    with pytest.raises(RuntimeError, match="no compiler"):
        logps.choose_kernel(device, torch.float32, "cuda")
    assert not logps.choose_kernel(device, torch.float32, "torch")
    logps.kernel_builds.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("C", "V"), [(1, 3), (1134, 129), (300, 32000), (70, 32003), (9, 128256)])
def test_the_cuda_kernel_against_float64(C, V, dtype, train_head):
    """Half precision logits come out of their product in float32, so what remains is the rounding
    of the gradient of the logits, 2^-8 (2^-11), and of the results."""
    hidden, weight, targets = problem(C, 64, V, dtype, scale=0.2)
    options = HeadOptions(workspace_bytes=2**24, kernel="cuda")

    def function(hidden, weight, targets):
        return token_logps(hidden, weight, targets, options=options)

    ours = gradients(function, hidden.cuda(), weight.cuda(), targets.cuda(), train_head)
    data = (hidden.double(), weight.double(), targets)
    exact = gradients(token_logps_ref, *data, train_head)
    again = gradients(function, hidden.cuda(), weight.cuda(), targets.cuda(), train_head)
    rounding = {torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    for one, two, three in zip(ours, exact, again, strict=True):
        if two is not None:
            assert torch.equal(one, three), "the head is the same in every run"
            assert (one.cpu().double() - two).norm() <= rounding * two.norm()


def test_a_count_of_rows_is_not_compiled_in():
    """Batches of other sizes take the graph that is there: their number is an argument of it."""
    counter, weight = CompileCounter(), torch.randn(11, 6)

    def head(hidden, targets):
        return token_logps(hidden, weight, targets).logps

    compiled = torch.compile(head, backend=counter, dynamic=True)
    for C in (5, 6, 9):
        hidden, targets = torch.randn(C, 6), torch.randint(11, (C,))
        assert torch.equal(compiled(hidden, targets), head(hidden, targets))
    assert counter.frame_count == 1
