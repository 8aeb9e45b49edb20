"""Run the notebooks: `run` stores their outputs, `check` compares new ones with those stored

Floats and percentages may differ by 0.1 %, floats also by one in the last place of three
decimals or more; a cell says `#| tol 0.1` if it needs more. Times, addresses and the line
of code that warns may differ. Pictures only have to be there. In `#| varies` cells only the
kinds of output count. All else has to be the same.
"""
import html,math,os,re,shutil,sys,tempfile,time
from itertools import zip_longest
from pathlib import Path

import nbformat
from fastcore.basics import first
from fastcore.script import call_parse,Param
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean

root = Path(__file__).resolve().parent.parent
home = Path(os.environ.get('FASTAI_HOME', '~/.fastai')).expanduser().resolve()
# what outputs have in place of this machine's folders
places = {home:'~/.fastai', Path(sys.prefix):'.venv', Path(sys.base_prefix):'python',
          root:'.', Path.home():'~'}

def directives(c):
    "The `#|` lines of cell `c`, as a dict"
    return dict(re.findall(r'^#\| *([\w-]+):? *(.*)', c.source, flags=re.M))

# --- what a cell says ---
num = re.compile(r'(?<![\w.])[-+]?(?:\d*\.\d+|\d+(?=e[-+]|%))(?:e[-+]?\d+)?')
address = re.compile(r'( at)? 0x[0-9a-f]+')
line = re.compile(r'(?<=\.py):\d+(?=: \w*Warning)') # of the library, where it warns
units = 's|secs?|seconds?|ms|[µμu]s|ns'
took = re.compile(rf'\b(\d+:\d\d:\d\d|\d\d:\d\d|(\d+min )?\d+(\.\d+)? ?({units})\b)')

of_bar = re.compile(r'(Worked for (\d+:)?\d\d:\d\d)?') # an empty output, too

def said(o):
    "What output `o` is, and its text"
    if o.output_type=='stream': return o.name, o.text
    if o.output_type=='error': return 'error', f'{o.ename}: {o.evalue}'
    page = re.sub(r'<style.*?</style>', '', o.data.get('text/html', ''), flags=re.S)
    image = any(k.startswith('image') for k in o.data) or re.search('<(svg|img)', page)
    kind = 'picture' if image else 'text'
    words = re.sub(r'</?[a-z][^<>]*>', ' ', page)
    if 'text/html' in o.data: return kind, html.unescape(words)
    return kind, o.data.get('text/markdown', o.data.get('text/plain', ''))

def close(a, b, tol):
    "Are the floats `a` and `b`, as printed, the same but for `tol`?"
    m,_,e = a.partition('e')
    decimals = len(m.partition('.')[2])
    last = 1.01*10.**(int(e or 0)-decimals) if decimals>2 else 0
    return math.isclose(float(a), float(b), rel_tol=tol, abs_tol=last)

def text_diff(a, b, tol=1e-3):
    "The first difference of the texts `a` and `b`, if there is one"
    a,b = (took.sub('(time)', line.sub('', address.sub('', o))) for o in (a,b))
    words = [num.sub(' 0. ', o).split() for o in (a,b)]
    for o,p in zip_longest(*words, fillvalue=''):
        if o!=p: return f'`{o}` is now `{p}`'
    for o,p in zip(num.findall(a), num.findall(b)):
        if not close(o, p, tol): return f'{o} is now {p}'

def cell_diff(old, new):
    "The first difference of cell `new`, just run, from `old`"
    d = directives(old)
    if 'exec_doc' in d:
        stored = 'outputs of `exec_doc` cells are not stored: `make notebooks` drops them'
        return stored if old.outputs else None
    was,now = [[said(o) for o in c.outputs] for c in (old,new)]
    kinds = [', '.join(k for k,_ in o) or 'nothing' for o in (was,now)]
    if kinds[0]!=kinds[1]: return f'{kinds[0]} is now {kinds[1]}'
    if 'varies' in d: return
    tol = float(d.get('tol', 1e-3))
    return first(filter(None, (text_diff(o, p, tol) for (_,o),(_,p) in zip(was, now))))

# --- running ---
def neutral(s):
    "Text `s` without the names of this machine's folders"
    for p in sorted(places, key=lambda o: -len(str(o))): s = s.replace(str(p), places[p])
    s = re.sub(rf'{tempfile.gettempdir()}/(ipykernel_|tmp)\w+', 'tmp', s)
    return s.replace('\r\n', '\n')

def tidy(c):
    "Keep of the outputs of cell `c` what another machine could print"
    if 'exec_doc' in directives(c): c.outputs = []
    # where a cell takes long enough for a bar, it leaves a time
    c.outputs = [o for o in c.outputs if not of_bar.fullmatch(said(o)[1].strip())
                 or said(o)[0]=='picture']
    for o in c.outputs:
        if 'text' in o: o.text = neutral(o.text)
        d = o.get('data', {})
        for k in d:
            if k.startswith('text/'): d[k] = neutral(d[k])
        images = sorted((k for k in d if k.startswith('image')), key=lambda k: len(d[k]))
        for k in images[1:]: del d[k]  # Pillow gives a PNG and a JPEG

def run_nb(fn, folder):
    "The notebook `fn` with the outputs of a run, top to bottom, in `folder`"
    nb = nbformat.read(fn, 4)
    client = NotebookClient(nb, timeout=3600, coalesce_streams=True,
                            resources={'metadata': {'path': str(folder)}},
                            extra_arguments=['--log-level=ERROR'])
    with client.setup_kernel():
        for i,c in enumerate(nb.cells):
            if c.cell_type!='code' or directives(c).get('eval')=='false': continue
            try: client.execute_cell(c, i)
            except Exception as e: raise RuntimeError(f'{fn.name}, cell {i}: {e}') from e
            tidy(c)
    return nb

def run(fn):
    "Run notebook `fn` in place, and clean it"
    nbformat.write(run_nb(fn, fn.parent), fn)
    nbdev_clean.__wrapped__(str(fn))
    return []

def check(fn):
    "Where notebook `fn` prints something else than is stored in it"
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)/root.name
        d.mkdir()
        for o in 'settings.ini','pyproject.toml': shutil.copy(root/o, d)
        for o in 'nbs','benchmarks': shutil.copytree(root/o, d/o)
        places[d] = '.'
        new = run_nb(fn, d/'nbs')
    res = []
    for i,(a,b) in enumerate(zip(nbformat.read(fn, 4).cells, new.cells)):
        diff = cell_diff(a, b) if a.cell_type=='code' else None
        if diff: res.append(f'{fn.name}, cell {i}: {diff}')
    return res

@call_parse
def main(
    what:Param('Store the outputs, or compare with those stored?', choices=['run','check']),
    names:Param('Notebooks, all of `nbs` if none is given', nargs='*', opt=False),
):
    "Run the notebooks from top to bottom"
    if not (home/'data/imagenette2-160').exists():
        print('No Imagenette on this disk, and the stored outputs are those of Imagenette')
    fns = [Path(o).resolve() for o in names] or sorted((root/'nbs').glob('*.ipynb'))
    bad = 0
    for fn in fns:
        start = time.time()
        try: diffs = (run if what=='run' else check)(fn)
        except RuntimeError as e: diffs = [str(e)]
        bad += bool(diffs)
        verdict = 'failed' if diffs else 'ok'
        took = f'{time.time()-start:.0f} s'
        print(*diffs, f'{fn.name}: {verdict}, {took}', sep='\n', flush=True)
    print(f'{len(fns)-bad} passed, {bad} failed')
    sys.exit(bool(bad))
