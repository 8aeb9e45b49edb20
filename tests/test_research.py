"The race runs, on a few drawn images; what was done is not done again, and no low figure passes"
import json,sys
from pathlib import Path

import pytest
from learner_from_scratch.data import get_image_files
from learner_from_scratch.fetch import draw_shapes

sys.path.append(str(Path(__file__).parent.parent/'benchmarks'))
import research

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('research')
    draw_shapes(path/'shapes', 100, 50)
    return path

def call(folder, quick=True, **kw):
    "The script, on the images in `folder`"
    args = dict(path=str(folder/'shapes'), fname=str(folder/'research.json'), quick=quick)
    research.main.__wrapped__(**{**args, **kw})

def found(folder): return json.loads((folder/'research.json').read_text())

def test_rows(folder):
    call(folder, only='T0.5', seeds=2)
    rows = found(folder)['rows']
    assert [len(rows[o]['runs']) for o in ('T','T0.5')]==[1,2]
    assert [o['seed'] for o in rows['T0.5']['runs']]==[0,1]
    assert {o['T'] for o in rows['T0.5']['runs']}=={rows['T']['runs'][0]['secs']}
    for o in rows['T0.5']['runs']:
        assert 0<=o['accuracy']<=1 and 0<=o['tta']<=1 and o['secs']>0 and o['params']>4e5

def test_seeds():
    "Three trainings of most rows with a bound, one of all others; what is there counts"
    new = dict(runs=[])
    for name,n in {'growing pictures':3, 'T12':3, 'long':1, 'chapter':1, 'and EMA':1}.items():
        assert [*research.missing(name, new, 3)]==[*range(n)]
    assert [*research.missing('T3', dict(runs=[{}]), 3)]==[1,2]

def test_goes_on(folder, monkeypatch):
    "What is there is left alone; what is missing is trained, and written down at once"
    def run(name, path, seed, *args):
        if seed==3: raise KeyboardInterrupt
        return dict(accuracy=.5, secs=1. if name=='T0.5' else 7.)
    monkeypatch.setattr(research, 'run', run)
    before = found(folder)
    with pytest.raises(KeyboardInterrupt): call(folder, only='T0.5', seeds=4)
    after = found(folder)
    old,new = [o['rows']['T0.5']['runs'] for o in (before,after)]
    assert new[:2]==old and [o['seed'] for o in new]==[0,1,2]
    assert new[2]['T']==7.  # T is measured again, as this may be another machine

def test_again(folder, monkeypatch):
    "A full file is trained anew if that is wanted, T with it"
    monkeypatch.setattr(research, 'run', lambda *args: dict(accuracy=.25, secs=3.))
    kw = dict(only='T0.5', fname=str(folder/'again.json'))
    def runs(row): return json.loads((folder/'again.json').read_text())['rows'][row]['runs']
    call(folder, **kw)
    before = runs('T')+runs('T0.5')
    call(folder, **kw)
    assert runs('T')+runs('T0.5')==before
    monkeypatch.setattr(research, 'run', lambda *args: dict(accuracy=.75, secs=4.))
    call(folder, again=True, **kw)
    assert [o['accuracy'] for o in runs('T')+runs('T0.5')]==[.75]*4

@pytest.mark.parametrize('kw,why', [
    (dict(only='fast'), "no row 'fast'"),
    (dict(only='fastai at 1 T', held_out=True), 'no row'),
    (dict(only='chapter', held_out=True), 'choose another --fname')])
def test_refused(folder, kw, why):
    before = found(folder)
    with pytest.raises(SystemExit, match=why): call(folder, **kw)
    assert found(folder)==before

def test_bound(folder, monkeypatch):
    "A full run fails where a mean is under the bound of the page"
    fname = folder/'full.json'
    for acc in .69,.71:
        monkeypatch.setattr(research, 'run', lambda *args: dict(accuracy=acc, secs=1.))
        kw = dict(quick=False, only='T0.5', fname=str(fname), again=True)
        if acc>.7: call(folder, **kw)
        else:
            with pytest.raises(SystemExit, match='0.6900 is under 0.7'): call(folder, **kw)

def test_held_out(folder):
    "Not one of the images to validate with, and none twice"
    files = set(get_image_files(folder/'shapes/train'))
    train,valid = research.images(folder/'shapes', True, False)
    assert set(train)|set(valid)==files and len(train)==80 and len(valid)==20

def test_bf16_of_the_processor(monkeypatch):
    "What a GPU can do says nothing of the processor that the race is on"
    import torch
    from learner_from_scratch import race
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device=None: (9,0))
    for o in '_is_avx512_bf16_supported','_is_amx_tile_supported':
        monkeypatch.setattr(torch.cpu, o, lambda: False, raising=False)
    assert race.has_bf16() and not race.has_bf16('cpu')
    assert type(race.half_width()) is race.Callback
