"""Everything that a chat template was handed is in its text, or refused by name: nothing is dropped unseen.

    chat_template_kwargs     the template looks the variable up
    tools                    it looks `tools` up, and each function's name is in the text
    content                  each turn has a place in the text, and what it says is there, white space apart; of a
                             completion, in the completion itself
    reasoning_content        of a completion, in the completion
    tool_calls               each function's name in the text, and other arguments make another text

What a template strips of earlier, untrained answers (their thinking) is what a deployed model is not shown either.
"""

from cache_builder.data.rendering.conversation import Conversation
from cache_builder.data.rendering.spans import Segment
from cache_builder.data.rendering.templates import variables
from cache_builder.errors import DataError

PROBE = "footsteps-probe"


def check_uses(conversation: Conversation, segments: list[Segment]) -> None:
    """Refuse an example of which the template leaves something out.

    Raises:
        DataError: the message names the key.
    """
    looked_up = variables(conversation.template)
    for key in conversation.kwargs:
        if key not in looked_up:
            raise _unused(conversation, f"chat_template_kwargs.{key}", "the template has no such variable")
    text = _Text("".join(segment.text for segment in segments))
    for index, tool in enumerate(conversation.tools or ()):
        if "tools" not in looked_up:
            raise _unused(conversation, "tools", "the template does not read them")
        name = tool.get("function", tool)["name"]
        if name not in text:
            raise _unused(conversation, f"tools[{index}]", f"{name!r} is not in the text")
    completions = {segment.turn: _Text(segment.text) for segment in segments if segment.is_completion}
    _check_places(conversation, max(completions), completions)
    for turn in range(max(completions) + 1):
        _check_turn(conversation, turn, text, completions.get(turn))


def _check_places(conversation: Conversation, last: int, completions: dict[int, "_Text"]) -> None:
    """Refuse a turn that has no place in the text, whatever it says: short ones are found in other turns' text too."""
    turns = [turn for turn in range(last) if turn not in completions and conversation.messages[turn]["content"]]
    probed = conversation
    for turn in turns:
        probed = probed.changed(turn, "content", f"{PROBE}-{turn}.")
    try:
        text = probed.render(last + 1) if turns else ""
    except DataError:
        text = ""  # the template looks at what turns say, so each is changed by itself
    for turn in turns:
        if f"{PROBE}-{turn}." not in text:
            _check_change(conversation, turn, "content", PROBE)


def _check_turn(conversation: Conversation, turn: int, text: "_Text", completion: "_Text | None") -> None:
    message = conversation.messages[turn]
    if completion is not None:
        for key in ("content", "reasoning_content"):
            if message.get(key, "") not in completion:
                hint = "the answer that is trained on lacks it, or has it changed"
                raise _unused(conversation, f"messages[{turn}].{key}", hint)
    elif message["content"] not in text:
        _check_change(conversation, turn, "content", PROBE)
    if "name" in message and message["role"] != "tool" and message["name"] not in text:
        raise _unused(conversation, f"messages[{turn}].name", "it is not in the text")
    for index, call in enumerate(message.get("tool_calls", ())):
        if call["function"]["name"] not in (completion or text):
            raise _unused(conversation, f"messages[{turn}].tool_calls[{index}]", "its function is not in the text")
        if call["function"]["arguments"]:
            calls = [*message["tool_calls"]]
            calls[index] = {**call, "function": {**call["function"], "arguments": {PROBE: PROBE}}}
            _check_change(conversation, turn, "tool_calls", calls)


def _check_change(conversation: Conversation, turn: int, key: str, value: object) -> None:
    """Refuse a field whose change changes no text."""
    whole = conversation.render(turn + 1)
    try:
        changed = conversation.changed(turn, key, value).render(turn + 1)
    except DataError:
        return  # the template looks at it closely enough to fail
    if changed == whole:
        raise _unused(conversation, f"messages[{turn}].{key}", "the text is the same whatever it is")


def _unused(conversation: Conversation, key: str, why: str) -> DataError:
    return DataError(
        f"{conversation.name}, `{key}`: the chat template leaves it out: {why}; use a template that renders it, or "
        "remove it from the row"
    )


class _Text:
    """Asks whether a part is in a text, white space apart, because templates trim."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.squeezed: str | None = None

    def __contains__(self, part: object) -> bool:
        assert isinstance(part, str)
        if part.strip() in self.text:
            return True
        if self.squeezed is None:
            self.squeezed = "".join(self.text.split())
        return "".join(part.split()) in self.squeezed
