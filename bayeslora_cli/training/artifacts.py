"""Writes the files of a finished run: result, adapter, posterior, ranks, model card."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bayeslora_cli.bayes import posterior
from bayeslora_cli.bayes.posterior import Posterior
from bayeslora_cli.config.catalogue import OBJECTIVES
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.evaluation.run_loading import base_facts
from bayeslora_cli.execution.device import peak_memory
from bayeslora_cli.export.adapter_check import adapter_problem
from bayeslora_cli.export.card import packages, statements
from bayeslora_cli.export.formats.merged_model import MERGED, tied_names
from bayeslora_cli.export.formats.peft_adapter import ADALORA, save_peft_adapter
from bayeslora_cli.methods.method import find_method
from bayeslora_cli.methods.network import Network
from bayeslora_cli.runs import model_card as card
from bayeslora_cli.runs.atomic_write import replacing, write_json, write_text
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import MatrixReport, RankReport, kinds_of, layer_of
from bayeslora_cli.tasks.task import DATA_CHECKSUM, Task
from bayeslora_cli.training.assembly import TrainingSetup
from bayeslora_cli.training.state import BestSoFar, LoopState

logger = logging.getLogger("bayeslora")


def run_result(
    config: RunConfig, task: Task, setup: TrainingSetup, state: LoopState, best: BestSoFar,
    data_sha256: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the content of result.json for a run whose steps are all done.

    Args:
        config: has its final schedule.
        state: the loop's state at the end.
        best: the best evaluations, and the state of the best one at the final budget.
        data_sha256: `data_checksum` of the rows.
    """
    network, allocator, rows = setup.network, setup.allocator, setup.data.training_rows
    bank = network.bank
    ranks = bank.mask.sum(1).round().long().tolist()
    seconds = state.train_seconds + state.evaluation_seconds + state.checkpoint_seconds
    return {
        **best.records,
        "selecting": task.selecting,
        "task": task.name,
        # a language model's run has no head: what an evaluation keeps of a row is no output
        "outputs": network.objective.outputs if network.objective.has_labels else None,
        "training_rows": rows,
        DATA_CHECKSUM: data_sha256,
        "steps": state.step,
        **stopped_early(config, state, allocates=allocator is not None),
        "seconds": round(seconds, 3),
        "train_seconds": round(state.train_seconds, 3),
        "checkpoint_seconds": round(state.checkpoint_seconds, 3),
        "steps_per_second": round(state.step / state.train_seconds, 3),
        "trainable_parameters": bank.trainable(),
        "kept_parameters": bank.kept(),
        "ranks": dict(zip(network.adapters, ranks, strict=True)),
        **({} if allocator is None else allocator.result(best.mean, best.mask)),
        "posterior": best.posterior.summary(config, rows),
        "peak_memory_bytes": peak_memory(setup.device),
        **base_facts(config),
    }


def stopped_early(config: RunConfig, state: LoopState, *, allocates: bool) -> dict[str, Any]:
    """Return what result.json says of a run that --patience ended before its last step; else {}."""
    if state.step >= config.total_steps:
        return {}
    found = {"planned_steps": config.total_steps, "patience": config.patience}
    # a run ends early only after the last allocation (`Evaluations.at_budget`)
    return {"stopped_early": found | ({"rank_schedule": "completed"} if allocates else {})}


def rank_report(
    network: Network, config: RunConfig, step: int, mask: Tensor, scores: Tensor | None,
    mean: Tensor,
) -> RankReport:  # fmt: skip
    """Report the ranks in `mask` (n, r), the triplets' scores (n, r), the widths in `mean` (N,)."""
    bits = network.widths(mean)
    kept = mask.bool().tolist()
    values = None if scores is None else scores.tolist()
    kinds = kinds_of(list(network.adapters))
    matrices = tuple(
        MatrixReport(
            name=name,
            layer=layer_of(name),
            kind=kinds[index],
            in_features=layer.lora_A.shape[1],
            out_features=layer.lora_B.shape[0],
            init_rank=layer.rank,
            rank=sum(kept[index]),
            kept=tuple(kept[index]),
            scores=None if values is None else tuple(values[index]),
            bits=bits[index] or None,
        )
        for index, (name, layer) in enumerate(network.adapters.items())
    )
    budget = sum(m.rank for m in matrices)
    criterion = find_method(config.method).ranked_by(config)
    return RankReport(step=step, budget=budget, criterion=criterion, matrices=matrices)


