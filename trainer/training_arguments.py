"""The fields of transformers' TrainingArguments and their types, and its schedulers' names, read from its source.

    class TrainingArguments:
        bf16: bool = field(…)                  ─▶   {"bf16": bool,
        optim: OptimizerNames | str = …        ─▶    "optim": str, …}

Importing the class imports torch, which takes seconds; a config is read in every command, and most need neither.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional, Union

KNOWN: dict[str, Any] = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict, "Any": Any}


@cache
def argument_types() -> dict[str, Any]:
    """Return each field's type as pydantic takes it; an enumeration of transformers' own is the string it stands for.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    return {
        node.target.id: _type_of(node.annotation)
        for node in _body_of("training_args.py", "TrainingArguments")
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@cache
def scheduler_names() -> list[str]:
    """Return what `lr_scheduler_type` may be.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    return [
        node.value.value
        for node in _body_of("trainer_utils.py", "SchedulerType")
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]


def _body_of(file: str, name: str) -> list[ast.stmt]:
    """Return the statements of a class in one of transformers' files."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("transformers is not installed", name="transformers")
    tree = ast.parse((Path(found.origin).parent / file).read_text(encoding="utf-8"))
    return next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _type_of(annotation: ast.expr) -> Any:
    """Return the type that an annotation writes, built from its tree: nothing of the file is evaluated."""
    match annotation:
        case ast.Name(name):
            return KNOWN.get(name, Any if name.endswith("Config") else str)
        case ast.Constant(value):
            return value
        case ast.BinOp(left, ast.BitOr(), right):
            return Union[_type_of(left), _type_of(right)]  # noqa: UP007, the parts are values
        case ast.Subscript(ast.Name("Literal"), ast.Constant(value)):
            return Literal[value]
        case ast.Subscript(ast.Name("Optional"), part):
            return Optional[_type_of(part)]  # noqa: UP045, likewise
        case ast.Subscript(ast.Name("list" | "dict" as name), part):
            parts = part.elts if isinstance(part, ast.Tuple) else [part]
            return KNOWN[name][tuple(_type_of(each) for each in parts)]
    return Any
