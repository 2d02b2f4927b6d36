"""Tasks of lm-evaluation-harness in a folder: choices, one in two parts with a group over them, and a perplexity."""

import json
from pathlib import Path

from tests.support.toys import COLORS

ROWS = 12
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROLLING = """
task: fluency
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - metric: word_perplexity
"""
GROUP = """
group: opposites
task: [hot, cold]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""


def write_harness_tasks(folder: Path) -> Path:
    """Write the tasks `hot`, `cold` and `fluency` and the group `opposites`, and return the folder."""
    folder.mkdir()
    for part, name in enumerate(("hot", "cold")):
        rows = [
            {"question": f"{name} {row} is ", "choices": list(COLORS[:3]), "label": (row + part) % 3}
            for row in range(ROWS + part)
        ]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(CHOICE.format(name=name, data=data))
    (folder / "fluency.yaml").write_text(ROLLING.format(data=folder / "hot.jsonl"))
    (folder / "opposites.yaml").write_text(GROUP)
    return folder
