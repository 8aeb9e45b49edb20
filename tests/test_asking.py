"Questions to a network: any image, any loader, any task; what is bad is named, the rest answered"
import copy,sys,warnings
from functools import partial
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
import test_images
import torch
from PIL import Image
from torch.utils import data as torch_data
from learner_from_scratch import inference
from fastcore.basics import noop
from learner_from_scratch.callbacks import AnyOutputs,Learner,SetupLearnerCB
from learner_from_scratch.callbacks import Callback
from learner_from_scratch.checkpoint import save_model
from learner_from_scratch.cli import find_images
from learner_from_scratch.data import DataLoader,Dataset,Normalize,get_image_files,tfm_x
from learner_from_scratch.folders import use_heic
from learner_from_scratch.inference import (OneLabel,Predictor,Task,array_image,
    check_meta,confusion_matrix,fit_image,in_order,load_learner,read_rgb,resizers)
from learner_from_scratch.learner import DataLoaders
from learner_from_scratch.loss import cross_entropy
from learner_from_scratch.metrics import LogRows,TensorBoard,WholeSet,from_sklearn
from learner_from_scratch.modules import (AdaptivePool,Linear,Module,Parameter,Sequential,
                                          simple_cnn)
from learner_from_scratch.recorder import Recorder,accuracy
from learner_from_scratch.regularize import MixUp
from learner_from_scratch.resnet import small_resnet
from learner_from_scratch.tasks import numbers,several_labels

colours = ['blue','green','red']

class Mean(Module):
    "Scores that are the means of the channels, so that the answer is known"
    def __init__(self, n=3):
        super().__init__()
        self.scale = Parameter(torch.ones(n))
    def forward(self, x): return 20*x.mean((2,3)).flip(1)*self.scale

raw = [0.]*3,[1.]*3
def mean_pred(**kwargs): return Predictor(Mean(), colours, 8, raw, **kwargs)
def labels(preds): return [o.label for o in preds]
def folders(path): return [o.parent.name for o in get_image_files(path)]
def plain(colour, size=(20,10)): return Image.new('RGB', size, colour)

@pytest.fixture(autouse=True)
def no_figures():
    yield
    plt.close('all')

@pytest.fixture
def folder(tmp_path):
    "Class folders with four images each, of different sizes and formats"
    for o in colours:
        (tmp_path/o).mkdir()
        for i,ext in enumerate(['png','jpg','bmp','webp']):
            plain(o, (10+i,20-i)).save(tmp_path/o/f'{i}.{ext}')
    return tmp_path

# --- anything that is an image ---
def test_kinds_of_images(folder):
    pred,fn = mean_pred(),folder/'green'/'0.png'
    im = Image.open(fn)
    a = np.array(im)
    for o in fn, str(fn), im, a, a/255, torch.tensor(a), torch.tensor(a)/255:
        label,index,probs = pred.predict(o)
        assert (label,index) == ('green',1) and type(index) is int
        assert probs.shape==(3,) and torch.isclose(probs.sum(), torch.tensor(1.))
    assert im.size==(10,20)  # as it was

def test_an_image_that_is_turned(tmp_path):
    "As EXIF says: the upper half is red"
    im = Image.new('RGB', (16,16), 'blue')
    im.paste('red', (0,0,8,16))
    exif = Image.Exif()
    exif[0x112] = 6  # turn clockwise
    im.save(tmp_path/'a.png', exif=exif)
    top = np.array(read_rgb(tmp_path/'a.png'))[0,8]
    assert tuple(top)==(255,0,0)

@pytest.mark.parametrize('a', [
    np.zeros((3,8,8), 'uint8'), np.zeros((8,8,4), 'uint8'), np.zeros((0,8,3), 'uint8'),
    np.zeros((2,8,8,3), 'uint8'), np.zeros((8,8,3), 'int64'), np.full((8,8,3), 1.1),
    np.full((8,8,3), -.1), np.full((8,8,3), np.inf), np.zeros((8,8,3), bool), np.array(5.)])
def test_arrays_refused(a):
    with pytest.raises(ValueError) as e: array_image(a)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('resize', resizers)
@pytest.mark.parametrize('channels', [1,3])
def test_fit(resize, channels):
    for size in (10,20),(20,10),(7,7):
        im = fit_image(plain('red'), size, channels, resize)
        assert im.size==size[::-1] and len(im.getbands())==channels
    black = np.array(fit_image(plain('white'), (20,20), 3, resize)).min()
    assert (black==0)==(resize=='pad')

