"Your own images: a messy folder, tables of other programs, tasks in other processes"
import os,pickle,random,sys,warnings
from collections import Counter
from copy import copy

import messy as toys
import numpy as np
import pytest
import torch
from fastcore.basics import first
from learner_from_scratch.fetch import draw_shapes
from learner_from_scratch.data import DataLoader,get_image_files
from learner_from_scratch.distributed import Shard
from learner_from_scratch.folders import use_heic
from learner_from_scratch.inference import load_learner,resizers
from learner_from_scratch.labels import Images,is_valid,labeled_datasets,stratified_split
from learner_from_scratch.labels import warn_of
from learner_from_scratch.learner import DataLoaders
from learner_from_scratch.modules import simple_cnn
from learner_from_scratch.tasks import BalancedLoader,Numbers,image_learner
from learner_from_scratch.tasks import one_channel,several_labels
from PIL import Image,features

@pytest.fixture(autouse=True)
def pillow(monkeypatch):
    "Formats that a test adds to Pillow are gone after it, and HEIC before"
    Image.init()
    for o in 'ID','OPEN','EXTENSION','MIME','SAVE':
        monkeypatch.setattr(Image, o, copy(getattr(Image, o)))
    Image.ID[:] = [o for o in Image.ID if o!='HEIF']
    for k in [k for k,v in Image.EXTENSION.items() if v=='HEIF']: del Image.EXTENSION[k]

@pytest.fixture(scope='module')
def messy(tmp_path_factory):
    return toys.make_messy(tmp_path_factory.mktemp('my images')/'toys')

@pytest.fixture
def no_plugin(monkeypatch): monkeypatch.setitem(sys.modules, 'pillow_heif', None)

def warned(f, *args, **kwargs):
    "What a call gives, and its warnings as one text"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        res = f(*args, **kwargs)
    return res,'\n'.join(str(o.message) for o in seen)

def close(a, b): return torch.allclose(a, b, atol=1e-4, rtol=1e-4)

# --- the messy folder ---
def test_messy_folder_is_told(messy, no_plugin, capsys):
    (train,valid),why = warned(labeled_datasets, messy, size=32, on_error='skip')
    out = capsys.readouterr().out
    assert dict(Counter(train.labels+valid.labels))=={**toys.counts, 'old tree':7}
    for o in 'red ball 9','old tree 7','with garden 2','1 .heic','1 .txt','1 .db','1 hidden':
        assert o in out, o
    assert 'pip install pillow-heif' in out
    assert "lies in a class folder and is a class of its own, 'with garden'" in why
    assert 'fewer than 5 images to train on: with garden' in why
    assert 'triangle 0.jpg' in why

def test_folder_of_heic_alone(tmp_path, no_plugin, capsys):
    (tmp_path/'cat').mkdir()
    (tmp_path/'cat/1.HEIC').touch()
    with pytest.raises(ValueError, match='0 images to train on'): labeled_datasets(tmp_path)
    assert 'Left out: 1 .heic' in capsys.readouterr().out

def test_a_broken_file_is_named(messy):
    ds = Images(get_image_files(messy/'old tree'))
    with pytest.raises(OSError, match='triangle 0.jpg') as e: ds.batch([0])
    assert "on_error='skip'" in e.value.__notes__[0]

def test_messy_folder_trains_and_predicts(messy, tmp_path):
    dls,_ = warned(DataLoaders.from_folder, messy, size=32, bs=8, on_error='skip')
    learn = image_learner(dls, simple_cnn)
    learn.fit(1)
    valid = dls.valid.ds
    probs,_ = learn.get_preds()
    learn.save(tmp_path/'toys.safetensors')
    again = load_learner(tmp_path/'toys.safetensors')
    for asked in learn,again:
        for p,o in zip(probs, asked.predict(valid.fns)): assert close(o.probs, p)
    res,why = warned(again.predict, messy)
    assert len(res)==len(get_image_files(messy)) and '; the first: ' in why
    assert [o.name for o,_ in res.errors]==['triangle 0.jpg']
    assert again.predict(messy/toys.clear).label in valid.vocab

def test_what_is_transparent_is_white(messy):
    x,_ = Images([messy/toys.clear], channels=1)[0]
    assert x.max()==1

