"The repository agrees with itself: library, notebooks, README, metadata; and the comparison of outputs works"
import importlib,inspect,re,shutil,subprocess,sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from execnb.nbio import read_nb
from fastcore.docments import docments
from nbformat.v4 import new_code_cell,new_output
from packaging.requirements import Requirement

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'tools'))
from notebooks import cell_diff,directives,tidy
from readme import readme

ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_name']
nbs = {o.name: read_nb(o) for o in sorted((root/'nbs').glob('*.ipynb'))}
def code(nb): return [o for o in nb.cells if o.cell_type=='code']
def lines(k): return cfg[k].split('\n')[1:]

# --- notebooks and what is made from them ---
@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A copy of the project, its library exported anew and its notebooks cleaned"
    d = tmp_path_factory.mktemp('made')/lib
    (d/lib).mkdir(parents=True)
    for o in 'settings.ini','pyproject.toml': shutil.copy(root/o, d)
    for o in '__init__.py','all.py': shutil.copy(root/lib/o, d/lib)
    shutil.copytree(root/'nbs', d/'nbs')
    for o in 'export','clean': subprocess.run([Path(sys.executable).with_name(f'nbdev_{o}')], cwd=d, check=True)
    return d

def differing(a, b, pat):
    "Names of the files `pat` that `a` and `b` don't share"
    names = {o.name for d in (a,b) for o in d.glob(pat)}
    return sorted(o for o in names if not all((d/o).exists() for d in (a,b)) or (a/o).read_text()!=(b/o).read_text())

def test_library_is_the_notebooks(made):
    assert not (o := differing(root/lib, made/lib, '*.py')), f'run `nbdev_export`: {o}'

def test_notebooks_are_clean(made):
    assert not (o := differing(root/'nbs', made/'nbs', '*.ipynb')), f'run `nbdev_clean`: {o}'

def test_readme_is_the_index():
    assert (root/'README.md').read_text(encoding='utf-8')==readme(), 'run `python tools/readme.py`'

def test_no_third_party_source_stored():
    bad = [(n,c.id) for n,nb in nbs.items() for c in code(nb) if 'exec_doc' in directives(c) and c.outputs]
    assert not bad, 'run `make notebooks`'

def test_no_errors_stored():
    assert not [(n,c.id) for n,nb in nbs.items() for c in code(nb) for o in c.outputs if o.output_type=='error']

def test_chapters_build_on_earlier_ones():
    order = [m[1] for nb in nbs.values() for c in code(nb) if (m := re.search(r'^#\| *default_exp (\w+)', c.source, re.M))]
    for n,nb in nbs.items():
        if n>='90': continue
        src = '\n'.join(o.source for o in code(nb))
        m = re.search(r'^#\| *default_exp (\w+)', src, re.M)
        before = order[:order.index(m[1])+1]
        used = set(re.findall(rf'^\s*from {lib}\.(\w+) import', src, re.M))
        used -= {'all'} # in a script that a page writes
        assert used <= set(before), f'{n} imports {used-set(before)}'

# --- the library ---
def exported():
    "The functions and classes of the library"
    for fn in sorted((root/lib).glob('[a-z]*.py')):
        m = importlib.import_module(f'{lib}.{fn.stem}')
        for n in getattr(m, '__all__', []):
            o = getattr(m, n)
            if getattr(o, '__module__', None)==m.__name__ and (inspect.isfunction(o) or inspect.isclass(o)): yield pytest.param(o, id=f'{fn.stem}.{n}')

@pytest.mark.parametrize('o', [*exported()])
def test_documented(o):
    doc = o.__doc__ or ''
    assert doc.strip() and '\n' not in doc.strip(), 'a docstring of one line, please'
    f = vars(o).get('__init__') if inspect.isclass(o) else o
    if f is None: return
    ps = [p.name for p in inspect.signature(f).parameters.values() if p.name!='self' and p.kind not in (p.VAR_POSITIONAL,p.VAR_KEYWORD)]
    ds = docments(f, full=True)
    assert not [p for p in ps if not (ds[p].docment or getattr(ds[p].anno, 'help', None))], 'a comment for each parameter, please'

def test_chapter_is_short():
    "As the first page says"
    assert sum(len((root/lib/f'{o}.py').read_text().splitlines()) for o in ('data','modules','loss','learner')) < 1000

# --- metadata ---
def test_versions_agree():
    assert importlib.import_module(lib).__version__==cfg['version']
    assert importlib.metadata.version(lib)==cfg['version']
    assert f'## [{cfg["version"]}]' in (root/'CHANGELOG.md').read_text()

def test_pins_are_in_the_ranges():
    pins = dict(o.split('==') for o in (root/'constraints.txt').read_text().splitlines() if '==' in o and o[0]!='#')
    for k in 'requirements','dev_requirements','site_requirements','bench_requirements':
        for r in map(Requirement, lines(k)): assert r.specifier.contains(pins[r.name]), r

def test_users_get_no_developer_tools():
    mine,devs = ({Requirement(o).name for k in ks for o in lines(k)} for ks in (['requirements'],['dev_requirements','site_requirements']))
    assert not mine & devs

