"""The command line: an ordinary user of `rota.client`."""
