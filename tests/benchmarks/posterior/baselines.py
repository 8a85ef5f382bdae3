"""Baselines of the posterior: a LoRA run's predictions, and four usual ways to improve them.

    python -m tests.benchmarks.posterior.baselines --folder DIR --lines LINES... --out LINES

DIR has `predictions/` and `runs/` of the judge, LINES are its lines, among which are those of the
two methods that need a run itself. A line for each method, task and seed: NLL and ECE on the dev
rows, the seconds of fitting and predicting (`ensemble`: of training the other four), and the
megabytes kept beside the run.
The methods: `point`; `temperature`, fitted to the held-out rows by scikit-learn's
CalibratedClassifierCV; `ensemble`, the mean of the five seeds' probabilities; `laplace`, of the
last layer, with laplace-torch's full Hessian, prior precision by marginal likelihood and probit
predictions; `mc-dropout`, ten passes with the backbone's own dropout; `ivon`, ten samples of the
row learned-snr. Regression has no probabilities and is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bayeslora_cli.data.splits import Batches
from bayeslora_cli.tasks.calibration import ece
from tests.benchmarks.posterior.cut import BATCH, CutRun
from tests.benchmarks.posterior.pool import Line, read_lines
from tests.benchmarks.posterior.protocol import BASELINE, PROTOCOL

TASKS = [task for task in PROTOCOL["judge"]["tasks"] if task != "stsb"]
T = TypeVar("T")
PASSES = PROTOCOL["judge"]["samples"]


def dev_split(task: str) -> str:
    return "validation_matched" if task == "mnli" else "validation"


def scored(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Return NLL and ECE of probabilities (n, classes)."""
    right = probabilities.double()[torch.arange(len(labels)), labels]
    return {
        "nll": float(-right.clamp_min(1e-300).log().mean()),
        "ece": float(ece(probabilities.double(), labels)),
    }


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what `work` returns, and its seconds."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return found, time.perf_counter() - began


def tempered(held: Mapping[str, Tensor], dev: Tensor) -> Tensor:
    """Return the dev rows' probabilities at the temperature that fits the held-out rows best."""
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Logits(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """Its rows are log-probabilities already."""

        def fit(self, x: Any, y: Any) -> Any:
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, x: Any) -> Any:
            return x[:, 1] - x[:, 0] if x.shape[1] == 2 else x

        def predict(self, x: Any) -> Any:
            return self.classes_[x.argmax(1)]

    logs, labels = held["mean"].clamp_min(1e-30).log().numpy(), held["labels"].numpy()
    fitted = CalibratedClassifierCV(FrozenEstimator(Logits().fit(logs, labels)),
                                    method="temperature")  # fmt: skip
    fitted.fit(logs, labels)
    return torch.from_numpy(fitted.predict_proba(dev.clamp_min(1e-30).log().numpy()))


