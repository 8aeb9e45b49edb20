"The commands: bad input is one line, a run is whole or can go on, a model's file can't act"
import json,os,shutil,signal,subprocess,sys,time
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from PIL import Image
from learner_from_scratch import runs
from learner_from_scratch.callbacks import Callback
from learner_from_scratch.checkpoint import load_weights,save_model
from learner_from_scratch.cli import answer_all,lfs_empty,lfs_find,lfs_predict,lfs_train
from learner_from_scratch.data import get_image_files
from learner_from_scratch.fetch import draw_shapes
from learner_from_scratch.inference import Predictor
from learner_from_scratch.modules import simple_cnn
from learner_from_scratch.tasks import Numbers,several_labels
from messy import broken,heic,make_messy

posix = pytest.mark.skipif(os.name!='posix', reason='needs signals and pipes')

# --- one small folder and one training, for all ---
@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp('data')/'shapes', 60, 20, size=32)

train = partial(lfs_train, epochs=1, size=32, bs=20)

@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'run'
    train(str(shapes), epochs=2, out=out)
    return out

@pytest.fixture
def run(trained, tmp_path):
    "A copy of the run, to be spoilt"
    return shutil.copytree(trained, tmp_path/'run')

@pytest.fixture
def im(shapes): return str(get_image_files(shapes)[0])

@pytest.fixture
def alarm():
    "What waits for ever fails"
    def late(*_): raise AssertionError('it waits')
    was = signal.signal(signal.SIGALRM, late)
    signal.alarm(200)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, was)

def refused(f, *args, **kwargs):
    "The one line that `f` ends with"
    with pytest.raises(SystemExit) as e: f(*args, **kwargs)
    assert isinstance(e.value.code, str) and e.value.code.isprintable(), e.value.code
    return e.value.code

def console(cmd): return str(Path(sys.executable).parent/cmd)

def options(**kw): return [f'--{k}={v}' for k,v in kw.items()]

def start(*cmd):
    "The command `cmd` as a process of its own"
    pipe = subprocess.PIPE
    return subprocess.Popen(cmd, stdout=pipe, stderr=pipe, text=True)

def settings(out): return json.loads((out/'settings.json').read_text())
def save_settings(out, **kw):
    new = {**settings(out), **kw}
    (out/'settings.json').write_text(json.dumps(new))
def weights(out): return load_weights(out/'model.safetensors')[0]
def same(a, b):
    a,b = weights(a),weights(b)
    return all(torch.equal(a[k], b[k]) for k in a)
def ckpts(out): return sorted(out.glob('checkpoints/*.ckpt'))
def visible(out): return {o.name for o in out.iterdir() if o.name[0]!='.'}
def wait_for(p, out, n):
    "Until the training `p` has `n` checkpoints in `out`, or has ended"
    while len(ckpts(out))<n and p.poll() is None: time.sleep(.005)
def n_lines(fn): return len(fn.read_text().splitlines())

# --- bad input ---
@pytest.mark.parametrize('bad,says', [
    (dict(epochs=0), '`epochs` must be at least 1, got 0'),
    (dict(epochs=-1), 'got -1'),
    (dict(bs=0), '`bs` must be at least 1, got 0'),
    (dict(bs=61), '`bs` must be from 1 to 60'),
    (dict(bs=10**30), '`bs` must be from 1 to 60'),
    (dict(size=0), '`size` must be at least 1, got 0'),
    (dict(size=9000), '`size` must be a whole number from 1 to 2048, got 9000'),
    (dict(lr=float('nan')), '`lr` must be greater than 0'),
    (dict(lr=-1), '`lr` must be greater than 0'),
    (dict(seed=2**63), '`seed` must be'),
    (dict(seed=-1), '`seed` must be'),
    (dict(arch='os:getcwd'), "'os:getcwd' doesn't work"),
    (dict(arch='sys:exit'), "'sys:exit' doesn't work"),
    (dict(arch='torch.nn:Identity'), 'no parameters'),
    (dict(arch='torch.nn:LazyLinear'), 'it gives (2, 3, 32, 10)'),
    (dict(arch='nowhere:net'), "no architecture 'nowhere:net'"),
    (dict(arch='resnet'), 'known are small_resnet, resnet18, simple_cnn'),
    (dict(arch=''), "no architecture ''"),
    (dict(aug='much'), '`aug` must be one of none, flip, full'),
    (dict(opt='adam'), '`opt` must be one of adamw, sgd'),
    (dict(finetune='none.safetensors'), 'there is no none.safetensors')])
def test_bad_options(bad, says, shapes, tmp_path):
    assert says in refused(train, str(shapes), **{'out':tmp_path/'out', **bad})
    assert not (tmp_path/'out').exists()

@pytest.mark.parametrize('bad', [dict(arch='nonsense'), dict(arch='os:getcwd'), dict(bs=61)])
def test_bad_options_decode_nothing(bad, shapes, tmp_path, monkeypatch, capsys):
    "What does not fit is told before images are decoded, a wrong name before they are listed"
    from learner_from_scratch import runs
    decoded = []
    monkeypatch.setattr(runs, 'decode_once', lambda ds: decoded.append(ds) or ds)
    refused(train, str(shapes), cache=True, out=tmp_path/'out', **bad)
    assert not decoded and ('nonsense' in bad.values())==(not capsys.readouterr().out)

