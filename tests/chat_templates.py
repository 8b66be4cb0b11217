"""Chat templates of the usual families, and templates that misbehave."""

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {%- else %}{{- raise_exception("Cannot put tools in the first user message when there's none!") }}{%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'
            + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one tool call") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}{{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}{{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
        not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' 
                + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content }}{%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
CONTROLS = """{%- macro line(name, text, width=2) -%}
{{ loop_index|default('') }}{{ ' ' * width }}{{ name|upper }}: {{ text|trim|replace('\\n', ' ')|indent(2) }}
{%- endmacro -%}
{%- set ns = namespace(last=none, found=false, names=[]) -%}
{%- for message in messages|reject('equalto', none) recursive -%}
    {%- if message.role == 'system' %}{% continue %}{% endif -%}
    {%- if loop.index > 40 %}{% break %}{% endif -%}
    {%- set ns.names = ns.names + [message.role] -%}
    {{ line(message.role, message.content, width=loop.index % 3) ~ '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}{% endif -%}
    {%- set ns.last = message -%}
    {{- loop.cycle('+', '-') }}{{ '%s|%5.2f' % (loop.index, loop.index / 3) }}
    {{- "{} {:>6}".format(loop.length, loop.revindex) }}
{%- else %}nobody{% endfor -%}
{% set block %}{{ ns.names|unique|sort|join(', ') }}{{ {'b': 1, 'a': [1, 2.5, none, true, 'é<']}|tojson }}{% endset %}
{{ block }} {{ ns.names|length }} {{ messages|map(attribute='role')|list }} {{ [3, 1, 2]|sort|first }}
{{ (7 // 2) ** 2 - 1.5 }}
{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join('|') }} {{ 'ab'[::-1] }}
{{ dict(a=1).items()|list }}
{{ undefined_name }}{{ undefined_name is defined }} {{ 1 if ns.found else 0 }} {{ 'A b'.title() }}
{{ [1, [2, 3]]|string }}
{{ x|d('none') }}
{% for key, value in {'b': 1, 'a': 2}|dictsort %}{{ key }}{{ value }}{% endfor %}
{{ ns.last.content|capitalize if ns.last }} {{ eos_token }}
"""
FAMILIES = {
    **{"chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL, "gemma": GEMMA, "qwen": QWEN, "controls": CONTROLS},
}

_MANY = "{% for i in range(99999) %}"
_LONG = "{% set s = 'a' * 1000000 %}"
_NAMES = "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = "
HOSTILE = {
    # It reaches for Python's insides.
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class as an item": "{{ ''['__class__'] }}",
    "class by a filter": "{{ ''|attr('__class__') }}",
    "class by map": "{{ ['']|map(attribute='__class__')|list }}",
    "class by format": "{{ '{0.__class__}'.format('') }}",
    "globals": "{{ strftime_now.__globals__ }}",
    "macro": "{% macro a() %}{% endmacro %}{{ a._func }}",
    "loop": "{% for a in [1] %}{{ loop._iterator }}{% endfor %}",
    "namespace": "{% set n = namespace(a=1) %}{{ n._Namespace__attrs }}",
    "namespace's own": "{% set n = namespace(**{'__class__': 1}) %}{{ n.__class__ }}",
    "self": "{{ self.__init__ }}",
    "list": "{% set a = [] %}{{ a.append(1) }}",
    "file": "{% include '/etc/passwd' %}",
    # It does not end.
    "loops": _MANY + _MANY + "{% endfor %}{% endfor %}",
    "long body": _MANY + "{% if a %}{% endif %}" * 800 + "{% endfor %}",
    "macro of itself": "{% macro a(n) %}{% if n %}{{ a(n-1) }}{{ a(n-1) }}{% endif %}{% endmacro %}{{ a(100) }}",
    "macro without end": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "block of itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "recursive loop": "{% for a in [[]] recursive %}{{ loop([a, a]) }}{% endfor %}",
    "generators": _MANY + "{% for b in range(99999)|map('string') %}{% endfor %}{% endfor %}",
    "search": _LONG + _MANY + "{% if 'ab' in s %}{% endif %}{% endfor %}",
    "count": _LONG + _MANY + "{{ s.count('ab') }}{% endfor %}",
    "slices": "{% set l = range(99999)|list %}" + _MANY + "{% set a = l[1:] %}{% endfor %}",
    "sort": _MANY + "{% set a = range(99999)|sort %}{% endfor %}",
    "search from the end": _LONG + "{{ s.rfind('ab' ~ s[:400000]) }}",
    "parts from the end": _LONG + "{{ s.rpartition('ab' ~ s[:400000])|length }}",
    "test": _LONG + _MANY + "{% if s is lower %}{% endif %}{% endfor %}",
    "key": _LONG + _MANY + "{% set a = messages[0][s] %}{% endfor %}",
    "tuple as a key": "{% set t = (1,) * 90000 %}" + _MANY + "{% set a = messages[0][t] %}{% endfor %}",
    "round": "{{ (10 ** 300)|round(-10 ** 9) }}",
    "round up": "{{ [1.5]|map('round', 10 ** 9, 'ceil')|list }}",
    "floats": "{% set s = '1' * 1000000 %}" + _MANY + "{{ s|float }}{% endfor %}",
    "division": "{{ ('f' * 1000000)|int(base=16) // ('f' * 500000)|int(base=16) }}",
    "divisible": "{% set a = 2 ** 4000 %}{{ ([a] * 99999)|sum is divisibleby([a, a]|sum) }}",
    "steps back": "{% for a in [range(9)]|map('loop over', -10 ** 12)|first %}" + _MANY + _MANY + "{% endfor %}" * 3,
    # It takes memory.
    "times": "{{ 'a' * 10**10 }}",
    "times, the other way": "{{ 10**10 * [0] }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "squares": "{% set n = namespace(a=3) %}" + _MANY + "{% set n.a = n.a * n.a %}{% endfor %}",
    "center": "{{ 'a'|center(10**9) }}",
    "center of a text": "{{ 'a'.center(10**9) }}",
    "filled": "{{ 'a'.zfill(10**9) }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "width from outside": "{{ '%*d' % (10**9, 1) }}",
    "width of a filter": "{{ '%1000000000d'|format(1) }}",
    "width of format": "{{ '{:1000000000}'.format(1) }}",
    "width of format from outside": "{{ '{:{w}}'.format(1, w=10**9) }}",
    "format again and again": _LONG + "{{ ('{0}' * 1000).format(s) }}",
    "join": _LONG + "{{ range(99999)|join(s) }}",
    "join of a text": _LONG + "{{ s.join(range(99999)|map('string')) }}",
    "join of one text": _LONG + "{{ ([s] * 99999)|join }}",
    "replace": _LONG + "{{ s|replace(new=s, old='a') }}",
    "indent": "{{ 'a'|indent(10**9, first=true) }}",
    "JSON": "{{ [[1]]|tojson(indent=10**9) }}",
    "JSON by separators": _LONG + "{{ range(9999)|list|tojson(separators=(s, s)) }}",
    "doubled": _NAMES + "ns.s ~ ns.s %}{% endfor %}",
    "doubled list": _NAMES + "ns.s + ns.s %}{% endfor %}",
    "doubled by a block": _NAMES.replace("ns.s = ", "x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x")
    + "%}{% endfor %}",
    "list of itself twice": _NAMES + "[ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "mapping of itself twice": _NAMES + "{1: ns.s, 2: ns.s} %}{% endfor %}{{ ns.s|tojson }}",
    "namespace of itself": "{% set n = namespace() %}{% set n.a = n %}{{ n }}",
    "many": "{% set n = namespace(l=[]) %}" + _LONG + _MANY + "{% set n.l = n.l + [s.lower()] %}{% endfor %}",
    "written": _MANY + "x" * 50000 + "{% endfor %}",
    "format of a list": "{{ ('{0}' * 999).format([none] * 99999) }}",
    "percent of a list": "{{ ('%(a)s' * 999) % {'a': [none] * 99999} }}",
    "JSON far inside": "{% set n = namespace(l=[1] * 50000) %}{% for i in range(300) %}{% set n.l = [n.l] %}"
    "{% endfor %}{{ n.l|tojson(indent=16) }}",
    "characters": _LONG + "{{ s|sort|length }}" * 3,
    "list of characters": _LONG + "{% set a = s|list %}" * 3,
    "words": "{% set s = 'a ' * 900000 %}" + "{{ s.split()|length }}" * 5,
    "lines": "{% set s = '\\n' * 900000 %}" + "{{ s.splitlines()|length }}" * 5,
    "date": "{{ strftime_now('%1000000000Y') }}",
    "sum": "{{ ([[1]]*9999)|sum(start=[]) }}",
    # It is no template.
    "syntax": "{% for %}",
    "brackets": "{{ " + "(" * 20000 + ")" * 20000 + " }}",
    "nested": "{% for a in b %}" * 300 + "{% endfor %}" * 300,
    "long": "x" * (1 << 17),
    "unknown": "{{ 1|no_such_filter }}",
    "cycler": "{{ cycler(1).next() }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
}
