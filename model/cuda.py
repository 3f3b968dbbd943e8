"""CUDA source -> kernels on a GPU, with NVRTC and the driver alone: no toolkit, nvcc or headers.

Both libraries are called through ctypes. NVRTC comes with PyTorch's CUDA wheel, the driver with the
machine; nothing here asks for CUDA_HOME, and `compile_source` works without a GPU.
"""

import ctypes
import functools
import re
import sys
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_longlong, c_size_t, c_uint, c_void_p
from pathlib import Path

import torch
from torch import Tensor

# ------------------------------------------------------------------------------------------------
# NVRTC: source -> cubin


@functools.cache
def nvrtc() -> ctypes.CDLL:
    """A wheel's, beside torch first, or else the one that the loader knows; of torch's CUDA."""
    major = (torch.version.cuda or "").partition(".")[0]
    packages = dict.fromkeys([Path(torch.__file__).parents[1], *map(Path, sys.path)])
    wheels = [
        file
        for folder in packages
        for file in sorted(folder.glob(f"nvidia/*/lib/libnvrtc.so.{major}*"), reverse=True)
    ]
    for candidate in [*wheels, f"libnvrtc.so.{major}"]:
        try:
            if isinstance(candidate, Path):
                # some wheels' NVRTC finds its builtins only where they are loaded already
                for builtins in candidate.parent.glob("libnvrtc-builtins.so.*"):
                    ctypes.CDLL(str(builtins))
            return declare_nvrtc(ctypes.CDLL(str(candidate)))
        except OSError:
            continue
    raise RuntimeError(
        f"no libnvrtc.so.{major or '*'} in nvidia/*/lib beside torch nor where the loader looks: "
        "PyTorch's CUDA wheel brings it, and so does `pip install nvidia-cuda-nvrtc`"
    )


def declare_nvrtc(library: ctypes.CDLL) -> ctypes.CDLL:
    strings = POINTER(c_char_p)
    signatures = {
        "nvrtcCreateProgram": [POINTER(c_void_p), c_char_p, c_char_p, c_int, strings, strings],
        "nvrtcDestroyProgram": [POINTER(c_void_p)],
        "nvrtcCompileProgram": [c_void_p, c_int, strings],
        "nvrtcGetProgramLogSize": [c_void_p, POINTER(c_size_t)],
        "nvrtcGetProgramLog": [c_void_p, c_void_p],
        "nvrtcGetCUBINSize": [c_void_p, POINTER(c_size_t)],
        "nvrtcGetCUBIN": [c_void_p, c_void_p],
        "nvrtcGetPTXSize": [c_void_p, POINTER(c_size_t)],
        "nvrtcGetPTX": [c_void_p, c_void_p],
        "nvrtcGetNumSupportedArchs": [POINTER(c_int)],
        "nvrtcGetSupportedArchs": [POINTER(c_int)],
    }
    for name, argtypes in signatures.items():
        getattr(library, name).argtypes, getattr(library, name).restype = argtypes, c_int
    library.nvrtcGetErrorString.argtypes = [c_int]
    library.nvrtcGetErrorString.restype = c_char_p
    return library


def call_nvrtc(name: str, *args) -> None:
    if code := getattr(nvrtc(), name)(*args):
        raise RuntimeError(f"{name}: {nvrtc().nvrtcGetErrorString(code).decode()}")


def supported_archs() -> list[int]:
    """The architectures that this NVRTC makes code for, ascending: 90 is sm_90."""
    count = c_int()
    call_nvrtc("nvrtcGetNumSupportedArchs", count)
    archs = (c_int * count.value)()
    call_nvrtc("nvrtcGetSupportedArchs", archs)
    return sorted(archs)


def target_of(arch: str, known: Sequence[int]) -> str:
    """`arch` itself, or, for a GPU newer than this NVRTC, the newest PTX that runs on it."""
    number = int(arch.removeprefix("sm_"))
    if number in known:
        return arch
    older = [one for one in known if one < number]
    if not older:
        raise RuntimeError(f"NVRTC knows nothing as old as {arch}: it makes {sorted(known)}")
    return f"compute_{max(older)}"


