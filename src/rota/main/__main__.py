"""`python -m rota.main` is `rota`."""

from rota.main.cli import main

main()
