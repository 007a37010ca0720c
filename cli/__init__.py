"""The ``mrt`` command, installed as the package ``mrt_cli``. Only this folder knows typer and rich."""
