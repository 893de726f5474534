"""The command `lrp-jax gallery`."""


def add(commands) -> None:
    """Adds the command to the parser's."""
