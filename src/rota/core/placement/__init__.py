"""Where work goes: which places fit, in which order, and how much is queued there."""
