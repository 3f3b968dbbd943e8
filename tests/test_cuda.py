"""The CUDA source of the fused head, and what builds and launches it, without a GPU and with one.

It must compile with NVRTC alone for three architectures, without warnings and register spills. Its
numbers are compared with float64 definitions, twice from one table of cases: on a CPU emulator that
runs the same text, compiled by g++ (tests/cuda_emulator.h), and on the GPU where there is one.

pytest tests/test_cuda.py
"""

import ctypes
import math
import mmap
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from model import cuda

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "model" / "csrc" / "logps.cu"
CONSTANTS = cuda.constants_of(SOURCE.read_text())
ARCHS = ["sm_80", "sm_90", "sm_100"]
PAIRS = {  # kernel: dtype of the logits, of the gradient
    "reduce_rows_f32_f32": (torch.float32, torch.float32),
    "reduce_rows_f32_bf16": (torch.float32, torch.bfloat16),
    "reduce_rows_f32_f16": (torch.float32, torch.float16),
    "reduce_rows_bf16_bf16": (torch.bfloat16, torch.bfloat16),
    "reduce_rows_f16_f16": (torch.float16, torch.float16),
}
BITS = {2: torch.int16, 4: torch.int32}  # of an element's size
INF, NAN = math.inf, math.nan


# ------------------------------------------------------------------------------------------------
# it compiles


@pytest.fixture(scope="module")
def with_nvrtc():
    try:
        cuda.nvrtc()
    except RuntimeError as error:
        pytest.skip(str(error))


def assert_clean(log: str):
    """No warning, and the assembler's report for each of the kernels, without a spilled byte."""
    assert "warning" not in log.lower(), log
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert spills == [("0", "0")] * len(PAIRS), log


@pytest.mark.parametrize("arch", ARCHS)
def test_nvrtc_alone_compiles_it(arch, with_nvrtc, monkeypatch, tmp_path):
    if int(arch.removeprefix("sm_")) not in cuda.supported_archs():
        pytest.skip(f"this NVRTC is older than {arch}")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvcc
    image, log = cuda.compile_source(SOURCE.read_text(), "logps.cu", arch, ["--ptxas-options=-v"])
    assert image.startswith(b"\x7fELF")
    assert_clean(log)


