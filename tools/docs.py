"""Build the site in `_docs/`: with Quarto where it is installed, otherwise with smalldocs.

Both read `_quarto.yml` and the notebooks as nbdev processes them."""
import re, shutil, sys
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from fastcore.basics import patch
from fastcore.docments import DocmentTbl
from fastcore.script import call_parse
from math_core import LatexToMathML
from nbdev import quarto
from nbdev.doclinks import NbdevLookup
from nbdev.serve import proc_nbs
from nbdev.showdoc import BasicMarkdownRenderer
from smalldocs.site import build

# What Quarto needs and smalldocs has no use for
quarto_only = 'html-math-method', 'output-file', 'compiles no Sass'

@patch
def _repr_markdown_(self:BasicMarkdownRenderer):
    "What `show_doc` puts on a page: name, source link, docstring, docments as a table (as code if only the result has one)"
    name,src = self.nm.replace('_', r'\_'),NbdevLookup().code(self.fn)
    link = f'[source]({src}){{.source}}' if src else ''
    tbl = str(DocmentTbl(self.sym)).replace('| NoneType |', '| |').replace('<', '&lt;') # the type of a default that is no type; a `Param` is shown as <its help>
    return '\n\n'.join([f'{"#"*self.title_level} {name}', link, self.docs, tbl or (f'```python\n{self.dm}\n```' if '#' in str(self.dm) else '')])

def mathml(m): return LatexToMathML().convert_with_local_state(unescape(m[2]), displaystyle=m[1]=='display')

def number_free(proc):
    "Name pages as nbdev and Quarto do: `00_data.ipynb` gives `data.html`"
    nbs = [p for p in proc.glob('*.ipynb') if p.name[0].isdigit()]
    for f in [*proc.glob('*.ipynb'), proc/'_quarto.yml']:
        s = f.read_text()
        for p in nbs: s = s.replace(p.name, p.name.split('_', 1)[1])
        f.write_text(s)
    for p in nbs: p.rename(proc/p.name.split('_', 1)[1])

def link(m, ids):
    "A link in the site; a method that has no heading of its own is at its class"
    page,name = m[1],m[2]
    while name and name not in ids.get(page, ()): name = name.rpartition('.')[0]
    return f'href="{page}#{name}"' if name else f'href="{page}"'

def offline(cfg):
    "No page needs the net: nbdev's links are relative, formulas MathML, fonts the system's"
    pages = {f.name: f.read_text() for f in cfg.doc_path.glob('*.html')}
    ids = {k: set(re.findall(r'\sid="([^"]+)"', s)) for k,s in pages.items()}
    for k,s in pages.items():
        s = re.sub(rf'href="{cfg.doc_host}{cfg.doc_baseurl}/([^"#]+)#?([^"]*)"', partial(link, ids=ids), s)
        s = re.sub(r'<(?:link|script)\b[^>]*/katex@[^>]*>(?:</script>)?', '', s)
        s = re.sub(r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>', mathml, s, flags=re.S)
        (cfg.doc_path/k).write_text(s)
    for f in cfg.doc_path.rglob('*.min.css'): f.write_text(re.sub(r'@import url\(http[^)]*\);', '', f.read_text()))

def smalldocs(cfg):
    "What `nbdev_docs` does, with smalldocs in Quarto's place"
    quarto.refresh_quarto_yml()
    proc = proc_nbs()
    number_free(proc)
    warns = [w for w in build(proc, quiet=True).warnings if not any(o in w for o in quarto_only)]
    if warns: sys.exit('\n'.join(warns))
    shutil.rmtree(cfg.doc_path, ignore_errors=True)
    shutil.move(proc/cfg.doc_path.name, cfg.doc_path)

@call_parse
def main(
    serve:bool=False, # Serve the site when it is built?
    port:int=3000, # Where to serve it
):
    "Build the site in `_docs/`"
    cfg = quarto.get_config()
    shutil.rmtree(cfg.config_path/'_proc', ignore_errors=True) # stale pages
    if shutil.which('quarto'):
        (cfg.config_path/'README.md').touch() # `nbdev_docs` writes an older README anew
        quarto.nbdev_docs.__wrapped__()
    else: smalldocs(cfg)
    offline(cfg)
    print(f'Built {cfg.doc_path}')
    if not serve: return
    print(f'Serving it at http://localhost:{port}, until Ctrl-C')
    ThreadingHTTPServer(('localhost', port), partial(SimpleHTTPRequestHandler, directory=cfg.doc_path)).serve_forever()
