"""The decisions of Rota, without I/O: no clock, socket, file, chance or log is seen here."""