@pytest.mark.parametrize("arch", ARCHS)
def test_nvcc_compiles_it(arch, tmp_path):
    if not shutil.which("nvcc"):
        pytest.skip("nvcc is not on the PATH")
    command = ["nvcc", "-cubin", f"-arch={arch}", "-Werror=all-warnings", "-Xptxas=-v"]
    command += [str(SOURCE), "-o", str(tmp_path / "logps.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_clean(done.stdout + done.stderr)


def test_it_includes_nothing():
    assert "#include" not in SOURCE.read_text()


def test_a_source_that_does_not_compile_raises_with_the_log(with_nvrtc):
    with pytest.raises(RuntimeError, match=r'broken.cu\(1\): error: .*"nonsense"'):
        cuda.compile_source("__global__ void f() { nonsense; }", "broken.cu", "sm_90")


def test_a_gpu_newer_than_nvrtc_gets_ptx(with_nvrtc):
    assert cuda.target_of("sm_90", [80, 90, 100]) == "sm_90"
    assert cuda.target_of("sm_95", [80, 90, 100]) == "compute_90"
    with pytest.raises(RuntimeError, match="sm_50"):
        cuda.target_of("sm_50", [80, 90, 100])
    image, _ = cuda.compile_source('extern "C" __global__ void f() {}', "f.cu", "sm_9999")
    assert b".entry f" in image and image.endswith(b"\0")


def test_arguments_become_pointers_and_64_bit_integers():
    x = torch.zeros(3)
    assert cuda.parameter(x, x.device).value == x.data_ptr()
    assert cuda.parameter(None, x.device).value is None
    assert cuda.parameter(2**40, x.device).value == 2**40
    with pytest.raises(AssertionError, match="a tensor on cpu"):
        cuda.parameter(x, torch.device("cuda", 0))


# ------------------------------------------------------------------------------------------------
# two machines that run it


class Launch(ctypes.Structure):
    """As in cuda_emulator.h."""

    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("logits_stride", ctypes.c_longlong),
        ("targets", ctypes.c_void_p),
        ("vocabulary", ctypes.c_longlong),
        ("logps", ctypes.c_void_p),
        ("entropy", ctypes.c_void_p),
        ("hits", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("gradient_stride", ctypes.c_longlong),
        ("grad_logps", ctypes.c_void_p),
        ("grad_entropy", ctypes.c_void_p),
    ]


HOOKS = f"""
#include "{SOURCE}"
extern "C" void widen_float16(const float16* x, float* out, int n) {{
  for (int i = 0; i < n; i++) out[i] = widen(x[i]);
}}
extern "C" void narrow_float16(const float* x, float16* out, int n) {{
  for (int i = 0; i < n; i++) out[i] = narrow<float16>(x[i]);
}}
extern "C" void narrow_bfloat16(const float* x, bfloat16* out, int n) {{
  for (int i = 0; i < n; i++) out[i] = narrow<bfloat16>(x[i]);
}}
"""


class Emulator:
    device = torch.device("cpu")

    def __init__(self, library: ctypes.CDLL, backwards: bool):
        self.library, self.backwards = library, backwards
        self.library.emulate.argtypes = [Launch, ctypes.c_int, ctypes.c_int, ctypes.c_int]

    def launch(self, name: str, rows: int, args: list):
        values = [cuda.parameter(arg, self.device).value for arg in args]
        kernel = ctypes.cast(getattr(self.library, name), ctypes.c_void_p).value
        block = CONSTANTS["THREADS"]
        fault = self.library.emulate(Launch(kernel, *values), rows, block, self.backwards)
        faults = ["", "the threads of a block met different barriers", "a misaligned access"]
        assert not fault, faults[fault]


class Gpu:
    device = torch.device("cuda", 0)

    def launch(self, name: str, rows: int, args: list):
        kernels = cuda.load_kernels(SOURCE, 0)
        kernels.launch(name, rows, kernels.constants["THREADS"], args)


GPU = pytest.param("gpu", marks=pytest.mark.gpu)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory) -> ctypes.CDLL:
    if not shutil.which("g++"):
        pytest.skip("the emulator needs g++")
    folder = tmp_path_factory.mktemp("emulator")
    (folder / "hooks.cpp").write_text(HOOKS)
    command = ["g++", "-std=c++17", "-O2", "-shared", "-fPIC", "-fno-strict-aliasing"]
    command += ["-fsanitize=alignment", "-U_FORTIFY_SOURCE"]
    command += ["-include", str(ROOT / "tests" / "cuda_emulator.h")]
    command += [str(folder / "hooks.cpp"), "-o", str(folder / "logps.so")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(folder / "logps.so"))


@pytest.fixture(scope="module", params=["emulator", "emulator backwards", GPU])
def machine(request) -> Emulator | Gpu:
    if request.param == "gpu":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return Gpu()
    return Emulator(request.getfixturevalue("emulated"), "backwards" in request.param)


class Results(NamedTuple):
    logps: Tensor  # (R,)
    entropy: Tensor  # (R,)
    hits: Tensor  # (R,)
    gradient: Tensor | None  # (R, V)


class Guarded:
    """Rows of a dtype inside a larger buffer of one value, which nothing may change."""

    MARGIN = 64  # elements before and after; the alignment of a fresh buffer stays

    def __init__(self, rows: int, V: int, dtype, device, value: float, offset=0, padding=0):
        self.stride, start = V + padding, self.MARGIN + offset
        buffer = torch.full((start + rows * self.stride + self.MARGIN,), value, dtype=dtype)
        self.shape, self.start, self.before = (rows, V), start, buffer
        self.buffer = buffer.to(device)

    def view(self, buffer: Tensor | None = None) -> Tensor:
        buffer = self.buffer if buffer is None else buffer
        return buffer.as_strided(self.shape, (self.stride, 1), self.start)

    def assert_guards(self, inside: Tensor | None = None):
        """inside: what was written since; None: the rows are not looked at."""
        after = self.buffer.cpu()
        self.view(self.before).copy_(self.view(after) if inside is None else inside)
        bits = BITS[after.element_size()]
        assert torch.equal(after.view(bits), self.before.view(bits)), "written out of bounds"


def run(
    machine, name: str, logits: Tensor, targets: Tensor, gradient: str = "apart", offset: int = 0,
    padding: int = 0, grad_logps: Tensor | None = None, grad_entropy: Tensor | None = None,
) -> Results:  # fmt: skip
    """One launch between guard bands: NaN around the logits, garbage where results will be.

    gradient: "none", "apart" (its own memory), "in place" (over the logits)
    offset, padding: elements before the first row and after each
    """
    wide, narrow = PAIRS[name]
    (R, V), device = logits.shape, machine.device
    where = Guarded(R, V, wide, device, NAN, offset, padding)
    where.view().copy_(logits)
    stats = [Guarded(1, R, torch.float32, device, 77.0) for _ in range(3)]
    if gradient == "apart":
        out = Guarded(R, V, narrow, device, 77.0, offset, padding)
        grad_view = out.view()
    elif gradient == "in place":
        ratio = wide.itemsize // narrow.itemsize
        flat = where.buffer.view(narrow)
        grad_view = flat.as_strided((R, V), (where.stride * ratio, 1), where.start * ratio)
    else:
        grad_view = None
    args = [where.view(), where.stride, targets.to(device), V]
    args += [one.view() for one in stats]
    args += [grad_view, 0 if grad_view is None else grad_view.stride(0)]
    args += [None if one is None else one.float().to(device) for one in (grad_logps, grad_entropy)]
    machine.launch(name, R, args)
    made = None if grad_view is None else grad_view.cpu().clone()
    if gradient == "apart":
        out.assert_guards()
    where.assert_guards(None if gradient == "in place" else logits.to(wide))
    for one in stats:
        one.assert_guards()
    return Results(*(one.view()[0].cpu() for one in stats), made)


# ------------------------------------------------------------------------------------------------
# the definitions, and the cases


def define(logits: Tensor, targets: Tensor, grad_logps=None, grad_entropy=None) -> Results:
    """In float64; the gradient by autograd, of sum(grad_logps logp) + sum(grad_entropy H)."""
    z = logits.double().requires_grad_()
    log_p = z.log_softmax(dim=-1)
    logps = log_p.gather(1, targets[:, None]).squeeze(1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -INF, 0)).sum(dim=-1)
    objective = logps * (1 if grad_logps is None else grad_logps)
    if grad_entropy is not None:
        objective = objective + entropy * grad_entropy
    (gradient,) = torch.autograd.grad(objective.sum(), z)
    hits = logits.gather(1, targets[:, None]).squeeze(1) >= logits.amax(dim=-1)
    return Results(logps.detach(), entropy.detach(), hits.float(), gradient)


