"""Which runs are kept, and what every build is asked of them."""

from __future__ import annotations

COMMON = (
    "--device cpu --max-steps 12 --batch-size 8 --max-length 16 --log-every 3 --checkpoint-every 4"
)
TOPICS = "--train-file {root}/topics.csv --eval-file {root}/topics-dev.csv"
SCORES = "--train-file {root}/scores.csv --eval-file {root}/scores-dev.csv"
BERT, DEBERTA = "--model {root}/tiny-bert", "--model {root}/tiny-deberta"
LEARNED = "--hess-init 0.01 --ivon-beta2 0.99"  # or sigma would be the same for all elements
GATES = "--init-rank 3 --gate-lr 0.5 --range-lr 0.05 --lambda-rank 0.01"

# name -> options; {root} is the directory that the inputs are in
RUNS = {
    "adalora-ivon-snr": f"--task demo {DEBERTA} {LEARNED} --seed 7",
    "adalora-adamw-sensitivity": f"{TOPICS} {BERT} --method adalora --optimizer adamw --lr 0.02",
    "lora-adamw": f"{TOPICS} {BERT} --method lora --lr 0.02 --group-by-length",
    "lora-ivon": f"{TOPICS} {DEBERTA} --method lora --optimizer ivon --train-samples 2",
    "full-adamw": f"{TOPICS} {BERT} --method full --lr 0.01",
    "full-ivon": f"{TOPICS} {DEBERTA} --method full --optimizer ivon {LEARNED}",
    "blora-adamw": f"{TOPICS} {BERT} --method blora --lr 0.02 {GATES}",
    "blora-ivon": (
        f"{TOPICS} {DEBERTA} --method blora --optimizer ivon {GATES} --quantize-base --reg bop "
        "--bit-ladder 4,8"
    ),
    "regression": (
        f"{SCORES} {BERT} --preset learned-posterior --criterion precision --grad-accum 2 "
        "--target-modules query,key,value,dense --eval-every 2"
    ),
}
KILLED = "lora-adamw"
"""The unfinished run that SIGKILL ended while it wrote a checkpoint; SIGTERM ended the others."""
UNTIL = 8
"""Step at whose checkpoint the unfinished runs were stopped."""

FORMATS = {
    "adalora": ("adalora", "lora --patterns", "merged"),
    "lora": ("lora --patterns", "merged"),
    "full": ("merged",),
    "blora": ("quantized", "merged", "lora --patterns", "adalora"),
}
MORE_EXPORTS = {
    "adalora-ivon-snr": ("onnx", "lora --uniform-rank", "adalora --target-rank 1"),
    "full-adamw": ("onnx", "lora"),
    "regression": ("lora --patterns --target-rank 1", "quantized"),
}
"""What takes seconds, or is refused, is asked of one run or two.

Version 0.1.0 wrote ranks per matrix by `--format lora`, now by `--patterns`; what it padded has
another rank now, and is kept as a later build wrote it."""


def exports(name: str) -> tuple[str, ...]:
    """Formats, with options, that the run `name` is exported in."""
    method = name.split("-")[0].replace("regression", "adalora")
    return FORMATS[method] + MORE_EXPORTS.get(name, ())


# question -> command; {run} is the run's directory, {options} are those that it was trained with
QUESTIONS = {
    "plan": "train {options} --output {root}/elsewhere --dry-run --json",
    "train": "train {options} --output {root}/runs --json",
    "eval": "eval {run} --json --device cpu",
    "eval-samples": "eval {run} --samples 4 --json --device cpu",
    "eval-train": "eval {run} --split train --json --device cpu",
    "eval-rows": "eval {run} --eval-file {root}/rows.csv --predictions {root}/{name}.csv --json",
    "ranks": "inspect-ranks {run} --json",
    "ranks-csv": "inspect-ranks {run} --csv",
    "history": "inspect-ranks {run} --history --json",
    "history-csv": "inspect-ranks {run} --history --csv",
    "scores": "inspect-ranks {run} --scores --json",
    "scores-csv": "inspect-ranks {run} --scores --csv",
}
TOGETHER = {
    "table": "eval {root}/runs --json",
    "table-csv": "eval {root}/runs --csv",
    "ranks": "inspect-ranks {root}/runs --json",
}
"""Asked of all finished runs at once."""