# --- several ---
def test_messy_list(folder):
    "As many rows as images, `None` where there is none, and one warning"
    (folder/'notes.jpg').write_text('no image')
    (folder/'cut.jpg').write_bytes((folder/'red'/'1.jpg').read_bytes()[:100])
    (folder/'empty.png').touch()
    files = [folder/'red'/'0.png', folder/'notes.jpg', 'gone\n.png', folder/'cut.jpg',
             folder, folder/'empty.png', plain('blue'), np.zeros((3,8,8)),
             folder/'green'/'2.bmp']
    with pytest.warns(UserWarning) as told: res = mean_pred().predict(files, bs=2)
    assert [o and o.label for o in res]==['red',None,None,None,None,None,'blue',None,'green']
    bad = [1,2,3,4,5,7]
    assert [a is files[i] for i,(a,_) in zip(bad, res.errors)]==[True]*6
    whys = [o for _,o in res.errors]
    for name,why in zip(['notes','gone','cut','regular','empty','channels last'], whys):
        assert name in why
    assert len(told)==1 and '6 of 9 images' in str(told[0].message)
    assert told[0].filename==__file__

def test_folder(folder):
    (folder/'notes.txt').write_text('no image')
    res = mean_pred().predict(folder, bs=5)
    assert res.items==list(get_image_files(folder)) and len(res)==12 and not res.errors
    assert labels(res)==folders(folder)
    (folder/'none').mkdir()
    with pytest.raises(ValueError, match='none holds no image files'):
        mean_pred().predict(folder/'none')

def test_bytes_among_images(folder):
    "They are refused in one short line, as are open files"
    fn = folder/'red'/'0.png'
    for o in fn.read_bytes(), BytesIO(fn.read_bytes()):
        with pytest.warns(UserWarning) as told: res = mean_pred().predict([fn, o])
        assert res[1] is None and len(str(told[0].message)) < 200
        with pytest.raises(ValueError, match='open it first'): mean_pred().predict(o)

def test_none_can_be_read():
    with pytest.warns(UserWarning, match='2 of 2'):
        assert mean_pred().predict(['a.png','b.png'])==[None,None]

def test_a_failing_network_is_no_bad_image(folder):
    pred = Predictor(Mean(), colours[:2], 8, raw)
    for o in folder, folder/'red'/'0.png':
        with pytest.raises(ValueError, match='3 outputs for 2 classes'): pred.predict(o)
    pred = mean_pred()
    with torch.no_grad(): pred.model.scale[0] = float('nan')
    with pytest.raises(ValueError, match='answers NaN'): pred.predict(folder)

def test_batches_and_generators():
    batch = np.stack([np.array(plain(o)) for o in colours])
    for o in batch, torch.tensor(batch), list(batch), (o for o in batch):
        assert [p.label for p in mean_pred().predict(o, bs=2)]==colours
    assert mean_pred().predict([])==[]

def test_quiet(folder, capsys):
    "Neither a bar nor a line where nobody watches, and no number drawn"
    rng = torch.get_rng_state()
    mean_pred().predict(folder, bs=1)
    assert capsys.readouterr()==('','')
    assert torch.equal(torch.get_rng_state(), rng)

def test_a_bar_over_several_batches(folder, capsys, monkeypatch):
    "In a terminal it is there while it lasts, and is wiped away"
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    mean_pred().predict(folder, bs=12)
    assert capsys.readouterr().out==''
    mean_pred().predict(folder, bs=5)
    out = capsys.readouterr().out
    assert '[3/3' in out and out.split('\r')[-2].strip()=='', out

def test_photos_that_need_a_plugin(folder, monkeypatch):
    "The error says what they need, and a folder's answers come with a warning"
    monkeypatch.setattr(inference, 'image_extensions', lambda: {'.png'})
    photo = folder/'red'/'IMG_1.HEIC'
    photo.write_bytes(b'no photo')
    with pytest.raises(OSError, match=r'IMG_1.HEIC.*use_heic\(\)'): mean_pred().predict(photo)
    with pytest.warns(UserWarning, match=r'HEIC .*left out: 1, .*use_heic\(\)'):
        mean_pred().predict(folder)
    with pytest.warns(UserWarning, match='left out: 1'): find_images([folder])
    monkeypatch.undo()
    use_heic() or pytest.skip('needs pillow-heif')
    with pytest.raises(OSError) as e: mean_pred().predict(photo)
    assert 'use_heic' not in str(e.value)

def test_read_rgb_raises_oserror(tmp_path):
    "For whatever isn't an image: who leaves such files out catches one kind of error"
    (tmp_path/'empty.jpg').touch()
    for o in tmp_path/'empty.jpg', tmp_path, tmp_path/'gone.jpg':
        with pytest.raises(OSError, match=o.name): read_rgb(o)

