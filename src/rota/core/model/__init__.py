"""The words of Rota as values. Only `indexset` needs more than the standard library."""
