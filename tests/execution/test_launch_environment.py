"""Which process this is, from what torchrun, accelerate and SLURM say."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayeslora_cli.cli.app import main
from bayeslora_cli.execution.launch_environment import Place, first_node, joined, place
from bayeslora_cli.execution.processes import SINGLE, mixed
from bayeslora_cli.execution.signals import Stop

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1",
}  # fmt: skip
SRUN = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[03-05,9],x1", "SLURM_JOB_ID": "41234567", "SLURM_STEP_ID": "2",
}  # fmt: skip
# what a batch script without srun has, whatever it asked for
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}


def test_alone():
    assert place({}) == place(BATCH) == place({"WORLD_SIZE": "4"}) == Place()
    assert place({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) == Place()
    with joined(Place(), Stop()) as processes:
        assert processes is SINGLE


def test_torchrun():
    assert place(TORCHRUN) == Place(rank=3, world=8, local=1)
    assert place(TORCHRUN | SRUN) == place(TORCHRUN)  # srun that starts torchrun


def test_srun():
    found = place(SRUN)
    assert (found.rank, found.world, found.local, found.address) == (5, 16, 1, "gpu03")
    assert 15_000 <= found.port < 30_000
    assert place(SRUN | {"SLURM_PROCID": "0"}).port == found.port
    assert place(SRUN | {"SLURM_STEP_ID": "3"}).port != found.port  # two steps at a time


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-4]", "n1"),
        ("n[007,9-12],m1", "n007"),
        ("rack[2-3]-gpu[10,12]", "rack2-gpu10"),
        ("", ""),
    ],
)
def test_first_node(nodes, first):
    assert first_node(nodes) == first


def test_the_first_speaks(capsys):
    for rank in range(2):
        with Place(rank=rank, world=2).only_first_prints():
            print(f"out {rank}")
            print(f"error {rank}", file=sys.stderr)
    assert capsys.readouterr() == ("out 0\n", "error 0\n")


def test_only_a_training_is_one_of_several(monkeypatch, capsys):
    """srun may start four evaluations, each of which has something to say."""
    for name, value in (SRUN | {"SLURM_PROCID": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["bayeslora", "--version"])
    with pytest.raises(SystemExit) as left:
        main()
    assert not left.value.code
    assert capsys.readouterr().out.startswith("bayeslora ")


def test_names():
    assert Place().name == ""
    assert Place(rank=1, world=4).name == "process 1 of 4: "


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 99), st.integers(0, 99))
def test_seeds_of_processes_are_seeds_and_differ(a, b, r, s):
    assert 0 <= mixed(a, r) < 2**63
    assert (mixed(a, r) == mixed(b, s)) == ((a, r) == (b, s))


def test_the_first_draws_what_one_alone_draws():
    assert SINGLE.seed(7) == 7


def test_leaving_alone_is_an_ordinary_exit():
    with pytest.raises(SystemExit) as left:
        Place().exit(75)
    assert left.value.code == 75