def normal(R: int, V: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(V)
    logits = torch.randn(R, V, generator=generator, dtype=torch.float64) * scale
    return logits, torch.randint(V, (R,), generator=generator)


def chances(V: int) -> tuple[Tensor, Tensor]:
    """Rows whose target has p_y = 0.999, 1 - 1e-6, 1 - 1e-9, and e^-60 of what the others have."""
    logits, _ = normal(4, V, 1.0)
    targets = torch.tensor([0, V - 1, V // 2, V // 3])
    others = logits.scatter(1, targets[:, None], -INF).logsumexp(dim=-1)
    odds = torch.tensor([0.999 / 0.001, 1e6 - 1, 1e9, math.exp(-60)], dtype=torch.float64)
    logits[torch.arange(4), targets] = others + odds.log()
    return logits, targets


def large(V: int) -> tuple[Tensor, Tensor]:
    """The target alone at 1e4, alone at -1e4, one of all; all near 1e4; all near -1e4."""
    logits, targets = normal(5, V)
    logits[:2] = 0
    logits[0, targets[0]], logits[1, targets[1]] = 1e4, -1e4
    logits[2] = torch.where(torch.arange(V) % 2 == targets[2] % 2, 1e4, -1e4)
    logits[3] += 1e4
    logits[4] -= 1e4
    return logits, targets


def masked(V: int) -> tuple[Tensor, Tensor]:
    """Half of the tokens at -inf; a first and a last half; all but the target; the target."""
    logits, targets = normal(5, V)
    logits[0, ::2] = -INF
    logits[1, : V // 2] = -INF
    logits[2, V // 2 :] = -INF
    logits[3] = -INF
    logits[range(4), targets[:4]] = 1.0
    logits[4, targets[4]] = -INF
    return logits, targets


def certain_of_another(V: int) -> tuple[Tensor, Tensor]:
    logits, targets = normal(3, V, 1.0)
    rivals = (targets + torch.tensor([1, V // 2, V - 1])) % V
    logits[range(3), rivals] = torch.tensor([10.0, 20.0, 40.0], dtype=torch.float64)
    return logits, targets


CASES = {f"V={V}": normal(3, V) for V in (1, 3, 7, 8, 129, 4096)} | {
    "V=32003": normal(2, 32003),
    "chances, V=129": chances(129),
    "chances, V=5003": chances(5003),
    "large, V=129": large(129),
    "large, V=4099": large(4099),
    "masked, V=129": masked(129),
    "masked, V=9001": masked(9001),
    "certain of another": certain_of_another(2003),
}


def row_weights(R: int) -> tuple[Tensor, Tensor]:
    rows = torch.arange(R, dtype=torch.float64)
    return (rows - 0.75).float().double(), (1.25 - rows * 0.5).float().double()


def assert_close(got: Tensor, exact: Tensor, rtol: float, atol: float = 0.0):
    torch.testing.assert_close(got.double(), exact, rtol=rtol, atol=atol)


# ------------------------------------------------------------------------------------------------
# its numbers


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", PAIRS)
def test_against_float64(machine, name, case, offset):
    """log p_y to 1e-5 of itself, however near 0 it is; and so 1 - p_y, the gradient at y."""
    wide, narrow = PAIRS[name]
    logits, targets = CASES[case][0].to(wide), CASES[case][1]
    a, b = row_weights(len(logits))
    exact, mixed = define(logits, targets), define(logits, targets, a, b)
    plain = run(machine, name, logits, targets, offset=offset, padding=2 * offset)
    assert_close(plain.logps, exact.logps, 1e-5)
    assert_close(plain.entropy, exact.entropy, 1e-5, 1e-6)
    assert (plain.entropy >= 0).all()
    assert torch.equal(plain.hits, exact.hits)
    rtol, atol = {
        torch.float32: (1e-5, 1e-37),
        torch.bfloat16: (2**-8, 1e-37),
        torch.float16: (2**-10, 2**-24),
    }[narrow]
    assert_close(plain.gradient, exact.gradient, rtol, atol)
    both = run(
        machine, name, logits, targets, offset=offset, padding=2 * offset, grad_logps=a,
        grad_entropy=b,
    )  # fmt: skip
    assert_close(both.gradient, mixed.gradient, rtol, max(atol, 2e-6))


@pytest.mark.parametrize("p", [0.999, 1 - 1e-6])
def test_entropy_where_the_target_is_nearly_certain(machine, p):
    """Two tokens: H = -p log p - (1 - p) log (1 - p), to 1e-5 of itself, and so its gradient.

    dH / dz_y = -p_y (log p_y + H) = -p (1 - p) log(p / (1 - p))
    """
    gap = torch.tensor(math.log(p / (1 - p))).double().item()  # as float32 has it
    logits = torch.tensor([[0.0, gap]])
    out = run(
        machine, "reduce_rows_f32_f32", logits, torch.tensor([1]), grad_logps=torch.zeros(1),
        grad_entropy=torch.ones(1),
    )  # fmt: skip
    q = 1 / (1 + math.exp(gap))
    assert out.entropy.item() == pytest.approx(math.log1p(-q) * (q - 1) - q * math.log(q), rel=1e-5)
    expected = q * (1 - q) * gap
    assert out.gradient[0].tolist() == pytest.approx([expected, -expected], rel=1e-5)


@pytest.mark.parametrize("V", [1, 7, 129, 4096, 20011])
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("name", PAIRS)
def test_in_place_is_bit_for_bit_the_same(machine, name, V, offset):
    logits, targets = normal(3, V)
    a, b = row_weights(3)
    apart, over = (
        run(
            machine, name, logits, targets, gradient=where, offset=offset, padding=3 * offset,
            grad_logps=a, grad_entropy=b,
        )
        for where in ("apart", "in place")
    )  # fmt: skip
    none = run(machine, name, logits, targets, gradient="none", offset=offset, padding=3 * offset)
    for one, two, three in zip(apart[:3], over[:3], none[:3], strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
    assert torch.equal(apart.gradient, over.gradient)


@pytest.mark.parametrize("name", PAIRS)
def test_what_has_no_number_is_nan(machine, name):
    """A target out of range, NaN, +inf, or -inf alone; the rows between are as they were."""
    logits, targets = normal(11, 301)
    good = run(machine, name, logits, targets)
    V, bad = 301, logits.clone()
    bad_targets = targets.clone()
    bad_targets[1], bad_targets[3], bad_targets[5] = -1, V, 2**40
    bad[6, 300], bad[7, 7] = NAN, INF
    bad[8] = -INF
    bad[9, targets[9]] = NAN
    bad[10, targets[10]] = INF
    rows = torch.tensor([1, 3, 5, 6, 7, 8, 9, 10])
    rest = torch.tensor([0, 2, 4])
    for gradient in ("apart", "in place"):
        out = run(machine, name, bad, bad_targets, gradient)
        for got, before in zip(out, good, strict=True):
            assert got[rows].isnan().all()
            assert torch.equal(got[rest], before[rest])


@pytest.mark.parametrize("name", PAIRS)
def test_a_tie_is_a_hit_and_the_next_number_below_is_not(machine, name):
    dtype = PAIRS[name][0]
    top = torch.tensor(9.5, dtype=dtype)
    below = torch.nextafter(top, torch.zeros((), dtype=dtype))
    logits = torch.stack([torch.stack([top, top, below])] * 3)
    assert run(machine, name, logits, torch.arange(3)).hits.tolist() == [1, 1, 0]


def test_a_narrow_gradient_is_the_float32_one_rounded(machine):
    """Over all sizes, from float16's subnormals to its infinity."""
    logits, targets = normal(6, 517, 5.0)
    scales = torch.tensor([1e-7, 1e-4, -1.0, 3e4, 1e6, NAN])
    exact = run(machine, "reduce_rows_f32_f32", logits, targets, grad_logps=scales).gradient
    for name in ("reduce_rows_f32_bf16", "reduce_rows_f32_f16"):
        got = run(machine, name, logits, targets, grad_logps=scales).gradient
        rounded = exact.to(got.dtype)
        assert torch.equal(got.nan_to_num(nan=77), rounded.nan_to_num(nan=77))
        assert got[5].isnan().all()


def test_every_run_gives_the_same_bits(machine):
    logits, targets = normal(3, 7001)
    one, two = (run(machine, "reduce_rows_f32_bf16", logits, targets) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["reduce_rows_f32_f32", "reduce_rows_f32_bf16"])
def test_a_gradient_of_another_alignment(machine, name):
    """A gradient that begins where no vector of it may be written."""
    logits, targets = normal(2, 5003)
    exact = run(machine, name, logits, targets)
    gradient = Guarded(2, 5003, PAIRS[name][1], machine.device, 77.0, offset=1, padding=2)
    device, stats = machine.device, torch.empty(3, 2, device=machine.device)
    args = [logits.float().to(device), 5003, targets.to(device), 5003, *stats]
    machine.launch(name, 2, [*args, gradient.view(), gradient.stride, None, None])
    assert torch.equal(gradient.view().cpu(), exact.gradient)
    gradient.assert_guards()


def test_rows_lie_more_than_2_31_elements_apart(machine):
    """Two rows of an otherwise untouched (on the CPU: never allocated) buffer of 4 GiB."""
    logits, targets = normal(2, 128)
    stride = 2**31 + 8
    if isinstance(machine, Gpu):
        buffer = torch.empty(stride + 128, dtype=torch.bfloat16, device=machine.device)
    else:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        buffer = torch.frombuffer(mmap.mmap(-1, 2 * (stride + 128), flags), dtype=torch.bfloat16)
    rows = buffer.as_strided((2, 128), (stride, 1))
    rows.copy_(logits)
    stats = torch.empty(3, 2, device=machine.device)
    args = [rows, stride, targets.to(machine.device), 128, *stats, rows, stride, None, None]
    machine.launch("reduce_rows_bf16_bf16", 2, args)
    exact = run(machine, "reduce_rows_bf16_bf16", logits, targets)
    assert torch.equal(stats.cpu(), torch.stack(exact[:3]))
    assert torch.equal(rows.cpu(), exact.gradient)


def test_conversions_by_bits(machine):
    """Every float16; as float32, every 16-bit prefix with the tails that decide a rounding."""
    if isinstance(machine, Gpu):
        pytest.skip("the functions are not entry points")
    library = machine.library
    all_16 = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    halves, wide = all_16.view(torch.float16), torch.empty(2**16)
    library.widen_float16(*map(pointer, (halves, wide)), 2**16)
    assert torch.equal(wide.nan_to_num(nan=77), halves.float().nan_to_num(nan=77))
    tails = torch.tensor([0, 1, 0xFFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001])
    tails = torch.cat([tails, torch.tensor([0xFFFF, 0xEFFF, 0xF000])]).int()
    floats = ((all_16.int() << 16)[:, None] | tails).flatten().contiguous().view(torch.float32)
    for dtype, function in (
        (torch.float16, library.narrow_float16),
        (torch.bfloat16, library.narrow_bfloat16),
    ):
        got = torch.empty(len(floats), dtype=dtype)
        function(*map(pointer, (floats, got)), len(floats))
        expected = floats.to(dtype)
        assert torch.equal(got.isnan(), floats.isnan())
        numbers = ~floats.isnan()
        assert torch.equal(got[numbers].view(torch.int16), expected[numbers].view(torch.int16))


def pointer(x: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(x.data_ptr())


# ------------------------------------------------------------------------------------------------
# on a GPU only


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_launch_from_a_fresh_thread_on_a_side_stream():
    """As autograd's backward thread does; the stream puts the launch behind its row's copy."""
    logits, targets = normal(2, 32003)
    exact, stats = define(logits.float(), targets), torch.empty(3, 2, device="cuda")
    rows = torch.empty(2, 32003, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()

    def work():
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)
            rows.copy_(logits)
            args = [rows, 32003, targets.cuda(), 32003, *stats, None, 0, None, None]
            Gpu().launch("reduce_rows_f32_f32", 2, args)
        stream.synchronize()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert_close(stats[0].cpu(), exact.logps, 1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_drivers_errors_have_names():
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE"):
        cuda.load_kernels(SOURCE, 0).launch("reduce_rows_f32_f32", 1, 4096, [None] * 11)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_NOT_FOUND"):
        cuda.load_kernels(SOURCE, 0).launch("no_such_kernel", 1, 32, [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool):
    if not shutil.which("compute-sanitizer"):
        pytest.skip("compute-sanitizer is not on the PATH")
    tests = ["-k", "129 or nan or alignment", str(Path(__file__))]
    # a call of the driver that PyTorch makes to learn something may fail, and is no mistake
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    command += ["--report-api-errors", "no"] if tool == "memcheck" else []
    command += [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d passed", done.stdout), done.stdout[-3000:]
