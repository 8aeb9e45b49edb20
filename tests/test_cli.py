"The commands: bad input is one line and exit code 1, a training can be resumed, and a model's file runs no code"
import shutil,signal,subprocess,sys,time
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from learner_from_scratch.checkpoint import load_weights,save_model
from learner_from_scratch.cli import lfs_find,lfs_predict,lfs_train
from learner_from_scratch.data import draw_shapes,get_image_files
from learner_from_scratch.modules import simple_cnn

@pytest.fixture(scope='module')
def shapes(tmp_path_factory): return draw_shapes(tmp_path_factory.mktemp('data')/'shapes', 60, 20, size=32)

@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'run'
    lfs_train(str(shapes), epochs=2, size=32, out=out)
    return out

def refused(f, *args, **kwargs):
    "The one line that `f` ends with"
    with pytest.raises(SystemExit) as e: f(*args, **kwargs)
    assert isinstance(e.value.code, str) and '\n' not in e.value.code, e.value.code
    return e.value.code

def console(cmd): return str(Path(sys.executable).parent/cmd)

@pytest.mark.parametrize('bad,says', [
    (dict(epochs=0), '`epochs` must be at least 1, got 0'), (dict(epochs=-1), 'got -1'), (dict(bs=0), '`bs` must be at least 1'),
    (dict(size=0), '`size` must be a whole number from 1, got 0'), (dict(lr=float('nan')), '`lr` must be greater than 0'), (dict(lr=-1), '`lr` must be greater than 0'),
    (dict(lr=1e20), 'smaller learning rate'), (dict(arch='os:getcwd'), "'os:getcwd' doesn't work"), (dict(arch='torch.nn:Identity'), 'it gives (2, 3, 32, 32)'), (dict(arch='nowhere:net'), "no architecture 'nowhere:net'")])
def test_bad_options(bad, says, shapes, tmp_path):
    assert says in refused(lfs_train, str(shapes), **{'epochs':1, 'size':32, 'out':tmp_path/'out', **bad})
    assert not (tmp_path/'out/model.safetensors').exists()

def test_bad_folders(shapes, tmp_path):
    one,fake = tmp_path/'one',tmp_path/'fake'
    for s in 'train','val': shutil.copytree(shapes/s/'moon', one/s/'moon')
    shutil.copytree(shapes, fake)
    (fake/'train/moon/letter.jpg').write_text('Dear Sir')
    (tmp_path/'file').touch()
    assert 'no_such' in refused(lfs_train, 'no_such', out=tmp_path/'out')
    assert "only one class, 'moon'" in refused(lfs_train, str(one), out=tmp_path/'out')
    assert 'letter.jpg' in refused(lfs_train, str(fake), epochs=1, size=32, out=tmp_path/'out')
    assert 'file' in refused(lfs_train, str(shapes), epochs=1, size=32, out=tmp_path/'file/out')
    assert 'no_such' in refused(lfs_find, 'no_such', out=tmp_path/'lr.png')

def test_bad_models(shapes, trained, tmp_path):
    im,evil = str(get_image_files(shapes)[0]),tmp_path/'evil.safetensors'
    save_model(simple_cnn(7), evil, dict(vocab=list('abcdefg'), size=32, stats=[[0]*3,[1]*3], arch='os:_exit'))
    assert "needs the architecture 'os:_exit'" in refused(lfs_predict, [str(evil), im])
    (tmp_path/'a.txt').write_text('no model')
    for o in (tmp_path/'a.txt', tmp_path/'none', tmp_path): assert str(o) in refused(lfs_predict, [str(o), im])
    assert 'gone.jpg' in refused(lfs_predict, [str(trained/'model.safetensors'), 'gone.jpg'])
    assert subprocess.run([console('lfs_predict'), evil], capture_output=True).returncode==2 # and no image

def test_results(shapes, trained, capsys, tmp_path):
    assert {o.name for o in trained.iterdir()} == {'checkpoints','settings.json','log.csv','model.safetensors','curves.png','confusion.png','worst.png'}
    for o in trained.glob('*.png'): assert min(Image.open(o).size) > 100
    ims = [str(o) for o in get_image_files(shapes)[:3]]
    lfs_predict([str(trained/'model.safetensors'), *ims])
    lines = capsys.readouterr().out.splitlines()
    vocab = load_weights(trained/'model.safetensors')[1]['vocab']
    for fn,o in zip(ims, lines, strict=True):
        label,p = o.removeprefix(f'{fn}: ').split()
        assert label in vocab and 10 <= float(p.rstrip('%')) <= 100

def test_rare_classes(shapes, tmp_path):
    "A class of one image is in one part of the split only, whichever"
    for i,fn in enumerate(get_image_files(shapes)[:24]):
        to = tmp_path/'photos'/(f'common{i%3}' if i<18 else f'rare{i}')
        to.mkdir(parents=True, exist_ok=True)
        shutil.copy(fn, to/f'{i}.jpg')
    for seed in range(4):
        lfs_train(str(tmp_path/'photos'), epochs=1, size=32, seed=seed, out=tmp_path/f'{seed}')
        assert len(load_weights(tmp_path/f'{seed}'/'model.safetensors')[1]['vocab'])==9
    assert 'choose another --out' in refused(lfs_train, str(tmp_path/'photos'), epochs=1, size=32, out=tmp_path/'photos/runs/photos')

