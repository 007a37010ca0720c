"""What to do in the first minutes on a GPU: is the op right, how fast is all of it, what to mend first.

    python -m benchmarks.gpu_first_look [--out DIR] [--minutes 10] [--dry-run] [--only TEXT ...] [--list]

Steps come in the order of their value, and each survives the failure of those before it. The report,
DIR/first_look.json and DIR/first_look.md, is written anew before and after each, so whatever ends the process
leaves what was found until then; the same command with --go-on takes up with the next step. What is left when
the minutes are over is skipped, and the report says so.

It needs torch, torchvision, timm, scipy, numpy and pillow. Training steps and the count of their memory also
need pydantic, pydantic-settings and pycocotools; where those are missing, they are skipped, and the layers
are timed by themselves. --dry-run goes through all of it on a CPU, at tiny sizes: its numbers mean nothing.
"""

from __future__ import annotations

import time

BEGAN = time.time()

import argparse  # noqa: E402 - the imports below take part of the minutes
import json  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from benchmarks import gpu_first_look_machine as machine  # noqa: E402
from benchmarks import gpu_first_look_op as op  # noqa: E402
from benchmarks import gpu_first_look_report as report  # noqa: E402
from benchmarks import gpu_first_look_speed as speed  # noqa: E402
from benchmarks import gpu_first_look_tools as tools  # noqa: E402
from benchmarks.gpu_first_look_runner import Look, Step, replace_process, run_steps  # noqa: E402

RESERVE = 20.0  # seconds of the minutes that are kept for the end


def training(table: Sequence[tuple[str, str, bool]], dry_run: bool) -> list[Step]:
    """Training steps by kind, precision and compilation; one of all in a dry run, uncompiled."""
    return [
        Step(
            f"train: {kind}, {amp}, {'compiled' if compiled else 'eager'}",
            partial(speed.train, kind, amp, compiled),
            least=0 if dry_run else 45 if compiled else 15,
            most=180 if compiled else 60,
            needs=speed.NEEDS,
        )
        for kind, amp, compiled in table
        if not dry_run or (kind, amp, compiled) == speed.DRY_TRAINING
    ]


def memory(*table: tuple[str, str]) -> list[Step]:
    """The peak memory of kinds of steps, by precision."""
    return [
        Step(f"memory: {kind}, {amp}", partial(speed.memory, kind, amp), least=25, needs=speed.NEEDS)
        for kind, amp in table
    ]


def all_steps(dry_run: bool) -> list[Step]:
    """In the order of their value: right, fast, and what explains it."""
    return [
        Step("build", machine.build),
        Step("op: self-check", op.self_check),
        Step("op: encoder", op.encoder),
        Step("op: decoder", op.decoder),
        Step("op: generic kernels", op.odd_sizes),
        Step("op: layouts", op.layouts),
        Step("op: empty, nowhere, outside", op.odd_inputs),
        Step("op: deterministic", op.deterministic),
        Step("op: streams and graphs", op.streams_and_graphs, gpu_only=True),
        Step("card", machine.speeds),
        Step("speed: E, float32", speed.op_e_float32, least=15),
        Step("speed: E, 16 bits", speed.op_e_bfloat16, least=15),
        Step("speed: D", speed.op_d, least=15),
        Step("speed: as the model calls it", speed.as_called, least=10),
        Step("train: losses", speed.losses, least=20, most=60, needs=speed.NEEDS),
        *training(speed.TRAINING, dry_run),
        *memory(("source+mae", "bf16") if dry_run else ("teach+mae", "bf16")),
        Step("NCCL", speed.nccl, least=10, most=45),
        Step("sanitizer: memcheck", partial(tools.sanitizer, "memcheck"), least=25, most=120),
        Step("ncu", tools.counters, least=25, most=110),
        Step("sanitizer: racecheck", partial(tools.sanitizer, "racecheck"), 25, 120, gpu_only=True),
        Step("layers", speed.layers, least=25, most=100),
        Step("op: more than 2^31 elements", op.large, least=15),
        *training(speed.MORE_TRAINING, dry_run),
        *([] if dry_run else memory(("source+mae", "bf16"), ("teach+mae", "off"))),
        Step("speed: other cases", speed.op_other, least=40, most=150),
    ]


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("first_look"), help="folder of the report")
    parser.add_argument("--minutes", type=float, default=10, help="after which all is over")
    parser.add_argument(
        "--dry-run", action="store_true", help="on a CPU, at tiny sizes; numbers mean nothing"
    )
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="steps whose name has one of these in it")
    parser.add_argument("--list", action="store_true", help="print the steps and end")
    parser.add_argument("--commit", help="of a copy without its repository, for the report")
    parser.add_argument("--go-on", action="store_true", help="with the step after the last one in the report")
    options = parser.parse_args(words)
    if not options.dry_run and not options.list and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --dry-run goes through all of it without one")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Returns 0 if every step that was begun went well, else 1."""
    options = parsed(words)
    steps = all_steps(options.dry_run)
    if options.only:
        steps = [step for step in steps if any(text in step.name for text in options.only)]
    if options.list:
        print("\n".join(step.name for step in steps))
        return 0
    began = BEGAN if words is None else time.time()
    device = "cpu" if options.dry_run else "cuda"
    look = Look(device, options.dry_run, began + 60 * options.minutes - RESERVE)
    written = options.out / report.JSON
    if options.go_on and written.is_file():
        kept = json.loads(written.read_text())
        look.restore(kept)
        if kept["deadline"] > time.time():  # else somebody goes on later, with minutes of their own
            look.deadline = kept["deadline"]
    facts = machine.provenance(device, options.commit)
    save = partial(report.write, options.out, look, facts)
    run_steps(steps, look, save, restart=None if options.dry_run else replace_process)
    save()
    found = report.summary(look, facts)
    print(f"\nmend first: {found['mend_first']}\nwritten to {options.out / report.PAGE} and {written}")
    return int(any(step["state"] == report.FAILED for step in look.steps))


if __name__ == "__main__":
    raise SystemExit(main())
