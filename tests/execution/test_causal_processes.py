"""Causal language models on several processes: the mean is over the tokens of all of them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.support.decoders import save_decoder, write_prompts
from tests.support.faults import contents, differences
from tests.support.jobs import Jobs

# 33 rows in batches of 8: an epoch's last batch is one row, so that one process has none
OPTIONS = (
    "--max-steps 10 --batch-size 8 --log-every 5 --device cpu --eval-every 100 "
    "--eval-batch-size 4 --checkpoint-every 4"
)


@pytest.fixture(scope="module")
def jobs(warm_process, tmp_path_factory):
    directory = tmp_path_factory.mktemp("jobs")
    model = save_decoder(directory / "tiny")
    files = (
        "--train-file", write_prompts(directory / "train.jsonl", 33),
        "--eval-file", write_prompts(directory / "dev.jsonl", 9, seed=1),
    )  # fmt: skip
    return Jobs(warm_process, directory, [*OPTIONS.split(), *files, "--model", model])


def test_the_same_batch_gives_the_same_run(jobs):
    """Rows of different lengths: a mean of the processes' means would be another number."""
    adamw = ("--optimizer", "adamw", "--lr", "0.01")
    alone = jobs.train("alone", 1, *adamw)
    job = jobs.train("two", 2, *adamw, "--grad-accum", "2")
    assert (alone.codes, job.codes) == ([0], [0, 0]), job.texts
    assert {trace[4]["rows"] for trace in job.traces} == {0, 1}
    for step, other in enumerate(alone.traces[0]):
        lines = [trace[step] for trace in job.traces]
        assert sum(line["rows"] for line in lines) == other["rows"]
        assert {line["mask"] for line in lines} == {other["mask"]}
        for line in lines:
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for line, other in zip(job.lines(), alone.lines(), strict=True):
        if "metrics" in other:
            found, expected = line["metrics"]["validation"], other["metrics"]["validation"]
            assert found == pytest.approx(expected, rel=1e-6)
    found, expected = (load_file(run.run / "posterior.safetensors") for run in (job, alone))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_two_processes_resume_to_the_bit(jobs):
    whole = jobs.train("whole", 2)
    killed = jobs.train("parts", 2, rank=1, step=6, what="SIGKILL")
    assert killed.codes[1] == -9
    resumed = jobs.train("parts", 2)
    assert (whole.codes, resumed.codes) == ([0, 0], [0, 0]), resumed.texts
    assert differences(resumed.run, contents(whole.run)) == []


# ---- frozen weights divided among the processes


def same(job, other):
    """Masks, losses, metrics and the posterior, as far as fp32 rounding goes."""
    assert {code for run in (job, other) for code in run.codes} == {0}, job.texts + other.texts
    for found, expected in zip(job.traces[0], other.traces[0], strict=True):
        assert found["mask"] == expected["mask"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    for line, expected in zip(job.lines(), other.lines(), strict=True):
        if "metrics" in expected:
            metrics = expected["metrics"]["validation"]
            assert line["metrics"]["validation"] == pytest.approx(metrics, rel=1e-6)
    found, expected = (load_file(run.run / "posterior.safetensors") for run in (job, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_sharded_run_is_the_replicated_one(jobs):
    """An epoch's last batch and the evaluation's leave a process without rows: it takes part."""
    two = jobs.train("two-shards", 2, "--shard", "--grad-accum", "2")  # IVON
    same(two, jobs.train("two-whole", 2, "--grad-accum", "2"))
    assert [line["noise"] for line in two.traces[0]] != [line["noise"] for line in two.traces[1]]


def test_a_sharded_run_is_that_of_one_process(jobs):
    """AdamW without dropout; started by srun, and the other way of recomputing."""
    adamw = ("--optimizer", "adamw", "--lr", "0.01")
    how = ("--shard", "--gradient-checkpointing", "selective")
    same(jobs.train("three", 3, *adamw, *how, slurm=True), jobs.train("single", 1, *adamw))


def test_codes_are_divided_as_weights_are(jobs):
    """4 bits: the codes and their scales in two steps; what they stand for is the same."""
    pytest.importorskip("bitsandbytes")
    nf4 = ("--base-precision", "nf4", "--optimizer", "adamw", "--lr", "0.01")
    same(jobs.train("nf4-shards", 2, "--shard", *nf4), jobs.train("nf4-whole", 2, *nf4))


def test_a_sharded_run_resumes_on_another_number(jobs):
    adamw = ("--optimizer", "adamw", "--lr", "0.01", "--shard")
    whole = jobs.train("as-one", 2, *adamw)
    killed = jobs.train("in-parts", 2, *adamw, rank=1, step=6, what="SIGKILL")
    assert killed.codes[1] == -9
    assert killed.codes[0] == 1
    assert "the connection to process 1 of 2 is lost" in killed.texts[0]
    full = jobs.train("in-parts", 2, *adamw, rank=0, step=7, what="error")  # such as a full disk
    assert full.codes == [1, 1]
    assert "injected" in full.texts[0]
    stopped = jobs.train("in-parts", 3, *adamw, rank=2, step=8, what="SIGTERM")
    assert stopped.codes == [75, 75, 75], stopped.texts
    resumed = jobs.train("in-parts", 1, *adamw[:-1])
    assert resumed.codes == [0], resumed.texts
    found, expected = (load_file(run.run / "posterior.safetensors") for run in (resumed, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_one_process_divides_nothing(jobs):
    alone = jobs.train("nothing", 1, "--shard")
    assert alone.codes == [2]
    assert "--shard: weights are divided among processes, and there is only one" in alone.texts[0]