# Two seeds that must fail, since there is no such model: what a sweep then prints names the
# directories. Absolute paths are part of their hashes: /dev is on every machine.
NOWHERE = "--model no/such-model --seeds 1,2021 --output out --json"
DIRECTORIES = (
    "--task cola,sst2,mrpc,qqp,stsb,mnli,qnli,rte,wnli,demo",
    "--task rte --target-rank 2,4 --method adalora,lora,full,blora --optimizer adamw,ivon",
    "--task mnli --criterion snr,snr-abs,precision,sensitivity,magnitude",
    "--task stsb --optimizer adamw --criterion sensitivity,magnitude",
    "--task demo --method adalora,lora,full,blora --optimizer adamw,ivon",
    "--train-file owner/name:config@split",
    "--train-file owner/name@train --text-columns a,b --label-column c --eval-file owner/name@dev",
    "--train-file /dev/null --eval-file /dev/null",
    "--train-file owner/name --preset mnli",
    "--task rte --data /dev",
    "--task rte --model /dev",
    "--task rte --model package:no_such_package/model",
    "--task rte --preset learned-posterior",
    "--task rte --preset mnli",
    "--preset quickstart",
    "--task rte --preset {root}/mine.toml",
    "--task rte --dropout 0",
    "--task rte --dropout 0.1",
    "--task rte --lr 0.01,2 --boost-lr 3",
    "--task rte --method lora --lr 1e-3",
    "--task rte --lr-schedule linear",
    "--task rte --optimizer adamw --lr-schedule boost --boost-lr 0.01 --boost-until-step 10",
    "--task rte --warmup-steps 5 --weight-decay 0.1",
    "--task rte --init-rank 6 --alpha 16 --orth-reg 0",
    "--task rte --t-init 10 --t-final 20 --delta-t 2",
    "--task rte --target-modules all-linear",
    "--task rte --target-modules query_proj,value_proj",
    "--task rte --epochs 2.5",
    "--task rte --max-steps 20",
    "--task rte --max-steps 20 --epochs 3",
    "--task rte --batch-size 16 --grad-accum 2",
    "--task rte --group-by-length --max-length 64 --eval-every 7",
    "--task rte --ess 1000 --ess-per-example 2",
    "--task rte --ess-per-example 10 --train-samples 2",
    "--task rte --hess-init 0.1 --ivon-beta1 0.8 --ivon-beta2 0.999 --clip-radius 0.01",
    "--task rte --precision bf16",
    "--task rte --precision tf32",
    "--task rte --method blora --blora-mode both,quant,rank --lambda-quant 0.001,0.1",
    "--task rte --method blora --lambda-rank 0.1,1 --init-rank 4",
    "--task rte --method blora --bit-ladder 4,8 --quantize-base --reg bop",
    "--task rte --method blora --optimizer ivon --gate-lr 0.1 --range-lr 0.1",
    "--task rte --method full --target-rank 8 --alpha 3",  # both idle
    "--task rte --eval-batch-size 8 --log-every 1 --deterministic --eager --compile on",  # idle too
    "--task rte --gradient-checkpointing --checkpoint-every 10m --device cpu --overwrite --jobs 1",
)
COMMANDS = (
    "--task rte,mrpc --method adalora,lora --optimizer adamw,ivon --seeds 1-2",
    "--task rte --method blora --blora-mode both,rank --lr 0.1,1 --quantize-base",
    "--train-file a.csv --text-columns a,b --preset mnli --dropout 0.1 --overwrite",
)
"""Sets of options for --print-commands."""

CODES = (
    "",
    "--version",
    "--help",
    "no-such-command",
    "train",
    "train --list-presets",
    "train --no-such-option",
    "train --task rtee",
    "train --task rte --method lora --criterion snr",
    "train --task rte --optimizer adamw --criterion snr",
    "train --task rte --data {root}/no-such",
    "train --task rte --data {root}/tiny-bert --model {root}/tiny-bert",
    "train --task demo --model {root}/tiny-bert --device gpu",
    "train --task demo --model {root}/tiny-bert --target-rank 9 --init-rank 3",
    "train --task demo --model {root}/tiny-bert --t-init 5 --t-final 5 --max-steps 6",
    "train --task demo --model {root}/tiny-bert --target-modules dens --max-steps 6",
    "train --task demo --model {root}/tiny-bert --max-length 3",
    "train --task demo --model {root}/no-such",
    "train --task demo --seed 1 --seeds 1-2",
    "train --task demo --seeds 3-1",
    "train --task demo --jobs 0",
    "train --task demo --lr fast",
    "train --task demo --epochs many",
    "train --task demo --bit-ladder 2,8",
    "train --task demo --checkpoint-every often",
    "train --task demo --log-to no-such",
    "train --task demo --train-file {root}/topics.csv",
    "train --train-file {root}/no-such.csv --model {root}/tiny-bert",
    "train --train-file {root}/topics.csv --label-column no-such --model {root}/tiny-bert",
    "train --preset no-such",
    "eval",
    "eval {root}",
    "eval {root}/no-such",
    "eval {run} --samples 0",
    "eval {run} --split no-such",
    "eval {run} --submission {root}/submission",
    "eval {unfinished}",
    "inspect-ranks",
    "inspect-ranks {root}/no-such",
    "inspect-ranks {run} --compare",
    "inspect-ranks {unfinished}",
    "export {run}",
    "export {run} --format no-such",
    "export {run} --format quantized",
    "export {run} --format merged --uniform-rank",
    "export {run} --format lora --target-rank 0",
    "export {unfinished} --format lora",
)
"""Commands whose exit codes are kept; {run} is the first of `RUNS`."""
