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
def jobs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("jobs")
    model = save_decoder(directory / "tiny")
    files = (
        "--train-file", write_prompts(directory / "train.jsonl", 33),
        "--eval-file", write_prompts(directory / "dev.jsonl", 9, seed=1),
    )  # fmt: skip
    found = Jobs(directory, [*OPTIONS.split(), *files, "--model", model])
    yield found
    found.close()


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