def test_bad_folders(shapes, tmp_path):
    one,odd = tmp_path/'one',tmp_path/'odd'
    for s in 'train','val': shutil.copytree(shapes/s/'moon', one/s/'moon')
    (tmp_path/'file').touch()
    assert 'there is no no_such' in refused(train, 'no_such', out=tmp_path/'out')
    assert "only one class, 'moon'" in refused(train, str(one), out=tmp_path/'out')
    assert 'file' in refused(train, str(shapes), out=tmp_path/'file/out')
    assert 'no_such' in refused(lfs_find, 'no_such', out=tmp_path/'lr.png')
    shutil.copytree(shapes/'val', odd)
    try: (odd/'moon').rename(odd/os.fsdecode(b'caf\xe9'))
    except OSError: return # not every file system takes it
    assert r"'caf\udce9' is not UTF-8" in refused(train, str(odd), out=tmp_path/'out')

def test_unreadable_image_names_skip(shapes, tmp_path):
    fake = shutil.copytree(shapes, tmp_path/'fake')
    for text in '','Dear Sir':
        (fake/'train/moon/letter.jpg').write_text(text)
        line = refused(train, str(fake), out=tmp_path/'out')
        assert 'letter.jpg' in line and '--skip' in line
    assert '--skip' in refused(lfs_find, str(fake), out=tmp_path/'lr.png')
    warned = partial(pytest.warns, UserWarning, match='1 of 61 images are skipped')
    with warned(): train(str(fake), skip=True, out=tmp_path/'out')
    with warned(): lfs_find(str(fake), bs=8, size=32, skip=True, out=tmp_path/'lr.png')
    with warned(): lfs_train(str(fake), resume=True, out=tmp_path/'out')

def test_image_breaks_meanwhile(shapes, run, tmp_path):
    "A run that goes on can't leave it out: what to do is said with `--skip` and without"
    mine = shutil.copytree(shapes, tmp_path/'mine')
    save_settings(run, folder=str(mine.resolve()), state='training')
    (mine/'val/moon/moon_0005.JPEG').write_text('Dear Sir')
    line = refused(lfs_train, str(mine), resume=True, out=run)
    assert 'moon_0005' in line and 'repair the file, or begin again with --force --skip' in line
    with pytest.warns(UserWarning, match='1 of 20 images are skipped'):
        line = refused(lfs_train, str(mine), resume=True, skip=True, out=run)
    assert 'images 60+20' in line and 'begin again with --force' in line

small_net = '''
from learner_from_scratch.modules import *
def small(n):
    return Sequential(ConvLayer(3,8,stride=2), AdaptivePool(), Linear(8,n))
'''

def test_own_network(shapes, trained, im, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    Path('mynet.py').write_text(small_net)
    Path('syn.py').write_text('def net(')
    train(str(shapes), arch='mynet:small', out='out')
    args = ['out/model.safetensors', im]
    assert "needs the architecture 'mynet:small'" in refused(lfs_predict, args)
    lfs_predict([*args, '--arch', 'mynet:small'])
    args = [str(trained/'model.safetensors'), im]
    for o in '.foo:bar','syn:net':
        assert f'no architecture {o!r}' in refused(lfs_predict, [*args, '--arch', o])
    again = partial(lfs_train, str(shapes), out='out', resume=True)
    assert '--arch mynet:small' in refused(again)
    again(arch='mynet:small')
    assert sys.path==before

# --- a model from elsewhere ---
good = dict(vocab=[*'abcdefg'], size=32, stats=[[.5]*3,[.3]*3], arch='simple_cnn')

@pytest.mark.parametrize('meta,says', [
    ({**good, 'arch':'os:_exit'}, "needs the architecture 'os:_exit'"),
    ({**good, 'size':9000}, '`size`'),
    ({**good, 'stats':[[0]*3,[0]*3]}, '`stats`'),
    ({**good, 'stats':[[float('nan')]*3,[1]*3]}, '`stats`'),
    ({**good, 'vocab':['a']*10**6}, '`vocab`'),
    ({**good, 'vocab':None}, ''),
    (5, ''),
    ([1], ''),
    ('x', '')])
def test_bad_meta(meta, says, im, tmp_path):
    fn = tmp_path/'evil.safetensors'
    save_model(simple_cnn(7), fn, meta)
    line = refused(lfs_predict, [str(fn), im])
    assert str(fn) in line and says in line

def test_bad_model_files(trained, im, tmp_path):
    model = simple_cnn(7)
    with torch.no_grad(): model.parameters()[0][0] = float('nan')
    save_model(model, tmp_path/'nan.safetensors', good)
    (tmp_path/'a.txt').write_text('no model')
    for o in 'nan.safetensors','a.txt','none','':
        fn = str(tmp_path/o)
        assert fn in refused(lfs_predict, [fn, im])
    assert 'gone.jpg' in refused(lfs_predict, [str(trained/'model.safetensors'), 'gone.jpg'])

@posix
def test_nothing_waits(trained, im, tmp_path, alarm):
    os.mkfifo(tmp_path/'pipe.jpg')
    model = str(trained/'model.safetensors')
    for o in filter(os.path.exists, (str(tmp_path/'pipe.jpg'), '/proc/kmsg', '/dev/zero')):
        assert o in refused(lfs_predict, [o, im])
        assert o in refused(lfs_predict, [model, o])

def test_labels_are_escaped(im, tmp_path, capsys):
    fn = tmp_path/'m.safetensors'
    vocab = [f'\x1b[2J\n{o}\udce9' for o in 'abcdefg']
    save_model(simple_cnn(7), fn, {**good, 'vocab':vocab})
    lfs_predict([str(fn), im])
    text = capsys.readouterr().out
    assert text.rstrip('\n').isprintable() and r'\x1b[2J\n' in text

# --- results ---
results = {'checkpoints', 'settings.json', 'log.csv', 'model.safetensors',
           'curves.png', 'confusion.png', 'worst.png', 'report.html'}

def test_results(shapes, trained, capsys):
    assert visible(trained)==results
    for o in trained.glob('*.png'): assert min(Image.open(o).size) > 100
    page = (trained/'report.html').read_text(encoding='utf-8')
    assert 'id="live"' in page and str(shapes) in page
    assert settings(trained)['state']=='done'
    assert n_lines(trained/'log.csv')==3 # the names, and two epochs
    ims = [str(o) for o in get_image_files(shapes)[:3]]
    lfs_predict([str(trained/'model.safetensors'), *ims])
    lines = capsys.readouterr().out.splitlines()
    vocab = load_weights(trained/'model.safetensors')[1]['vocab']
    for fn,o in zip(ims, lines, strict=True):
        label,p = o.removeprefix(f'{fn}: ').split()
        assert label in vocab and 10 <= float(p.rstrip('%')) <= 100

def test_odd_folders(shapes, tmp_path):
    "Classes of one image, a name with `$`, a constant channel, and results among the images"
    photos = tmp_path/'photos'
    labels = [r'common$\nothing$']*12 + ['common']*8 + [f'rare{i}' for i in range(20, 24)]
    for i,(fn,label) in enumerate(zip(get_image_files(shapes), labels)):
        to = photos/label
        to.mkdir(parents=True, exist_ok=True)
        r,g,_ = Image.open(fn).convert('RGB').split()
        Image.merge('RGB', (r,g,Image.new('L', r.size))).save(to/f'{i}.png')
    for seed in range(2):
        out = tmp_path/f'{seed}'
        train(str(photos), bs=8, seed=seed, out=out)
        _,meta = load_weights(out/'model.safetensors')
        assert len(meta['vocab'])==6
    assert 'choose another --out' in refused(train, str(photos), bs=8, out=photos/'runs')

def test_same_seed_same_model(shapes, trained, tmp_path):
    "All that is random by default follows the seed: order, weights, changes of the images"
    train(str(shapes), epochs=2, out=tmp_path/'a')
    assert same(trained, tmp_path/'a')
    train(str(shapes), epochs=2, seed=1, out=tmp_path/'b')
    assert not same(trained, tmp_path/'b')

@pytest.mark.parametrize('kw', [
    dict(arch='simple_cnn', opt='sgd', aug='none'),
    dict(arch='resnet18', opt='momentum', aug='flip'),
    dict(opt='muon', bf16=True)])
def test_options(kw, shapes, im, tmp_path, capsys):
    "Each is kept, and the model loads without being told its architecture"
    train(str(shapes), out=tmp_path/'out', **kw)
    assert kw.items() <= settings(tmp_path/'out').items()
    lfs_predict([str(tmp_path/'out/model.safetensors'), im])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3:-1]==[f'Look at it: {tmp_path}/out/report.html',
                          f'Use it: lfs_predict {tmp_path}/out/model.safetensors IMAGE']