def test_same_file_in_both_parts(messy, tmp_path):
    for o in 'train/a/1.jpg','train/a/2.jpg','val/a/3.jpg':
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).write_bytes((messy/'red ball/circle 1.jpg').read_bytes())
    _,why = warned(labeled_datasets, tmp_path)
    assert '1 images to validate with are also trained on' in why

# --- formats of phones ---
def test_heic(messy, capsys):
    pytest.importorskip('pillow_heif')
    assert messy/toys.heic not in get_image_files(messy)
    warned(labeled_datasets, messy, on_error='skip')
    assert 'blue box 9' in capsys.readouterr().out
    x,_ = Images([messy/toys.heic], size=(24,32))[0]
    want,_ = Images([messy/'blue box/square 0.jpg'], size=(24,32))[0]
    assert x.shape==want.shape and x.std()>.05

def test_no_plugin(no_plugin, messy):
    assert not use_heic()
    assert messy/toys.heic not in get_image_files(messy)

@pytest.mark.skipif(not features.check('avif'), reason='this Pillow has no AVIF')
def test_avif(tmp_path):
    Image.new('RGB', (64,48), (30,200,30)).save(tmp_path/'photo.avif')
    x,_ = Images(get_image_files(tmp_path))[0]
    assert abs(x.mean((0,1))*255-torch.tensor([30,200,30])).max() < 8

# --- what trains is what predicts ---
def tasks():
    "Labels of each kind, by the names of the files"
    yield dict(labels=lambda o: o.stem[:4])
    yield dict(labels=lambda o: o.stem.split(), task=several_labels)
    yield dict(labels=lambda o: (len(o.name),1), task=Numbers('letters','one'))

@pytest.mark.parametrize('labels,told', [(('red','red wide'),"'red wide' is taken for one"),
                                         (('0.5','2'),'the labels are numbers')])
def test_labels_of_another_task(messy, labels, told):
    "A column of a table that was meant for several labels, or for numbers, is told"
    files = get_image_files(messy/'red ball')
    found = {o: labels[i%2] for i,o in enumerate(files)}
    ds = Images(files, found, size=8)
    with pytest.warns(UserWarning) as seen: warn_of(ds, ds)
    assert any(told in str(o.message) for o in seen)

@pytest.mark.parametrize('kw', list(tasks()), ids=['one','several','numbers'])
@pytest.mark.parametrize('resize', resizers)
@pytest.mark.parametrize('channels', [1,3])
def test_saved_model(messy, tmp_path, kw, resize, channels):
    files = get_image_files(messy/'red ball')
    ds = Images(files, size=(16,40), channels=channels, resize=resize, **kw)
    dls = DataLoaders(DataLoader(ds, 4, shuffle=True), DataLoader(ds, 4))
    learn = image_learner(dls, simple_cnn)
    learn.fit(1)
    probs,_ = learn.get_preds()
    learn.save(tmp_path/'m.safetensors')
    again = load_learner(tmp_path/'m.safetensors')
    for o in learn,again:
        assert close(torch.stack([p.probs for p in o.predict(files)]), probs)

# --- tables of other programs ---
def test_spreadsheet(messy):
    rows = [f'"{o}/{s} 1.jpg";{o};{i%2}' for i,(o,s) in enumerate(toys.classes.items())]
    fn = messy.parent/'sheet.csv'
    fn.write_bytes('\r\n'.join(['\ufeffBild;Klasse;test', *rows, '']).encode())
    train,valid = labeled_datasets(messy, fn, 'test')
    assert train.labels+valid.labels==['red ball','old tree','blue box','big house']

def test_data_frame(messy):
    pd = pytest.importorskip('pandas')
    names = [f'{o}/{s} {i}.jpg' for o,s in toys.classes.items() for i in (1,2)]
    df = pd.DataFrame(dict(name=names, kind=[1,1,2,2,3,3,4,4], is_valid=[False,True]*4))
    dls = DataLoaders.from_csv(messy, df, split='is_valid', bs=2)
    assert list(dls.train.ds.vocab)==list('1234')
    assert [o.name[-5] for o in dls.valid.ds.fns]==['2']*4
    df.loc[3,'kind'] = np.nan
    with pytest.raises(ValueError, match='square 2.jpg: .*no label'):
        DataLoaders.from_csv(messy, df.astype({'kind':object}))

