"""The card of a cache that is shared: README.md, whose front matter the Hub reads.

    what it is ─ the warning ─ teachers ─ what it was made from ─ how to load it

The licence is left to whoever shares it. A card ends with its own digest: one that was edited is kept.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from cache_builder.format.manifest import CheckpointGroup, Manifest, sha256
from cache_builder.sharing.markdown import markdown_template

CARD = "README.md"
_PLAIN_URL = re.compile(r"[a-z0-9]+://[A-Za-z0-9._/@+-]+")
_SEAL = re.compile(rb"(?s)(.*)<!-- footsteps ([0-9a-f]{64}) -->\n")


def write_card(place: str, manifest: Manifest, checkpoints: Sequence[CheckpointGroup]) -> bytes:
    """Return the card of a cache at `place`; checkpoints oldest first."""
    text = markdown_template(Path(__file__).with_name("card.md.jinja")).render(
        place=Markup(place) if _PLAIN_URL.fullmatch(place) else "path/to/cache",
        manifest=manifest,
        checkpoints=[(group, sum(entry.bytes for entry in group.files.values())) for group in checkpoints],
    )
    return f"{text}<!-- footsteps {sha256(text.encode())} -->\n".encode()


def is_ours(card: bytes) -> bool:
    """Say whether a card is as this program wrote it."""
    found = _SEAL.fullmatch(card)
    return found is not None and sha256(found[1]) == found[2].decode()