def test_finetune(shapes, trained, im, tmp_path):
    "Size, statistics and network are the model's; the classes those of the folder"
    few = tmp_path/'few'
    for o in 'moon','star','heart': shutil.copytree(shapes/'train'/o, few/o)
    model = str(trained/'model.safetensors')
    tune = partial(lfs_train, str(few), epochs=2, finetune=str(trained)) # its folder will do
    tune(out=tmp_path/'out')
    old,new = [load_weights(o/'model.safetensors')[1] for o in (trained,tmp_path/'out')]
    assert new['vocab']==['heart','moon','star']
    for k in 'size','stats','arch': assert new[k]==old[k], k
    lfs_predict([str(tmp_path/'out'), im])
    line = refused(tune, arch='resnet18', out=tmp_path/'b')
    assert model in line and 'small_resnet' in line and 'resnet18' in line

def test_finetune_same_classes(shapes, trained, tmp_path):
    "Nothing is thrown away: with a rate of almost 0, the weights are those of the model"
    model = str(trained/'model.safetensors')
    train(str(shapes), lr=1e-12, finetune=model, out=tmp_path/'out')
    a,b = weights(trained),weights(tmp_path/'out')
    assert all(torch.allclose(a[k], b[k], atol=1e-6) for k in a if k.endswith('.w'))

def heic_works():
    try: import pillow_heif # noqa: is it there?
    except ImportError: return False
    return True

def test_messy_folder(tmp_path, capsys):
    "What most people have: nothing of it is lost without a word, and each word is one line"
    messy = make_messy(tmp_path/'my photos')
    line = refused(train, str(messy), out=tmp_path/'out', bs=8)
    assert broken in line and line.endswith('(--skip leaves such images out)')
    cmd = [console('lfs_train'), 'my photos', '--size=32', '--epochs=1', '--skip']
    r = subprocess.run(cmd, capture_output=True, text=True, cwd=tmp_path)
    assert r.returncode==0, r.stderr
    text,lines = r.stdout,r.stderr.splitlines()
    assert all(o.startswith('lfs_train: ') for o in lines)
    for o in (broken, 'with garden lies in a class folder and is a class of its own',
              'fewer than 5 images to train on: with garden'): assert o in r.stderr
    assert '5 labels: big house 8, blue box' in text and '1 .txt' in text
    assert '1 .heic' in text or heic_works()
    with pytest.warns(UserWarning, match='images are skipped'):
        lfs_find(str(messy), bs=8, size=32, skip=True, out=tmp_path/'lr.png')
    model = tmp_path/'runs/my photos/model.safetensors'
    assert "Use it: lfs_predict 'runs/my photos/model.safetensors' IMAGE" in text
    capsys.readouterr()
    assert broken in refused(lfs_predict, [str(model), str(messy)])
    names = [o.split(':')[0] for o in capsys.readouterr().out.splitlines()]
    assert set(names)=={str(o) for o in get_image_files(messy) if o!=messy/broken}
    assert (str(messy/heic) in names)==heic_works()

