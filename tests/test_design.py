"One thing, one place: no name twice, no effect of an import elsewhere, lines that fit"
import ast,builtins,dis,importlib,json,re,subprocess,sys
from collections import Counter

import pytest
from project import code,lib,nbs,root,text

chapter = 'fetch','data','modules','loss','learner'

def n_code(src):
    "The lines of `src` that are neither empty nor a comment"
    lines = [o.strip() for o in src.splitlines()]
    return len([o for o in lines if o and o[0]!='#'])

def test_chapter_is_short():
    "About a thousand lines, as the first page says"
    assert sum(n_code(text(f'{lib}/{o}.py')) for o in chapter) < 1150

# --- one thing, one place ---
funcs = ast.FunctionDef,ast.AsyncFunctionDef

def patched(f):
    "The classes to which `@patch` or `@patch_to` adds the function `f`, as they are written"
    for o in f.decorator_list:
        if ast.unparse(o).startswith('patch_to('): classes = o.args[0]
        elif ast.unparse(o).startswith('patch'): classes = f.args.args[0].annotation
        else: continue
        if isinstance(classes, ast.Tuple): return [ast.unparse(c) for c in classes.elts]
        return ast.unparse(classes).split(' | ')
    return []

def accessor(f):
    "Does the method `f` add to one of its name, as setters do?"
    names = [ast.unparse(o) for o in f.decorator_list]
    return any(o.endswith(('.setter','.deleter','overload')) for o in names)

def assigned(o):
    "The names that the assignment `o` gives values to"
    targets = [n for t in o.targets for n in getattr(t, 'elts', [t])]
    return [n for n in map(ast.unparse, targets) if not n.startswith('__')]

def definitions(srcs):
    "Name and place of all that the modules `srcs` define, and the bases of their classes"
    found,bases = [],{}
    for mod,src in srcs.items():
        where = {}  # the module that a class imported by name comes from
        for o in ast.parse(src).body:
            if isinstance(o, ast.ImportFrom):
                home = (o.module or lib).split('.')[-1]
                where |= {a.asname or a.name: a.name if home==lib else home for a in o.names}
            elif isinstance(o, ast.ClassDef):
                found.append((o.name, mod))
                bases[o.name,mod] = [ast.unparse(b) for b in o.bases]
                methods = [f.name for f in o.body if isinstance(f, funcs) and not accessor(f)]
                found += [(f'{o.name}.{f}', mod) for f in methods]
            elif isinstance(o, ast.Assign): found += [(n, mod) for n in assigned(o)]
            elif isinstance(o, funcs):
                classes = patched(o)
                if not classes: found.append((o.name, mod))
                for c in classes:
                    prefix,_,c = c.rpartition('.')
                    home = where.get(prefix or c) or last_home(c, bases)
                    found.append((f'{c}.{o.name}', home))
    return found,bases

def last_home(c, bases):
    "The last module so far with a class `c`: what `import *` of all of them gives"
    return ([m for n,m in bases if n==c] or ['elsewhere'])[-1]

def twice(srcs):
    "What `srcs` define a second time, but for a class that is a subclass of its namesake"
    found,bases = definitions(srcs)
    def subclass(n, m): return any(b.split('.')[-1]==n for b in bases.get((n,m), []))
    res = [f'{n} of {m}' for (n,m),k in Counter(found).items() if k>1]
    homes = {}
    for n,m in dict.fromkeys(found):
        if '.' not in n: homes.setdefault(n, []).append(m)
    for n,ms in homes.items():
        if not all(subclass(n, m) for m in ms[1:]): res.append(f'{n} in {" and ".join(ms)}')
    return res

def sources():
    "The modules of the library, in the order of their pages"
    names = re.findall(rf'^from {lib}\.(\w+) import', text(f'{lib}/all.py'), re.M)
    rest = {o.stem for o in (root/lib).glob('[a-z]*.py')} - {*names,'all'}
    return {o: text(f'{lib}/{o}.py') for o in [*names, *sorted(rest)]}

def test_nothing_is_defined_twice():
    assert not (o := twice(sources())), o

first = 'class A:\n  def f(self): pass\ndef g(): pass'
@pytest.mark.parametrize('second,n', [
    ('class A(one.A):\n  def f(self): pass', 0),
    ('class A(one.A): pass\n@patch\ndef f(self:A): pass', 0),
    ('from one import *\n@patch\ndef h(self:A): pass', 0),
    ('from one import *\n@patch\ndef f(self:A): pass', 1),
    ('from one import A\n@patch\ndef f(self:A|B): pass', 1),
    ('class A(one.A):\n  def f(self): pass\n@patch\ndef f(self:A): pass', 1),
    ('class A: pass', 1),
    ('def g(): pass', 1),
    ('g = 1', 1),
    ('h = 1\ndef h(): pass', 1),
    ('class B:\n  @property\n  def x(self): pass\n  @x.setter\n  def x(self, o): pass', 0)])
