"""Secrets in settings and addresses: refused before they are written anywhere, and blotted out where others wrote them.

s3://key:secret@host/x      ->  s3://…@host/x
hub_token = "hf_…"          ->  hub_token = "…"
"""

import re
from collections.abc import Iterator
from typing import Any

_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/@\s]*@")
_QUERY = re.compile(r"(?i)([?&][^=&\s]*(?:token|secret|password|signature|credential|key)[^=&\s]*=)[^&\s\"']+")
_KEY = re.compile(r"(?i)(^|_)(token|secret|password|api_?key|access_?key)$")
BLOT = "…"


def redact(text: str) -> str:
    """Return a text without the users, passwords and signatures of the addresses in it."""
    return _QUERY.sub(rf"\1{BLOT}", _USER.sub(rf"\1{BLOT}@", text))


def redacted(value: Any, key: str = "") -> Any:
    """Return settings with every secret blotted out, whatever their shape."""
    if isinstance(value, dict):
        return {name: redacted(each, str(name)) for name, each in value.items()}
    if isinstance(value, list):
        return [redacted(each, key) for each in value]
    if not isinstance(value, str):
        return value
    return BLOT if value and _KEY.search(key) and not value.startswith("$") else redact(value)


def secrets_in(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each setting that holds a secret; one given as `$NAME` holds none."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in pairs:
        where = f"{path}.{name}" if path else str(name)
        if isinstance(each, dict | list):
            yield from secrets_in(each, where)
        elif isinstance(each, str) and redacted(each, str(name)) != each and "$" not in each:
            yield where
