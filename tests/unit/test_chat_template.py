"""Chat templates: rendered as transformers does, and kept within bounds."""

import itertools
import json
from pathlib import Path

import pytest

from headway.core.errors import InvalidRequest, ModelError
from headway.serving.chat_template import MAX_CHARACTERS, ChatTemplate

CHAT = [{"role": "user", "content": "Hé <b>"}, {"role": "assistant", "content": "Ho"}]
CHATML = """{{ bos_token }}
{%- for message in messages %}
    {% if message.role == 'tool' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
    {% generation %}{{ message | tojson }}{% endgeneration %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
{{ strftime_now('%Y')[:2] }}
"""


def render(source: str, messages: list[dict[str, str]] | None = None) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages or CHAT)


def test_it_renders_what_transformers_renders() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs = render_jinja_template(
        conversations=[CHAT], chat_template=CHATML, add_generation_prompt=True, bos_token="<s>"
    )
    assert render(CHATML) == theirs[0][0]


def test_a_template_may_refuse_with_its_own_words() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__base__ }}{{ cycler.__init__.__globals__.os }}",
        "{{ '%s' % (1 / 0) }}",
        "{{ messages.nothing.nothing }}",
        "{{ 2 ** 100000000 }}",
        "{{ 'x' * 100000000 }}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_reaches_out_of_the_sandbox_is_refused(source: str) -> None:
    with pytest.raises(
        InvalidRequest, match="messages must be what the model's chat template takes"
    ) as caught:
        render(source)
    assert "/" not in str(caught.value).replace("'x' * ", "")


def test_the_output_is_bounded() -> None:
    long = "{% for i in range(99999) %}" + "x" * 100 + "{% endfor %}"
    with pytest.raises(InvalidRequest, match=f"more than {MAX_CHARACTERS} characters"):
        render(long)


def test_the_time_is_bounded() -> None:
    ticks = itertools.count()
    template = ChatTemplate("{% for i in range(9) %}{{ i }}{% set _ = range(9) %}{% endfor %}", {})
    with pytest.raises(InvalidRequest, match="more than 1 s of rendering"):
        template.render(CHAT, clock=lambda: 0.1 * next(ticks))


def test_the_template_is_found_in_the_model_folder(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ eos_token }}!"}]
    config = {"chat_template": named, "eos_token": {"content": "</s>"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.render(CHAT) == "</s>!"
    (tmp_path / "chat_template.jinja").write_text("own")
    found = ChatTemplate.load(tmp_path)
    assert found is not None
    assert found.render(CHAT) == "own"


def test_a_broken_template_or_config_is_an_error_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the chat template cannot be parsed"):
        ChatTemplate("{% if %}", {})
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer_config.json is no JSON"):
        ChatTemplate.load(tmp_path)


@pytest.mark.parametrize("value", [5, [1], [{"name": "default"}], [{"name": ["x"], "template": "x"}], [None]])
def test_a_chat_template_of_another_kind_is_an_error_that_names_the_file(
    value: object, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(
        ModelError, match=r"chat_template in .*/tokenizer_config.json must be a text or a list"
    ):
        ChatTemplate.load(tmp_path)


def test_a_template_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff{{ messages }}")
    with pytest.raises(ModelError, match=r"chat_template.jinja is not UTF-8"):
        ChatTemplate.load(tmp_path)