# --- learners ---
def our_learner(folder):
    files = get_image_files(folder)
    ds = Dataset(files, size=8)
    dls = DataLoaders(DataLoader(ds, 4, shuffle=True), DataLoader(ds, 5))
    tfm = partial(tfm_x, norm=Normalize(raw))
    return Learner(Mean(), dls, cross_entropy, 1e-6, [SetupLearnerCB('cpu', tfm)])

def test_test_dl(folder):
    learn = our_learner(folder)
    probs,targs = learn.get_preds(learn.test_dl(folder, bs=5))
    assert torch.equal(probs, learn.get_preds()[0]) and targs.shape==(12,0)
    assert labels(learn.predict(folder))==folders(folder)
    with pytest.raises(OSError, match='gone'): learn.get_preds(learn.test_dl(['gone.png']))

def own_loss(preds, yb): return preds.square().mean()

def wrong_learner(folder, n, *cbs, loss_func=cross_entropy):
    "A learner whose network has `n` outputs"
    learn = our_learner(folder)
    learn.model,learn.loss_func = Sequential(AdaptivePool(), Linear(3, n)),loss_func
    for cb in cbs: learn.add_cb(cb)
    return learn

@pytest.mark.parametrize('n', [1,7])
@pytest.mark.parametrize('loss', [cross_entropy, torch.nn.CrossEntropyLoss(), own_loss])
def test_wrong_network_is_refused_before_it_trains(folder, n, loss):
    learn = wrong_learner(folder, n, loss_func=loss)
    was = learn.model.parameters()[0].detach().clone()
    for f in learn.fit,learn.fit_one_cycle,lambda n: learn.lr_find(plot=False):
        with pytest.raises(ValueError, match=f'{n} outputs for 3 classes'): f(1)
        assert torch.equal(learn.model.parameters()[0], was)

@pytest.mark.parametrize('loss', [cross_entropy, own_loss])
def test_wrong_network_is_refused_with_mixup(folder, loss):
    "The loss that mixes is gone afterwards"
    learn = wrong_learner(folder, 7, MixUp(), loss_func=loss)
    with pytest.raises(ValueError, match='7 outputs for 3 classes'): learn.fit(1)
    assert learn.loss_func is loss

class Shown(Module):
    "Means of the channels, `(bs, 3, 1, 1)`"
    def __init__(self):
        super().__init__()
        self.w = Parameter(torch.ones(1))
    def forward(self, xb): return self.w*xb.mean((2,3), keepdim=True)

class TwoPreds(Module):
    "A network whose answer isn't a tensor"
    def forward(self, xb): return Mean()(xb),xb

def first_loss(preds, yb): return own_loss(preds[0], yb)

def test_outputs_that_are_no_classes(folder):
    "A subclass leaves the check out; what isn't a tensor `(bs, n)` passes by itself"
    learn = our_learner(folder)
    learn.model,learn.loss_func = TwoPreds(),first_loss
    learn.fit(1)
    learn = wrong_learner(folder, 7, AnyOutputs('cpu'), loss_func=own_loss)
    learn.cbs = [cb for cb in learn.cbs if type(cb) is not SetupLearnerCB]
    learn.fit(1)
    assert learn.preds.shape[1]==7

def test_wrong_network_is_refused_in_validation(folder):
    learn = wrong_learner(folder, 7)
    for f in learn.validate,learn.get_preds:
        with pytest.raises(ValueError, match='7 outputs for 3 classes'): f()

def test_outputs_with_more_axes(folder):
    "Without its last layer, whatever the loss"
    learn = our_learner(folder)
    learn.model,learn.loss_func = Sequential(Shown()),own_loss
    with pytest.raises(ValueError, match='3 by 1 by 1 outputs for 3 classes'): learn.fit(1)

@pytest.mark.parametrize('classes', [3, lambda: 3, 'abc'])
def test_classes_that_are_no_list(classes):
    "What some other library means by it"
    data = torch_data.TensorDataset(torch.rand(4,3), torch.rand(4,1))
    data.classes = classes
    dls = DataLoaders(torch_data.DataLoader(data), [])
    Learner(Linear(3,7), dls, own_loss, .1, SetupLearnerCB('cpu', noop)).fit(1)

def test_saved_under_another_name(tmp_path):
    "Whatever the name, a network that isn't it is refused, and there is no file"
    pred = Predictor(small_resnet(3, w=4), colours, 8, raw)
    for arch in 'simple_cnn','resnet18','small_resnet':
        with pytest.raises(ValueError, match=f'no `{arch}`'): pred.save(tmp_path/'m', arch)
    assert not list(tmp_path.iterdir())

