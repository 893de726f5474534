"""The script `lrp-jax`. It also ends quietly if Ctrl-C is pressed while JAX is imported, which takes a second."""


def main() -> int:
    """Imports and runs the command. Returns the exit code."""
    try:
        from lrp_jax.cli import main as run

        return run()
    except KeyboardInterrupt:
        return 130