@pytest.fixture
def table(shapes, tmp_path):
    "A CSV file with two labels that are no folders, and a column in between for the split"
    rows = [f'{o.relative_to(shapes)},{["train","valid"][i%4==0]},{o.parent.name[0]<"m"}'
            for i,o in enumerate(get_image_files(shapes))]
    (tmp_path/'labels.csv').write_text('\n'.join(['file,part,early', *rows]))
    return tmp_path/'labels.csv'

def test_labels_of_a_table(shapes, table, tmp_path, capsys):
    "A column is the split, another one the label; a run that goes on remembers both"
    go = partial(train, str(shapes), labels=str(table), out=tmp_path/'out')
    go(split='part')
    assert '60 images to train on, 20 to validate with' in capsys.readouterr().out
    assert load_weights(tmp_path/'out/model.safetensors')[1]['vocab']==['False','True']
    lfs_train(str(shapes), out=tmp_path/'out', resume=True)
    changed = table.read_text().replace('True', 'true', 1)
    table.write_text(changed)
    again = partial(lfs_train, str(shapes), out=tmp_path/'out', resume=True)
    assert 'begun with images' in refused(again)

def test_bad_tables(shapes, table, tmp_path):
    go = partial(train, str(shapes), out=tmp_path/'out')
    assert "no column 'place'" in refused(go, labels=str(table), split='place')
    assert 'no table no.csv' in refused(go, labels='no.csv')
    assert "split='part' is a column, and there is no table" in refused(go, split='part')
    for text,says in (('a.jpg,cat\nb.jpg', 'a row of 1 cells'), ('a\nb', 'one of labels'),
                      ('file,label\ngone.jpg,cat', 'gone.jpg'), ('', 'is empty')):
        table.write_text(text)
        assert says in refused(go, labels=str(table))
    assert not (tmp_path/'out').exists()

def test_predict_many(shapes, trained, tmp_path, capsys, monkeypatch):
    "Files, folders and patterns; the unreadable are told at the end, and stop nothing"
    model = str(trained/'model.safetensors')
    shutil.copytree(shapes/'val/moon', tmp_path/'ims')
    monkeypatch.chdir(tmp_path)
    (tmp_path/'ims/a.jpg').write_text('Dear Sir')
    names = ['ims','ims/m*.JPEG','gone*.jpg']
    n = len(list((tmp_path/'ims').glob('m*')))
    line = refused(lfs_predict, [model, *names, '--json', '--topk=3', '--csv=a.csv'])
    assert f'2 of {2*n+2} images' in line and 'ims/a.jpg' in line and 'gone*.jpg' in line
    got = [json.loads(o) for o in capsys.readouterr().out.splitlines()]
    assert len(got)==2*n and all(len(o['labels'])==3 for o in got)
    assert got[0]['labels'][0][1] >= got[0]['labels'][1][1]
    rows = Path('a.csv').read_text().splitlines()
    assert len(rows)==2*n+1 and rows[1].startswith(f'{got[0]["file"]},')
    assert '`topk`' in refused(lfs_predict, [model, 'ims', '--topk=0'])
    capsys.readouterr()
    assert 'ims' in refused(lfs_predict, [model, 'ims', '--csv=ims'])
    assert 'gone' in refused(lfs_predict, [model, 'ims', '--csv=gone/a.csv'])
    assert not capsys.readouterr().out # nothing was predicted

def test_predict_empty_folder(trained, im, tmp_path, capsys):
    "It is told, and stops nothing"
    empty = str(tmp_path)
    for names in [empty],[empty,im]:
        assert refused(lfs_predict, [str(trained), *names]).endswith(f': no images in {empty}')
    assert capsys.readouterr().out.startswith(im)

def test_no_file_is_lost(trained, im, tmp_path, monkeypatch):
    "A table replaces neither a photo nor the model, nor an older table if there is no answer"
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained/'model.safetensors', 'm')
    shutil.copy('m', 'other.safetensors')
    for o in 'p1.jpg','p2.jpg','photo': shutil.copy(im, o)
    Path('keep.csv').write_text('mine')
    before = {o: o.read_bytes() for o in Path().iterdir()}
    for says,args in (('p1.jpg must end in .csv', 'm --csv p1.jpg p2.jpg'),
                      ('other.safetensors must end', 'm p1.jpg --csv other.safetensors'),
                      ('m is read', 'm p1.jpg --csv m'),
                      ('photo is read', f'm photo --csv {tmp_path}/photo'),
                      ('nope.jpg', 'm nope.jpg --csv keep.csv')):
        assert says in refused(lfs_predict, args.split())
    assert {o: o.read_bytes() for o in Path().iterdir()}==before
    lfs_predict(['m', 'p1.jpg', '--csv', 'keep.csv'])
    assert n_lines(Path('keep.csv'))==2

@pytest.mark.skipif(os.name=='nt', reason='needs links')
def test_no_image_is_lost(shapes, tmp_path):
    "Nor does the picture of `lfs_find` replace one that a linked folder has"
    photos = shutil.copytree(shapes/'val', tmp_path/'photos')
    (tmp_path/'all').mkdir()
    for o in photos.iterdir(): (tmp_path/'all'/o.name).symlink_to(o)
    shutil.move(get_image_files(photos)[0], one := photos/'moon'/'one.jpg')
    before = one.read_bytes()
    assert 'is read' in refused(lfs_find, str(tmp_path/'all'), bs=4, size=32, out=str(one))
    assert one.read_bytes()==before