@pytest.mark.parametrize('seed', range(20))
def test_each_label_has_its_share(seed):
    rng = random.Random(seed)
    labels = {f'{i}':rng.choice('aaaabbc') for i in range(rng.randint(1, 200))}
    pct = rng.uniform(.05, .95)
    train,valid = stratified_split(labels, pct, seed)
    assert sorted(train+valid)==sorted(labels)
    n,took = Counter(labels.values()),Counter(labels[o] for o in valid)
    for k in n: assert abs(took[k]-pct*n[k]) <= 1

# --- other processes, other machines ---
def data_sets(messy):
    files = get_image_files(messy/'red ball')
    for kw in tasks(): yield Images(files, size=(16,24), channels=1, resize='pad', **kw)

def test_pickles(messy):
    for ds in data_sets(messy):
        xb,yb = ds.batch([0,1])
        again = pickle.loads(pickle.dumps(ds))
        assert not again.decoded
        for a,b in zip(again.batch([0,1]), (xb,yb)): assert torch.equal(a, b)
        assert type(again.task) is type(ds.task)

@pytest.mark.skipif(os.name!='posix', reason='needs forks')
def test_torch_loaders(messy):
    for ds in data_sets(messy):
        xb,yb = first(torch.utils.data.DataLoader(ds, 2, num_workers=1))
        for a,b in zip((xb,yb), ds.batch([0,1])): assert torch.equal(a, b)

def test_balanced_shards(messy):
    "The ranks together have the batches of one process"
    ds = Images(get_image_files(messy), size=8, on_error='skip')
    def batches(dl):
        torch.manual_seed(3)
        return [yb for _,yb in dl]
    parts = [batches(Shard(BalancedLoader(ds, 4), o, 2)) for o in range(2)]
    one = batches(BalancedLoader(ds, 8))
    assert len(one)==len(parts[0])
    for a,b,both in zip(*parts, one):
        assert torch.equal(torch.cat([a,b]).sort()[0], both.sort()[0])

def test_grey_networks():
    "Ours and PyTorch's"
    torch.manual_seed(0)
    for model in simple_cnn(3),torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()):
        x = torch.randn(2, 1, 16, 16)
        want = model(x.expand(-1, 3, -1, -1))
        assert torch.allclose(one_channel(model)(x), want, atol=1e-5)

@pytest.mark.parametrize('word,ok', [('Test',True), (np.True_,True), (0,False), (' t',None)])
def test_is_valid(word, ok):
    if ok is None:
        with pytest.raises(ValueError, match="' t' is none of"): is_valid(word)
    else: assert is_valid(word) is ok

def test_data_of_others_are_for_a_learner():
    ds = [(torch.zeros(3,8,8),0)]
    dls = DataLoaders(torch.utils.data.DataLoader(ds), [])
    with pytest.raises(TypeError, match='list has none: use Learner'): image_learner(dls)

def test_no_name_acts_on_a_terminal(tmp_path, capsys):
    "Neither a label nor a suffix"
    path = draw_shapes(tmp_path/'x', 20, 10)
    (path/'train/ring').rename(path/'train/\x1b[2J')
    (path/'val/ring').rename(path/'val/\x1b[2J')
    (path/'train/cross/a.\x1b[3Jx').touch()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        DataLoaders.from_folder(path, size=16)
    out = capsys.readouterr().out+''.join(str(o.message) for o in seen)
    assert '\x1b' not in out and r"'\x1b[2J' 3" in out and r'\x1b[3jx' in out.lower()

def test_statistics_and_device_may_be_chosen(tmp_path):
    "As a pretrained network wants them, checked before anything is made"
    dls = DataLoaders.from_folder(draw_shapes(tmp_path/'shapes', 40, 20), size=8)
    stats = [[.4]*3,[.2]*3]
    learn = image_learner(dls, simple_cnn, stats=stats, device='cpu')
    learn.fit(1)
    assert np.allclose(learn.predictor().stats, stats)
    for bad in [[.4],[.2]],[[.4]*3,[0]*3]:
        with pytest.raises(ValueError, match='must be 3'): image_learner(dls, stats=bad)
