"""Rows of axolotl's distillation data: top-k log-probabilities as nested lists, in one of two shapes.

prepared    input_ids          t0  t1  t2  t3         as axolotl's own preprocessing leaves them: renormalised over the
            target_logprobs    d0  d1  d2  d3         top k, at its kd_temperature; target_token_ids, target_mask alike
            alignment "next"   row j is the distribution of token j + 1; row 3 is padding     (as its README has it)
                      "same"   row j is that of token j; row 0 is padding                     (older versions)
raw         messages, or input_ids with labels        what a teacher's server gave
            logprobs                   r0  r1         the last row is that of the last token, the first may lie anywhere
                     [[{"token": "token_id:5", "logprob": −0.1}, …], …], or numbers with `target_token_ids` beside them

A slot that is masked, null or at most −10,000 is padding. Source: github.com/axolotl-ai-cloud/axolotl, integrations/kd.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from cache_builder.data.chat import encode
from cache_builder.data.rows.shapes import normalize
from cache_builder.errors import DataError
from cache_builder.interchange.rows import FLOAT32_ROUNDOFF, SourceRow, Tail, check_tokens
from cache_builder.interchange.tables import JSON_LINES, PARQUET, read_objects, source_files

Alignment = Literal["next", "same"]
PADDING = -1e4
IGNORED = -100
UNLIMITED = 1 << 30
LARGEST = 1 << 63


class AxolotlSource:
    """Files of axolotl's rows; the first row decides whether they are prepared or raw."""

    format: Literal["axolotl"] = "axolotl"
    roundoff = FLOAT32_ROUNDOFF

    def __init__(
        self,
        source: Path,
        tokenizer: PreTrainedTokenizerBase,
        *,
        alignment: Alignment = "next",
        logprobs_field: str = "logprobs",
        messages_field: str = "messages",
        chat_template: str | None = None,
    ) -> None:
        self.files = source_files(source, (*JSON_LINES, *PARQUET))
        self.tokenizer, self.alignment, self.chat_template = tokenizer, alignment, chat_template
        self.logprobs_field, self.messages_field = logprobs_field, messages_field
        where, first = next(read_objects(self.files), (str(source), None))
        if first is None:
            raise DataError(f"{source} is empty; at least one row is needed")
        self.prepared = "target_logprobs" in first
        if not self.prepared and logprobs_field not in first:
            raise DataError(
                f"{where}: expected `target_logprobs` or `{logprobs_field}`, got {', '.join(sorted(first))}; "
                "name the field with `--logprobs-field`"
            )

    @property
    def settings(self) -> dict[str, Any]:
        if self.prepared:
            return {"shape": "prepared", "alignment": self.alignment}
        names = {"logprobs_field": self.logprobs_field, "messages_field": self.messages_field}
        return {"shape": "raw", **names, "chat_template": self.chat_template}

    @property
    def default_tail(self) -> Tail:
        """axolotl renormalises over the top k when it prepares a row; a server does not."""
        return "none" if self.prepared else "complement"

    def rows(self) -> Iterator[SourceRow]:
        """Yield every row.

        Raises:
            DataError: a row is not of the shape of the first one, contradicts itself, or does not fit the tokenizer.
        """
        read = self._prepared if self.prepared else self._raw
        for number, (where, row) in enumerate(read_objects(self.files)):
            name = row.get("id")
            yield read(row, f"row-{number}" if name is None else str(name), where)

    def _prepared(self, row: dict[str, Any], sample_id: str, where: str) -> SourceRow:
        tokens, labelled = self._labelled(row, where)
        ids_TK, logp_TK = _slots(row, "target_logprobs", where)
        if len(ids_TK) != len(tokens):
            raise DataError(f"{where}: `target_logprobs`: expected {len(tokens)} lists, got {len(ids_TK)}")
        shift = 1 if self.alignment == "next" else 0
        rows = np.flatnonzero((logp_TK > -np.inf).any(axis=1))
        contradicted = [
            j for j in rows if not 1 <= j + shift < len(tokens) or (labelled is not None and not labelled[j + shift])
        ]
        if contradicted and "target_mask" in row:
            other = "same" if self.alignment == "next" else "next"
            raise DataError(
                f"{where}: `target_mask` has a target at place {contradicted[0]}, which would be that of token "
                f"{contradicted[0] + shift}, and that is not to be learned; the rows are aligned otherwise: try "
                f"`--alignment {other}`"
            )
        at = np.setdiff1d(rows, contradicted).astype(np.int64)
        return _source_row(where, sample_id, tokens, labelled, at + shift, ids_TK[at], logp_TK[at])

    def _raw(self, row: dict[str, Any], sample_id: str, where: str) -> SourceRow:
        if row.get("input_ids") is not None:
            tokens, labelled = self._labelled(row, where)
            turn = None
        else:
            tokens, labelled, turn = self._encoded(row, sample_id, where)
        ids_RK, logp_RK = _slots(row, self.logprobs_field, where)
        whole = len(tokens)
        if len(ids_RK) > whole or (turn is not None and len(ids_RK) not in (turn, whole - 1, whole)):
            expected = (
                f"at most {whole} lists" if turn is None else f"{turn} lists, of the last answer, or {whole}, of all"
            )
            raise DataError(
                f"{where}: `{self.logprobs_field}`: expected {expected}, got {len(ids_RK)}; text and targets are "
                "not of the same tokens: check the tokenizer and the chat template"
            )
        token_R = np.arange(len(tokens) - len(ids_RK), len(tokens))
        kept = (logp_RK > -np.inf).any(axis=1) & (token_R > 0)
        if labelled is not None:
            kept &= labelled[token_R]
        return _source_row(where, sample_id, tokens, labelled, token_R[kept], ids_RK[kept], logp_RK[kept])

    def _labelled(self, row: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return token ids, and which tokens are to be learned; None where the row does not say."""
        tokens = _integers(row.get("input_ids"), "input_ids", where)
        check_tokens(tokens, len(self.tokenizer), where)
        if row.get("labels") is None:
            return tokens, None
        labels = _integers(row["labels"], "labels", where)
        if len(labels) != len(tokens):
            raise DataError(f"{where}: `labels`: expected {len(tokens)} numbers, got {len(labels)}")
        return tokens, labels != IGNORED

    def _encoded(self, row: dict[str, Any], sample_id: str, where: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Tokenise a conversation; return also the number of tokens of its last answer."""
        messages = row.get(self.messages_field)
        if messages is None:
            raise DataError(
                f"{where}: expected `input_ids` or `{self.messages_field}`, got {', '.join(sorted(row))}; name the "
                "conversation's field with `--messages-field`"
            )
        turns = messages if isinstance(messages, list) else []
        shape = "conversations" if any(isinstance(turn, dict) and "from" in turn for turn in turns) else "messages"
        example = normalize({shape: messages, "id": sample_id}, sample_id, where)
        try:
            encoded = encode(example, self.tokenizer, self.chat_template, UNLIMITED)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        assert encoded is not None
        labelled = np.asarray(encoded.completion, np.bool_)
        ends = np.flatnonzero(~labelled)
        return np.asarray(encoded.input_ids, np.int64), labelled, len(labelled) - int(ends[-1]) - 1


def _source_row(
    where: str,
    sample_id: str,
    tokens: np.ndarray,
    labelled: np.ndarray | None,
    targeted: np.ndarray,
    ids_MK: np.ndarray,
    logp_MK: np.ndarray,
) -> SourceRow:
    completion = np.zeros(len(tokens), np.bool_)
    completion[targeted] = True
    left_out = 0 if labelled is None else int((labelled[1:] & ~completion[1:]).sum())
    return SourceRow(where, sample_id, tokens.astype(np.uint32), completion, ids_MK, logp_MK, left_out)


def _slots(row: dict[str, Any], field: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Read ids i64 and log-probabilities f64, [R, K] with K the longest list, −inf in padding."""
    logprobs = _lists(row.get(field), field, where)
    if any(isinstance(entry, dict) for entry in chain.from_iterable(logprobs)):
        ids = [
            [_token_id(entry, f"{where}: `{field}`, place {r}") for entry in entries]
            for r, entries in enumerate(logprobs)
        ]
        logprobs = [[entry.get("logprob") for entry in entries] for entries in logprobs]
    else:
        ids = _lists(row.get("target_token_ids"), "target_token_ids", where)
    lengths = np.array([len(entries) for entries in logprobs], np.int64)
    used_RK = np.arange(lengths.max(initial=0)) < lengths[:, None]
    logp_RK = np.full(used_RK.shape, -np.inf)
    logp_RK[used_RK] = _flat(logprobs, field, where, lengths, _number)
    ids_RK = np.zeros(used_RK.shape, np.int64)
    ids_RK[used_RK] = _flat(ids, "target_token_ids", where, lengths, _integer)
    masked_RK = logp_RK <= PADDING
    if row.get("target_mask") is not None:
        mask_RK = np.ones(used_RK.shape, np.int64)
        mask_RK[used_RK] = _flat(
            _lists(row["target_mask"], "target_mask", where), "target_mask", where, lengths, _integer
        )
        masked_RK |= mask_RK == 0
    logp_RK[masked_RK] = -np.inf
    return ids_RK, logp_RK


def _lists(value: Any, field: str, where: str) -> list[list[Any]]:
    if not isinstance(value, list) or not all(entries is None or isinstance(entries, list) for entries in value):
        raise DataError(f"{where}: `{field}`: expected a list of lists, got {_kind(value)}")
    return [entries or [] for entries in value]


def _flat(
    lists: list[list[Any]], field: str, where: str, lengths: np.ndarray, read: Callable[[Any], float | int]
) -> np.ndarray:
    found = [len(entries) for entries in lists]
    if found != lengths.tolist():
        differing = [at for at, pair in enumerate(zip(found, lengths, strict=False)) if pair[0] != pair[1]]
        if differing:
            at = differing[0]
            expected, got = f"{lengths[at]} numbers at place {at}", str(found[at])
        else:
            expected, got = f"{len(lengths)} lists", str(len(found))
        raise DataError(f"{where}: `{field}`: expected {expected}, as the log-probabilities have, got {got}")
    try:
        return np.array([read(entry) for entry in chain.from_iterable(lists)])
    except (TypeError, ValueError, OverflowError):
        wrong = next(entry for entry in chain.from_iterable(lists) if not _readable(entry, read))
        raise DataError(f"{where}: `{field}`: expected numbers, got {wrong!r}") from None


def _number(entry: Any) -> float:
    if entry is not None and not isinstance(entry, (int, float)):
        raise TypeError
    return -np.inf if entry is None else float(entry)  # OverflowError: an integer beyond every float


def _integer(entry: Any) -> int:
    if not isinstance(entry, int) or abs(entry) >= LARGEST:
        raise TypeError
    return int(entry)


def _readable(entry: Any, read: Callable[[Any], float | int]) -> bool:
    try:
        read(entry)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _token_id(entry: Any, where: str) -> int:
    token = entry.get("token") if isinstance(entry, dict) else None
    digits = token.partition("token_id:")[2] if isinstance(token, str) else ""
    if not (digits.isdecimal() and digits.isascii() and len(digits) < 19):
        raise DataError(f'{where}: expected {{"token": "token_id:N", "logprob": x}}, got {entry!r}')
    return int(digits)


def _integers(value: Any, field: str, where: str) -> np.ndarray:
    if not isinstance(value, list) or not all(_readable(entry, _integer) for entry in value):
        bits = " of 64 bits" if isinstance(value, list) else ""
        raise DataError(f"{where}: `{field}`: expected a list of integers{bits}, got {_kind(value)}")
    return np.array(value, np.int64)


def _kind(value: Any) -> str:
    return "none" if value is None else type(value).__name__