def other_task(task, bias, path):
    "A model file whose answers are `bias`, nearly"
    model = simple_cnn(len(bias))
    *_,w,b = model.parameters()
    w.data.zero_()
    b.data.copy_(torch.tensor(bias))
    Predictor(model, ['long','wide'], 32, task=task).save(path)
    return str(path)

def test_predict_small_numbers(im, tmp_path, capsys):
    "Not rounded to none, nor shown with more digits than a float32 has"
    model = other_task(Numbers(), [2.3e-5,1234567.], tmp_path/'model.safetensors')
    lfs_predict([model, im])
    assert capsys.readouterr().out==f'{im}: long 2.3e-05, wide 1.235e+06\n'
    lfs_predict([model, im, '--json', f'--csv={tmp_path}/a.csv'])
    got = json.loads(capsys.readouterr().out)['numbers']
    assert got==[['long',2.3e-5],['wide',1234567.]]
    assert (tmp_path/'a.csv').read_text()==f'file,long,wide\n{im},2.3e-05,1234567.0\n'

def test_predict_numbers(im, tmp_path, capsys):
    "Each with its name, and none of them is a probability"
    model = other_task(Numbers(), [3.25,-120.], tmp_path/'model.safetensors')
    lfs_predict([model, im])
    assert capsys.readouterr().out==f'{im}: long 3.25, wide -120\n'
    lfs_predict([model, im, '--json', f'--csv={tmp_path}/a.csv'])
    assert json.loads(capsys.readouterr().out)['numbers']==[['long',3.25],['wide',-120.]]
    assert (tmp_path/'a.csv').read_text()==f'file,long,wide\n{im},3.25,-120.0\n'

@pytest.mark.parametrize('bias,says', [
    ([9.,-9.], 'long 100.0%'), ([9.,9.], 'long 100.0%, wide 100.0%'), ([-9.,-9.], 'none')])
def test_predict_several_labels(bias, says, im, tmp_path, capsys):
    "All that are rather there than not"
    lfs_predict([other_task(several_labels, bias, tmp_path/'model.safetensors'), im])
    assert capsys.readouterr().out==f'{im}: {says}\n'

def test_old_model_file(im, tmp_path, capsys):
    "The fields are those of files from when there was but one network"
    fn = tmp_path/'old.safetensors'
    save_model(simple_cnn(7), fn, good)
    lfs_predict([str(fn), im])
    assert capsys.readouterr().out.startswith(im)

def test_find(shapes, capsys, tmp_path):
    lfs_find(str(shapes), bs=8, size=32, out=tmp_path/'lr.png')
    assert 'valley' in capsys.readouterr().out and Image.open(tmp_path/'lr.png').width > 100

def test_empty(tmp_path, capsys, monkeypatch):
    "Decoded images in the folder of the settings go, and nothing else"
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    (tmp_path/'decoded').mkdir()
    for o in f'{"0"*32}.npy','mine.npy': (tmp_path/'decoded'/o).write_bytes(bytes(2_000_000))
    lfs_empty()
    assert capsys.readouterr().out==f'2.0 MB less in {tmp_path}/decoded\n'
    assert [o.name for o in (tmp_path/'decoded').iterdir()]==['mine.npy']

# --- the state of a run ---
def test_other_images(shapes, trained, run, tmp_path):
    "Nothing goes on with other images"
    mine = shutil.copytree(shapes, tmp_path/'shapes')
    again = partial(train, str(mine), epochs=2, out=run)
    assert 'begun with folder' in refused(again, resume=True)
    save_settings(run, folder=str(mine.resolve()), state='training')
    shutil.copy(mine/'val/moon/moon_0005.JPEG', mine/'train/moon/one_more.JPEG')
    assert 'begun with images 60+20' in refused(again, resume=True)
    (run/'settings.json').write_text('{"bs":')
    assert 'settings.json is damaged' in refused(again, resume=True)

def test_clock(shapes, run):
    "An interrupted training isn't taken for a done one, whatever the times of its files"
    save_settings(run, state='training')
    for o in ckpts(run): os.utime(o, (0,0))
    before = ckpts(run)
    assert '--resume' in refused(train, str(shapes), epochs=2, out=run)
    assert ckpts(run)==before

def test_done_may_be_replaced(shapes, run):
    "If somebody says so, whatever the times of its files; nothing of it is lost"
    for o in run.glob('model*'): os.utime(o, (0,0))
    old = {o.name: o.read_bytes() for o in run.iterdir() if o.is_file()}
    assert '--force' in refused(train, str(shapes), out=run, seed=1)
    both = refused(train, str(shapes), out=run, seed=1, resume=True, force=True)
    assert 'ask for one of them' in both
    assert settings(run)['seed']==42
    train(str(shapes), out=run, seed=1, force=True)
    assert settings(run)['seed']==1 and settings(run)['state']=='done'
    kept = {o.name: o.read_bytes() for o in (run/'before').iterdir()}
    assert len(kept)==7 and all(old[k]==v for k,v in kept.items())

def test_replaced_by_another_folder(shapes, trained, run, tmp_path):
    "What the error offers is not refused: the old results, and an export, are in `before`"
    mine = shutil.copytree(shapes, tmp_path/'shapes')
    (run/'model.onnx').write_text('old')
    again = partial(train, str(mine), out=run)
    assert '--force replaces it' in refused(again)
    again(force=True)
    assert settings(run)['folder']==str(mine.resolve())
    assert settings(run/'before')['folder']==settings(trained)['folder']
    assert not (run/'model.onnx').exists() and (run/'before'/'model.onnx').read_text()=='old'