def test_no_machine_paths():
    "Nothing that git keeps names a folder of the machine it was made on"
    fs = subprocess.run(['git','ls-files','-co','--exclude-standard'], cwd=root, capture_output=True, text=True).stdout
    if not fs: pytest.skip('not a git checkout')
    for f in map(root.joinpath, fs.splitlines()):
        if f.suffix in ('.png','.jpg') or not f.is_file(): continue
        m = re.search(r'(?<![\w.~/-])/(root|home|Users|tmp|work|opt|var)/\w+', f.read_text(encoding='utf-8'))
        assert not m, f'{f.relative_to(root)}: {m[0]}'

# --- the comparison of `tools/notebooks.py` ---
def printed(s, src='f()'): return new_code_cell(src, outputs=[new_output('stream', name='stdout', text=s)])
def shown(src='f()', **kw): return new_code_cell(src, outputs=[new_output('display_data', {k.replace('_','/'):v for k,v in kw.items()})])

same = dict(
    equal      = ('13394 files', '13394 files'),
    last_place = ('tensor([0.4680, -1.2000])', 'tensor([ 0.4681, -1.2000])'),
    a_thousandth = ('loss 1.60012', 'loss 1.60101'),
    sizes      = ('1.6516e+38', '1.6517e+38'),
    times      = ('1 0.5000 00:12 took 3.4 s', '1 0.5000 01:02 took 12 ms'),
    addresses  = ('<object>', '<object at 0x7f01ab>'),
    progress   = ('100.00% [74/74 00:12<00:00]', '100.00% [74/74 00:09<00:00]'),
    stopped    = ('14.86% [11/74 00:01<00:06]', '14.86% [11/74 1:00:02<00:11]'))
other = dict(
    count   = ('13394 files', '13395 files'),
    shape   = ('torch.Size([128, 64, 64, 3])', 'torch.Size([128, 3, 64, 64])'),
    float   = ('accuracy 0.4680', 'accuracy 0.4780'),
    sign    = ('0.4680', '-0.4680'),
    coarse  = ('0.5', '0.6'),
    whole   = ('tensor([1., 2.])', 'tensor([1., 3.])'),
    isnan   = ('0.4680', 'nan'),
    word    = ('Parameter containing', 'Tensor containing'),
    more    = ('a', 'a b'),
    numbers = ('0.1000, 0.2000', '0.1000'),
    notime  = ('took 3.4 s', 'took 3.4'))

@pytest.mark.parametrize('a,b', same.values(), ids=same)
def test_same(a, b): assert not cell_diff(printed(a), printed(b))

@pytest.mark.parametrize('a,b', other.values(), ids=other)
def test_other(a, b): assert cell_diff(printed(a), printed(b))

def test_tolerance_of_a_cell():
    a,b = printed('0.46', '#| tol 0.1\nf()'),printed('0.50')
    assert not cell_diff(a, b)
    assert cell_diff(a, printed('0.60'))
    assert cell_diff(printed('3 of 5', '#| tol 0.9\nf()'), printed('4 of 5'))

def test_varies():
    a = printed('2 cpus', '#| varies\nf()')
    assert not cell_diff(a, printed('64 cpus'))
    assert cell_diff(a, new_code_cell('f()'))

def test_pictures():
    a,b = shown(image_png='x', text_plain='<Figure size 640x480>'),shown(image_png='y', text_plain='<Figure size 640x480>')
    assert not cell_diff(a, b)
    assert cell_diff(a, shown(text_plain='<Figure size 640x480>'))
    assert cell_diff(a, new_code_cell('f()'))

def test_any_output_counts():
    old,new = (new_code_cell('f()', outputs=printed('a').outputs+printed(o).outputs) for o in '12')
    assert cell_diff(old, new)
    assert not cell_diff(old, old)

def test_drawings():
    a,b = (shown(text_html=o) for o in ('<svg><text>pool</text></svg>','<p>pool</p>'))
    assert cell_diff(a, b)
    assert not cell_diff(a, shown(text_html='<svg height="3"><text>pool</text></svg>'))

def test_what_is_stored():
    c = new_code_cell('f()', outputs=[*shown(text_html='<style>p {}</style>').outputs, *shown(image_png='xx', image_jpeg='x').outputs,
                                      *printed(f'{Path.home()}/a\r\n').outputs])
    tidy(c)
    assert [o.get('text') or list(o.data) for o in c.outputs]==[['image/jpeg'],'~/a\n']

def test_tables():
    a,b = [shown(text_html=f'<style>p {{}}</style><tr><td>{o}</td><td>00:1{i}</td></tr>') for i,o in enumerate(('0.4680','0.4681'))]
    assert not cell_diff(a, b)
    assert cell_diff(a, shown(text_html='<tr><td>0.5680</td><td>00:10</td></tr>'))

def test_stored_source_and_errors():
    assert cell_diff(printed('def f()', '#| exec_doc\nf()'), new_code_cell('f()'))
    assert not cell_diff(new_code_cell('#| exec_doc\nf()'), printed('def f()'))
    assert cell_diff(printed('a'), new_code_cell('f()', outputs=[new_output('error', ename='ValueError', evalue='a')]))