def test_learner_files(folder, tmp_path):
    ds = Dataset(get_image_files(folder), size=8)
    dls = DataLoaders(DataLoader(ds, 4), DataLoader(ds, 4))
    learn = Learner(simple_cnn(3), dls, cross_entropy, .1, SetupLearnerCB('cpu'))
    fn = tmp_path/'m.safetensors'
    learn.save(fn)
    im = plain('red')
    want = learn.predict(im).probs
    assert torch.equal(load_learner(fn).predict(im).probs, want)
    fresh = Learner(simple_cnn(3), dls, cross_entropy, .1, SetupLearnerCB('cpu')).load(fn)
    assert torch.equal(fresh.predict(im).probs, want)
    other = Learner(small_resnet(3, w=4), dls, cross_entropy, .1, SetupLearnerCB('cpu'))
    with pytest.raises(ValueError, match='no `simple_cnn`'): other.save(tmp_path/'other')
    with pytest.raises(ValueError, match='m.safetensors'): other.load(fn)
    assert not (tmp_path/'other').exists()

def test_files_for_other_inputs(folder, tmp_path):
    "Another task or other channels are refused, another size or statistics told"
    def learner(size=8, task=None, stats=raw):
        ds = Dataset(get_image_files(folder), size=size)
        if task: ds.task = task
        cbs = SetupLearnerCB('cpu', partial(tfm_x, norm=Normalize(stats)))
        return Learner(simple_cnn(3), DataLoaders(DataLoader(ds, 4), DataLoader(ds, 4)),
                       cross_entropy, .1, cbs)
    fn = tmp_path/'m.safetensors'
    learner().save(fn)
    with warnings.catch_warnings(action='error'): learner().load(fn)
    with pytest.raises(ValueError, match='task OneLabel, and the data have SeveralLabels'):
        learner(task=several_labels).load(fn)
    with warnings.catch_warnings(action='error'): learner(stats=([.001]*3,[1.]*3)).load(fn)
    save_model(simple_cnn(3), fn, dict(stats=list(raw)))
    with warnings.catch_warnings(action='error'): learner().load(fn) # it says no more
    learner().save(fn)
    with pytest.warns(UserWarning, match='has size 8, and the data have 16'):
        learner(size=16).load(fn)
    with pytest.warns(UserWarning, match='has stats'): learner(stats=([.5]*3,[1.]*3)).load(fn)

@pytest.mark.parametrize('o', [None, 42])
def test_no_image_at_all(o):
    with pytest.raises(TypeError, match=f'{o} is no image'): mean_pred().predict(o)

def test_a_tensor_in_16_bits():
    "It doesn't stop the others"
    x = torch.zeros(4,4,3, dtype=torch.bfloat16)
    x[...,0] = 1
    assert labels(mean_pred().predict([plain('green'), x]))==['green','red']

def test_an_image_without_pixels():
    with pytest.raises(ValueError, match='has no pixels'):
        mean_pred().predict(Image.new('RGB', (0,5)))

def test_a_second_folder_with_files_that_are_missing(folder):
    "Each time is told, and not the first alone"
    (folder/'bad.png').write_bytes(b'bad')
    with warnings.catch_warnings(record=True, action='default') as seen:
        for _ in range(3): mean_pred().predict(folder)
    assert sum("1 of 13 images can't be read" in str(o.message) for o in seen)==3

def test_repr_of_a_lazy_network():
    learn = Learner(torch.nn.LazyLinear(2), DataLoaders([], []), cross_entropy, .1)
    assert 'LazyLinear with 0 parameters' in repr(learn)

# --- PyTorch's loaders, and torchvision's data sets ---
class Listed(torch_data.Dataset):
    "As of torchvision: `classes`, and a `transform` of PIL images"
    classes = colours
    def __init__(self, transform, n=12): self.transform,self.n = transform,n
    def __len__(self): return self.n
    def __getitem__(self, i): return self.transform(plain(colours[i%3], (8,8))),i%3

def channels_first(im):
    return torch.tensor(np.array(im.resize((8,8)))).permute(2,0,1)/255

def torch_learner(valid, cbs=None):
    train = torch_data.DataLoader(valid, 4, shuffle=True)
    dls = DataLoaders(train, torch_data.DataLoader(valid, 5))
    return Learner(Mean(), dls, cross_entropy, 1e-6, cbs)

def titles(n): return [o.get_title() for o in plt.gcf().axes[:n]]

def check_all(learn, folder, n):
    "All questions that there are"
    learn.fit(1)
    probs,targs = learn.get_preds()
    assert probs.shape==(n,3) and torch.equal(probs.argmax(1), targs)
    learn.dls.show_batch(4)
    assert set(titles(4)) <= set(colours)
    learn.show_results(3)
    truth,said = zip(*[o.split('\n') for o in titles(3)])
    assert [o.split()[0] for o in said]==list(truth)
    learn.plot_top_losses(2)
    assert 'loss' in titles(1)[0]
    learn.plot_confusion_matrix()
    assert sum(int(o.get_text()) for o in plt.gca().texts)==n
    assert sum(o['count'] for o in learn.class_report())==n
    assert all(o['prediction'].split()[0]==o['truth'] for o in learn.worst(n))
    assert learn.validate(metrics=accuracy)['accuracy']==1
    assert labels(learn.predict(folder))==folders(folder)
    assert learn.predict(plain('green')).label=='green'
    assert learn.get_preds(learn.test_dl(folder))[0].argmax(1).tolist()==[0]*4+[1]*4+[2]*4
    with pytest.raises(ValueError, match='`transform`'): learn.save(folder/'m.safetensors')

