"The repository agrees with itself: library, notebooks, README and metadata"
import importlib,inspect,json,re,shutil,subprocess,sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from fastcore.docments import docments
from packaging.requirements import Requirement
from project import cfg,code,lib,lines,nbs,root,text

from notebooks import directives
from readme import readme

def tracked():
    "The files that git keeps"
    cmd = ['git','ls-files','-co','--exclude-standard']
    fs = subprocess.run(cmd, cwd=root, capture_output=True, text=True).stdout
    if not fs: pytest.skip('not a git checkout')
    return fs.splitlines()

# --- notebooks and what is made from them ---
@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A copy of the project, its library exported anew and its notebooks cleaned"
    d = tmp_path_factory.mktemp('made')/lib
    (d/lib).mkdir(parents=True)
    for o in 'settings.ini','pyproject.toml': shutil.copy(root/o, d)
    for o in '__init__.py','all.py': shutil.copy(root/lib/o, d/lib)
    shutil.copytree(root/'nbs', d/'nbs')
    programs = Path(sys.executable).parent
    for o in 'export','clean': subprocess.run([programs/f'nbdev_{o}'], cwd=d, check=True)
    return d

def differing(a, b, pat):
    "Names of the files `pat` that `a` and `b` don't share"
    def content(fn): return fn.read_text(encoding='utf-8') if fn.exists() else None
    names = {o.name for d in (a,b) for o in d.glob(pat)}
    return sorted(o for o in names if content(a/o)!=content(b/o))

def test_library_is_the_notebooks(made):
    assert not (o := differing(root/lib, made/lib, '*.py')), f'run `nbdev_export`: {o}'

def test_notebooks_are_clean(made):
    assert not (o := differing(root/'nbs', made/'nbs', '*.ipynb')), f'run `nbdev_clean`: {o}'

def test_readme_is_the_index():
    assert text('README.md')==readme(), 'run `python tools/readme.py`'

def test_what_the_readme_says_of_the_race():
    assert 'right for at least 84 in a hundred' in readme()
    rows = json.loads((root/'benchmarks/research.json').read_text())['rows']
    assert all(o['accuracy']>0.84 and o['secs']<3*o['T'] for o in rows['T3']['runs'])

def test_tree_of_files():
    "The README names all folders, and no file that isn't there"
    tree = text('README.md').partition('## The files')[2].split('```')[1]
    names = {o.split()[0] for o in tree.splitlines() if o}
    assert not [o for o in names if not (root/o).exists()]
    folders = {o.partition('/')[0]+'/' for o in tracked() if '/' in o and o[0]!='.'}
    assert folders <= names

cells = [(n,c) for n,nb in nbs.items() for c in code(nb)]

def test_no_third_party_source_stored():
    bad = [(n,c.id) for n,c in cells if 'exec_doc' in directives(c) and c.outputs]
    assert not bad, 'run `make notebooks`'

def test_no_errors_stored():
    bad = [(n,c.id) for n,c in cells for o in c.outputs if o.output_type=='error']
    assert not bad

# --- the order of the pages ---
def imported(src):
    "The modules of the library that code `src` imports, whichever way"
    names = set(re.findall(rf'^\s*(?:from|import) {lib}\.(\w+)', src, re.M))
    for o in re.findall(rf'^\s*from (?:{lib}|\.) import (.+)', src, re.M):
        names |= {n.split()[0] for n in o.split(',')}
    return names

def test_imported():
    src = f'from {lib}.loss import *\nfrom {lib} import data as d,learner\nimport {lib}.cli'
    assert imported(src)=={'loss','data','learner','cli'}
    assert imported('from . import fetch\nfrom os import path')=={'fetch'}

def test_pages_build_on_earlier_ones():
    before = set()
    for n,nb in nbs.items():
        src = '\n'.join(o.source for o in code(nb))
        if m := re.search(r'^#\| *default_exp (\w+)', src, re.M): before.add(m[1])
        used = imported(src) if n<'90' else set()
        used -= {'all'} # in a script that a page writes
        assert used <= before, f'{n} imports {used-before}'
    pages = {o.stem for o in (root/lib).glob('[a-z]*.py')} - {'all'}
    assert before==pages, 'a module without a page, or a page without a module'

# --- documentation ---
def exported():
    "The functions and classes of the library"
    for fn in sorted((root/lib).glob('[a-z]*.py')):
        m = importlib.import_module(f'{lib}.{fn.stem}')
        for n in getattr(m, '__all__', []):
            o = getattr(m, n)
            mine = getattr(o, '__module__', None)==m.__name__
            if mine and (inspect.isfunction(o) or inspect.isclass(o)):
                yield pytest.param(o, id=f'{fn.stem}.{n}')

hinted = 'model','arch','loss_func','opt_func','ds','dl','dls'

@pytest.mark.parametrize('o', [*exported()])
def test_documented(o):
    doc = o.__doc__ or ''
    assert doc.strip() and '\n' not in doc.strip(), 'a docstring of one line, please'
    f = vars(o).get('__init__') if inspect.isclass(o) else o
    if f is None: return
    ps = [p for p in inspect.signature(f).parameters.values() if p.name!='self']
    names = [p.name for p in ps if p.kind not in (p.VAR_POSITIONAL,p.VAR_KEYWORD)]
    ds = docments(o if is_dataclass(o) else f, full=True)
    bare = [p for p in names if not (ds[p].docment or getattr(ds[p].anno, 'help', None))]
    assert not bare, 'a comment for each parameter, please'
    untyped = [p.name for p in ps if p.name in hinted and p.annotation is p.empty]
    assert not untyped, 'a type for what is a model, a loss, a data set or a loader, please'

# --- metadata ---
def test_versions_agree():
    assert importlib.import_module(lib).__version__==cfg['version']
    assert importlib.metadata.version(lib)==cfg['version']
    assert f'## [{cfg["version"]}]' in text('CHANGELOG.md')

def test_pins_are_in_the_ranges():
    pins = [o for o in text('constraints.txt').splitlines() if '==' in o and o[0]!='#']
    pins = dict(o.split('==') for o in pins)
    for k in 'requirements','dev_requirements','site_requirements','bench_requirements':
        for r in map(Requirement, lines(k)): assert r.specifier.contains(pins[r.name]), r

def test_users_get_no_developer_tools():
    def names(*ks): return {Requirement(o).name for k in ks for o in lines(k)}
    assert not names('requirements') & names('dev_requirements','site_requirements')

def test_no_machine_paths():
    "Nothing that git keeps names a folder of the machine it was made on"
    for fn in tracked():
        binary = Path(fn).suffix in ('.png','.jpg','.safetensors')
        if binary or not (root/fn).is_file(): continue
        folder = r'(?<![\w.~/-])/(root|home|Users|tmp|work|opt|var)/\w+'
        m = re.search(rf'{folder}|[~/]/[\w./]*lib/python3\.\d+/', text(fn))
        assert not m, f'{fn}: {m[0]}'
