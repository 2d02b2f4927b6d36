"""Keep docs/capacity.md in agreement with `footsteps plan`: each block from `$ footsteps plan` on is its output.

python -m tools.capacity_page          print which blocks differ
python -m tools.capacity_page --write  put the command's output of now into the page
"""

import argparse
import csv
import re
import shlex
import sys
from pathlib import Path

from click.testing import CliRunner

from tools.measuring import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "capacity.md"
_TABLE = re.compile(r"^(\| shards \| chunks \|.*\n\|[-:|]+\n)(?:\|.*\n)*", re.MULTILINE)
_BLOCK = re.compile(r"^```\n\$ (footsteps plan [^`]*?)\n\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def output_of(command: str) -> str:
    """Run a command line of `footsteps` in this process and return what it prints, without trailing blanks."""
    from trainer.cli import main as footsteps

    words = shlex.split(command.replace("\\\n", " "))
    result = CliRunner().invoke(footsteps, words[1:], catch_exceptions=False)
    if result.exit_code:
        raise RuntimeError(f"{command}: {result.output}")
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    return "\n".join(line for at, line in enumerate(lines) if line or (at and lines[at - 1])).strip("\n") + "\n"


def regenerated(page: str) -> str:
    """Return the page with every block as the command prints it now, and the table of what was measured."""
    page = _BLOCK.sub(lambda match: f"```\n$ {match[1]}\n\n{output_of(match[1])}```", page)
    return _TABLE.sub(lambda match: match[1] + opening_rows(), page)


def opening_rows() -> str:
    """Return the rows of results/opening.csv for the page."""
    with (RESULTS / "opening.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (int(row["sequences"]), int(row["ledger_bytes"])))
    lines = []
    for row in rows:
        chunks = int(row["shards"]) * int(row["chunks_per_shard"])
        counts = [f"{value:,}" for value in (int(row["shards"]), chunks, int(row["sequences"]))]
        sizes = [f"{int(row['ledger_bytes']) / 1e6:.2f} MB", f"{float(row['open_seconds']):.2f} s"]
        sizes += [f"{float(row['open_mib']):.0f} MiB", f"{float(row['continue_seconds']):.2f} s"]
        lines.append(f"| {' | '.join(counts + sizes)} |\n")
    return "".join(lines)


def main() -> None:
    """Compare, or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    now = regenerated(page)
    if arguments.write:
        PAGE.write_text(now, encoding="utf-8")
    elif now != page:
        sys.exit(f"{PAGE} differs from what the commands print; python -m tools.capacity_page --write")


if __name__ == "__main__":
    main()
