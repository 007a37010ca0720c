"""How the help of each command is grouped: data, method, run, results, machine."""

from __future__ import annotations

from typing import Any

# Panel -> options, in the order in which the help shows them.
PANELS: dict[str, str] = {
    "Data": (
        "--target --source --data --raw --condition --location --labels --where --package --fog-beta "
        "--simulate --format --annotations --boxes --domain --benchmark --train --val --test --beta --size "
        "--val-share --split --images --classes --map-class --shared-source --limit --every --data-root"
    ),
    "Method": (
        "--preset --method --stage --init --weights --with --detector --match-compute --oracle --augment "
        "--ema --study --rows --base --baselines --axis --from-scratch --set --against --by --threshold "
        "--nms --agnostic --tile --overlap --top-k --which --best --bootstrap --level --errors --opset "
        "--portable --smoke --select-by"
    ),
    "Run": (
        "--name --seed --seeds --resume --resume-from --allow-change --on-nonfinite --dry-run --allow-empty "
        "--overwrite --run-root"
    ),
    "Results": (
        "--save --out --crop --show --picture --json --csv --ship --apply --suggest --pictures --results "
        "--record --quick --check --preview --mend --fresh --log"
    ),
    "Machine": (
        "--device --gpus --amp --batch-size --profile --jobs --launcher --slurm --workers --max-pixels "
        "--max-unpacked --version --help"
    ),
}
# Options that are about something else in some commands.
ELSEWHERE = {
    **{(command, "--images"): "Results" for command in ("demo", "eval", "report")},
    **{(command, "--format"): "Results" for command in ("assess", "export")},
    ("demo", "--quick"): "Method",
    ("prepare-data", "--name"): "Data",
    ("export", "--size"): "Method",
}
_PLACES = {
    name: (panel, number) for panel, names in PANELS.items() for number, name in enumerate(names.split())
}


def panel_of(command: str, option: str) -> str:
    """The panel of an option in the help of a command; KeyError for one that has none."""
    return ELSEWHERE.get((command, option)) or _PLACES[option][0]


def arrange(command: Any, name: str, ctx: Any) -> Any:
    """Give the options of a command their panels, and sort them by these.

    Args:
        name: of the command, or of the group that it is in. ctx: of that group.
    """
    asked = command.get_help_option(ctx)
    for param in [*command.params, *([asked] if asked else [])]:
        long = next((option for option in param.opts if option.startswith("--")), None)
        if long is not None:
            param.rich_help_panel = panel_of(name, long)
    order = list(PANELS)

    def place(param: Any) -> tuple[int, int]:
        long = next((option for option in param.opts if option.startswith("--")), None)
        return (-1, 0) if long is None else (order.index(param.rich_help_panel), _PLACES[long][1])

    command.params.sort(key=place)
    return command