@pytest.mark.parametrize('cbs', [None, SetupLearnerCB('cpu', tfm=lambda x: x)])
def test_torch_loaders(folder, cbs):
    ds = Listed(channels_first)
    assert torch_learner(ds, cbs).validate()['valid_loss'] < .1
    check_all(torch_learner(ds, cbs), folder, 12)
    check_all(torch_learner(torch_data.Subset(ds, range(6)), cbs), folder, 6)

def test_shuffled_torch_loader():
    learn = torch_learner(Listed(channels_first))
    learn.dls.valid = learn.dls.train
    with pytest.raises(ValueError, match='shuffled or sharded'): learn.show_results()

class Backwards(torch_data.BatchSampler):
    def __iter__(self): return reversed(list(super().__iter__()))

batches,in_turn = torch_data.BatchSampler,torch_data.SequentialSampler(range(12))
@pytest.mark.parametrize('sampler', [
    batches(torch_data.SubsetRandomSampler(range(12)), 5, False), [[1,0],[3,2]],
    Backwards(in_turn, 5, False)])
def test_shuffled_batch_sampler(sampler):
    "Such a loader has a `sampler` that says `SequentialSampler`, and that it never asks"
    ds = Listed(channels_first)
    learn = torch_learner(ds)
    learn.dls.valid = torch_data.DataLoader(ds, batch_sampler=sampler)
    for f in learn.show_results, learn.plot_top_losses, partial(learn.worst, 2):
        with pytest.raises(ValueError, match='shuffled or sharded'): f()

def test_batch_sampler_in_order(folder):
    ds = Listed(channels_first)
    learn = torch_learner(ds)
    learn.dls.valid = torch_data.DataLoader(ds, batch_sampler=batches(in_turn, 5, False))
    check_all(learn, folder, 12)
    learn.dls.valid = torch_data.DataLoader(ds, batch_size=None) # items one by one
    assert in_order(learn.dls.valid, torch.arange(12)%3)

def test_no_vocabulary_no_transform(folder):
    x = torch.rand(6, 3, 8, 8)
    learn = torch_learner(torch_data.TensorDataset(x, torch.arange(6)%3))
    assert len(learn.get_preds()[0])==6
    for f in learn.show_results, learn.dls.show_batch, lambda: learn.predict(folder):
        with pytest.raises(ValueError, match='neither `vocab` nor `classes`'): f()
    learn.dls.train.dataset.classes = colours
    with pytest.raises(ValueError, match='make a `Predictor` yourself'): learn.predict(folder)

def test_image_folder(folder, torchvision):
    from torchvision import datasets,transforms
    tfm = transforms.Compose([transforms.Resize((8,8)), transforms.ToTensor()])
    check_all(torch_learner(datasets.ImageFolder(folder, tfm)), folder, 12)

class Opened(Listed):
    to_tensor = staticmethod(lambda im: torch.tensor(np.array(im)).permute(2,0,1)/255)
    "As `ImageFolder`: a loader that neither turns an image nor puts it on white"
    loader = staticmethod(lambda fn: Image.open(fn).convert('RGB'))

def test_files_are_opened_as_in_training(folder):
    "A photo on its side, and a transparent image"
    im = plain('red', (8,8))
    im.paste('blue', (0,0,8,4))
    exif = Image.Exif()
    exif[0x112] = 3
    im.save(folder/'turned.jpg', exif=exif, quality=100)
    im.convert('RGBA').save(folder/'clear.png')
    clear = Image.new('RGBA', (8,8), (200,0,0,0))
    clear.save(folder/'clear.png')
    dl = torch_data.DataLoader(Opened(Opened.to_tensor), 4)
    learn = torch_learner(dl.dataset)
    for o in 'turned.jpg','clear.png':
        want = dl.dataset.transform(dl.dataset.loader(folder/o))
        assert torch.equal(learn.predictor().item(folder/o), want)
    (folder/'none.png').touch()
    (folder/'cut.jpg').write_bytes((folder/'turned.jpg').read_bytes()[:300])
    with pytest.warns(UserWarning, match='2 of 3'):
        res = learn.predict([folder/o for o in ('none.png','cut.jpg','turned.jpg')])
    assert [o is None for o in res]==[True,True,False]
    assert all(f"can't read image {a}" in b for a,b in res.errors)