def test_bad_networks(shapes, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('syn.py').write_text('def net(')
    im = str(get_image_files(shapes)[0])
    for o in '.foo:bar','syn:net': assert f'no architecture {o!r}' in refused(lfs_predict, [str(trained/'model.safetensors'), im, '--arch', o])
    for o in 5,[1],'x':
        save_model(simple_cnn(3), 'odd.safetensors', o)
        assert 'odd.safetensors' in refused(lfs_predict, ['odd.safetensors', im])

def test_find(shapes, capsys, tmp_path):
    lfs_find(str(shapes), bs=8, size=32, out=tmp_path/'lr.png')
    assert 'valley' in capsys.readouterr().out and Image.open(tmp_path/'lr.png').width > 100

def test_own_network(shapes, tmp_path, monkeypatch):
    (tmp_path/'mynet.py').write_text('from learner_from_scratch.modules import *\ndef small(n): return Sequential(ConvLayer(3,8,stride=2), AdaptivePool(), Linear(8,n))')
    monkeypatch.chdir(tmp_path)
    lfs_train(str(shapes), epochs=1, size=32, arch='mynet:small', out='out')
    args = ['out/model.safetensors', str(get_image_files(shapes)[0])]
    assert "needs the architecture 'mynet:small'" in refused(lfs_predict, args)
    lfs_predict([*args, '--arch', 'mynet:small'])

def test_other_images(shapes, trained, tmp_path):
    "Nothing goes on with other images, or overwrites the results for another folder; what can't be read may be left out"
    mine,out = tmp_path/'shapes',tmp_path/'out'
    shutil.copytree(shapes, mine)
    shutil.copytree(trained, out)
    assert 'begun with folder' in refused(lfs_train, str(mine), epochs=2, size=32, out=out)
    lfs_train(str(mine), epochs=1, size=32, out=tmp_path/'mine')
    (tmp_path/'mine/model.safetensors').unlink()
    (mine/'train/moon/letter.jpg').write_text('Dear Sir')
    again = partial(lfs_train, str(mine), epochs=1, size=32, out=tmp_path/'mine', resume=True)
    with pytest.warns(UserWarning, match='1 of 61 images are skipped'): again(skip=True)
    shutil.copy(mine/'val/moon/moon_0005.JPEG', mine/'train/moon/one_more.JPEG')
    with pytest.warns(UserWarning): assert 'begun with images 80 (' in refused(again, skip=True)
    (tmp_path/'mine/settings.json').write_text('{"bs":')
    with pytest.warns(UserWarning): assert 'settings.json is damaged' in refused(again, skip=True)

def test_class_names_are_no_formulas(shapes, tmp_path):
    shutil.copytree(shapes, tmp_path/'odd')
    for s in 'train','val': (tmp_path/'odd'/s/'ring').rename(tmp_path/'odd'/s/r'$\nothing$')
    lfs_train(str(tmp_path/'odd'), epochs=1, size=32, out=tmp_path/'out')
    assert (tmp_path/'out/confusion.png').exists() and (tmp_path/'out/worst.png').exists()

@pytest.mark.skipif(sys.platform=='win32', reason='needs signals')
def test_interrupted_and_resumed(shapes, tmp_path):
    "From the console: Ctrl-C is exit code 130; resumed, the model is that of a training without a pause"
    def cmd(out, *more): return [console('lfs_train'), str(shapes), '--epochs', '12', '--size', '32', '--bs', '8', '--out', str(tmp_path/out), *more]
    p = subprocess.Popen(cmd('a'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not len([*tmp_path.glob('a/checkpoints/*.ckpt')])>=2 and p.poll() is None: time.sleep(.01)
    p.send_signal(signal.SIGINT)
    assert p.wait(30)==130 and 'Traceback' not in p.stderr.read()
    p.stdout.close(); p.stderr.close()
    before = sorted(tmp_path.glob('a/checkpoints/*'))
    for more,says in ((),'--resume'),(('--resume','--seed','1'),'seed 42'),(('--resume','--epochs','9'),'epochs 12'),(('--resume','--lr','1'),'lr 0.1'):
        r = subprocess.run(cmd('a',*more), capture_output=True, text=True, timeout=60)
        assert r.returncode==1 and says in r.stderr and len(r.stderr.splitlines())==1
    assert sorted(tmp_path.glob('a/checkpoints/*'))==before
    for args in (cmd('a','--resume'), cmd('b')): subprocess.run(args, check=True, timeout=120, stdout=subprocess.PIPE)
    a,b = [(tmp_path/o/'model.safetensors').read_bytes() for o in 'ab']
    assert a==b and len((tmp_path/'a/log.csv').read_text().splitlines())==13
    damaged = sorted(tmp_path.glob('a/checkpoints/*.ckpt'))[-1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    r = subprocess.run(cmd('a','--resume'), capture_output=True, text=True, timeout=120)
    assert r.returncode==1 and len(r.stderr.splitlines())==1 and damaged.name in r.stderr

@pytest.mark.parametrize('cmd,words', [('lfs_train',['--epochs','--lr','--bs','--size','--arch','--resume','--out','Train on an image folder']),
                                       ('lfs_predict',['model','images','--arch','Print the label']), ('lfs_find',['--bs','--size','--out','Suggest a learning rate'])])
def test_help(cmd, words):
    r = subprocess.run([console(cmd), '--help'], capture_output=True, text=True, timeout=60)
    assert r.returncode==0
    for o in words: assert o in r.stdout
