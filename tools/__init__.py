"""Scripts for those who work on Rota. Nothing here is installed with it."""