def from_predictions(folder: Path, lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """Yield the methods that need predictions only."""
    paces = {line["job"]: line for line in lines if line.get("kind") == "pace"}

    def read(path: Path) -> dict[str, Tensor]:
        return {name: torch.from_numpy(value) for name, value in np.load(path).items()}

    for task in TASKS:
        split, members = dev_split(task), []
        for path in sorted(folder.glob(f"predictions/{BASELINE}-{task}-*.npz")):
            found = read(path)
            labels, mean = found[f"dev/{split}/labels"], found[f"dev/{split}/mean"]
            held = {name: torch.cat([found[f"held-out/{s}/{name}"] for s in splits(found)])
                    for name in ("labels", "mean")}  # fmt: skip
            about = {"task": task, "seed": int(path.stem.rsplit("-", 1)[1])}
            yield {**about, "method": "point", **scored(mean, labels),
                   "seconds": paces[path.stem]["mean"], "megabytes": 0.0}  # fmt: skip
            probabilities, seconds = timed(partial(tempered, held, mean))
            yield {**about, "method": "temperature", **scored(probabilities, labels),
                   "seconds": seconds, "megabytes": 0.0}  # fmt: skip
            members.append(mean.double())
        if len(members) > 1:
            together = torch.stack(members).mean(0)
            others = results(folder, BASELINE, task)[1:]
            yield {
                "task": task, "seed": 0, "method": "ensemble", **scored(together, labels),
                "seconds": sum(result["seconds"] for result in others),
                "megabytes": sum(result["kept_parameters"] * 4 / 1e6 for result in others),
            }  # fmt: skip
        for path in sorted(folder.glob(f"predictions/learned-snr-{task}-*.npz")):
            found, sigma = read(path), results(folder, "learned-snr", task)
            yield {
                "task": task, "seed": int(path.stem.rsplit("-", 1)[1]), "method": "ivon",
                **scored(found[f"dev/{split}/sampled"], found[f"dev/{split}/labels"]),
                "seconds": paces[path.stem]["sampled"],
                "megabytes": sigma[0]["kept_parameters"] * 4 / 1e6 if sigma else 0.0,
            }  # fmt: skip


def splits(found: Mapping[str, Tensor]) -> list[str]:
    return sorted({name.split("/")[1] for name in found if name.startswith("held-out/")})


def results(folder: Path, row: str, task: str) -> list[dict[str, Any]]:
    """Return result.json of a row's runs on a task, in the order of the seeds."""
    paths = sorted(folder.glob(f"runs/{row}/*/{task}-*/*/result.json"))
    return [json.loads(path.read_text()) for path in paths]


class LastLayer:
    """A run's features in front of its last layer, and passes with dropout."""

    def __init__(self, held: CutRun) -> None:
        self.held, network = held, held.network
        (weight,) = (
            name for name, s in network.bank.segments.items()
            if s.role == "head" and len(s.shape) == 2 and s.shape[0] == network.objective.outputs
        )  # fmt: skip
        modules = dict(network.module.named_modules())
        name = weight.removesuffix(".weight")
        self.layer = next(module for key, module in modules.items() if key.endswith(name))

    def features(self, split: Any) -> Tensor:
        """Return what the last layer sees of each row: (n, width), on the CPU."""
        network, seen = self.held.network, []
        batches = Batches(split, BATCH, network.bank.theta.device)
        handle = self.layer.register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
        network.module.eval()
        with torch.no_grad(), network.bank.at_mean():
            for batch in batches.inputs:
                network.logits(batch)
        handle.remove()
        found = torch.cat([x[:size].float() for x, size in zip(seen, batches.sizes, strict=True)])
        ordered = torch.empty_like(found, device="cpu")
        ordered[batches.rows] = found.cpu()
        return ordered

    def head(self) -> nn.Linear:
        """Return a copy of the last layer."""
        with self.held.network.bank.at_mean():
            weight, bias = self.layer.weight.detach(), self.layer.bias.detach()
            copied = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device)
            copied.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        return copied

    def dropped(self, split: str) -> Tensor:
        """Return the mean probabilities over passes with dropout: (n, classes)."""
        network, batches = self.held.network, self.held.batches[split]
        total = torch.zeros(batches.total, network.objective.outputs, dtype=torch.float64)
        network.module.train()
        with torch.no_grad(), network.bank.at_mean():
            for _ in range(PASSES):
                parts = [network.logits(b)[:n] for b, n in
                         zip(batches.inputs, batches.sizes, strict=True)]  # fmt: skip
                total[batches.rows] += torch.cat(parts).double().softmax(-1).cpu() / PASSES
        network.module.eval()
        return total


def laplace(last: LastLayer, split: Any) -> tuple[Tensor, float]:
    """Return last-layer Laplace's probabilities of dev rows, and the megabytes that it keeps."""
    from laplace import Laplace  # type: ignore[import-not-found,unused-ignore]

    training = last.held.training
    assert training.labels is not None
    rows = torch.utils.data.TensorDataset(last.features(training), training.labels.long())
    # on the CPU: the library multiplies its operator of a GPU's parameters by a matrix there
    approximation: Any = Laplace(
        last.head().cpu(), "classification", subset_of_weights="all", hessian_structure="full"
    )
    approximation.fit(torch.utils.data.DataLoader(rows, batch_size=512))
    approximation.optimize_prior_precision(method="marglik")
    # in parts: the library keeps each row's Jacobian
    found = [
        approximation(part, link_approx="probit").detach()
        for part in torch.split(last.features(split), BATCH)
    ]
    return torch.cat(found), approximation.H.numel() * 4 / 1e6


def of_run(held: CutRun) -> Iterator[dict[str, Any]]:
    """Yield the methods that need a LoRA run itself: mc-dropout and laplace."""
    last, split = LastLayer(held), dev_split(held.task.name)
    labels = held.labels(split)
    found, seconds = timed(lambda: last.dropped(split))
    yield {"method": "mc-dropout", **scored(found, labels), "seconds": seconds, "megabytes": 0.0}
    (found, megabytes), seconds = timed(lambda: laplace(last, held.rows[split]))
    yield {"method": "laplace", **scored(found, labels), "seconds": seconds,
           "megabytes": megabytes}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--lines", type=Path, nargs="+", required=True, help="the judge's")
    parser.add_argument("--out", type=Path, required=True)
    typed = parser.parse_args()
    with typed.out.open("w", encoding="utf-8") as file:
        for line in from_predictions(typed.folder, read_lines(typed.lines)):
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
