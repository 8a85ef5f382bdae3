"""Networks written in a format and reopened, without a run's directory."""

from __future__ import annotations

from bayeslora_cli.config.catalogue import FORMATS, implementation
from bayeslora_cli.export.verification import batches_of, compare, random_rows, run_logits
from bayeslora_cli.models.backbones.loading import load_tokenizer


def export(network, config, options, directory, *, task, rows):
    """Write and reopen: the check on random rows, as the command makes it."""
    tokenizer = load_tokenizer(config.model)
    batches = batches_of(random_rows(tokenizer, rows, 40))
    expected = run_logits(network, batches)
    entry = FORMATS[options.format]
    form = implementation(entry.implementation)
    directory.mkdir()
    form.write(directory, network, config, tokenizer, options)
    tokenizer.save_pretrained(directory)
    reopened = form.reopen(directory, config, task, network.bank.theta.device)
    return compare(expected, reopened, batches, bound=entry.bound, inputs="random")
