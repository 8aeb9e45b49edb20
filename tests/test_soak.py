"Soak, forks, threads and Ctrl-C, as in test_loader.py, with each of the faster data sets"
import inspect

import pytest
import test_loader
from learner_from_scratch.cache import FastDataset,decode_once
from test_loader import ds,fns,interrupted,interrupts,posix,test_abandoned_iterators
from test_loader import test_fork_in_the_middle,test_in_threads_of_the_caller,test_soak
from test_loader import test_threads_of_forked_children,test_two_at_once

def stored(fns, cache=None, **kw):
    "Images that were decoded before; with a `cache` of 0, a data set that keeps none"
    ds = FastDataset(fns, cache=cache, **kw)
    return ds if cache==0 else decode_once(ds)

setup = f'{test_loader.setup}from learner_from_scratch.cache import *\n'
kinds = dict(fast=(FastDataset, 'Dataset = FastDataset\n'),
             stored=(stored, f'{inspect.getsource(stored)}Dataset = stored\n'))

@pytest.fixture(autouse=True, params=kinds)
def kind(request, monkeypatch, tmp_path):
    "The tests take it for `Dataset`, also in the processes that they start"
    made,code = kinds[request.param]
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    monkeypatch.setattr(test_loader, 'Dataset', made)
    monkeypatch.setattr(test_loader, 'setup', setup+code)
    monkeypatch.setattr(test_loader, 'n_passes', 100)
    yield request.param
    assert list(tmp_path.glob('decoded/*.npy')) or request.param!='stored'

@posix
def test_in_a_forked_child(fns, monkeypatch):
    test_loader.test_in_a_child(fns, 'fork', monkeypatch)

# the images that are begun are those that are read, or whose checksums are asked for
together = '''
from learner_from_scratch import cache
before = cache._quick
def quick(*args):
    Counted.begun += 1
    return before(*args)
cache._quick = quick
many = FastDataset(list(fns)*400, cache=0)
'''
checksums = '''
from learner_from_scratch import cache
many = decode_once(FastDataset(list(fns)*60))
before = cache.crc32
def crc32(o):
    Counted.begun += 1
    time.sleep(.001)
    return before(o)
cache.crc32 = crc32
'''
# which of them may end after Ctrl-C: an image, or the checksums of 16, in each of two threads
begin = dict(fast=(together,2), stored=(checksums,32))

@posix
def test_ctrl_c(fns, kind, monkeypatch):
    monkeypatch.setattr(test_loader, 'setup', setup+kinds['fast'][1])
    code,most = begin[kind]
    begun = list(interrupts(code+interrupted, fns[0].parent.parent, 6, .2))
    assert len(begun)==6 and max(begun)<=most