def test_a_loader_of_loaders(folder):
    "Its attribute of that name opens no files"
    learn = torch_learner(Listed(Opened.to_tensor))
    class Wrapper:
        def __init__(self, dl): self.loader,self.dataset = dl,dl.dataset
        def __iter__(self): return iter(self.loader)
        def __len__(self): return len(self.loader)
    learn.dls = DataLoaders(*map(Wrapper, (learn.dls.train,learn.dls.valid)))
    plain('red', (8,8)).save(folder/'small.png')
    assert learn.predict(folder/'small.png').label in colours

# --- tasks and files ---
class Several(Task):
    "Any number of labels an image; targets are 0 or 1 for each"
    def loss(self, preds, yb): return torch.nn.BCEWithLogitsLoss()(preds, yb)
    def activation(self, preds): return preds.sigmoid()
    def decode(self, probs, vocab): return ' '.join(o for o,p in zip(vocab, probs) if p>.5)
    def item_losses(self, probs, targs): return (probs-targs).abs().sum(1)

class Tagged(Listed):
    task = Several()
    def __getitem__(self, i):
        x,_ = super().__getitem__(i)
        return x,torch.tensor([1.,0.,float(i%2)])

def test_another_task():
    learn = torch_learner(Tagged(channels_first))
    assert learn.task is Tagged.task
    learn.loss_func = learn.task.loss
    learn.fit(1)
    probs,targs = learn.get_preds()
    assert targs.shape==(12,3) and (probs>=.5).all()
    learn.show_results(2)
    assert titles(1)[0].split('\n')[0]=='blue'
    losses,idxs = learn.top_losses(12)
    assert torch.allclose(losses, (probs-targs).abs().sum(1)[idxs])
    assert learn.worst(1)[0]['truth'].startswith('blue')
    assert [o['count'] for o in learn.class_report()]==[12,0,6]
    for f in learn.plot_confusion_matrix, learn.plot_reliability:
        with pytest.raises(ValueError, match='one label an image'): f()

def test_a_file_has_the_task(tmp_path):
    pred = Predictor(simple_cnn(3), colours, (16,24), task=Several(), resize='pad')
    pred.save(tmp_path/'m.safetensors')
    again = Predictor.load(tmp_path/'m.safetensors')
    assert type(again.task) is Several and again.resize=='pad' and list(again.size)==[16,24]
    assert torch.equal(again.predict(plain('red')).probs, pred.predict(plain('red')).probs)

good = dict(vocab=colours, size=8, stats=[list(o) for o in raw], arch='simple_cnn')
strange = [None, -1, 0, 2**70, 1.5, True, float('nan'), 'x', 'x'*10_000, [], [[]], {},
           {'a':1}, [1]*10_000, ['a','b'], [8,-8], [8,8,8], [True,8], '\x1b[31m\n']

@pytest.mark.parametrize('k', ['vocab','size','stats','arch','task','channels','resize'])
def test_strange_headers(k, tmp_path):
    "One short line each, and the network is never built"
    def never(n): raise AssertionError('it was built')
    fn = tmp_path/'m.safetensors'
    for v in strange:
        if (k,v)==('vocab',['a','b']): continue # that is a vocabulary
        save_model(Mean(), fn, {**good, k:v})
        with pytest.raises(ValueError) as e: Predictor.load(fn, dict(simple_cnn=never))
        line = str(e.value)
        assert 'built' not in line and len(line) < 500+len(str(fn)) and line.isprintable(), line

def test_old_files(tmp_path):
    fn = tmp_path/'m.safetensors'
    save_model(simple_cnn(3), fn, good)
    pred = Predictor.load(fn)
    assert (type(pred.task),pred.channels,pred.resize) == (OneLabel,3,'squeeze')
    assert check_meta(good, dict(simple_cnn=simple_cnn)).keys() > good.keys()

class Greys(torch_data.Dataset):
    "As torchvision's MNIST: grey images, a transform that keeps one channel"
    classes = ['black','white']
    def __init__(self, transform): self.transform = transform
    def __len__(self): return 8
    def __getitem__(self, i): return self.transform(Image.new('L', (9,8), 255*(i%2))),i%2

def one_channel(im): return torch.from_numpy(np.array(im)).view(-1,8,9)/255

