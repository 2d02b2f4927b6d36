"""What all kinds of files share: the counts of how their cases end."""

from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.support.fuzz import Tally


@pytest.fixture(scope="module")
def tally() -> Iterator[dict[str, Tally]]:
    """A tally for each kind of case; what they have counted is noted when the file's tests have ended."""
    found: dict[str, Tally] = defaultdict(Tally)
    yield found
    for kind, each in found.items():
        each.note(kind)
