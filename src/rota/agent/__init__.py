"""The agent: the supervisor, parent of every task, and the link, which talks to the controller."""