def test_grey_data_of_torch():
    "Any image is asked about as the data set has them"
    nn = torch.nn
    net = nn.Sequential(nn.Conv2d(1,4,3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(4,2))
    dls = DataLoaders(*[torch_data.DataLoader(Greys(one_channel), 4) for _ in range(2)])
    learn = Learner(net, dls, cross_entropy, .1, SetupLearnerCB('cpu', tfm=lambda xb: xb))
    learn.fit(1)
    probs,_ = learn.get_preds()
    for i,colour in enumerate(Greys.classes):
        got = learn.predict(Image.new('RGB', (9,8), colour))
        assert torch.allclose(got.probs, probs[i], atol=1e-5)

# --- in order or not, loaders of ours on other data ---
def test_our_loader_on_a_part(folder):
    "A `Subset` knows nothing of its targets, and our data set inside knows those of all"
    part = torch_data.Subset(Dataset(get_image_files(folder), size=8), range(6))
    targs = torch.stack([y for _,y in part])
    assert in_order(DataLoader(part, 4), targs)
    assert not in_order(DataLoader(part, 4, shuffle=True), targs)

@pytest.mark.parametrize('kind', [list, np.array, torch.tensor])
def test_targets_of_any_kind(kind):
    class Own(list): y = kind([0,2,1])
    dl = DataLoader(Own([(torch.rand(2),torch.tensor(o)) for o in (0,2,1)]), 2)
    assert in_order(dl, torch.tensor([0,2,1])) and not in_order(dl, torch.tensor([0,1,2]))

def test_small_integers():
    "Targets in 8 bits count as others do"
    probs,targs = torch.eye(20),torch.arange(20)
    small = targs.to(torch.uint8)
    assert torch.equal(confusion_matrix(probs, small), torch.eye(20).long())
    losses = [OneLabel().item_losses(probs, o) for o in (small,targs)]
    assert torch.equal(*losses)

@pytest.mark.parametrize('name', [o for o in test_images.refused if o[:4]=='tiff'])
def test_image_as_its_file(name, tmp_path):
    "What is refused as a file is refused as an image of Pillow's"
    data,why = test_images.refused[name]
    fn = test_images.written(tmp_path, name, data)
    with pytest.raises(OSError): mean_pred().predict(fn)
    with pytest.raises((OSError,ValueError)) as e: mean_pred().predict(Image.open(fn))
    assert why in str(e.value)

def test_nothing_to_predict(folder):
    learn = torch_learner(Listed(channels_first))
    with pytest.raises(ValueError, match='no batches to predict'): learn.get_preds([])

def test_predictor_of_a_bare_learner(folder):
    dl = DataLoader(Dataset(get_image_files(folder), size=8), 4)
    learn = Learner(Mean(), DataLoaders(dl, dl), cross_entropy, .1)
    with pytest.raises(ValueError, match='`SetupLearnerCB` is missing'): learn.predictor()

# --- the data of PyTorch, of any task ---
class Theirs(torch_data.Dataset):
    "Twelve images of one colour each, and targets"
    classes = colours
    def __init__(self, targs): self.targs = targs
    def __len__(self): return 12
    def __getitem__(self, i):
        x = torch.zeros(3,8,8)
        x[2-i%3] = 1.
        return x,self.targs[i]

def their_learner(targs, task=None, **kwargs):
    ds = Theirs(targs)
    if task: ds.task = task
    dl = torch_data.DataLoader(ds, 4)
    loss = task.loss if task else torch.nn.MSELoss()
    cbs = [AnyOutputs(tfm=noop),Recorder(**kwargs)]
    return Learner(Mean(), DataLoaders(dl, dl), loss, 1e-3, cbs)

yes_no = torch.eye(3).repeat(4,1)

@pytest.mark.parametrize('targs', [yes_no, yes_no.long(), torch.rand(12), torch.rand(12,1)])
def test_what_the_targets_are_is_not_guessed(targs):
    "Softmax over numbers, or over several labels, would be wrong in silence"
    learn = their_learner(targs)
    asked = (learn.get_preds, learn.top_losses, learn.show_results, learn.worst,
             learn.class_report, learn.plot_confusion_matrix, learn.dls.show_batch)
    for f in asked:
        with pytest.raises(ValueError, match='no classes: set `task` of the data set'): f()

@pytest.mark.parametrize('task,activation', [(several_labels,torch.sigmoid),(numbers,noop)])
def test_their_data_with_a_task(task, activation):
    "Losses, metrics, answers and pictures follow from it in any `Learner`"
    learn = their_learner(yes_no, task)
    learn.fit(1)
    assert learn.recorder.names[3:-1]==[f.__name__ for f in task.metrics]
    assert list(learn.validate())[1:]==learn.recorder.names[3:-1]
    preds,targs = learn.get_preds()
    xb = torch.stack([x for x,_ in learn.dls.valid.dataset])
    torch.testing.assert_close(preds, activation(learn.model(xb)).detach())
    assert torch.equal(targs, yes_no)
    losses,_ = learn.top_losses(12)
    assert losses.mean().item()==pytest.approx(learn.recorder.rows[-1][2], rel=1e-4)
    assert len(learn.worst(3))==3
    for f in learn.show_results,learn.dls.show_batch,learn.plot_confusion_matrix:
        plt.close('all')
        f()
        assert plt.gcf().axes

def test_the_task_of_the_validation_set():
    learn = their_learner(yes_no)
    learn.dls = DataLoaders(learn.dls.train, torch_data.DataLoader(Theirs(yes_no), 4))
    learn.dls.valid.dataset.task = numbers
    assert learn.task is numbers

def root_mean_squared_error(y_true, y_pred): return float(((y_true-y_pred)**2).mean()**.5)

def test_numbers_that_are_0_and_1():
    "They are numbers to a metric of scikit-learn, and to the report"
    rmse = from_sklearn(root_mean_squared_error)
    learn = their_learner(yes_no, numbers)
    learn.fit(1)
    preds,targs = learn.get_preds()
    assert learn.validate(metrics=rmse)['root_mean_squared_error']==pytest.approx(
        root_mean_squared_error(targs.numpy(), preds.numpy()))
    with pytest.raises(ValueError, match='needs labels'): learn.class_report()

def test_a_ranking_asks_for_probabilities():
    "A `True` for all that is above 0 has no order"
    seen = []
    def label_ranking_loss(y_true, y_score):
        seen.append(y_score)
        return 0.
    learn = their_learner(yes_no, several_labels)
    learn.validate(metrics=from_sklearn(label_ranking_loss))
    assert seen[0].dtype=='float32' and len(set(seen[0].ravel().tolist()))>1

# --- metrics that are none ---
def vector(preds, yb): return preds.mean(0)
def nothing(preds, yb): return None
def table(preds, yb): return dict(f1=1.)

@pytest.mark.parametrize('f', [vector, nothing, table])
def test_a_metric_that_is_no_number(f):
    learn = their_learner(yes_no, several_labels)
    with pytest.raises(TypeError, match='it gives .*, and not a number') as e:
        learn.validate(metrics=f)
    assert any(f'in the metric {f.__name__}' in o for o in e.value.__notes__)

@pytest.mark.parametrize('make', [
    lambda: Recorder('f1'), lambda: Recorder([accuracy]), lambda: from_sklearn('f1_score'),
    lambda: LogRows(None)])
def test_no_metric_at_all(make):
    with pytest.raises(TypeError, match='is a function, and not'): make()

def test_a_log_without_a_table(tmp_path):
    "It is told before the first batch, and nothing is written"
    learn = their_learner(yes_no, several_labels)
    del learn.cbs[1]
    seen = []
    class Seen(Callback):
        def before_batch(self): seen.append(1)
    for o in LogRows(print),TensorBoard(tmp_path/'t'):
        cbs = [o,Seen()]
        with pytest.raises(ValueError, match='there is no table'): learn.fit(1, cbs=cbs)
    assert not seen and not list(tmp_path.iterdir())

@pytest.mark.parametrize('v', [np.array(.5), np.bool_(True), np.float32(1), torch.ones(1), 1])
def test_what_is_a_number(v):
    learn = their_learner(yes_no, several_labels)
    assert learn.validate(metrics=lambda preds, yb: v)['<lambda>']==float(v)

@pytest.mark.parametrize('task', ['classification', object()])
def test_a_task_of_another_kind(task):
    "An attribute that means something else"
    dl = [(torch.rand(4,3,8,8),torch.zeros(4).long())]
    class Named(list): pass
    dl = Named(dl)
    dl.task = task
    Learner(Mean(), DataLoaders(dl, dl), cross_entropy, .1, Recorder()).fit(1)

def test_metrics_of_the_validation_set():
    "Its task counts if the other one has none"
    learn = their_learner(yes_no)
    learn.dls = DataLoaders(learn.dls.train, torch_data.DataLoader(Theirs(yes_no), 4))
    learn.dls.valid.dataset.task = numbers
    learn.fit(1)
    assert learn.recorder.names[3]=='mean_absolute_error'

def test_a_metric_in_a_metric():
    rmse = WholeSet(copy.copy(from_sklearn(root_mean_squared_error)), 'rmse')
    learn = their_learner(yes_no, numbers)
    preds,targs = learn.get_preds()
    assert learn.validate(metrics=rmse)['rmse']==pytest.approx(
        root_mean_squared_error(targs.numpy(), preds.numpy()))

def test_accuracy_of_numbers():
    "A plain `Recorder` doesn't count hits among numbers"
    dl = [(torch.rand(4,3,8,8),torch.rand(4,3))]
    learn = Learner(Mean(), DataLoaders(dl, dl), torch.nn.MSELoss(), .1, Recorder())
    with pytest.raises(ValueError, match='accuracy needs classes'): learn.fit(1)
