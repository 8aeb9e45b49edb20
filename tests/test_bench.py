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
    limits={'decode','fast','opening','compute'},
    first={'notes','pytorch','ours','fast'}, disk={'pytorch','again','memory','built_secs'},
    tries={*bench.ways}, files={'n','secs','bytes','labeled'},
    fit={'notes','pytorch','chapter','ours','fast','once','bf16'},
    start={'help','torch','all'},
    workers={'ours 1','ours 2','ours 4','fast 1','fast 2','fast 4','spawned'},
    passive={'ours','pytorch'}, threads={'once','bf16'}, kept={'chapter','pytorch'},
    growth={'times','peaks'},
    cold={'disk in order','disk in any order','mapped','each alone','a batch at once'},
    half={'float32','MixedPrecision','channels last','network in bfloat16','ResNet-18'})

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

# each starts many processes; all of them: pytest -n auto tests/test_bench.py -k slow
not_chosen = '"slow" not in config.getoption("-k")'
slow = pytest.mark.skipif(not_chosen, reason='choose it with -k slow')

@slow
@pytest.mark.parametrize('names', ['workers,growth','fit','start,disk,tries',
                                   'passive,kept', 'threads,files', 'cold,half'])
def test_slow_parts(names, path, tmp_path):
    "Two at a time, as each call has a part of its own that takes seconds"
    got,_ = measured(names, path, tmp_path/'res.json')
    for o in names.split(','): assert got[o].keys()>=wants[o]
    for o in [*got.get('fit', {}).values(),*got.get('kept', {}).values()]:
        assert len(o['epochs'])==len(o['faults'])==4 and o['faults'][0]>0
        assert 0<=min(o['accs'])<=max(o['accs'])<=1 and o['peak']>50
    if 'disk' in got:
        steps = 'list','datasets','search','batches'
        assert all(got['disk']['again'][o]>0 for o in steps) and min(got['tries'].values())>0
    for o in got.get('cold', {}).values(): assert o['speed']>0 and o['busy']>0
    if 'half' in got:
        assert all(o['secs']>0 for o in got['half'].values())
        assert 0 < got['half']['float32']['conv'] < got['half']['float32']['ops']

@slow
def test_slow_parts_add_up(path, tmp_path):
    "The figures of one part stay when another one is measured"
    fname = tmp_path/'res.json'
    measured('limits', path, fname)
    got,_ = measured('first', path, fname)
    assert got['limits'].keys()==wants['limits']
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
    assert bench.ratios(dict(fit=dict(bf16=dict(secs=1.), pytorch=5.)))=={} # of older code
    assert bench.ratios(dict(fit=dict(ours=dict(mb=[1.]))))=={} # one epoch

def test_best_of_the_rounds():
    "What slows down a step in one round counts no more than its other rounds say"
    runs = dict(a=iter([dict(first=2, secs=7, peak=1),dict(first=3, secs=9, peak=5),
                        dict(first=1, secs=8, peak=2)]))
    got = bench.in_turn(lambda k: next(runs[k]), runs, 3)
    assert got==dict(a=dict(first=3, secs=7, peak=2))
    def of(secs, acc): return dict(secs=secs, mb=[1,1], faults=[2,2], peak=3, acc=acc)
    got = bench.together([of([5,2], .4),of([4,3], .5)])
    assert (got['epochs'],got['secs'],got['accs'])==([4,2],6,[.4,.5])

def test_worse():
    "By more than a fifth, whichever way is better"
    old = dict(first=2., help=.5)
    assert bench.worse(dict(first=1.61, help=.59), old)==[]
    assert bench.worse(dict(first=1.59, help=.61), old)==['first','help']
    assert bench.worse(dict(later=1), old)==[]

@pytest.mark.parametrize('name', bench.slack)
@pytest.mark.parametrize('old', [-.02,0.,.05])
def test_worse_near_zero(name, old):
    "Of a difference that may be 0 or below, a fifth says nothing"
    by,sign = bench.slack[name],1 if bench.targets[name][0]=='>=' else -1
    def fell(change): return bench.worse({name: old+sign*change}, {name: old})
    assert fell(0)==fell(.5)==fell(-.9*by)==[]
    assert fell(-1.1*by)==[name]

def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    fname,before = tmp_path/'res.json',Path.write_text
    bench.write(fname, dict(a=1))
    def killed(fn, text):
        before(fn, text[:5])
        raise KeyboardInterrupt
    monkeypatch.setattr(Path, 'write_text', killed)
    with pytest.raises(KeyboardInterrupt): bench.write(fname, dict(a=2))
    assert json.loads(fname.read_text())==dict(a=1)

