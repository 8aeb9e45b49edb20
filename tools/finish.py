"""The last step of each build: `_quarto.yml` names it, both renderers run it on their pages.

Quarto takes the first Python that it finds: only smalldocs' formulas need a package."""
import ast, json, os, re
from configparser import ConfigParser
from html import escape, unescape
from pathlib import Path

root = Path(__file__).resolve().parent.parent
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
site = re.escape(cfg['doc_host'] + cfg['doc_baseurl'])
github = f'github/{cfg["user"]}/{cfg["repo"]}/blob/{cfg["branch"]}'
notebooks = {re.sub(r'^\d+_', '', f.stem): f.name for f in (root/'nbs').glob('*.ipynb')}

def address(page, anchor, ids):
    "Where a name stands; a method that has no heading of its own is at its class"
    while anchor and anchor not in ids.get(page, ()): anchor = anchor.rpartition('.')[0]
    return f'{page}#{anchor}' if anchor else page

def inside(s, ids, own=''):
    "nbdev links to the published site: stay in this one, and on page `own` if it has the name"
    def link(m):
        page = own if m[2] in ids.get(own, ()) else m[1]
        return f'href="{address(page, m[2], ids)}"'
    return re.sub(rf'href="{site}/([^"#]+)#?([^"]*)"', link, s)

def offline(s):
    "No script and no style of another host"
    s = re.sub(r'<script\b[^>]*\ssrc="https?:[^>]*></script>', '', s)
    s = re.sub(r'<script\b[^>]*>define\(.jquery.*?</script>', '', s)
    return re.sub(r'<link\b(?=[^>]*stylesheet)[^>]*\shref="https?:[^>]*>', '', s)

def formulas(s):
    "smalldocs leaves formulas to a script; Quarto writes MathML itself"
    def mathml(m):
        from math_core import LatexToMathML
        tex = unescape(m[2])
        return LatexToMathML().convert_with_local_state(tex, displaystyle=m[1]=='display')
    span = r'<span class="math (inline|display)">\\[(\[](.*?)\\[)\]]</span>'
    return re.sub(span, mathml, s, flags=re.S)

def described(s):
    "A drawing that has no text for those who can't see it gets its caption"
    def alt(m):
        text = escape(unescape(re.sub('<[^>]+>', '', m[2])))
        return f'<img alt="{text}" ' + m[1].replace('alt="" ', '', 1)
    img,caption = r'<img (?![^>]*\balt="[^"])', r'<figcaption[^>]*>(.*?)</figcaption>'
    return re.sub(rf'{img}([^>]*>\s*(?:</p>\s*)?{caption})', alt, s, flags=re.S)

def is_test(o):
    "Does the statement test something, itself or in a block?"
    if ast.unparse(o).startswith('with ExceptionExpected'): return True
    if isinstance(o, (ast.With,ast.For,ast.If)): return any(is_test(line) for line in o.body)
    return ast.unparse(o).startswith(('test_','assert '))

def kind(code):
    "Is a cell all imports, more than one, or all tests?"
    try: lines = ast.parse(code).body
    except SyntaxError: return
    if not lines: return
    imports = [o for o in lines if isinstance(o, (ast.Import,ast.ImportFrom))]
    if imports==lines: return 'Imports' if len(lines)>1 else None
    if all(is_test(o) for o in lines): return 'Tests'

def folded(s):
    "Cells that a reader may skip open on a click"
    def fold(m):
        block,code = m[0],unescape(re.sub('<[^>]+>', '', m[1]))
        title = 'cell-code' in block[:200] and kind(code)
        if not title: return block
        return f'<details class="code-fold"><summary>{title}</summary>{block}</details>'
    block = r'<div class="sourceCode[^>]*>\s*<pre[^>]*>(.*?)</pre>\s*</div>'
    return re.sub(block, fold, s, flags=re.S)

def linked(s, page):
    "A link to Colab below the title; the one to edit the page has its notebook's full name"
    nb = notebooks[page]
    s = s.replace(f'/{page}.ipynb"', f'/{nb}"')
    url = f'https://colab.research.google.com/{github}/nbs/{nb}'
    colab = f'<a class="colab" href="{url}">Open in Colab</a>'
    if colab in s: return s
    start,title,rest = s.partition('<header id="title-block-header"')
    return start + title + rest.replace('</header>', f'{colab}</header>', 1)

def names():
    "Each public name of the library and its address, as nbdev lists them"
    text = (root/cfg['lib_name']/'_modidx.py').read_text(encoding='utf-8')
    for mod,syms in ast.literal_eval(text.partition('d = ')[2])['syms'].items():
        for sym,(url,_) in syms.items():
            if '._' not in sym: yield sym.removeprefix(f'{mod}.'),sym,url

def search(docs, ids):
    """Whoever looks for a name finds the page that defines it: each has an entry of its own.

    Its fields are one word each, which the search takes for the best match. Short names come
    first, as `Learner` is in `Learner.fit`, too, and equals keep their order."""
    f = docs/'search.json'
    entries = {o['objectID']: o for o in json.loads(f.read_text(encoding='utf-8'))}
    first = {}
    for name,sym,url in sorted(names(), key=lambda o: len(o[0])):
        page,_,anchor = url.partition('#')
        short = sym.removeprefix(f'{cfg["lib_name"]}.')
        first[sym] = dict(objectID=sym, href=address(page, anchor, ids),
                          title=name, section=short, text=sym)
    write(f, json.dumps([*(first | entries).values()], ensure_ascii=False))

def write(f, s): f.write_text(s, encoding='utf-8')

def finish(docs):
    "All of it for the site in the folder `docs`"
    pages = {f: f.read_text(encoding='utf-8') for f in docs.glob('*.html')}
    ids = {f.name: set(re.findall(r'\sid="([^"]+)"', s)) for f,s in pages.items()}
    for f,s in pages.items():
        s = formulas(offline(inside(s, ids, f.name)))
        write(f, linked(described(folded(s)), f.stem))
    for f in docs.rglob('*.min.css'): # fonts are the system's
        write(f, re.sub(r'@import url\(http[^)]*\);', '', f.read_text(encoding='utf-8')))
    search(docs, ids)

if __name__=='__main__': finish(Path(os.environ['QUARTO_PROJECT_OUTPUT_DIR']))
