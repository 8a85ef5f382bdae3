"""Pages read as a browser reads them: elements, attributes and texts, and texts meant to break."""

from __future__ import annotations

import json
from html.parser import HTMLParser

from hypothesis import strategies as st

VOID = {"meta", "input", "br", "link"}
# each tries to leave the place that it is put into: an element, an attribute, a script, a string
ATTACKS = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "</style><script>alert(1)",
    "<img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "' onfocus='alert(1)' autofocus='",
    "</title><svg onload=alert(1)>", "<!--<script>", "]]>", "javascript:alert(1)", "\\u003cscript>",
    "&lt;script&gt;", "%{customdata}", "<b onclick=alert(1)>", "</table></section><iframe src=//x>",
    "\u2028alert(1)\u2029", "\x00<script>", "\ud800<script>", "@text", "{{7*7}}",
    "<a href='//evil.example'>x</a>", "\u202egnp.exe", "<base href=//evil.example>",
)  # fmt: skip
HOSTILE = st.one_of(
    st.sampled_from(ATTACKS),
    st.text(max_size=20),
    st.builds(lambda a, b, c: a + b + c, st.text(max_size=5), st.sampled_from(ATTACKS),
              st.text(max_size=5)),
)  # fmt: skip


class Page(HTMLParser):
    """Elements by their order, the attributes' names, and the data of scripts and cells."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.open = [], set(), []
        self.scripts, self.cells, self.links, self.texts = {}, [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.attributes |= set(found)
        self.links += [found[name] for name in ("href", "src") if name in found]
        if tag not in VOID:
            self.open.append((tag, found))
        if tag == "script":
            self.scripts[found.get("id") or len(self.scripts)] = ""
        if "data-value" in found:
            self.cells.append(found["data-value"])

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> ends nothing"
        begun, _ = self.open.pop()
        assert begun == tag, f"</{tag}> in <{begun}>"

    def handle_data(self, data):
        if self.open and self.open[-1][0] == "script":
            self.scripts[list(self.scripts)[-1]] += data
        else:
            self.texts.append(data)

    @property
    def figures(self):
        return json.loads(self.scripts["figures"])
