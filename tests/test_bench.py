"The benchmarks run, each part alone, on a few drawn images, and report what their page shows"
import json,subprocess,sys
from pathlib import Path

import pytest
from learner_from_scratch.fetch import draw_shapes

psutil = pytest.importorskip('psutil')
root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'benchmarks'))
import bench

@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp('data')/'shapes', 200, 40)

def run(*args, timeout=600):
    cmd = [sys.executable, root/'benchmarks/bench.py', *map(str, args)]
    return subprocess.run(cmd, capture_output=True, text=True, timeout=timeout)

# --- parts of it ---
wants = dict(
    limits={'decode','decode_secs','fast','fast_secs','opening','compute_secs'},
    first={'notes','pytorch','ours','fast'}, disk={'pytorch','again','memory','built_secs'},
    files={'n','secs','bytes'}, fit={'notes','pytorch','chapter','ours','fast','once'},
    bf16={'once','bf16','pytorch'}, start={'help','torch','all'})

def measured(names, path, fname):
    "What a run of the parts `names` has written"
    args = '--path', path, '--only', names, '--epochs', 4, '--rounds', 1, '--n_files', 400
    res = run(*args, '--fname', fname)
    assert res.returncode==0, res.stderr
    return json.loads(fname.read_text()),res.stdout

def test_part(path, tmp_path):
    "It runs alone, and says where and how quietly"
    got,said = measured('files', path, tmp_path/'res.json')
    assert got['files'].keys()==wants['files']
    facts = {'data','date','commit','machine','versions','noise'}
    assert got['runs']['files'].keys()==facts
    assert got.keys()=={'files','runs','ratios','targets'} and 'not run yet' in said

# each starts many processes; all of them: pytest tests/test_bench.py -k slow
not_chosen = '"slow" not in config.getoption("-k")'
slow = pytest.mark.skipif(not_chosen, reason='choose it with -k slow')

@slow
@pytest.mark.parametrize('name', ['limits','disk','fit','bf16','start'])
def test_slow_part(name, path, tmp_path):
    got,_ = measured(name, path, tmp_path/'res.json')
    assert got[name].keys()>=wants[name]
    for o in got.get('fit', {}).values():
        assert len(o['epochs'])==4 and 0<=o['acc']<=1 and o['peak']>50

@slow
def test_slow_parts_add_up(path, tmp_path):
    "The figures of one part stay when another one is measured"
    fname = tmp_path/'res.json'
    measured('limits', path, fname)
    got,_ = measured('first', path, fname)
    assert got['first'].keys()>=wants['first'] and {'first','share','later'}<=got['ratios'].keys()
    for o in got['first'].values(): assert o['first']>0 and o['peak']>50

def test_unknown_part(path, tmp_path):
    res = run('--path', path, '--only', 'speed', '--fname', tmp_path/'a.json')
    assert res.returncode and 'no part is called speed; there are limits, first' in res.stderr
    assert not (tmp_path/'a.json').exists()

# --- what it says of them ---
def test_ratios_of_what_is_there():
    res = dict(start=dict(help=.4, torch=1, all=1.7), scaling=dict(ratio=.9))
    assert bench.ratios(res)==dict(help=.4, all=pytest.approx(.7), ranks=.9)
    assert bench.ratios({})=={}

def test_worse():
    "By more than a fifth, whichever way is better"
    old = dict(first=2., help=.5)
    assert bench.worse(dict(first=1.61, help=.62), old)==[]
    assert bench.worse(dict(first=1.59, help=.63), old)==['first','help']
    assert bench.worse(dict(later=1), old)==[]

def test_check(path, tmp_path, monkeypatch):
    "Figures that fell end it with an error; the file stays as it is"
    cost = dict(bare=2., ours=3.)
    seen = dict(pulse=dict(n=1, secs=1., cpu=1.), listing=dict(cpu=cost, bytes=cost))
    monkeypatch.setattr(bench, 'run', lambda what, **kw: ([seen[what]],0))
    fname = tmp_path/'res.json'
    def check(listing):
        text = json.dumps(dict(ratios=dict(listing=listing, listing_bytes=1e6)))
        fname.write_text(text)
        try: bench.main(path=path, only='files', check=True, fname=fname)
        finally: assert fname.read_text()==text
    check(1.3)
    with pytest.raises(SystemExit, match='worse by more than a fifth: listing$'): check(1.1)

def test_noise():
    quiet = dict(speed=100, cpu=.99)
    assert bench.noise(quiet, dict(speed=105, cpu=.99)) is None
    assert '25%' in bench.noise(dict(speed=125, cpu=.99), quiet)
    assert '30% of a processor' in bench.noise(dict(speed=100, cpu=.7), quiet)
    assert '30% of a processor' in bench.noise(quiet, dict(speed=100, cpu=.7))

def test_committed_figures_are_these():
    "Ratios and targets of the committed run are what the code makes of its figures"
    res = json.loads((root/'benchmarks/results.json').read_text())
    assert bench.rounded(bench.ratios(res))==res['ratios']
    assert res['targets']=={k: list(o[:3]) for k,o in bench.targets.items()}

# --- the scripts with ranks ---
def report(name, tmp_path, args):
    out = tmp_path/f'{name}.json'
    cmd = [sys.executable, root/f'benchmarks/{name}.py', *args.split(), '--out', out]
    subprocess.run(cmd, check=True, timeout=300)
    return json.loads(out.read_text())

def test_scaling(tmp_path):
    args = '--images 128 --bs 32 --size 16 --epochs 1 --runs 1'
    got = report('scaling', tmp_path, args)
    want = json.loads((root/'benchmarks/scaling.json').read_text())
    assert got.keys()==want.keys() and got['ratio']>0

def test_overlap(tmp_path):
    got = report('overlap', tmp_path, '--mbit 0 --small --steps 3 --rounds 1')
    assert got.keys()=={'network','mbit','mb','seconds','saved'}
    assert got['seconds']['after']>0 and got['saved']<1
