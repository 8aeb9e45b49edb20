"The benchmarks run, on a few drawn images, and report all that their page shows"
import json,subprocess,sys
from pathlib import Path

import pytest
from learner_from_scratch.data import draw_shapes

psutil = pytest.importorskip('psutil')
root = Path(__file__).parent.parent

def same_keys(a, b): return isinstance(a, dict)==isinstance(b, dict) and (not isinstance(a, dict) or a.keys()<=b.keys() and all(same_keys(a[k], b[k]) for k in a))

def test_bench(tmp_path):
    path,fname = draw_shapes(tmp_path/'shapes', 200, 40),tmp_path/'results.json'
    cmd = [sys.executable, root/'benchmarks/bench.py', '--path', path, '--epochs', '4', '--rounds', '1', '--fname', fname]
    subprocess.run(cmd, check=True, timeout=600)
    got,want = [json.loads(o.read_text()) for o in (fname,root/'benchmarks/results.json')]
    for o in got['fit'].values(): assert len(o['epochs'])==4 and 0<=o['acc']<=1 and o['peak']>50
    assert got['loader'].keys() >= {'notes','pytorch','ours'} and got['ratios'].keys() >= {'first','fit_pytorch','memory'}
    assert same_keys({k:got[k] for k in ('limits','workers','passive','growth','loader')}, want)

def test_scaling(tmp_path):
    out = tmp_path/'scaling.json'
    cmd = [sys.executable, root/'benchmarks/scaling.py', *'--images 128 --bs 32 --size 16 --epochs 1 --runs 1 --out'.split(), out]
    subprocess.run(cmd, check=True, timeout=300)
    got,want = [json.loads(o.read_text()) for o in (out,root/'benchmarks/scaling.json')]
    assert got.keys()==want.keys() and got['ratio']>0
