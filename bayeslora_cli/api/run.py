"""`Run`: a finished run, to inspect, evaluate, sample, predict with and export."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayeslora_cli.api.arguments import check_prompts, rows_of, sampling_of
from bayeslora_cli.api.exports import Export
from bayeslora_cli.config.run_config import RunConfig
from bayeslora_cli.config.validation import nearest
from bayeslora_cli.errors import UserError
from bayeslora_cli.runs.directory import RunDir
from bayeslora_cli.runs.rank_report import RankReport
from bayeslora_cli.tasks.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from bayeslora_cli.evaluation.evaluation import Evaluation
    from bayeslora_cli.evaluation.generation import Generation
    from bayeslora_cli.evaluation.run_loading import LoadedRun
    from bayeslora_cli.evaluation.run_posterior import RunPosterior
    from bayeslora_cli.reports.ranks.history import History
    from bayeslora_cli.reports.ranks.score_distribution import Scores


class Run:
    """A run, read from its directory as needed: `Run(path).ranks` loads no model and no data."""

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        trust_remote_code: bool = False,
        model: str | None = None,
        verify: bool = False,
    ) -> None:
        """Open a run.

        Args:
            device: cpu, cuda, cuda:N or auto, for the methods that load the model.
            trust_remote_code: run Python code that comes with the model.
            model: the backbone's new name or directory, whose content is checked; None: as before.
            verify: hash the backbone's weights again, even if their checksums are remembered.
        Raises:
            RunDirError: there is no such directory, or it is not a run directory.
        """
        self.path = RunDir.open(Path(path)).path
        """The run's directory."""
        self.device, self.trust_remote_code = device, trust_remote_code
        self.model, self.verify = model, verify

    @property
    def directory(self) -> RunDir:
        """The names of its files; a new object each time, as it remembers the files' checksums."""
        return RunDir(self.path)

    @property
    def config(self) -> RunConfig:
        """The options that the run was trained with."""
        found = self.directory.read_config(trust_remote_code=self.trust_remote_code)
        return found if self.model is None else replace(found, model=self.model)

    @property
    def task(self) -> Task:
        """What is predicted, from which columns, and which metrics measure it."""
        return self.directory.read_task()

    @property
    def result(self) -> dict[str, Any]:
        """The run's result.json: evaluations `best`, `best_at_budget` and `last`, sizes, times.

        Raises:
            RunDirError: the run has not finished; all properties below raise it, too.
        """
        return self.directory.read_result()

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Split -> metric -> value, from the best evaluation with the final ranks; the run keeps
        the weights of that evaluation."""
        found: dict[str, dict[str, float]] = self.result["best_at_budget"]["metrics"]
        return found

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: loss, learning rate, budget, evaluations by step, from 0."""
        text = self.directory.read_text(self.directory.metrics)
        return [json.loads(line) for line in text.splitlines()]

    @property
    def ranks(self) -> RankReport:
        """Each matrix's rank and kept triplets; no matrices in a run of --method full."""
        found = self.directory.read_json(self.directory.ranks)
        return RankReport.from_json(found, str(self.directory.ranks))

    @property
    def history(self) -> History:
        """Ranks (t, matrices) after each of the t steps at which the allocation changed.

        Raises:
            UserError: the ranks are constant.
        """
        from bayeslora_cli.reports.ranks.history_reading import load_history
        from bayeslora_cli.reports.ranks.run_groups import load_group

        return load_history(load_group([self.path]))

    @property
    def scores(self) -> Scores:
        """Every triplet's score, and the threshold between kept and pruned.

        Raises:
            UserError: the ranks are constant.
        """
        from bayeslora_cli.reports.ranks.run_groups import load_group
        from bayeslora_cli.reports.ranks.score_distribution import load_scores

        return load_scores(load_group([self.path]))

    def evaluate(
        self,
        split: str | None = None,
        *,
        task: str | None = None,
        choices: str | None = None,
        shots: int = 0,
        samples: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        ood: str | None = None,
        data: str | None = None,
        file: str | Path | None = None,
        reliability: bool = False,
        predictions: Path | None = None,
        submission: Path | None = None,
        batch_size: int | None = None,
        base_precision: str | None = None,
    ) -> Evaluation:
        """Evaluate at the posterior's mean, and over samples of the posterior.

        Args:
            split: train, validation, test or ood; None: validation.
            task, choices, shots: another task, of multiple choice; see `api.models.evaluate`.
            samples: number of samples of the posterior; None: only at the mean.
            temperature: factor of the posterior's variance; None: 1.
            seed: seed of the samples; None: 0.
            ood: out-of-distribution rows, whose uncertainty is compared with the split's: another
                task, a file, or "ood".
            data: directory of the data; None: the one that the run was trained on.
            file: your own rows instead of a split.
            reliability: count the bins of a reliability diagram, in `facts["reliability"]`.
            predictions: write one row per example to FILE.csv, .tsv or .jsonl.
            submission: directory for the files that gluebenchmark.com takes.
            batch_size: examples per forward pass; None: as in training.
            base_precision: of the frozen weights, bf16, int8, nf4 or fp8; None: as in training.
        Raises:
            UserError: options have no effect, data or model is missing, or there is no posterior.
        """
        from bayeslora_cli.evaluation.run_evaluation import evaluate_run

        return evaluate_run(
            self.path, split=split, task=task, choices=choices, shots=shots, data=data,
            file=None if file is None else str(file), ood=ood, reliability=reliability,
            sampling=sampling_of(samples, temperature, seed), predictions=predictions,
            submission=submission, device=self.device, batch_size=batch_size, model=self.model,
            trust_remote_code=self.trust_remote_code, verify=self.verify,
            base_precision=base_precision,
        )  # fmt: skip

    def load(self, base_precision: str | None = None) -> LoadedRun:
        """Load the network at the posterior's mean, its tokenizer and the posterior.

        `network.logits(batch)` runs it on tokens; inside `network.bank.showing(theta)` it uses
        other parameters theta (N,).

        Raises:
            UserError: the model cannot be loaded, or its weights are not those of the training.
        """
        from bayeslora_cli.evaluation.run_loading import load_run
        from bayeslora_cli.tasks.objectives.objective import objective_of

        base = base_precision or self.config.base_precision
        config, objective = replace(self.config, base_precision=base), objective_of(self.task)
        return load_run(self.directory, config, objective, self.device, verify=self.verify)

    @cached_property
    def loaded(self) -> LoadedRun:
        """What `load` returns, loaded once."""
        return self.load()

    @property
    def posterior(self) -> RunPosterior:
        """The distribution over the trained parameters; the model is loaded for its shapes.

        Raises:
            UserError: raised by `load`.
        """
        from bayeslora_cli.evaluation.run_posterior import RunPosterior

        return RunPosterior(
            posterior=self.loaded.posterior, summarised=self.result.get("posterior")
        )

    def predict(
        self,
        texts: Sequence[str | tuple[str, str]],
        *,
        samples: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Predict n texts, or pairs of texts where the task has two columns.

        Args:
            samples, temperature, seed, batch_size: as for `evaluate`.
        Returns:
            fp64 on the CPU: class probabilities (n, classes), in the order of `task.classes`, or
            scores (n,), or embeddings of length 1 (n, d); the mean over the samples, if there are
            any.
        Raises:
            UserError: the texts have another form, there is no posterior to sample, or `load`
                raises it.
        """
        from bayeslora_cli.evaluation.request import check_sampling
        from bayeslora_cli.evaluation.run_evaluation import predict

        sampling = sampling_of(samples, temperature, seed)
        check_sampling(self.config, sampling)
        rows = {"texts": rows_of(texts, self.task)}
        loaded = self.loaded.predicting(rows["texts"])
        found = predict(*loaded, self.config, rows, sampling, batch_size)[1]
        return found["mean" if sampling is None else "sampled"]["texts"].values

    def predict_rows(self, source: str | Path | Iterable[Any], **options: Any) -> Iterator[Any]:
        """Predict rows of a file or an iterable as they are asked for: a dictionary for each."""
        from bayeslora_cli.api.prediction import predicted_rows  # which has the options

        return predicted_rows(self, source, **options)

    def predict_file(self, source: str | Path, output: str | Path | None, **options: Any) -> int:
        """Predict the rows of a file into another, or to standard output; return their number."""
        from bayeslora_cli.api.prediction import predict_file  # which has the options

        return predict_file(self, source, output, **options)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        samples: int | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        chat: bool | None = None,
        system: str | None = None,
        base_precision: str | None = None,
    ) -> list[Generation]:
        """Continue prompts, or answer them, with a run that predicts tokens.

        Args:
            samples: write one text for each of this many samples of the posterior; None: at the
                posterior's mean.
            max_new_tokens, temperature, seed, system: as for `bayeslora_cli.generate`.
            chat: whether prompts are turns of a chat; None: as the run's rows were.
            base_precision: as for `evaluate`.
        Returns:
            A `Generation` for each prompt: `prompt`, `texts`, and whether each text ended by
            itself, `finished`.
        Raises:
            UserError: the run predicts no tokens, has no posterior to sample, or a prompt is too
                long; or raised by `load`.
        """
        from bayeslora_cli.evaluation.generation import Decoding, check_run, generate_from_run

        check_prompts(prompts)
        sampling = None if samples is None else sampling_of(samples, None, seed)
        check_run(self.config, self.task, sampling)
        decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
        another = base_precision not in (None, self.config.base_precision)
        loaded = self.load(base_precision) if another else self.loaded
        return generate_from_run(
            loaded, self.config, self.task, prompts, decoding, sampling, chat=chat,
            system=system,
        )  # fmt: skip

    def export(
        self,
        format: str,
        output: str | Path | None = None,
        *,
        overwrite: bool = False,
        push_to_hub: str | None = None,
        **options: Any,
    ) -> Export:
        """Write the run in another format, complete and checked against the run, or not at all.

        Args:
            format: adalora, gguf, lora, merged, onnx or quantized.
            output: the directory to write; None: `export/FORMAT` in the run's.
            overwrite: replace an export.
            push_to_hub: a repository of the Hugging Face hub to upload to.
            options: the other fields of `ExportOptions`: patterns, precision ("fp32" or "bf16"),
                target_rank, check_rows, check_inputs ("data" or "random"), data, file.
        Raises:
            UserError: options do not fit the run, or data or model is missing.
            BayesloraError: the reopened export does not predict what the run predicts.
        """
        from bayeslora_cli.export.exporter import export_run
        from bayeslora_cli.export.request import ExportOptions

        known = set(ExportOptions.__dataclass_fields__) - {"device", "trust_remote_code"}
        for name in options.keys() - known:
            raise UserError(f"{name}: no option of an export{nearest(name, known)}")
        asked = ExportOptions(
            format=format,
            device=self.device,
            trust_remote_code=self.trust_remote_code,
            **options,
        )
        path, manifest = export_run(
            self.path,
            asked,
            output=None if output is None else Path(output),
            overwrite=overwrite,
            push_to_hub=push_to_hub,
            model=self.model,
            verify=self.verify,
        )
        return Export(path=path, manifest=manifest)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Draw the ranks in a notebook: kinds of matrices by layers (paper, figure 1)."""
        from bayeslora_cli.reports.html_heatmap import heatmap_html

        name = f"<div><code>{escape(str(self.path))}</code></div>"
        if not self.directory.ranks.is_file():
            return f"{name}<div>the run has not finished</div>"
        return name + heatmap_html(self.ranks)