def test_interrupted_replacement(shapes, run, monkeypatch):
    "No model of one training lies beside the settings of another"
    from learner_from_scratch import runs
    def cat(*_): raise KeyboardInterrupt
    monkeypatch.setattr(runs, 'fit_run', cat)
    with pytest.raises(SystemExit): train(str(shapes), out=run, seed=1, force=True)
    assert settings(run)['seed']==1 and not [*run.glob('model*'),*run.glob('*.png')]
    assert settings(run/'before')['seed']==42

def test_done_without_checkpoints(shapes, run):
    "There is nothing to go on with, and a model to lose"
    shutil.rmtree(run/'checkpoints')
    assert '--force' in refused(train, str(shapes), out=run, seed=1, resume=True)
    assert settings(run)['seed']==42

def test_share_to_validate(shapes, tmp_path):
    "A run with a share goes on, and the command takes one"
    out,images = tmp_path/'run',shapes/'train'
    train(str(images), out=out, split=0.5, epochs=1)
    assert settings(out)['split']==0.5
    save_settings(out, state='training')
    lfs_train(str(images), out=out, resume=True)
    lfs_train(str(images), out=tmp_path/'again', split='0.5', epochs=1, size=32)
    assert settings(tmp_path/'again')['split']==0.5
    assert '`split`' in refused(train, str(images), out=tmp_path/'c', split=[images])

def test_failed_start(shapes, run, tmp_path, monkeypatch):
    "A start that fails leaves no checkpoints of an older run to go on with"
    from learner_from_scratch.callbacks import Learner
    with monkeypatch.context() as m:
        def full(*_, **__): raise OSError(28, 'No space left on device')
        m.setattr(Learner, 'fit', full)
        start_again = partial(train, str(shapes), epochs=2, seed=43, out=run, force=True)
        assert 'No space' in refused(start_again)
    train(str(shapes), epochs=2, seed=43, out=run, resume=True)
    train(str(shapes), epochs=2, seed=43, out=tmp_path/'b')
    assert same(run, tmp_path/'b')

def test_checkpoints_without_settings(shapes, run):
    (run/'settings.json').unlink()
    for resume in False,True:
        assert str(run) in refused(train, str(shapes), epochs=2, out=run, resume=resume)
    assert ckpts(run)

def test_model_without_settings(shapes, tmp_path):
    "Nobody knows where it comes from, so it isn't overwritten"
    fn = tmp_path/'model.safetensors'
    fn.write_text('mine')
    for resume in False,True:
        assert str(fn) in refused(train, str(shapes), out=tmp_path, resume=resume)
    assert fn.read_text()=='mine'

def test_resume_keeps_cache(shapes, run, monkeypatch):
    "It may be asked for at any time, and runs from before it was kept go on"
    from learner_from_scratch import runs
    decoded,again = [],partial(lfs_train, str(shapes), out=run, resume=True)
    monkeypatch.setattr(runs, 'decode_once', lambda ds: decoded.append(ds) or ds)
    again(cache=True)
    again()
    assert len(decoded)==4
    was = settings(run)
    del was['cache']
    (run/'settings.json').write_text(json.dumps(was))
    again()
    assert len(decoded)==4

@pytest.mark.parametrize('has,asked', [(True,False),(True,True),(False,False)])
def test_bf16_is_offered(has, asked, shapes, tmp_path, capsys, monkeypatch):
    "Where it helps, and before the training; here that is left out"
    from learner_from_scratch import runs
    monkeypatch.setattr(runs, 'has_bf16', lambda: has)
    monkeypatch.setattr(runs, 'fit_run', lambda *_: False)
    refused(train, str(shapes), bf16=asked, out=tmp_path/'out')
    told = 'try --bf16 (`bf16=True`), it may be faster' in capsys.readouterr().out
    assert told==(has and not asked)

@pytest.mark.parametrize('bad', [
    dict(bs='x'), dict(stats=[]), dict(stats=[['x']*3]*2), dict(opt=None), dict(lr=1e400),
    dict(arch='os:_exit'), dict(finetune='none'), dict(size=-1), dict(on_error='x')])
def test_damaged_settings(bad, shapes, run):
    "The line says where the setting came from"
    save_settings(run, **bad, state='training')
    assert str(run) in refused(lfs_train, str(shapes), out=run, resume=True)

def test_nan_leaves_the_place(shapes, run):
    wild = partial(train, str(shapes), lr=1e20, out=run, force=True)
    assert 'a learning rate below' in refused(wild)
    assert settings(run)['state']=='failed'
    train(str(shapes), out=run)

@pytest.mark.parametrize('n', range(3))
def test_full_disk(n, shapes, run, monkeypatch):
    "Pictures are whole or not there, and the run can be finished"
    old = {o.name: o.read_bytes() for o in run.glob('*.png')}
    savefig,calls = plt.savefig,[]
    def full(fn, **kw):
        calls.append(fn)
        if len(calls)<=n: return savefig(fn, **kw)
        Path(fn).write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(plt, 'savefig', full)
        line = refused(train, str(shapes), seed=1, out=run, force=True)
        assert 'No space' in line and f'to go on: lfs_train {shapes} --resume' in line
    plt.close('all')
    new = {o.name: o.read_bytes() for o in run.glob('*.png')}
    assert len(new)==n and all(new[k]!=old[k] for k in new)
    assert settings(run)['state']=='training' and not [*run.glob('.*part')]
    lfs_train(str(shapes), out=run, resume=True)
    assert settings(run)['state']=='done' and settings(run)['seed']==1