def compile_source(
    source: str, name: str, arch: str, options: Sequence[str] = ()
) -> tuple[bytes, str]:
    """CUDA C++ -> a cubin (or PTX, see target_of) for the driver, and the compiler's log.

    name: what the log calls the source; arch: as "sm_90"; options: more of NVRTC's
    """
    target = target_of(arch, supported_archs())
    kind = "CUBIN" if target.startswith("sm_") else "PTX"
    flags = [f"--gpu-architecture={target}", "--std=c++17", *options]
    program = c_void_p()
    call_nvrtc("nvrtcCreateProgram", program, source.encode(), name.encode(), 0, None, None)
    try:
        encoded = (c_char_p * len(flags))(*(flag.encode() for flag in flags))
        code = nvrtc().nvrtcCompileProgram(program, len(flags), encoded)
        log = read_program(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        if code:
            error = nvrtc().nvrtcGetErrorString(code).decode()
            raise RuntimeError(f"{name} does not compile for {target} ({error}):\n{log}")
        return read_program(program, kind), log
    finally:
        call_nvrtc("nvrtcDestroyProgram", program)


def read_program(program: c_void_p, what: str) -> bytes:
    size = c_size_t()
    call_nvrtc(f"nvrtcGet{what}Size", program, size)
    buffer = ctypes.create_string_buffer(size.value)
    call_nvrtc(f"nvrtcGet{what}", program, buffer)
    return buffer.raw


# ------------------------------------------------------------------------------------------------
# the driver: cubin -> kernels


@functools.cache
def driver() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    handle, six, name = POINTER(c_void_p), [c_uint] * 6, POINTER(c_char_p)
    signatures = {
        "cuDeviceGet": [POINTER(c_int), c_int],
        "cuDevicePrimaryCtxRetain": [handle, c_int],
        "cuCtxPushCurrent_v2": [c_void_p],
        "cuCtxPopCurrent_v2": [handle],
        "cuModuleLoadData": [handle, c_void_p],
        "cuModuleGetFunction": [handle, c_void_p, c_char_p],
        "cuLaunchKernel": [c_void_p, *six, c_uint, c_void_p, handle, handle],
        "cuGetErrorName": [c_int, name],
        "cuGetErrorString": [c_int, name],
    }
    for function, argtypes in signatures.items():
        getattr(library, function).argtypes, getattr(library, function).restype = argtypes, c_int
    return library


def call_driver(function: str, *args) -> None:
    if code := getattr(driver(), function)(*args):
        texts = {"cuGetErrorName": c_char_p(), "cuGetErrorString": c_char_p()}
        for get, text in texts.items():
            getattr(driver(), get)(code, text)
        name, string = [(text.value or b"unknown").decode() for text in texts.values()]
        raise RuntimeError(f"{function}: {name} ({code}): {string}")


class PrimaryContext:
    """torch's context of a device, current inside `with`, whichever thread this is.

    A thread that autograd started may not have touched the device yet.
    """

    def __init__(self, device_index: int):
        device, self.handle = c_int(), c_void_p()
        call_driver("cuDeviceGet", device, device_index)
        call_driver("cuDevicePrimaryCtxRetain", self.handle, device)

    def __enter__(self):
        call_driver("cuCtxPushCurrent_v2", self.handle)

    def __exit__(self, *_):
        call_driver("cuCtxPopCurrent_v2", c_void_p())


class Kernels:
    """The kernels of one source, on one device.

    constants: the source's own `#define NAME integer` lines, such as its block size
    """

    def __init__(self, file: Path, device_index: int):
        torch.cuda.init()
        source = file.read_text()
        self.constants = constants_of(source)
        self.device = torch.device("cuda", device_index)
        major, minor = torch.cuda.get_device_capability(device_index)
        image, _ = compile_source(source, file.name, f"sm_{major}{minor}")
        self.context, self.module = PrimaryContext(device_index), c_void_p()
        with self.context:
            call_driver("cuModuleLoadData", self.module, image)
        self.functions: dict[str, c_void_p] = {}

    def function(self, name: str) -> c_void_p:
        if name not in self.functions:
            handle = c_void_p()
            call_driver("cuModuleGetFunction", handle, self.module, name.encode())
            self.functions[name] = handle
        return self.functions[name]

    def launch(self, name: str, grid: int, block: int, args: Sequence[Tensor | int | None]) -> None:
        """On torch's current stream of the device. A tensor is passed as its address, an int as
        64 bits, None as a null pointer."""
        if grid == 0:
            return
        values = [parameter(arg, self.device) for arg in args]
        addresses = (c_void_p * len(values))(*map(ctypes.addressof, values))
        stream = torch.cuda.current_stream(self.device).cuda_stream
        shape = (grid, 1, 1, block, 1, 1)
        with self.context:
            function = self.function(name)
            call_driver("cuLaunchKernel", function, *shape, 0, stream, addresses, None)


def parameter(arg: Tensor | int | None, device: torch.device) -> c_void_p | c_longlong:
    if isinstance(arg, Tensor):
        assert arg.device == device, f"a tensor on {arg.device} for a kernel on {device}"
        return c_void_p(arg.data_ptr())
    return c_void_p() if arg is None else c_longlong(arg)


def constants_of(source: str) -> dict[str, int]:
    lines = re.findall(r"^#define (\w+) (\d+)\b", source, re.MULTILINE)
    return {name: int(value) for name, value in lines}


@functools.cache
def load_kernels(file: Path, device_index: int) -> Kernels:
    """Compiled at the first call for this file and device, then kept."""
    return Kernels(file, device_index)
