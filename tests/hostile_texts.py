"""Texts that run code or break a page that takes them for more than text. Code that runs sets `window.pwned`."""

SCRIPTS = {
    "image": '<img src=x onerror="window.pwned=1">',
    "script": "<script>window.pwned=2</script>",
    "end of a script": "</script><script>window.pwned=3</script>",
    "attribute": "\"><svg onload=window.pwned=4>'><b onclick=window.pwned=4>",
    "address": "javascript:window.pwned=5",
    "data address": "data:text/html,<script>parent.pwned=6</script>",
    "template": "${window.pwned=7}{{constructor.constructor('window.pwned=7')()}}<%= window.pwned=7 %>",
    "comment": "--><!--><iframe srcdoc='<script>parent.pwned=8</script>'>",
    "link": '<link rel="stylesheet" href="http://10.0.0.1/a.css"><base href="http://10.0.0.1/">',
    "form": '<form action="http://10.0.0.1/"><button id=query autofocus>',
    "Markdown": "[click](javascript:window.pwned=9) ![x](http://10.0.0.1/a.png)",
    "end of a text area": "</textarea></title></style><script>window.pwned=10</script>",
}
ODD = {
    "turned": "\u202eevil\u2066\u2069 \u200f\u061c",
    "control": "a\u0000b\u0007c\u001b[31md\u0085",
    "half a sign": "a\ud800b\udc00",
    "line ends": "a\r\nb\u2028c\u2029d",
    "no width": "\u200b\u200d\ufeff\u00ad",
    "marks": "Z" + "\u0335\u0353" * 50,
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd",
    "prototype": "__proto__",
    "constructor": "constructor",
    "property": "hasOwnProperty",
    "index": "0",
    "blank": "   ",
    "nothing": "",
    "quotes": "'\"`\\'\\\"\\`",
    "shell": "'; rm -rf ~; echo $(id) `id` #",
    "percent": "%00%0a%22%3Cscript%3E%",
    "path": "../../../../etc/passwd",
}
ALL = {**SCRIPTS, **ODD}
LONG = "<b>evil</b> " * 80_000  # a megabyte
UNBROKEN = "W" * 20_000
# What stands where a format asks for a text, a number or a list.
VALUES = {
    "number": 7,
    "text": "7",
    "none": None,
    "list": [["a", 1], ["b"]],
    "object": {"toString": 1, "length": 3, "__proto__": {"pwned": 1}},
    "true": True,
    "huge": 1e308,
    "negative": -1,
    "fraction": 0.5,
}
