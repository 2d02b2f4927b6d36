"""Where in a conversation's text its completions are, checked against the template's own rendering.

    prompt of turn i    render(turns before i, add_generation_prompt)   what the model is given
    turn i              render(turns up to i)                           must begin with it; the rest is the completion

So that the text before a completion is what a deployed model sees when it has to write it, each rendering must begin
with the one before. A template that rewrites earlier turns (Qwen3 and DeepSeek-R1 strip their thinking) breaks that:
then `{% generation %}` marks, where it has them, say what is written; else only the last turn can be trained on.
"""

from dataclasses import dataclass
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from cache_builder.data.rendering.conversation import Conversation
from cache_builder.data.rendering.templates import has_generation_marker
from cache_builder.errors import DataError


@dataclass(frozen=True)
class Segment:
    """A part of the text, tokenised by itself; the segments joined are the rendering up to the last completion."""

    text: str
    is_completion: bool
    turn: int
    """Of a completion its own, of a prompt that which comes next."""
    ends_turn: bool = True
    """False of a completion that no special token ends; eos is added to it where it is the last."""


def segments(conversation: Conversation, turns: list[int]) -> list[Segment]:
    """Split a rendered conversation at the turns that are completions: prompt, completion, prompt, completion, …

    Raises:
        DataError: the template renders a turn's prompt differently once the turn, or later ones, are there.
    """
    specials = _special_texts(conversation.tokenizer, len(conversation.tokenizer))
    found = _by_prefix(conversation, turns, specials)
    if found is None and has_generation_marker(conversation.template):
        return _by_marker(conversation, turns, specials)
    if found is None:
        raise DataError(
            f"the chat template breaks the prompt of {conversation.name}: it renders a turn differently once "
            'later turns are there, as templates that strip earlier thinking do; set text.train_on = "last", give the '
            'earlier turns "train": false, or use another text.chat_template'
        )
    return found


def _by_prefix(conversation: Conversation, turns: list[int], specials: tuple[str, ...]) -> list[Segment] | None:
    """Return the segments, or None where a rendering does not begin with the one before."""
    found: list[Segment] = []
    rendered = ""
    for turn in turns:
        prompt = conversation.render(turn, add_generation_prompt=True)
        whole = conversation.render(turn + 1)
        if not prompt.startswith(rendered):
            return None
        if not whole.startswith(prompt):
            if has_generation_marker(conversation.template):
                return None
            raise DataError(
                f"the chat template breaks the prompt of {conversation.name} at turn {turn}: the text before a "
                f"completion must not change once the completion is there; it ends {prompt[-40:]!r} without it and "
                f"{whole[: len(prompt)][-40:]!r} with it; use another text.chat_template"
            )
        # White space that a template writes after its end-of-turn token belongs to the next prompt.
        completion = whole[len(prompt) :].rstrip()
        ends_turn = completion.endswith(specials)
        if not ends_turn:
            completion = whole[len(prompt) :]
        found.append(Segment(prompt[len(rendered) :], False, turn))
        found.append(Segment(completion, True, turn, ends_turn))
        rendered = prompt + completion
    return found


def _by_marker(conversation: Conversation, turns: list[int], specials: tuple[str, ...]) -> list[Segment]:
    """Take completions from the marks of the whole rendering, less what the generation prompt already gives."""
    text, spans = conversation.render_marked(turns[-1] + 1)
    answers = [turn for turn in conversation.answers() if turn <= turns[-1]]
    if len(spans) != len(answers):
        raise DataError(
            f"the chat template marks {len(spans)} parts of {conversation.name} with {{% generation %}}, expected "
            f"{len(answers)}, one for each assistant turn; use another text.chat_template"
        )
    found: list[Segment] = []
    rendered = 0
    for turn, (start, end) in zip(answers, spans, strict=True):
        if turn not in turns:
            continue
        opening = conversation.render(turn, add_generation_prompt=True).removeprefix(conversation.render(turn))
        start += len(opening) if text[start:end].startswith(opening) else 0
        completion = text[start:end].rstrip()
        if not completion.endswith(specials):
            raise DataError(
                f"the chat template's {{% generation %}} ends before the end of turn {turn} of {conversation.name}: it "
                f"marks {completion[-40:]!r}, and a student would never learn to stop; mark the end-of-turn token too"
            )
        found += [Segment(text[rendered:start], False, turn), Segment(completion, True, turn)]
        rendered = start + len(completion)
    if text[: rendered - len(found[-1].text)] != conversation.render(turns[-1], add_generation_prompt=True):
        raise DataError(
            f"the chat template breaks the prompt of {conversation.name} at turn {turns[-1]}: what stands before the "
            "last answer is not what a model is given to write it; use another text.chat_template"
        )
    return found


@lru_cache(8)
def _special_texts(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[str, ...]:
    """Return how a tokenizer writes its special tokens; `size` tells a tokenizer that got new ones."""
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
