"""``mrt select``: which of the trained detectors to take, without the target's labels."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .arguments import ListCommand, help_of


def select(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|WEIGHTS...",
            help="A run whose teachers were kept (engine.keep_teachers), or several runs or weights files. "
            "They stand before the options.",
        ),
    ],
    images: options.Photos = None,
    target: options.PhotosOf = None,
    split: options.PhotosSplit = None,
    limit: options.Looked = 200,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="SIGNAL",
            help="What is chosen by: a signal, or last (as where it is not known). Default: prototypes.",
        ),
    ] = None,
    apply: Annotated[
        bool,
        typer.Option(
            "--apply",
            help="Write the chosen weights to selected.safetensors in their run's folder: what --by picks if "
            "that is better than the last detector beyond noise, else the last detector.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --apply: write them here instead. Needed for weights without a run."
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures to this file.")
    ] = None,
    seed: options.NoiseSeed = 0,
    data_root: options.DataRoot = None,
    run_root: options.RunRoot = None,
    device: options.Device = None,
) -> None:
    """Rank trained detectors by what can be seen without labels, e.g. mrt select my-run.

    Each signal says which detector it picks, and whether that differs from the last one (of several runs: of
    the last that is named) by more than noise. How far signals can be trusted: docs/trust.md.
    """
    from mrt import experiment
    from mrt.errors import MrtError, RunFailed
    from mrt.plain import quoted
    from mrt.signals import RECOMMENDED, require_signal

    from .console import clock, say, show_table, watching
    from .experiment import require_one_process

    require_one_process("select")
    by = by or RECOMMENDED
    require_signal(by, "--by", also=("last",))
    if out is not None and not apply:
        raise MrtError("--out: there is nothing to write", "add --apply")
    if images and target:
        raise MrtError("--images and --target: both say which images", "leave out one of them")
    roots = experiment.find_roots(data_root, run_root)
    places = [experiment.require_named(run, roots.run_root) for run in runs]
    from mrt import selection
    from mrt.api import choose_device
    from mrt.engine.facts import SELECTED
    from mrt.evaluate.unlabelled import SIGNALS

    candidates = selection.find_candidates(places)
    if apply and out is None and any(candidate.run is None for candidate in candidates):
        raise MrtError("--apply: weights that belong to no run may be chosen", "say where to: --out FILE")
    chosen = selection.images_for(
        candidates[0], images=images, target=target, split=split, limit=limit, data_root=roots.data_root
    )
    started = time.monotonic()
    with watching() as watcher:
        measured = selection.measure_all(
            candidates,
            chosen,
            data_root=roots.data_root,
            limit=limit,
            seed=seed,
            device=choose_device(device or "auto"),
            watcher=watcher,
        )
    ranking = selection.rank(measured, seed)
    seconds = time.monotonic() - started
    names = [name for name in SIGNALS if any(name in row["signals"] for row in ranking["candidates"])]
    show_table(
        f"{len(candidates)} detectors on {len(chosen)} images of {chosen.origin}, without labels",
        ["", *names],
        [[row["name"], *(_value(row, name, ranking) for name in names)] for row in ranking["candidates"]],
        caption="* the best by this signal. Lower is better for "
        + ", ".join(name for name in names if not SIGNALS[name].high)
        + ".\n"
        + "\n".join(f"{name}: {SIGNALS[name].words}" for name in names),
    )
    show_table(
        f"Against {ranking['base']}",
        ["signal", "picks", "difference", "interval", "verdict"],
        [_pick(name, pick, ranking) for name, pick in ranking["picks"].items()],
        caption=f"Intervals of {100 * ranking['level']:.2f} %: 95 % for the best of {len(candidates)}.",
        text_columns=2,
    )
    if ranking["number_of_images"] < selection.ENOUGH:
        say(f"Fewer than {selection.ENOUGH} images: too few to tell a difference from noise.")
    left_out = [name for name in SIGNALS if name not in names]
    if left_out:
        say(f"Left out, for want of what they look at: {', '.join(left_out)}.")
    say(f"Took {clock(seconds)} for {len(candidates)} detectors, {seconds / len(candidates):.1f} s each.")
    taken = selection.choose(ranking, by)
    record = {
        "by": by if by in ranking["picks"] else "last",
        "chosen": taken,
        "images": {"from": chosen.origin, "number": len(chosen), "names": chosen.names},
        "seed": seed,
        **ranking,
    }
    if json_file is not None:
        from mrt.files import write_text

        write_text(json_file, json.dumps(record, indent=1) + "\n")
        say(f"Written to {json_file}")
    if apply:
        candidate = next(one for one in candidates if one.name == taken)
        place = out or candidate.run / SELECTED
        short = {key: value for key, value in record.items() if key not in ("images", "candidates")}
        short["images"] = {key: value for key, value in record["images"].items() if key != "names"}
        selection.apply(candidate.file, place, short)
        say(f"By {by}: {taken}{_why(by, ranking)}")
        say(f"Written to {place}; use it by that name: mrt predict {quoted(place)} PHOTOS")
    else:
        apart = any(candidate.run is None for candidate in candidates)
        how = (
            "--apply --out FILE writes its weights" if apart else f"--apply writes its weights to {SELECTED}"
        )
        say(f"By {by}: {taken}{_why(by, ranking)}. {how}.")
    if len(runs) == 1 and candidates[0].run is not None:
        try:
            selection.keep_record(candidates[0].run, record)
        except (MrtError, RunFailed, OSError) as error:  # such as a folder that may only be read
            say(f"mrt report will not show this: {str(error).splitlines()[0]}")


def _why(by: str, ranking: dict[str, Any]) -> str:
    """Why the last detector is taken, if it is."""
    from mrt.signals import RECOMMENDED

    pick = ranking["picks"].get(by)
    if by == "last":
        return ""
    if pick is None:
        return (
            f" (the last one, for {by} is not known here: it looks at the source's images)"
            if by == RECOMMENDED
            else " (the last one, for it is not known here)"
        )
    return (
        ""
        if pick["is_base"] or pick["beyond_noise"]
        else f", for {pick['candidate']} is not better beyond noise"
    )


def _value(row: dict[str, Any], name: str, ranking: dict[str, Any]) -> str:
    found = row["signals"].get(name)
    if found is None or (found["value"] is None and not found["infinite"]):
        return "-"
    if found["infinite"]:
        return "inf"
    best = ranking["picks"].get(name, {}).get("candidate") == row["name"]
    return f"{found['value']:.3f}" + (" *" if best else "")


def _pick(name: str, pick: dict[str, Any], ranking: dict[str, Any]) -> list[str]:
    if pick["is_base"]:
        return [name, pick["candidate"], "", "", "the same"]
    if pick["difference"] is None:
        says = f"{ranking['base']} finds nothing" if pick["beyond_noise"] else "not known of the other"
        return [name, pick["candidate"], "-", "", says]
    there = pick["low"] is not None
    return [
        name,
        pick["candidate"],
        f"{pick['difference']:+.3f}",
        f"{pick['low']:+.3f} to {pick['high']:+.3f}" if there else "-",
        "better" if pick["beyond_noise"] else "within noise",
    ]


def register(app: typer.Typer) -> None:
    app.command("select", cls=ListCommand, help=help_of(select))(select)