def test_twice(second, n): assert len(twice(dict(one=first, two=second)))==n

def test_pages_show_all_code():
    "nbdev leaves out the cells of `export`; those of `exports` are on the page"
    cells = [(name,c) for name,nb in nbs.items() for c in code(nb)]
    assert not [(name,c.id) for name,c in cells if c.source.startswith('#| export\n')]

def test_no_code_in_links():
    "nbdev links names in backticks by itself, and a link in a link is none"
    link = re.compile(r'\[`\w+`\]\(\d\d_')
    cells = [(name,c) for name,nb in nbs.items() for c in nb.cells]
    assert not [(n,c.id) for n,c in cells if c.cell_type!='code' and link.search(c.source)]

# --- no effect at a distance ---
@pytest.mark.skipif(sys.platform=='win32', reason='no forks')
def test_import_changes_nothing_else():
    "Modules, classes, the process and its children are the same after the import as before"
    src = '\n'.join(sources().values())
    names = sorted(set(re.findall(r'^(?:from|import) ([a-zA-Z][\w.]*)', src, re.M)))
    cmd = [sys.executable, root/'tests/import_effects.py', lib, *names]
    res = subprocess.run(cmd, capture_output=True, text=True, cwd=root)
    assert res.returncode==0, res.stderr
    assert res.stdout=='', res.stdout

# --- lines ---
raised = r'raise |assert .*["\']|exit\(|warn\(|Error\('
message = re.compile(rf'{raised}|^\s*f?["\'].*["\'][)\]]*,?$') # or a string alone

def too_long(src):
    "The lines of `src` with more than 94 columns, or more than 100 where there is a message"
    lines = [o for o in src.splitlines() if not o.startswith('#|')]
    return [o for o in lines if len(o)>(100 if message.search(o) else 94)]

def test_too_long():
    line = 'x'*86
    assert not too_long(f'a = "{line}"\nraise "{line}"\n  "{line}",')
    assert not too_long(f'#| fig-alt: {line}{line}')
    assert too_long(f'abcd = "{line}"') and too_long(f'raise "{line}abcdefgh"')

def test_lines_fit_the_page():
    srcs = {n: '\n'.join(o.source for o in code(nb)) for n,nb in nbs.items()}
    files = [*root.glob('*.py'), root/lib/'all.py']
    for o in 'tests','tools','benchmarks': files += (root/o).glob('*.py')
    srcs |= {o.relative_to(root).as_posix(): text(o) for o in files}
    bad = {k: o for k,v in srcs.items() if (o := too_long(v))}
    assert not bad, '\n'.join(f'{k}: {len(v)} lines, the first {v[0]}' for k,v in bad.items())

def test_imports_have_cells_of_their_own():
    "The site's build runs cells with imports, and with them whatever else is in such a cell"
    def mixed(src):
        lines = [o for o in src.splitlines() if o.strip() and o[0]!='#']
        imports = [bool(re.match('(from|import) ', o)) for o in lines if o[0]!=' ']
        return any(imports) and not all(imports) and '"""' not in src
    bad = [(n,c.id) for n,nb in nbs.items() for c in code(nb) if mixed(c.source)]
    assert not bad

# --- names ---
def inner(c):
    "The code object `c`, and all that are in it"
    yield c
    for o in c.co_consts:
        if isinstance(o, type(c)): yield from inner(o)

def unknown(src, names):
    "The global names that `src` asks for, and that are not among `names`"
    asked = [i.argval for c in inner(compile(src, 'a module', 'exec'))
             for i in dis.get_instructions(c) if i.opname=='LOAD_GLOBAL']
    return {*asked}-{*names}-{*dir(builtins)}

def test_of_names():
    assert unknown('def f(x): return np.sum(len(x))', ['f'])=={'np'}

@pytest.mark.parametrize('mod', sorted(o.stem for o in (root/lib).glob('[!_]*.py')))
def test_names_are_known(mod):
    "A name that only a test of the page imports is missing in the module"
    names = vars(importlib.import_module(f'{lib}.{mod}'))
    assert not unknown(text(f'{lib}/{mod}.py'), names)

@pytest.mark.parametrize('fn', sorted((root/'nbs').glob('*.ipynb')), ids=lambda o: o.stem)
def test_code_is_code(fn):
    "Each code cell can be compiled: a runner may pass over one that can't"
    for c in json.loads(fn.read_text(encoding='utf-8'))['cells']:
        if c['cell_type']=='code': compile(''.join(c['source']), fn.name, 'exec')
