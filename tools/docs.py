"""Build the site in `_docs/`: with Quarto where it is installed, otherwise with smalldocs.

Both read `_quarto.yml` and the notebooks that nbdev processed, and end with `finish.py`."""
import os, re, shutil, sys
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from fastcore.basics import patch
from fastcore.script import call_parse
from nbdev import quarto
from nbdev.doclinks import NbdevLookup, _lineno
from nbdev.processors import _default_exp, exec_show_docs
from nbdev.serve import proc_nbs
from nbdev.showdoc import BasicMarkdownRenderer
from smalldocs.site import build

# What Quarto needs and smalldocs has no use for
quarto_only = 'html-math-method', 'output-file', 'compiles no Sass'

shown = {} # page and name of the `show_doc` that runs: two pages may define a name

@patch
def __call__(self:exec_show_docs, cell, was=exec_show_docs.__call__):
    m = re.search(r'^show_doc\((.*)\)', cell.source, re.M)
    if m: shown.update(page=_default_exp(self.nb), name=m[1])
    was(self, cell)

def source(page, name):
    "Link to the source of `name` in the module of `page`"
    lookup = NbdevLookup()
    found = lookup.syms.get(f'{quarto.get_config().lib_name}.{page}.{name}')
    if not found: return ''
    _,py,url = found
    return f'[source]({url}#L{_lineno(name, py)}){{.source}}'

@patch
def _repr_markdown_(self:BasicMarkdownRenderer):
    "What stands above the source of a function on its page: name, link, docstring"
    heading = '#'*self.title_level + ' ' + shown['name'].replace('_', r'\_')
    return '\n\n'.join([heading, source(**shown), self.docs])

def number_free(proc):
    "Name pages as nbdev and Quarto do: `01_data.ipynb` gives `data.html`"
    nbs = [p for p in proc.glob('*.ipynb') if p.name[0].isdigit()]
    for f in [*proc.glob('*.ipynb'), proc/'_quarto.yml']:
        s = f.read_text(encoding='utf-8')
        for p in nbs: s = s.replace(p.name, p.name.split('_', 1)[1])
        f.write_text(s, encoding='utf-8')
    for p in nbs: p.rename(proc/p.name.split('_', 1)[1])

def smalldocs(cfg):
    "What `nbdev_docs` does, with smalldocs in Quarto's place"
    quarto.refresh_quarto_yml()
    proc = proc_nbs()
    number_free(proc)
    warns = build(proc, quiet=True).warnings
    warns = [w for w in warns if not any(o in w for o in quarto_only)]
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
        os.environ['QUARTO_PYTHON'] = sys.executable
        quarto.nbdev_docs.__wrapped__()
    else: smalldocs(cfg)
    print(f'Built {cfg.doc_path}')
    if not serve: return
    print(f'Serving it at http://localhost:{port}, until Ctrl-C')
    handler = partial(SimpleHTTPRequestHandler, directory=cfg.doc_path)
    with suppress(KeyboardInterrupt):
        ThreadingHTTPServer(('localhost', port), handler).serve_forever()