def test_check(path, tmp_path, monkeypatch):
    "Figures that fell end it with an error; the file stays as it is"
    cost = dict(bare=2., ours=3., labeled=9.)
    seen = dict(pulse=dict(n=1, secs=1.), listing=dict(cpu=cost, bytes=cost))
    monkeypatch.setattr(bench, 'run', lambda what, **kw: ([seen[what]],0))
    fname = tmp_path/'res.json'
    def check(listing):
        text = json.dumps(dict(ratios=dict(listing=listing, listing_bytes=1e6)))
        fname.write_text(text)
        try: bench.main(path=path, only='files', check=True, fname=fname)
        finally: assert fname.read_text()==text
    check(1.3)
    with pytest.raises(SystemExit, match='worse by more than a fifth: listing$'): check(1.1)

no_parts = ('limits first disk cold half tries workers trainings passive threads kept growth '
            'listed start script')

@pytest.fixture
def quick(monkeypatch):
    "Nothing is measured"
    for o in no_parts.split(): monkeypatch.setattr(bench, o, lambda *args: {})
    monkeypatch.setattr(bench, 'pulse', lambda path: dict(speed=1., others=0.))

def test_older_figures(quick, path, tmp_path):
    "Those of other parts stay, and none of what is measured no more"
    fname = tmp_path/'res.json'
    fname.write_text(json.dumps(dict(gone=1, start={}, runs=dict(gone=2, start=3))))
    bench.main(path=path, only='files', fname=fname)
    got = json.loads(fname.read_text())
    assert got.keys()=={'start','files','runs','ratios','targets'}
    assert got['runs'].keys()=={'start','files'} and got['runs']['start']==3

def test_run_of_all(quick, path, tmp_path, monkeypatch):
    "Its parts are of one commit, though it writes a file that is in git"
    asked,fname = [],tmp_path/'res.json'
    monkeypatch.setattr(bench, 'about', lambda *_: asked.append(1) or dict(commit=len(asked)))
    fname.write_text(json.dumps(dict(gone=1, first=dict(ours={}))))
    bench.main(path=path, fname=fname)
    got = json.loads(fname.read_text())
    assert got['first']=={}
    assert len(got['runs'])==16 and {o['commit'] for o in got['runs'].values()}=={1}

def test_other_scripts(path, tmp_path, monkeypatch):
    "They write beside the figures, and nowhere if these are only checked"
    monkeypatch.setattr(bench, 'pulse', lambda path: dict(speed=1., others=0.))
    monkeypatch.setattr(bench, 'here', tmp_path)
    code = '''import json,sys
with open(sys.argv[2], 'w') as f: json.dump(dict(ratio=1), f)'''
    (tmp_path/'scaling.py').write_text(code)
    fname = tmp_path/'res.json'
    fname.write_text('{"ratios": {"first": 2}}')
    def made(**kw):
        bench.main(path=path, only='scaling', fname=fname, **kw)
        return (tmp_path/'scaling.json').exists()
    assert not made(check=True) and made()
    assert json.loads(fname.read_text())['scaling']==dict(ratio=1)

def test_python(monkeypatch):
    "A contestant may have a Python of its own"
    monkeypatch.setenv('DECODE_JPEG_PYTHON', 'another')
    assert [bench.python(o) for o in ('decode_jpeg','fastai')]==['another',sys.executable]

def test_noise():
    quiet,busy = dict(speed=100, others=.01),dict(speed=100, others=.3)
    assert bench.noise(quiet, dict(speed=105, others=.01)) is None
    assert '25%' in bench.noise(dict(speed=125, others=.01), quiet)
    assert '30% of a processor' in bench.noise(busy, quiet)
    assert '30% of a processor' in bench.noise(quiet, busy)

def test_pulse_sees_others(path):
    "A program that keeps the other processor busy is seen, though it takes no time from this one"
    p = subprocess.Popen([sys.executable, '-c', 'while True: pass'])
    try: assert bench.pulse(str(path))['others'] > .3
    finally: p.kill()

def test_talkative(monkeypatch, tmp_path):
    "Whatever a contestant says, nobody waits for it"
    said = 'import sys\nsys.stderr.write("x"*10**6)\nprint("{\\"t\\": 1, \\"pages\\": 0}")'
    (tmp_path/'contestants.py').write_text(said)
    monkeypatch.setattr(bench, 'here', tmp_path)
    assert bench.run('anything')[0]==[]

def test_committed_figures_are_these():
    "Ratios and targets of the committed run are what the code makes of its figures"
    res = json.loads((root/'benchmarks/results.json').read_text())
    assert bench.rounded(bench.ratios(res))==res['ratios']
    assert res['targets']=={k: list(o[:3]) for k,o in bench.targets.items()}
    kinds = set()
    for o in res['runs'].values():
        kinds.add((o['data'],o['machine']['cpus'],o['machine']['simd']))
    assert kinds=={('imagenette2-160',2,'AVX512')} # else the page's claims are skipped

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