full_disk = """
import gc,resource,signal,sys
from learner_from_scratch.cli import lfs_train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000,resource.RLIM_INFINITY))
try: lfs_train(sys.argv[1], epochs=2, size=32, out=sys.argv[2])
except SystemExit as e: print(e)
gc.collect()
print('alive')
"""

@posix
def test_a_full_disk_ends_in_a_line(shapes, tmp_path):
    "And not in a crash when the error is forgotten, as with Python 3.12.1"
    cmd = [sys.executable, '-c', full_disk, str(shapes), str(tmp_path/'run')]
    res = subprocess.run(cmd, capture_output=True, text=True, timeout=200)
    assert res.returncode==0 and res.stdout.endswith('alive\n'), res.stderr
    assert 'File too large (in Checkpoint.after_epoch) to go on: lfs_train' in res.stdout

@posix
def test_locked_interrupted_killed_and_resumed(shapes, tmp_path):
    "A second training is refused, and neither Ctrl-C nor `kill -9` changes the model"
    a,b = tmp_path/'a',tmp_path/'b'
    kw = dict(epochs=12, size=32, bs=20, seed=7)
    go_on = ['lfs_train', str(shapes), '--resume', '--out', str(a)]
    train_a = partial(lfs_train, str(shapes), out=a)
    p = start(console('lfs_train'), str(shapes), *options(**kw), '--out', str(a))
    wait_for(p, a, 2)
    p.send_signal(signal.SIGSTOP)
    assert 'another training' in refused(train_a, resume=True)
    assert 'another training' in refused(train_a, force=True)
    for o in signal.SIGINT,signal.SIGCONT: p.send_signal(o)
    out,err = p.communicate(timeout=200)
    assert (p.returncode,err)==(130,f'lfs_train: interrupted, to go on: {" ".join(go_on)}\n')
    before = ckpts(a)
    assert '--resume' in refused(train_a)
    assert 'seed 7, and not 1' in refused(train_a, seed=1, resume=True)
    assert 'epochs 12' in refused(train_a, epochs=9, resume=True)
    assert 'lr 0.01' in refused(train_a, lr=1., resume=True)
    assert 'aug full' in refused(train_a, aug='none', resume=True)
    assert ckpts(a)==before
    p = start(console('lfs_train'), *go_on[1:])
    while ckpts(a)==before and p.poll() is None: time.sleep(.005)
    p.kill()
    p.communicate(timeout=200)
    assert settings(a)['state']=='training'
    train_a(resume=True)
    lfs_train(str(shapes), **kw, out=b)
    assert same(a, b) and n_lines(a/'log.csv')==13
    assert ckpts(a)[-1].name==ckpts(b)[-1].name # none of the epochs was trained twice
    last = ckpts(a)[-1]
    last.write_bytes(last.read_bytes()[:100])
    assert last.name in refused(train_a, resume=True)

# --- from the console ---
@pytest.mark.parametrize('cmd,about,words', [
    ('lfs_train', 'Train on an image folder',
     '--epochs --lr --bs --size --arch --aug --opt --finetune --labels --split --bf16 '
     '--cache --skip --resume --force --out'),
    ('lfs_predict', 'Print the label', 'model images --topk --csv --json --arch'),
    ('lfs_find', 'Suggest a learning rate',
     '--labels --split --bs --size --opt --skip --out'),
    ('lfs_export', 'Write a model as an ONNX file', 'model --onnx --arch')])
def test_help(cmd, about, words):
    r = subprocess.run([console(cmd), '--help'], capture_output=True, text=True, timeout=200)
    assert r.returncode==0 and about in r.stdout
    for o in words.split(): assert o in r.stdout

without_torch = '''
import sys
from learner_from_scratch import cli
sys.argv = sys.argv[1:]
try: getattr(cli, sys.argv[0])()
except SystemExit as e: print(e.code, 'torch' in sys.modules)
'''

@pytest.mark.parametrize('cmd,says', [
    ('lfs_train --help', '0 False'),
    ('lfs_train', '2 False'),
    ('lfs_train photos --epoch=many', '2 False'),
    ('lfs_train photos', 'lfs_train: there is no photos False'),
    ('lfs_train . --epochs=0', 'lfs_train: `epochs` must be at least 1, got 0 False'),
    ('lfs_train . --bs=0', 'lfs_train: `bs` must be at least 1, got 0 False'),
    ('lfs_train . --lr=0', 'lfs_train: `lr` must be greater than 0, got 0.0 False'),
    ('lfs_train . --lr=inf', 'lfs_train: `lr` must be greater than 0, got inf False'),
    ('lfs_train . --seed=9223372036854775808', 'lfs_train: `seed` must be from 0 to 2**63-1, '
                                               'got 9223372036854775808 False'),
    ('lfs_train . --split=1.5', 'lfs_train: `split` must be a share in (0, 1), or a column, '
                                'got 1.5 False'),
    ('lfs_find . --split=nan', 'lfs_find: `split` must be a share in (0, 1), or a column, '
                               'got nan False'),
    ('lfs_train . --labels=no.csv',
     'lfs_train: there is no table no.csv, neither here nor in . False'),
    ('lfs_train . --out=a.py', 'lfs_train: a.py is a file, and no folder False'),
    ('lfs_train . --out=a.py/b', 'lfs_train: a.py is a file, and no folder False'),
    ('lfs_train a.py', 'lfs_train: a.py is a file, and no folder False'),
    ('lfs_find a.py', 'lfs_find: a.py is a file, and no folder False'),
    ('lfs_find . --out=lr.txt', 'lfs_find: the name lr.txt must end in .png, .jpg, .jpeg, '
                                '.webp, .tif, .tiff, .pdf, .svg, .eps False'),
    ('lfs_train . --aug=much', 'lfs_train: `aug` must be one of none, flip, full; '
                               "got 'much' False"),
    ('lfs_train . --opt=adam', 'lfs_train: `opt` must be one of adamw, sgd, momentum, muon; '
                               "got 'adam' False"),
    ('lfs_train . --arch=resnet',
     "lfs_train: no architecture 'resnet': known are small_resnet, "
     'resnet18, simple_cnn, and package.module:function False'),
    ('lfs_find . --arch=resnet',
     "lfs_find: no architecture 'resnet': known are small_resnet, "
     'resnet18, simple_cnn, and package.module:function False'),
    ('lfs_find . --opt=adam', 'lfs_find: `opt` must be one of adamw, sgd, momentum, muon; '
                              "got 'adam' False"),
    ('lfs_find . --size=0', 'lfs_find: `size` must be at least 1, got 0 False'),
    ('lfs_predict --help', '0 False'),
    ('lfs_predict m', '2 False'),
    ('lfs_predict m x.jpg', 'lfs_predict: there is no m False'),
    ('lfs_find photos', 'lfs_find: there is no photos False'),
    ('lfs_export --help', '0 False'),
    ('lfs_export m', 'lfs_export: there is no m False')])
