"""Where the parts are wired together: the program `rota`."""
