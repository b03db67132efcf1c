"""Settings of the host that training is faster with, or needs. Nothing happens on import; each says what it changes."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping

from mmdit_jax.errors import EXIT_PREEMPTED

# glibc's names (malloc.h) for the parameters of mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -3, -4, -8

# Matrix products by oneDNN, one by one. XLA's default (YNNPACK, and Eigen for transposed operands) reaches 60 to 90 %
# of oneDNN's rate on products whose contracted axis is the first (weight gradients) and half of it on small batched
# ones (attention). Plain "DOT" would also merge neighbouring products, which ends the process on some of them.
_ONEDNN: dict[str, bool | str] = {
    "xla_cpu_use_onednn": True,
    "xla_cpu_experimental_onednn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "xla_cpu_experimental_ynn_fusion_type": "",
}
# One operation after another, each on all cores, is faster on few. On a mesh of fake CPU devices it is needed, too:
# the concurrent scheduler may start independent collectives in another order on each device, and they then wait for one
# another for ever.
_SEQUENTIAL = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
# The options are experimental: they are used with the releases they were measured on.
_TRIED_JAXLIB = (0, 10)
_TRIED_JAXLIB_ON_GPU = (0, 11)


GPU_SHARE = 0.94
"""Of a GPU's memory, what JAX takes for arrays and programs; CUDA's context, NCCL and cuDNN's plans have the rest."""
GPU_SHARE_VARIABLE = "XLA_CLIENT_MEM_FRACTION"
"""Where JAX reads that share; it takes three quarters unless told."""
_FORMER = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # JAX refuses to be told by both


def prepare_host() -> None:
    """Fit a process that trains to its host. Call it once, before jax starts its threads.

    What the environment says already stays.
    """
    if keep_freed_memory():
        use_huge_pages()
    present = os.environ.get("XLA_FLAGS", "")
    if _SEQUENTIAL.split("=")[0] not in present:
        os.environ["XLA_FLAGS"] = f"{_SEQUENTIAL} {present}".strip()
    tell_gpu_share(os.environ)


def tell_gpu_share(variables: MutableMapping[str, str]) -> None:
    """Have a process of these variables take ``GPU_SHARE``, or what they say already."""
    variables.setdefault(GPU_SHARE_VARIABLE, variables.pop(_FORMER, str(GPU_SHARE)))


@contextlib.contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Until the block ends SIGTERM ends nothing at once; what it gives says whether the signal came.

    Noted, not raised: an exception would be swallowed where the signal comes while a library's callback runs. Outside
    the main thread nothing is noted: whoever started the thread handles signals.
    """
    asked = threading.Event()
    with _at_sigterm(asked.set):
        yield asked.is_set


@contextlib.contextmanager
def sigterm_leaves(what: str) -> Iterator[None]:
    """Until the block ends SIGTERM ends this process at once with exit code 75: for where nothing can be lost.

    Args:
      what: is said then, on stderr.
    """

    def end() -> None:
        os.write(2, f"mmdit: {what}: stopped by SIGTERM, nothing is lost; run again to go on\n".encode())
        os._exit(EXIT_PREEMPTED)

    with _at_sigterm(end):
        yield


@contextlib.contextmanager
def _at_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Until the block ends SIGTERM does this and nothing else; only in the main thread, which alone may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not set by Python


def process_began() -> float:
    """When this process was created, in seconds since 1970; now, where the host doesn't tell."""
    try:
        with open("/proc/self/stat") as file:
            ticks = int(file.read().rsplit(")", 1)[1].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()
    return time.time() - max(0.0, age)


def allow_open_files(count: int) -> bool:
    """Let this process hold ``count`` files open beside a few hundred others, if the host's hard limit allows it."""
    wanted = count + 512
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            return False
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return True


def keep_freed_memory() -> bool:
    """Make malloc keep what the process frees, instead of giving it back to the kernel. True if it could be set.

    XLA on CPU allocates all temporaries of a step in one piece and frees it afterwards. By default glibc maps and
    unmaps that piece, and the kernel clears it page by page, at each step: 85,000 page faults and a tenth of the time
    for 340 MB. The cost is that the process stays as large as it once was. Applies to the whole process, to threads
    started from now on: call it first. Elsewhere than on Linux with glibc nothing changes.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    return all([libc.mallopt(parameter, value) == 1 for parameter, value in wanted])


def return_freed_memory() -> bool:
    """Make malloc give every block of a megabyte or more back to the kernel when it is freed. True if it could be set.

    For a process that streams. By default glibc keeps blocks of up to 32 MB, in as many arenas as there are threads.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2**20) == 1)


def use_huge_pages() -> int:
    """Ask for huge pages under the heap's next quarter of the memory; returns how many bytes that is, or 0.

    Activations are swept once and not again until the backward pass, so each sweep misses the translation cache page by
    page: 2 MB pages take 5 % off a step at depth 2, 1 % at depth 3. Kernels mostly give them to those that ask
    ("madvise"), which glibc does only if told by the environment before the process starts. So the heap is grown once,
    marked, and given back to malloc, which keeps it (``keep_freed_memory`` must come first). Only addresses are taken:
    memory is, as ever, when something is written there.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    start = libc.malloc(size)
    if not start:  # a limit on addresses (ulimit -v), or strict overcommit
        return 0
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (start + size - first) // mmap.PAGESIZE * mmap.PAGESIZE
    refused = libc.madvise(first, length, mmap.MADV_HUGEPAGE)  # by a kernel built without them
    libc.free(start)
    return 0 if refused else length


@functools.cache
def onednn_options() -> dict[str, bool | str]:
    """Options for ``jax.jit(..., compiler_options=...)`` that suit the backend; none unless it is an x86 CPU."""
    import jax

    if jax.default_backend() != "cpu" or platform.machine() != "x86_64" or _release() != _TRIED_JAXLIB:
        return {}
    return dict(_ONEDNN)


def by_onednn(asked: bool, platform: str) -> bool:
    """Whether oneDNN does the products of a step on ``sharding.platform``, where a run asks for it."""
    return asked and platform == "cpu" and bool(onednn_options())


def step_options(onednn: bool, remat: str, platform: str) -> dict[str, bool | str]:
    """Options for ``jax.jit(..., compiler_options=...)`` of a training step, alone or of replicas.

    Args:
      onednn: whether the run asks for it.
      remat, platform: as of ``gpu_options``.
    """
    return {**(onednn_options() if by_onednn(onednn, platform) else {}), **gpu_options(remat, platform)}


def gpu_options(remat: str, platform: str) -> dict[str, bool | str]:
    """Options for ``jax.jit(..., compiler_options=...)`` of a training step on ``sharding.platform``; none but of GPUs.

    A product that the forward pass uses and ``remat="dots"`` keeps jaxlib 0.11.2 computes twice there: once for what
    follows, once more in a kernel that writes into the stack of all layers. That is a quarter of a step's FLOPs
    more (depth 24, 256 pixels, compiled for an H100). 0.10.2 does not.
    """
    if remat != "dots" or platform != "gpu" or _release() != _TRIED_JAXLIB_ON_GPU:
        return {}
    return {"xla_gpu_enable_dynamic_slice_fusion": False}


def _release() -> tuple[int, ...]:
    import jaxlib

    return tuple(int(part) for part in jaxlib.__version__.split(".")[:2])
