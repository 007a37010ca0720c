"""``mrt eval``: COCO metrics of runs and weights, as a table, JSON, CSV and a picture."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    return None
