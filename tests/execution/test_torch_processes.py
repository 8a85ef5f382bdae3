"""One job on several processes: gloo on the CPU, by the command line, each process a real one."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from bayeslora_cli.errors import BayesloraError
from bayeslora_cli.execution.signals import Stop
from bayeslora_cli.execution.torch_processes import TorchProcesses
from tests.conftest import save_backbone, write_rte
from tests.support.faults import contents, differences
from tests.support.jobs import Jobs
from tests.support.warm_process import ROOT

# 64 rows in batches of 9: an epoch's last batch is one row, so that some processes have none;
# 40 rows are evaluated in 6 batches
OPTIONS = (
    "--task rte --max-steps 18 --batch-size 9 --log-every 5 --max-length 16 --device cpu "
    "--eval-every 11 --eval-batch-size 7"
)
ADAMW = ("--optimizer", "adamw")
LAST = 17


@pytest.fixture(scope="module")
def jobs(warm_process, tmp_path_factory):
    directory = tmp_path_factory.mktemp("jobs")
    for name, dropout in (("tiny", 0.0), ("dropout", 0.1)):
        save_backbone(directory / name, "bert", dropout=dropout)
    write_rte(directory / "glue")
    data, model = str(directory / "glue"), str(directory / "tiny")
    return Jobs(warm_process, directory, [*OPTIONS.split(), "--data", data, "--model", model])


@pytest.fixture(scope="module")
def alone(jobs):
    """AdamW, without dropout, on one process."""
    return jobs.train("alone", 1, *ADAMW)


@pytest.fixture(scope="module")
def whole(jobs):
    """IVON and dropout on two processes, never stopped."""
    found = jobs.train("whole", 2, *random(jobs))
    assert found.codes == [0, 0], found.texts
    return contents(found.run)


def random(jobs):
    return ("--model", str(jobs.directory / "dropout"), "--checkpoint-every", "4")


def assert_same_training(job, alone):
    """To fp32 rounding; masks, and rows predicted, exactly."""
    for step in range(18):
        lines, other = [trace[step] for trace in job.traces], alone.traces[0][step]
        assert sum(line["rows"] for line in lines) == other["rows"]
        assert {line["mask"] for line in lines} == {other["mask"]}
        assert len({line["mean"] for line in lines}) == 1
        for line in lines:
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert_same_result(job, alone)


def assert_same_result(job, alone):
    ours, theirs = job.lines(), alone.lines()
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        if "metrics" in other:
            found, expected = line["metrics"]["validation"], other["metrics"]["validation"]
            assert found["accuracy"] == expected["accuracy"]
            assert found["nll"] == pytest.approx(expected["nll"], rel=1e-6)
        else:
            for name in ("loss", "penalty", "lr"):
                assert line[name] == pytest.approx(other[name], rel=1e-5)
    assert job.lines("ranks.jsonl") == alone.lines("ranks.jsonl")
    for name, value in load_file(job.run / "posterior.safetensors").items():
        other = load_file(alone.run / "posterior.safetensors")[name]
        # AdamW divides by a gradient's size, however small
        assert value.sub(other).abs().max() < 2e-5, name


@pytest.mark.parametrize("processes", [2, 4])
def test_the_same_batch_gives_the_same_run(processes, jobs, alone):
    job = jobs.train(f"adamw-{processes}", processes, *ADAMW, "--grad-accum", "3")
    assert job.codes == [0] * processes, job.texts
    assert {trace[7]["rows"] for trace in job.traces} == {0, 1}  # an epoch's last batch
    assert_same_training(job, alone)
    environment = json.loads((job.run / "environment.json").read_text())
    assert environment["processes"] == processes
    assert job.run.parent.name.rpartition("-")[0] == alone.run.parent.name.rpartition("-")[0]
    # the first process alone speaks, and ends with the run's directory
    assert job.texts[0].splitlines()[-1] == str(job.run)
    assert job.texts[1:] == [""] * (processes - 1)


def test_the_number_of_processes_is_no_part_of_the_name(jobs, alone):
    again = jobs.train("alone", 2, *ADAMW)
    assert again.codes == [0, 0]
    assert "already trained" in again.texts[0]
    assert again.traces == [[], []]


def test_srun_starts_the_same(jobs, alone):
    job = jobs.train("srun", 2, *ADAMW, slurm=True)
    assert job.codes == [0, 0], job.texts
    assert_same_training(job, alone)


def test_length_groups_are_shared_out(jobs):
    runs = [jobs.train(f"group-{n}", n, *ADAMW, "--group-by-length") for n in (1, 2)]
    assert_same_training(runs[1], runs[0])


def test_each_draws_its_own_noise_and_all_come_to_the_same(jobs, whole):
    job = jobs.train("ivon", 2, *random(jobs))
    for first, second in zip(*job.traces, strict=True):
        assert first["noise"] != second["noise"]
        assert [first[n] for n in ("mean", "mask", "loss")] == [
            second[n] for n in ("mean", "mask", "loss")
        ]
    assert differences(job.run, whole) == []  # and again the same, to the bit


@pytest.mark.parametrize("more", [(), ("--optimizer", "ivon")])
def test_gates(more, jobs):
    """Ranges are measured on all rows of the batch; draws differ, what is learned does not."""
    options = ("--method", "blora", "--t-init", "7", *more)  # measured on a batch of one row
    job = jobs.train(f"blora-{len(more)}", 2, *options)
    assert job.codes == [0, 0], job.texts
    for first, second in zip(*job.traces, strict=True):
        assert [first["mean"], first["mask"]] == [second["mean"], second["mask"]]


@pytest.mark.parametrize("parts", ["1", "3"])
def test_ranges_are_those_of_the_whole_batch(parts, jobs):
    """Without a gate there is nothing to draw: the training is that of one process."""
    options = ("--method", "blora", "--blora-mode", "quant", "--bit-ladder", "16", "--t-init", "5")
    options = (*options, "--grad-accum", parts)
    runs = [jobs.train(f"ladder-{n}-{parts}", n, *options) for n in (1, 2)]
    assert runs[1].codes == [0, 0], runs[1].texts
    for step in range(18):
        ours, theirs = (run.traces[0][step]["loss"][0] for run in runs)
        assert ours == pytest.approx(theirs, rel=1e-4)


# ---- stopped, killed, diverged


@pytest.mark.parametrize(
    ("rank", "harm"),
    [
        (1, {"step": 6, "what": "SIGKILL"}),
        (0, {"step": 13, "what": "SIGKILL"}),
        (1, {"turn": 4, "what": "SIGKILL"}),
    ],
)
def test_a_killed_process_ends_the_job_and_the_same_command_resumes(rank, harm, jobs, whole):
    name = f"killed-{rank}-{harm.get('step')}"
    job = jobs.train(name, 2, *random(jobs), rank=rank, **harm)
    other = 1 - rank
    assert (job.codes[rank], job.codes[other]) == (-9, 1)
    prefix = "process 1 of 2: " if other else ""
    said = f"{prefix}error: the connection to process {rank} of 2 is lost"
    assert [line for line in job.texts[other].splitlines() if line.startswith(said)]
    again = jobs.train(name, 2, *random(jobs))
    assert again.codes == [0, 0], again.texts
    assert differences(again.run, whole) == []


@pytest.mark.parametrize(
    ("rank", "harm"),
    [
        (1, {"step": 6, "what": "SIGTERM"}),
        (0, {"step": LAST, "what": "SIGUSR1"}),
        (1, {"turn": 2, "what": "SIGINT"}),
    ],
)
def test_a_signal_to_one_stops_all_at_one_step(rank, harm, jobs, whole):
    name = f"stopped-{rank}-{harm.get('step')}"
    job = jobs.train(name, 2, *random(jobs), rank=rank, **harm)
    assert job.codes == [75, 75], job.texts
    assert len({len(trace) for trace in job.traces}) == 1
    assert job.texts[0].count(f"stopped by {harm['what']}: checkpoint at step") == 1
    assert job.texts[1] == ""
    again = jobs.train(name, 2, *random(jobs))
    assert again.codes == [0, 0], again.texts
    assert differences(again.run, whole) == []


def test_what_one_finds_not_finite_stops_all(jobs, whole):
    job = jobs.train("nan", 2, *random(jobs), rank=1, step=8, what="nan")
    assert job.codes == [1, 1]
    assert job.texts[0].count("error: step 8: the loss, a gradient or a score is not finite") == 1
    assert job.texts[1] == ""
    again = jobs.train("nan", 2, *random(jobs))  # from the state before that step
    assert again.codes == [0, 0], again.texts
    assert again.traces[0][0]["step"] == 8
    assert differences(again.run, whole) == []


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("mask", "before step 10 the processes' masks have come to differ"),
        ("mean", "after 12 steps the parameters of process 1 of 2 differ"),
    ],
)
def test_a_drift_is_an_error(what, said, jobs, whole):
    job = jobs.train(f"drift-{what}", 2, *random(jobs), rank=1, step=10, what=what)
    assert job.codes == [1, 1]
    assert job.texts[0].count(f"error: {said}") == 1
    assert job.texts[1] == ""
    again = jobs.train(f"drift-{what}", 2, *random(jobs))
    assert again.traces[0][0]["step"] == 8  # the checkpoint before it
    assert differences(again.run, whole) == []


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_another_number_of_processes_goes_on(before, after, jobs, alone):
    name = f"{before}-then-{after}"
    stopped = jobs.train(name, before, *ADAMW, rank=0, step=9, what="SIGTERM")
    assert stopped.codes == [75] * before
    job = jobs.train(name, after, *ADAMW)
    assert job.codes == [0] * after, job.texts
    assert job.texts[0].count("other random draws") == 1
    assert_same_result(job, alone)
    resumed = json.loads((job.run / "environment.json").read_text())
    assert [resumed["processes"], resumed["resumed"][0]["processes"]] == [before, after]


def test_new_processes_draw_noise_of_their_own(jobs):
    jobs.train("more-noise", 1, rank=0, step=9, what="SIGTERM")
    job = jobs.train("more-noise", 2)
    assert job.codes == [0, 0], job.texts
    noises = [line["noise"] for trace in job.traces for line in trace if line["rows"]]
    assert len(set(noises)) == len(noises)


# ---- what the user gets wrong


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((*ADAMW, "--criterion", "snr"), "error: --criterion snr: needs a posterior"),
        (("--data", "nowhere"), "error: --data nowhere: no such directory"),
        (("--device", "cuda:0"), "error: --device cuda:0"),
        (("--bogus",), "No such option:? '?--bogus"),  # typer's words, or click's
        (("--seeds", "1,2", "--jobs", "2"), "error: --jobs 2: 2 processes train one run at a time"),
    ],
)
def test_a_mistake_is_said_once(more, said, jobs):
    job = jobs.train("mistake", 2, *more)
    assert job.codes == [2, 2]
    assert len(re.findall(said, job.texts[0])) == 1
    assert job.texts[1] == ""
    assert not list(job.directory.glob("out/*"))


def test_processes_with_different_commands_are_refused(jobs):
    job = jobs.train("different", 2, rank=1, more=["--seed", "3"])
    assert job.codes == [2, 2]
    assert "all processes of a job train one run" in job.texts[0]
    assert job.texts[1] == ""


def test_the_lock_is_the_first_ones(jobs):
    (jobs.directory / "locked").mkdir()
    probe = jobs.train("locked", 2, "--dry-run", "--json")
    assert probe.codes == [0, 0], probe.texts
    assert probe.texts[1] == ""
    run = json.loads(probe.texts[0].splitlines()[-1])["run"]
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys\nfrom bayeslora_cli.runs.file_lock import locked\n"
            f"with locked(pathlib.Path({run!r}) / '.lock'):\n    print(flush=True)\n    input()\n",
        ],
        cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    holder.stdout.readline()
    job = jobs.train("locked", 2)
    holder.communicate("\n")
    assert job.codes == [2, 2]
    assert job.texts[0].count("is being trained by process") == 1
    assert job.texts[1] == ""


@pytest.mark.filterwarnings("ignore")  # the socket's own
def test_gradients_are_weighed_by_what_rows_count():
    """The weights of all processes sum to 1, also if one has no rows or none that count."""
    counts = torch.tensor([3, 0, 1, 2, 5, 0, 0, 9])
    for rows, shares in (([0, 3, 4, 7], [5 / 19, 5 / 19, 9 / 19]), ([2, 1], [1, 0, 0])):
        for rank, share in enumerate(shares):
            one = object.__new__(TorchProcesses)
            one.rank, one.world, one._weight = rank, 3, torch.zeros(())
            mine = one.share(torch.tensor(rows), counts)
            assert mine.tolist() == torch.tensor(rows).tensor_split(3)[rank].tolist()
            assert float(one._weight) == pytest.approx(share)


def test_a_port_that_is_taken_is_named(monkeypatch):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(BayesloraError, match=f"MASTER_PORT {port}: 2 processes cannot meet"):
            TorchProcesses(0, 2, 0, Stop())


def test_a_sweep_trains_each_run_on_all(jobs):
    job = jobs.train("sweep", 2, *ADAMW, "--seeds", "1,2")
    assert job.codes == [0, 0], job.texts
    assert len(list(job.directory.glob("out/*/*/seed-*/result.json"))) == 2
    assert [len(trace) for trace in job.traces] == [36, 36]
    assert job.texts[1] == ""


@pytest.mark.parametrize(("rank", "what"), [(0, "error"), (1, "error"), (1, "bug")])
def test_what_one_alone_fails_with_ends_the_sweep(rank, what, jobs):
    """The others are in its run still, and could follow it into no other."""
    job = jobs.train(
        f"alone-{rank}-{what}", 2, *ADAMW, "--seeds", "1,2", rank=rank, what=what, step=3
    )
    assert job.codes == [1, 1], job.texts
    assert "injected" in job.texts[rank]
    assert "is lost" in job.texts[1 - rank]
    again = jobs.train(f"alone-{rank}-{what}", 2, *ADAMW, "--seeds", "1,2")
    assert again.codes == [0, 0], again.texts


def test_the_runs_of_a_sweep_are_those_of_jobs_of_their_own(jobs):
    """With noise and dropout, each process's own, in the network that the first run leaves."""
    sweep = jobs.train("shared", 2, *random(jobs), "--seeds", "1,2", "--verbose")
    assert sweep.codes == [0, 0], sweep.texts
    assert sweep.texts[0].count("the last run's network is used again") == 1
    own = jobs.train("own", 2, *random(jobs), "--seed", "2")
    (run,) = sweep.directory.glob("out/*/*/seed-2")
    assert differences(run, contents(own.run)) == []


def test_torchrun_itself(jobs):
    """What the other tests stand in for."""
    output = jobs.directory / "torchrun"
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "bayeslora_cli", "train", *jobs.options, "--max-steps", "3",
            "--output", str(output),
        ],
        cwd=ROOT, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = output.glob("*/*/seed-*")
    assert done.stdout.count(str(run)) == 1
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
