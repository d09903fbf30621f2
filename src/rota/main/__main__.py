"""`python -m rota.main` is `rota`."""

from rota.cli import interrupts

interrupts.end_quietly()

from rota.main.cli import main  # noqa: E402

main()