def write_artifacts(
    run: RunDir,
    network: Network,
    config: RunConfig,
    *,
    at: Posterior,
    scores: Tensor | None,
    mask: Tensor,
    result: Mapping[str, Any],
    tokenizer: Any,
    batch: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the files; result.json last, since a run that has it counts as finished.

    A language model's tokenizer lies beside the adapter: it may cut text otherwise than the one
    that transformers opens for the base model (`load_tokenizer`).

    Args:
        at: the posterior of the best evaluation at the final budget.
        scores: the scores of its triplets (n, r); None if the method has no scores.
        mask: the final allocation (n, r).
        batch: inputs to compare the adapter on, as PEFT opens it, with the run; None: none are.
    """
    task, problem = run.read_task(), None
    network.bank.check_views()
    with replacing(run.posterior) as path:
        posterior.save(path, network, at)
    if network.adapters:
        with replacing(run.adapter) as path:
            save_peft_adapter(network, config, at.mean, at.mask, path)
            _save_tokenizer(tokenizer, task, path)
        if batch is not None and (found := adapter_problem(network, at, run.adapter, batch)):
            problem = f"{run.adapter.name}/: {found}. `bayeslora export --format merged` holds it"
            logger.warning("%s", problem)
    else:
        with replacing(run.model) as path:
            _save_full(path, network, at)
            _save_tokenizer(tokenizer, task, path)
    report = rank_report(network, config, result["steps"] - 1, mask, scores, at.mean)
    write_json(run.ranks, report.to_json())
    write_text(run.card, model_card(run, config, task, result, problem))
    run.finish(dict(result))


def _save_tokenizer(tokenizer: Any, task: Task, directory: Path) -> None:
    """Write a language model's tokenizer; others' are as transformers opens the base model's."""
    if OBJECTIVES[task.objective].generates:
        tokenizer.save_pretrained(directory)


def _save_full(directory: Path, network: Network, at: Posterior) -> None:
    """Write the whole fine-tuned model in transformers' own format, in fp32."""
    bank = network.bank
    # found by address: a tied weight has a second name, which the bank does not know
    segments = {bank.parameters[n].data_ptr(): s for n, s in bank.segments.items()}
    tied = tied_names(network.module)
    state = {
        name: segments[value.data_ptr()].view(at.mean) if value.data_ptr() in segments else value
        for name, value in network.module.state_dict().items()
        if name not in tied
    }
    # cloned: safetensors refuses tensors that share the bank's storage
    state = {n: v.detach().to("cpu", copy=True).contiguous() for n, v in state.items()}
    network.module.save_pretrained(directory, state_dict=state)


def model_card(
    run: RunDir, config: RunConfig, task: Task, result: Mapping[str, Any],
    problem: str | None = None,
) -> str:  # fmt: skip
    """Return the README.md of a run, with the front matter that model hubs read."""
    best, method = result["best_at_budget"], find_method(config.method)
    whole = method.peft_type is None
    snippet = (MERGED if whole else ADALORA).snippet(config, task)
    trust = card.trust_argument(config)
    standard, base = card.base_model(config.model)
    if OBJECTIVES[task.objective].generates:
        standard, base = [], "directory"
    load = [
        *(f"{line}\n" for line in dict.fromkeys((*snippet.standard, *standard))),
        *packages(snippet, task),
        f"from transformers import {', '.join(sorted({'AutoTokenizer', *snippet.transformers}))}",
        "",
        f'directory = "{(run.model if whole else run.adapter).name}"',
        f"tokenizer = AutoTokenizer.from_pretrained({base}{trust})",
        *statements(snippet, config, task),
    ]
    return "\n".join(
        [
            card.front_matter(config, task, "transformers" if whole else "peft", best["metrics"]),
            card.heading(config, task),
            card.introduction(config, task, result["steps"]),
            "All settings: `config.toml`; the allocation of the ranks: `ranks.json`.\n",
            f"Metrics after {best['step'] + 1} steps, the best evaluation at the final rank "
            f"budget, in {card.measured_in(config)}:\n",
            card.metric_table(best["metrics"]),
            *([] if (said := method.card(result)) is None else [said]),
            *([] if problem is None else [f"{problem}.\n"]),
            card.code("\n".join(load)),
        ]
    )
