"""The simulator: the real cluster core, turn and node core in virtual time, with faults on purpose.

`world` has the clock and what happens next; `leader`, `node` and `user` are who lives in it; `disk`
and `network` are what fails; `checkers` look on. Everything is drawn from one seed.
"""
