"""Import path that the model cards of `--format quantized` named before `bayeslora_cli` did."""

from bayeslora_cli.export.formats.integer_codes import load_quantized as load_quantized
