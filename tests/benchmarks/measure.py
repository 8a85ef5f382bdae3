"""What the benchmarks measure with: the clock, memory, launches, and the line of versions."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync",
            "cudaMemsetAsync")  # fmt: skip
PACKAGES = ("torch", "transformers", "peft", "ivon-opt")


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one call gave the device to do."""

    kernels: int
    """Kernels, copies and fills that the device ran."""
    launches: int
    """Calls by which the host started them: a whole graph is one."""
    device_ms: float
    """Their times, added up."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def replayed(
    calls: Sequence[Callable[[], object]], device: torch.device, *, repeats: int = 9
) -> float:
    """Return the milliseconds per call of calls in one CUDA graph, the median of its replays.

    On a CPU they are those of the first call.
    """
    for _ in range(3):
        for call in dict.fromkeys(calls):
            call()
    synchronize(device)
    if device.type != "cuda":
        begun = time.perf_counter()
        calls[0]()
        return 1e3 * (time.perf_counter() - begun)
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.current_stream()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        for call in calls:
            call()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times) / len(calls)


def work_of(call: Callable[[], None], device: torch.device) -> Work | None:
    """What `call` makes the device do, by torch's profiler; None on a CPU."""
    if device.type != "cuda":
        return None
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        synchronize(device)
    events = seen.events()
    kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    return Work(
        kernels=len(kernels),
        launches=sum(e.name.startswith(LAUNCHES) for e in events),
        device_ms=sum(e.time_range.elapsed_us() for e in kernels) / 1e3,
    )


def environment(device: torch.device) -> dict[str, str]:
    """Machine and versions, for a table's heading and its JSON."""
    if device.type == "cuda":
        machine = torch.cuda.get_device_name(device)
    else:
        machine = f"{platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return {
        "machine": machine,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def describe(found: dict[str, str]) -> str:
    """`environment` in a line."""
    rest = ", ".join(f"{name} {value}" for name, value in found.items() if name != "machine")
    return f"{found['machine']}: {rest}"
