"""`python -m bayeslora_cli` is `bayeslora`."""

from bayeslora_cli.cli.app import main

main()
