"""`python -m bayeslora_cli` is `bayeslora`."""

from bayeslora_cli.cli import main

main()
