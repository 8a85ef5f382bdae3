"""Runs a study's jobs in several processes that share a device, until they are done or time is up.

A job writes a JSON line as soon as something is measured, so that a call that is cut off loses only
what is under way; the lines of earlier calls are given by `--measured`, and are not measured again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

Line = Mapping[str, Any]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "0",
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # imports that look for a GPU must not begin CUDA
}  # fmt: skip
PRELOADED = [
    "transformers.models.bert.modeling_bert", "peft", "bayeslora_cli.training.loop",
    "bayeslora_cli.evaluation.run_evaluation", "tests.benchmarks.posterior.cut", "laplace",
]  # fmt: skip
"""Modules that every job imports."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every stage of the study has."""
    parser.add_argument("--model", required=True, help="MiniLM's directory")
    parser.add_argument("--data", type=Path, required=True, help="GLUE's official folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=12, help="processes on each device")
    parser.add_argument("--limit", type=float, default=3600, help="seconds; the rest is left out")
    parser.add_argument("--only", default="", help="a regular expression for the names of jobs")
    parser.add_argument(
        "--measured", type=Path, nargs="*", default=[], help="lines of earlier calls"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument(
        "--share", type=int, help="percent of a GPU's multiprocessors that MPS lends a process"
    )
    parser.add_argument("--start", default="forkserver", choices=("forkserver", "spawn"))
    parser.add_argument("--packing", default="auto")
    parser.add_argument("--steps", type=int, help="steps of each run, for a trial on a CPU")


def read_lines(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read lines that calls have written; what a killed process left of a line is left out."""
    found = []
    for path in (path for path in paths if path.exists()):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def last_runs(lines: Iterable[Line]) -> list[Line]:
    """Return the lines without those of runs that were done again later."""
    kept: dict[str, list[Line]] = {}
    for line in lines:
        if line.get("kind") == "run":
            kept[line["job"]] = []
        kept.setdefault(line["job"], []).append(line)
    return [line for own in kept.values() for line in own]


def done(lines: Iterable[Line]) -> set[str]:
    """Return the names of jobs that need not be run again: measured, or diverged."""
    return {
        line["job"] for line in lines if "failed" not in line or "NonFiniteError" in line["failed"]
    }


def write_line(out: Path, line: Line) -> None:
    """Append a line in one write, so that processes do not mix theirs."""
    text = json.dumps(line) + "\n"
    with (out / "lines.jsonl").open("ab", buffering=0) as file:
        file.write(text.encode())


def places_of(typed: argparse.Namespace) -> list[dict[str, str]]:
    """Return, for each GPU, the environment of a process that computes on it, beside others where
    MPS runs; of a CPU an empty one."""
    gpus = 0 if typed.device == "cpu" else torch.cuda.device_count()  # by NVML: no CUDA is begun
    found = [_place(gpu, typed.share) for gpu in range(gpus)]
    if gpus > 1:
        with ThreadPoolExecutor() as threads:
            if not all(threads.map(_can_compute, found)):
                return [{"CUDA_VISIBLE_DEVICES": str(gpu)} for gpu in range(gpus)]
    return found or [{}]


def _place(gpu: int, share: int | None) -> dict[str, str]:
    alone = {"CUDA_VISIBLE_DEVICES": str(gpu)}
    if shutil.which("nvidia-cuda-mps-control") is None:
        return alone
    folders = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
    place = {name: tempfile.mkdtemp() for name in folders}
    subprocess.run(
        ["nvidia-cuda-mps-control", "-d"], env=os.environ | place | alone, check=False, timeout=20
    )
    # a server of one GPU: its clients count from 0
    place["CUDA_VISIBLE_DEVICES"] = "0"
    if share is not None:
        place["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(share)
    return place


def _can_compute(place: Mapping[str, str]) -> bool:
    """Return whether a process in this environment finds its GPU."""
    begun = [sys.executable, "-c", "import torch; torch.ones(1).cuda().sum().item()"]
    try:
        subprocess.run(begun, env=os.environ | place, check=True, timeout=60)
    except subprocess.SubprocessError:
        return False
    return True


def stop_mps(place: Mapping[str, str]) -> None:
    if "CUDA_MPS_PIPE_DIRECTORY" in place:
        subprocess.run(
            ["nvidia-cuda-mps-control"], input=b"quit\n", env=os.environ | place, check=False,
            timeout=20,
        )  # fmt: skip


def started(count: int, places: Sequence[Mapping[str, str]], method: str) -> Any:
    """Return a pool of `count` processes; by the method forkserver they share their imports, which
    take a process 12 s of a busy machine."""
    context = multiprocessing.get_context(method)
    if isinstance(context, multiprocessing.context.ForkServerContext):
        context.set_forkserver_preload(PRELOADED)
    pool = context.Pool(count, _begin, (places, context.Value("i", 0)))
    with suppress(multiprocessing.TimeoutError):
        if method == "spawn" or pool.apply_async(_computes).get(60):
            return pool
    pool.terminate()  # an import has begun CUDA in the process that was forked
    return started(count, places, "spawn")


def _begin(places: Sequence[Mapping[str, str]], begun: Any) -> None:
    """Give a new process of the pool its GPU; processes take the GPUs in turn."""
    with begun.get_lock():
        os.environ |= places[begun.value % len(places)]
        begun.value += 1
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        _sleep_while_waiting()


def _sleep_while_waiting() -> None:
    """Have CUDA's waits leave the core to other processes: without it each of them keeps one busy
    for as long as its steps take on the GPU."""
    with suppress(OSError, AttributeError):
        driver = ctypes.CDLL("libcuda.so.1")
        driver.cuInit(0)
        driver.cuDevicePrimaryCtxSetFlags_v2(0, 4)  # CU_CTX_SCHED_BLOCKING_SYNC


def _computes() -> bool:
    """Return whether this process can compute on its device."""
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return True
    try:
        return float(torch.ones(1, device="cuda").sum()) == 1
    except RuntimeError:
        return False


_pace = [60.0]
"""Steps per second of this process's last run, evaluations and all."""


@contextmanager
def paced(steps: float, typed: argparse.Namespace) -> Iterator[bool]:
    """Tell whether a run of so many steps is likely to end before the time is up, by the pace of
    the last one of this process: a shorter one may still do. Note the pace of this one."""
    began = time.time()
    fits = began + steps / _pace[0] < typed.until
    yield fits
    if fits:
        _pace[0] = steps / (time.time() - began)


def _guarded(work: Callable[[Any], Iterable[Line]], out: Path, job: Any) -> str:
    """Do a job in a process of the pool; its failure is a line like any other."""
    began = time.time()
    try:
        for line in work(job):
            write_line(out, {"job": job.name, "since": round(time.time() - began, 1), **line})
    except Exception:
        write_line(out, {"job": job.name, "failed": traceback.format_exc()[-2000:]})
        return f"{job.name}: failed"
    return f"{job.name}: {time.time() - began:.0f} s"


class _Work:
    """A job's function with its place for lines; can be sent to other processes."""

    def __init__(self, work: Callable[[Any], Iterable[Line]], out: Path) -> None:
        self.work, self.out = work, out

    def __call__(self, job: Any) -> str:
        return _guarded(self.work, self.out, job)


def run_all(
    jobs: Sequence[Any], work: Callable[[Any], Iterable[Line]], typed: argparse.Namespace
) -> None:
    """Do jobs in their order, `--jobs` at a time on each device, and pack the runs' small files.

    Args:
        jobs: objects with a `name`, which can be pickled.
        work: does a job and yields what it measures.
    """
    began = time.time()
    typed.until = began + typed.limit
    typed.out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} +{time.time() - began:.0f} s {text}"
        print(line, flush=True)
        with (typed.out / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    os.environ |= ENVIRONMENT
    places = places_of(typed)
    mps = sum("CUDA_MPS_PIPE_DIRECTORY" in place for place in places)
    say(f"{len(jobs)} jobs, {typed.jobs} at a time on each of {len(places)} devices, MPS on {mps}")
    with started(typed.jobs * len(places), places, typed.start) as pool:
        ended = pool.imap_unordered(_Work(work, typed.out), jobs)
        for count in range(len(jobs)):
            try:
                say(ended.next(timeout=max(0.1, typed.limit - (time.time() - began))))
            except multiprocessing.TimeoutError:
                say(f"no time left: {len(jobs) - count} jobs are not done")
                break
        pool.terminate()
        pool.join()
    for place in places:
        stop_mps(place)
    pack(typed.out)
    say("done")


SMALL = (
    "checksums.json", "config.toml", "environment.json", "metrics.jsonl", "ranks.json",
    "result.json", "task.json",
)  # fmt: skip
"""Files of a finished run that are taken along: `table`, `inspect-ranks` and `report` read them."""


def pack(out: Path) -> None:
    """Write the small files of all finished runs, the lines and the log to `runs.tar.xz`."""
    with tarfile.open(out / "runs.tar.xz", "w:xz", preset=1) as tar:
        runs = sorted(path.parent for path in out.glob("runs/**/result.json"))
        for path in (run / name for run in runs for name in SMALL):
            tar.add(path, path.relative_to(out))
