"""Which chat template is in force, and what it reads.

    text.chat_template     none: the tokenizer's own     "plain": PLAIN_TEMPLATE     else: a Jinja template

A template that has no place for a system message gets one: the message opens the user's, an empty line between them.
That is done in Jinja, so that it holds wherever the template is used.
"""

import hashlib
import re
from functools import lru_cache

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from cache_builder.errors import DataError

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '\n' }}{% endfor %}"
)
JOIN_SYSTEM = (
    "{%- if messages | length > 1 and messages[0].role == 'system' and messages[1].role == 'user' -%}"
    "{%- set messages = [{'role': 'user', 'content': messages[0].content + '\\n\\n' + messages[1].content}]"
    " + messages[2:] -%}{%- endif -%}"
)
"""Opens the first user message with the system message; stands before a template that has no place for one."""
GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What a template raises on input that it was not written for."""


def resolve_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    """Return the Jinja chat template that a `text.chat_template` setting stands for.

    Raises:
        DataError: none is given and the tokenizer has none, or it is not Jinja.
    """
    if chat_template == "plain":
        return PLAIN_TEMPLATE
    found = tokenizer.chat_template if chat_template is None else chat_template
    if not isinstance(found, str):
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no single chat template; "
            'set text.chat_template to "plain" or to a Jinja template'
        )
    variables(found)
    return found


def deployed_template(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    """Return the template that training renders with and that travels with its models: it takes a system message.

    Raises:
        DataError: as `resolve_template`.
    """
    template = resolve_template(tokenizer, chat_template)
    return template if _takes_system(tokenizer, template) else JOIN_SYSTEM + template


def template_fingerprint(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> str:
    """Return the SHA-256 of the chat template in force; that of nothing where there is none, as texts need none."""
    without = chat_template is None and tokenizer.chat_template is None
    return hashlib.sha256(b"" if without else resolve_template(tokenizer, chat_template).encode()).hexdigest()


def has_generation_marker(template: str) -> bool:
    """Say whether a template marks what the model writes with `{% generation %}`."""
    return GENERATION_TAG.search(template) is not None


@lru_cache(64)
def variables(template: str) -> frozenset[str]:
    """Return the names that a template looks up, such as messages, tools, enable_thinking.

    Raises:
        DataError: it is not Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(GENERATION_TAG.sub("", template))))
    except jinja2.TemplateError as error:
        raise DataError(f"the chat template is not Jinja: {error}; it begins {template[:60]!r}") from None


@lru_cache(64)
def _takes_system(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Say whether a system message is in what the template renders: it neither refuses it nor leaves it out."""
    probe = [{"role": "system", "content": "system-probe"}, {"role": "user", "content": "user-probe"}]
    try:
        text = tokenizer.apply_chat_template(probe, chat_template=template, tokenize=False, add_generation_prompt=True)
    except TEMPLATE_ERRORS:
        return False  # whatever else is wrong with the template shows when an example is rendered
    return "system-probe" in str(text)