def test_fast_answers(cmd, says, tmp_path):
    "Help, and what is wrong with the arguments, need no PyTorch"
    (tmp_path/'a.py').write_text(without_torch)
    cmd = [sys.executable, 'a.py', *cmd.split()]
    r = subprocess.run(cmd, capture_output=True, text=True, cwd=tmp_path)
    assert r.stdout.splitlines()[-1:]==[says], r.stderr

def test_arguments_are_missing():
    assert subprocess.run([console('lfs_predict'), 'm'], capture_output=True).returncode==2

def test_unknown_backend(shapes, tmp_path):
    "Told before the training, as the pictures come after it"
    cmd = [console('lfs_train'), shapes, '--out', tmp_path/'out']
    env = {**os.environ, 'MPLBACKEND':'easel'}
    r = subprocess.run(cmd, env=env, capture_output=True, text=True)
    assert r.returncode==1 and 'easel' in r.stderr and len(r.stderr.splitlines())==1
    assert not (tmp_path/'out').exists()

importing = '''
import sys
from learner_from_scratch.cli import lfs_predict
print(flush=True)
lfs_predict([sys.executable,"x"])
'''

@posix
def test_interrupted_imports():
    p = start(sys.executable, '-c', importing)
    p.stdout.readline()
    time.sleep(.5)
    p.send_signal(signal.SIGINT)
    assert (p.communicate()[1], p.returncode)==('',130)

@pytest.mark.skipif(os.name=='nt', reason='needs links')
def test_link_to_nowhere(trained, im, tmp_path, capsys):
    "It is named, and the rest is answered"
    link = tmp_path/'gone.jpg'
    link.symlink_to(tmp_path/'nowhere.jpg')
    for name in str(link),str(tmp_path/'*.jpg'):
        assert 'gone.jpg' in refused(lfs_predict, [str(trained/'model.safetensors'), name, im])
        assert Path(im).name in capsys.readouterr().out

def test_base_of_a_new_training(shapes, trained, tmp_path):
    "A fine-tuning doesn't move the model that it begins with"
    out = shutil.copytree(trained, tmp_path/'out')
    model = out/'model.safetensors'
    line = refused(train, str(shapes), out=out, finetune=str(model), force=True)
    assert 'is cleared' in line and model.exists()

def test_pictures_among_images(shapes, tmp_path, monkeypatch):
    "They would be images of the next training"
    here = shutil.copytree(shapes, tmp_path/'photos')
    monkeypatch.chdir(here)
    assert 'choose another --out' in refused(lfs_find, '.', size=16)
    assert 'choose another --out' in refused(train, '.', out='.')
    assert sorted(o.name for o in here.iterdir())==sorted(o.name for o in shapes.iterdir())

class Trained(Callback):
    "How many tensors of weights are trained in each epoch"
    order = 90
    def before_fit(self): self.n = []
    def before_epoch(self):
        ps = self.model.parameters()
        if self.model.training: self.n.append(sum(p.requires_grad for p in ps))

@pytest.mark.parametrize('epochs,n', [(12, [2,4,6,8,10,10]+[10]*6), (11, [10]*11)])
def test_new_head_first(shapes, tmp_path, epochs, n):
    "From the last part to all, in half of the epochs; at once if these are too few"
    few = tmp_path/'few'
    for o in 'moon','star': shutil.copytree(shapes/'train'/o, few/o)
    Predictor(simple_cnn(3), [*'abc'], 16).save(tmp_path/'m.safetensors')
    learn = runs.folder_learner(few, finetune=tmp_path/'m.safetensors', bs=5)
    learn.add_cb(seen := Trained())
    runs.fit_run(learn, tmp_path/'out', epochs, False)
    assert seen.n==n

def test_answers_batch_by_batch(trained, shapes):
    "Each file once, in its order, and told before the next batch is asked for"
    pred = runs.load_predictor(trained/'model.safetensors')
    files = [str(o) for o in get_image_files(shapes)[:5]]
    told,asked,predict = [],[],pred.predict
    def counted(files):
        asked.append((len(files),len(told)))
        return predict(files)
    pred.predict = counted
    errors = answer_all(pred, [*files,'gone.jpg'], None, told.append, bs=2)
    assert [o['file'] for o in told]==files and asked==[(2,0),(2,2),(2,4)]
    assert len(errors)==1 and 'gone.jpg' in errors[0]
