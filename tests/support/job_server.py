"""Jobs of several processes, as torchrun would start them, for `jobs.py`.

Each process of a job is a fork of `warm_server.py`'s process.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from hashlib import sha256
from pathlib import Path

import torch

from bayeslora_cli.data.packing import rows_of
from bayeslora_cli.errors import StorageError
from bayeslora_cli.methods.network import Network
from bayeslora_cli.training.step import TrainStep
from tests.support.fault_server import be_bayeslora


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def digest(tensor: torch.Tensor) -> str:
    return sha256(tensor.numpy().tobytes()).hexdigest()[:12]


def harmed(harm, trace) -> None:
    """Do harm at a step or an evaluation, and write down what each step leaves."""
    stepping, passing = TrainStep.__call__, Network.logits
    passes = 0

    def at_once(network) -> None:
        what = harm["what"]
        if what == "mask":
            network.bank.mask[0, 0] = 1 - network.bank.mask[0, 0]
        elif what == "mean":
            network.bank.mean[0] += 1e-6
        elif what == "nan":
            network.module.bert.embeddings.word_embeddings.weight.data.fill_(float("nan"))
        elif what == "error":
            raise StorageError("injected")
        elif what == "bug":
            raise KeyError("injected")
        else:
            os.kill(os.getpid(), getattr(signal, what))

    def step(own, number, micro_batches):
        if harm.get("step") == number:
            at_once(own.network)
        stepping(own, number, micro_batches)
        bank = own.network.bank
        line = {
            "step": number, "rows": sum(map(rows_of, micro_batches)),
            "mean": digest(bank.mean), "mask": digest(bank.mask), "noise": digest(bank.noise),
            "loss": own._loss.tolist(),
        }  # fmt: skip
        print(json.dumps(line), file=trace, flush=True)

    def logits(network, batch):
        nonlocal passes
        if not getattr(network.module, "training", True):
            passes += 1
            if harm.get("turn") == passes:
                at_once(network)
        return passing(network, batch)

    TrainStep.__call__, Network.logits = step, logits


def run(order, rank: int, port: int) -> None:
    """In the fork: `bayeslora` with the order's arguments."""
    root = Path(order["root"])
    log = os.open(root / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = order["arguments"]
    if order["slurm"]:
        os.environ |= {
            "SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(order["world"]),
            "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "localhost",
            "MASTER_PORT": str(port),
        }  # fmt: skip
    elif order["world"] > 1:
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(order["world"]), "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
    if rank == order["harm"].get("rank"):
        arguments = arguments + order["harm"].get("more", [])
    sys.argv = ["bayeslora", *arguments]
    harm = order["harm"] if rank == order["harm"].get("rank", rank) else {}
    harmed(harm, (root / f"trace-{rank}").open("w"))
    be_bayeslora()


def job(order) -> list[int]:
    """The exit codes of all processes, minus the signal of one that was killed."""
    port, children = free_port(), []
    for rank in range(order["world"]):
        child = os.fork()
        if child == 0:
            run(order, rank, port)
        children.append(child)
    codes: dict[int, int] = {}
    end = time.monotonic() + order["limit"]
    while len(codes) < len(children):
        for rank, child in enumerate(children):
            if rank in codes:
                continue
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[rank] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[rank] for rank in range(len(children))]
