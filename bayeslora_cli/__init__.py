"""bayeslora: low-rank fine-tuning with ranks allocated by a Bayesian importance score."""

__version__ = "0.1.0"
