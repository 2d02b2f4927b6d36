"""Time and memory of a method's first steps with its teacher live in memory, against the same steps from the cache.

python -m tools.live_teacher RUN [--method td] [--seed 0] [--steps 12] [--rounds 3]

    check   one student, the same batches, no updates: the cache's loss against the live teacher's dense one
    cache   Trainer steps as `footsteps distill` does them                      ┐ a process each, in turns: a slow spell
    live    the same rows; the teacher's logits computed, the dense divergence  ┘ meets both, and each peak is its own
                                   └─▶ RUN/live_teacher.json, which `footsteps report RUN` shows; a method's last one

Run it where the paths in RUN/config.toml hold. Seconds are medians between the ends of consecutive steps; memory is the
peak above what the process had before it loaded a model. The report says by how much the two losses differ.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers

from cache_builder.atomic import write_json
from cache_builder.errors import UserError
from tools.live_replay import Stage, check, replay
from tools.measuring import commit, hardware
from trainer.report.run.run_costs import LIVE_FILE, Agreement, Arm, LiveTeacher, LiveTeachers, read_live


def in_its_own_process(arm: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one arm with this program, apart, and return what it found."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", "tools.live_teacher", str(args.run), "--method", args.method]
        command += ["--seed", str(args.seed), "--steps", str(args.steps), "--arm", arm, "--result", str(result)]
        done = subprocess.run(command, check=False)
        if done.returncode == 2:
            raise SystemExit(2)  # it has said why
        if done.returncode:
            raise UserError(f"the process of {arm!r} ended with code {done.returncode}; was there enough memory?")
        return dict(json.loads(result.read_text()))


def compare(args: argparse.Namespace) -> LiveTeacher:
    """Check that both ways compute the same loss, then measure them in turns."""
    print(f"check: the losses of {args.method}, seed {args.seed}, both ways", flush=True)
    checked = in_its_own_process("check", args)
    found: dict[str, list[dict[str, Any]]] = {"cache": [], "live": []}
    for round_ in range(args.rounds):
        for arm, results in found.items():
            results.append(in_its_own_process(arm, args))
            median = statistics.median(results[-1]["seconds"])
            print(f"round {round_ + 1} of {args.rounds}, {arm}: {median:.4f} s per step", flush=True)
    medians = {arm: [statistics.median(result["seconds"]) for result in results] for arm, results in found.items()}
    arms = {
        arm: Arm(
            seconds_per_step=statistics.median(medians[arm]),
            rounds=medians[arm],
            peak_memory_mib=max(result["peak_memory_mib"] for result in results),
        )
        for arm, results in found.items()
    }
    return LiveTeacher(
        method=args.method,
        seed=args.seed,
        checkpoint=checked["checkpoint"],
        steps=args.steps,
        sequences_per_step=checked["sequences_per_step"],
        teacher_parameters=checked["teacher_parameters"],
        student_parameters=found["cache"][0]["parameters"],
        device=hardware(),
        commit=commit(),
        cache=arms["cache"],
        live=arms["live"],
        time_ratio=statistics.median(
            live / cache for live, cache in zip(medians["live"], medians["cache"], strict=True)
        ),
        agreement=Agreement(**checked["agreement"]),
    )


def save(run: Path, measured: LiveTeacher) -> Path:
    """Put a measurement into the run's file, in the place of an earlier one of the method."""
    path = run / LIVE_FILE
    others = [known for known in read_live(run) if known.method != measured.method] if path.is_file() else []
    write_json(path, LiveTeachers(measurements=[*others, measured]).model_dump())
    return path


def main() -> None:
    """Measure, print and save; with --arm, do one arm's part in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--method", default="td")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arm", choices=["check", "cache", "live"], help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.steps < 3 or args.rounds < 1:
        parser.error("--steps must be at least 3, and --rounds at least 1")
    try:
        if args.arm:
            transformers.utils.logging.disable_progress_bar()
            transformers.utils.logging.set_verbosity_error()
            stage = Stage(args.run, args.method, args.seed)
            result = (
                check(stage, args.steps) if args.arm == "check" else replay(stage, args.steps, live=args.arm == "live")
            )
            args.result.write_text(json.dumps(result))
            return
        measured = compare(args)
        path = save(args.run, measured)
    except UserError as error:
        parser.exit(2, f"Error: {error}\n")
    agreement = measured.agreement
    print(
        f"cache {measured.cache.seconds_per_step:.4f} s per step, {measured.cache.peak_memory_mib:,.0f} MiB; "
        f"live {measured.live.seconds_per_step:.4f} s, {measured.live.peak_memory_mib:,.0f} MiB: "
        f"{measured.time_ratio:.2f} times the time, {measured.memory_ratio:.2f} times the memory\n"
        f"loss {agreement.loss_cache:.5f} from the cache, {agreement.loss_live:.5f} live: {agreement.difference:+.2g}, "
        f"allowed {'below ' if agreement.one_sided else '±'}{agreement.allowed:.2g}\n{path}"
    )
    if not agreement.holds:
        parser.exit(1, "The losses differ by more than the cache's codes and samples can explain.\n")


if __name__ == "__main__":
    main()
