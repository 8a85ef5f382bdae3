"""Real results of causal models: every method on two tasks and on instructions, three seeds each.

    python tests/benchmarks/causal_results.py --model MODEL.gguf --data DIR --out DIR

DIR holds LLM-Adapters' ARC-Easy and openbookqa, mmlu and self_instruct (docs/choices.md). All runs
take the presets' settings; the validation rows, a part of the training rows, select, and the test
rows are read once. `--out` gets a log, a JSON line for each measurement, and the runs' small files;
`choice_results.py` makes the table of them. A job trains its seeds in one process, which captures
its CUDA graphs once; `--jobs` of them share the GPU, under MPS if it can be started. What is not
done after `--limit` seconds is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bayeslora_cli as bl

SEEDS = (2021, 2022, 2023)
SAMPLES = 10
METHODS: dict[str, dict[str, Any]] = {
    "lora-adamw": {"method": "lora"},
    "lora-adamw-1e-3": {"method": "lora", "lr": 1e-3},
    "lora-ivon": {"method": "lora", "optimizer": "ivon"},
    "adalora-adamw": {"optimizer": "adamw"},
    "adalora-adamw-4e-3": {"optimizer": "adamw", "lr": 4e-3},
    **{f"adalora-ivon-{c}": {"criterion": c} for c in ("snr", "magnitude", "sensitivity")},
    **{f"blora-{m}": {"method": "blora", "blora_mode": m} for m in ("both", "rank", "quant")},
}
"""The presets' rates of AdamW are those of the lowest NLL, IVON's those of the best accuracy
(docs/choices.md, "Learning rates"); `lora-adamw-1e-3` and `adalora-adamw-4e-3` have AdamW's of the
best accuracy."""
PENALTIES = {
    "blora-both-rank-1e-1": {"lambda_rank": 0.1, "lambda_quant": 1e-3},
    "blora-both-rank-1e-3": {"lambda_rank": 1e-3, "lambda_quant": 1e-4},
}
"""B-LoRA's settings besides the preset's, on ARC-Easy only."""
ON_INSTRUCTIONS = ("lora-adamw", "lora-ivon", "adalora-adamw", "adalora-ivon-snr")
AFTER = ("arc-easy-lora-adamw", "arc-easy-adalora-ivon-snr")
"""Jobs whose last run is also asked MMLU's questions."""
PROMPTS = (
    "Explain in two sentences why the sky is blue.",
    "Write a polite email that asks a colleague to send the report by Friday.",
    "List three fruits and the colour of each.",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """Runs of one setting, or measurements of the model before training."""

    options: dict[str, Any] = field(default_factory=dict)
    """Of `bl.train`; empty: the model is not trained."""
    seeds: tuple[int, ...] = SEEDS


def model_of(typed: argparse.Namespace) -> str:
    """Return the model as `prepare` has written it, or as it was given."""
    written = typed.out / "model"
    return str(written) if written.is_dir() else str(typed.model)


def make_jobs(typed: argparse.Namespace) -> dict[str, Job]:
    """Return all jobs by name, the longest first."""
    common = {"model": model_of(typed), "precision": "bf16", "compile": "off",
              "output": str(typed.out / "runs")}  # fmt: skip
    seeds = SEEDS
    if typed.trial:
        common |= {"device": "cpu", "max_steps": 4, "t_init": 1, "t_final": 1}
        seeds = SEEDS[:1]
    jobs = {"before-mmlu": Job()}
    for task in ("openbookqa", "arc-easy"):
        options = {**common, "task": task, "data": str(typed.data)}
        for name, own in METHODS.items():
            jobs[f"{task}-{name}"] = Job(options=options | own, seeds=seeds)
    for name, own in PENALTIES.items():
        jobs[f"arc-easy-{name}"] = Job(options=options | METHODS["blora-both"] | own, seeds=seeds)
    published = {"preset": "ivon-lora", "max_steps": 1521}  # three epochs, as for the others
    jobs["arc-easy-ivon-lora"] = Job(options=published | options, seeds=seeds)
    rows = {"train_file": str(typed.out / "train.jsonl")}
    for name in ON_INSTRUCTIONS:
        jobs[f"instructions-{name}"] = Job(options=common | rows | METHODS[name], seeds=seeds)
    return jobs | {"before": Job()}


def seeds_left(name: str, job: Job, typed: argparse.Namespace) -> list[int]:
    """Return the seeds of a job's runs that `--measured` does not hold yet."""
    lines = typed.measured.read_text().splitlines() if typed.measured else []
    of_job = [line for line in map(json.loads, lines) if line["job"] == name]
    runs = [line["run"] for line in of_job if "run" in line]
    seeds = job.seeds if job.options else ()
    return [seed for seed in seeds if not any(run.endswith(f"seed-{seed}") for run in runs)]


def measure(name: str, job: Job, typed: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Train and measure a job's runs, one after the other."""
    model, device = model_of(typed), "cpu" if typed.trial else "auto"
    if name == "before-mmlu":
        for shots in (0, 5):
            yield bl.evaluate(model, task="mmlu", shots=shots, data=typed.data, precision="bf16",
                              batch_size=128, device=device).to_json()  # fmt: skip
    elif name == "before":
        for task in ("arc-easy", "openbookqa"):
            yield bl.evaluate(model, task=task, data=typed.data, precision="bf16",
                              device=device).to_json()  # fmt: skip
        yield bl.evaluate(model, file=typed.out / "test.jsonl", precision="bf16",
                          device=device).to_json()  # fmt: skip
        yield {"texts": [list(g.texts) for g in bl.generate(model, PROMPTS, max_new_tokens=80,
                                                            device=device)]}  # fmt: skip
    workspace = bl.workspace()
    for seed in seeds_left(name, job, typed):
        run = bl.train(**job.options, seed=seed, workspace=workspace)
        samples = None if run.result.get("posterior") is None else SAMPLES
        if name.startswith("instructions"):
            yield run.evaluate(file=typed.out / "test.jsonl", samples=samples).to_json()
            if seed == SEEDS[0]:
                texts = run.generate(PROMPTS, max_new_tokens=80)
                yield {"texts": [list(found.texts) for found in texts]}
            continue
        yield run.evaluate("test", samples=samples).to_json()
    for shots in (0, 5) if name in AFTER else ():
        yield run.evaluate(task="mmlu", shots=shots, batch_size=128).to_json()


def work(name: str, typed: argparse.Namespace) -> None:
    """Do one job, in a process of its own; write a line as soon as it is measured."""
    began = time.time()
    for found in measure(name, make_jobs(typed)[name], typed):
        found.pop("groups", None)
        found = {"job": name, "seconds": round(time.time() - began, 1), **found}
        with (typed.out / "lines.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")


def prepare(typed: argparse.Namespace) -> None:
    """Write the model as safetensors, which load in a second, and the instructions."""
    from transformers import AutoModelForCausalLM

    from bayeslora_cli.models.backbones.loading import load_tokenizer
    from bayeslora_cli.models.backbones.places import find_backbone

    typed.out.mkdir(parents=True, exist_ok=True)
    try:
        place = find_backbone(typed.model)
        module = AutoModelForCausalLM.from_pretrained(**place.arguments, dtype="float32")
        module.save_pretrained(typed.out / "model")
        load_tokenizer(typed.model).save_pretrained(typed.out / "model")
    except (ValueError, TypeError, NotImplementedError) as error:  # some releases cannot save it
        print(f"the model is read as it is: {error}", flush=True)
        shutil.rmtree(typed.out / "model", ignore_errors=True)
    rows = []
    for file in ("user_oriented_instructions.jsonl", "seed_tasks.jsonl"):
        for line in (typed.data / "self_instruct" / file).read_text().splitlines():
            task = json.loads(line)
            asked = task["instruction"]
            rows += [json.dumps({"instruction": asked, **case}) for case in task["instances"]]
    parts = {"test": rows[3::7], "train": [row for i, row in enumerate(rows) if i % 7 != 3]}
    for name, part in parts.items():
        (typed.out / f"{name}.jsonl").write_text("\n".join(part) + "\n")


def start_mps(environment: dict[str, str]) -> bool:
    """Let processes compute side by side on the GPU; tell whether they do."""
    if shutil.which("nvidia-cuda-mps-control") is None:
        return False
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        environment[name] = tempfile.mkdtemp()
    subprocess.run(["nvidia-cuda-mps-control", "-d"], env=environment, check=False, timeout=20)
    return True


def run_all(typed: argparse.Namespace) -> None:
    """Do the jobs, `--jobs` at a time, and keep the runs' small files."""
    began = time.time()

    def say(text: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} +{time.time() - began:.0f} s {text}"
        print(line, flush=True)
        with (typed.out / "log.txt").open("a") as file:
            file.write(line + "\n")

    prepare(typed)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    side_by_side = start_mps(environment)
    say(f"{typed.jobs} jobs at a time, MPS: {'yes' if side_by_side else 'no'}")
    jobs = {name: job for name, job in make_jobs(typed).items() if re.search(typed.only, name)}
    waiting = [
        name for name in jobs if not jobs[name].options or seeds_left(name, jobs[name], typed)
    ]
    (typed.out / "logs").mkdir(exist_ok=True)
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    while (waiting or running) and time.time() - began < typed.limit:
        while waiting and len(running) < typed.jobs:
            name = waiting.pop(0)
            with (typed.out / "logs" / f"{name}.txt").open("wb") as log:
                command = [sys.executable, __file__, *sys.argv[1:], "--work", name]
                running[name] = (
                    subprocess.Popen(command, stdout=log, stderr=log, env=environment),
                    time.time(),
                )
        time.sleep(0.5)
        for name, (process, since) in list(running.items()):
            if process.poll() is not None:
                say(f"{name}: {time.time() - since:.0f} s, exit code {process.returncode}")
                del running[name]
    for name, (process, _) in running.items():
        process.kill()
        process.wait()
        say(f"{name}: no time left")
    if waiting:
        say(f"not begun: {', '.join(waiting)}")
    if side_by_side:
        subprocess.run(["nvidia-cuda-mps-control"], input=b"quit\n", env=environment, check=False,
                       timeout=20)  # fmt: skip
    with tarfile.open(typed.out / "runs.tgz", "w:gz") as tar:
        runs = (path.parent for path in typed.out.glob("runs/*/*/*/result.json"))
        files = [path for run in runs for path in run.iterdir() if path.suffix != ".safetensors"]
        for path in sorted(files) + sorted(typed.out.glob("logs/*")):
            if path.is_file():
                tar.add(path, path.relative_to(typed.out))
    say("done")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=22)
    parser.add_argument("--limit", type=float, default=3600)
    parser.add_argument("--only", default="", help="a regular expression for the names of jobs")
    parser.add_argument("--measured", type=Path, help="lines.jsonl of a call that ran out of time")
    parser.add_argument("--trial", action="store_true", help="four steps each, on the CPU")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    typed = parser.parse_args()
    typed.out = typed.out.resolve()
    typed.measured = typed.measured and typed.measured.resolve()
    if typed.work:
        work(typed.work, typed)
    else:
        run_all(typed)


if __name__ == "__main__":
    main()
