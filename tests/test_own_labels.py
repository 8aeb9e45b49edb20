"What people give for labels, sizes and networks: taken as it was meant, or told in a line"
import copy,warnings
from functools import partial

import numpy as np
import pytest
import torch
from fastcore.foundation import L
from learner_from_scratch import folders,labels
from learner_from_scratch.augment import center_crop,random_crop,resized_crop,shift,zoom
from learner_from_scratch.callbacks import Learner,SetupLearnerCB
from learner_from_scratch.data import DataLoader,get_image_files
from learner_from_scratch.fetch import draw_shapes
from learner_from_scratch.folders import inner_folders,left_out,same_files
from learner_from_scratch.inference import load_learner,one_label
from learner_from_scratch.labels import Images,doubts,is_table,labeled_datasets
from learner_from_scratch.labels import read_csv,read_table,table_files,warn_of
from learner_from_scratch.learner import DataLoaders
from learner_from_scratch.modules import Linear,simple_cnn
from learner_from_scratch.resnet import small_resnet
from learner_from_scratch.tasks import BalancedLoader,Numbers,arch_name,class_weights
from learner_from_scratch.tasks import grey,image_learner,numbers
from learner_from_scratch.tasks import SeveralLabels,several_labels
from pathlib import Path

@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp('own')/'x', 40, 20, 32)

# --- networks ---
def brightness_loaders(path):
    "Numbers for images: the lengths of their names, all near 100"
    def size(fn): return 100+len(fn.parent.name)
    return DataLoaders.from_func(path, size, task=Numbers('n'), size=16, bs=8)

def test_a_trained_layer_is_left_alone(shapes, tmp_path):
    "Only a new last layer begins with the mean of the targets"
    dls = brightness_loaders(shapes)
    learn = image_learner(dls, simple_cnn)
    learn.fit(1)
    learn.save(tmp_path/'n.safetensors')
    trained = load_learner(tmp_path/'n.safetensors').model
    again = image_learner(dls, lambda n: load_learner(tmp_path/'n.safetensors').model).model
    for a,b in zip(again.parameters(), trained.parameters()): assert torch.equal(a, b)

@pytest.mark.parametrize('head', [Linear, torch.nn.Linear])
def test_new_layers_begin(head):
    "Ours and PyTorch's, once"
    y = torch.tensor([[40.,-3.],[60.,-5.]])
    for i in range(20):
        layer = head(7, 2)
        numbers.begin(layer, y, torch.ones(1,7))
        w,b = [o.detach().clone() for o in layer.parameters()]
        assert torch.equal(b, torch.tensor([50.,-4.]))
        numbers.begin(layer, y, torch.ones(1,7))
        for a,c in zip(layer.parameters(), (w,b)): assert torch.equal(a, c)

class Bounded(torch.nn.Module):
    "Answers from 0 to 255; no module says so"
    def __init__(self, n, *last):
        super().__init__()
        linear = torch.nn.Linear(16*16*3, n)
        self.body = torch.nn.Sequential(torch.nn.Flatten(), linear, *last)
    def forward(self, x): return self.body(x).sigmoid()*255

def test_networks_that_end_elsewhere(shapes):
    "A bounded answer isn't driven to its bound; a batch norm isn't taken for a linear layer"
    dls = brightness_loaders(shapes)
    for last in *[()]*20, (torch.nn.BatchNorm1d(1),):
        net = Bounded(1, *last)
        before = copy.deepcopy(net.state_dict())
        learn = image_learner(dls, lambda n: net)
        for k,v in learn.model.state_dict().items(): assert torch.equal(v, before[k]), k

class Head(torch.nn.Module):
    "Ends with a convolution of one pixel; its answer may be in a tuple"
    def __init__(self, n, wrap=lambda o: o):
        super().__init__()
        self.conv,self.wrap = torch.nn.Conv2d(3, n, 1),wrap
    def forward(self, x): return self.wrap(self.conv(x/x.norm()).mean((2,3)))

@pytest.mark.parametrize('wrap', [lambda o: o, lambda o: (o,)])
def test_other_heads_begin(shapes, wrap):
    "They are set to the mean as well, if that can be seen or not"
    learn = image_learner(brightness_loaders(shapes), lambda n: Head(n, wrap))
    assert 100 < learn.model.conv.bias.item() < 110

@pytest.mark.parametrize('y', [[[.4],[.6]], [[100.],[102.4]], [[7.],[7.]]])
def test_any_targets(y):
    "A sigmoid of any range is left alone, and a linear layer isn't, in 16 bits either"
    y = torch.tensor(y)
    for last in torch.nn.Sigmoid(),torch.nn.Tanh(),torch.nn.Softplus():
        net = torch.nn.Sequential(torch.nn.Linear(3, 1), last)
        before = net[0].bias.item()
        numbers.begin(net, y, torch.ones(1,3))
        assert net[0].bias.item()==before
    for kind in torch.float32,torch.bfloat16:
        for _ in range(30):
            net = torch.nn.Linear(3, 1).to(kind)
            numbers.begin(net, y, torch.ones(1,3))
            assert net.bias.item()==pytest.approx(y.mean().item(), rel=.01)

def test_a_class_without_images(shapes):
    "It has no weight of its own"
    ds = brightness_loaders(shapes).train.ds
    ds.y,ds.vocab = torch.tensor([0,0,0,2]*2),L('a','b','c')
    ds.fns = ds.fns[:8]
    assert class_weights(ds).tolist()==[pytest.approx(2/3),1,2]

@pytest.mark.parametrize('w', [[0]*4, [torch.inf]*4, [1]*3, [1,-1,1,1]])
def test_weights_that_do_not_fit(w):
    with pytest.raises(ValueError, match='must be 4 numbers'): BalancedLoader(range(4), 2, w)

def test_balance_needs_targets():
    with pytest.raises(ValueError, match='in `y` of the data'): BalancedLoader(range(4), 2)

def test_a_grey_network_of_your_own(shapes, tmp_path):
    "It is found again under the name that the error asks for"
    def my_net(n): return simple_cnn(n)
    dls = DataLoaders.from_folder(shapes, channels=1, size=16, bs=8)
    learn = image_learner(dls, my_net)
    fn = tmp_path/'g.safetensors'
    learn.save(fn)
    with pytest.raises(ValueError, match="the architecture 'grey_my_net'"): load_learner(fn)
    assert load_learner(fn, archs=dict(grey_my_net=grey(my_net))).channels==1

def test_names_of_partial_networks():
    assert arch_name(partial(small_resnet, w=8))=='partial_small_resnet'
    assert arch_name(grey(partial(small_resnet, w=8)))=='grey_partial_small_resnet'

# --- tables ---
@pytest.mark.parametrize('cols', [('file','is_valid','kind'), ('is_valid','file','kind'),
                                  ('file','kind','is_valid')])
def test_the_column_of_the_split_is_no_label(shapes, cols):
    files = get_image_files(shapes/'train')[::4]
    names = [o.relative_to(shapes).as_posix() for o in files]
    kinds = [o.parent.name for o in files]
    table = dict(file=names, kind=kinds, is_valid=[i%2 for i,_ in enumerate(files)])
    dls = DataLoaders.from_csv(shapes, {k: table[k] for k in cols}, split='is_valid', size=8)
    assert set(dls.train.ds.labels+dls.valid.ds.labels)==set(kinds)
    assert len(dls.valid.ds)==len(files)//2

def test_rows_for_a_test_are_left_out(shapes, capsys):
    "They neither train nor validate, and that is told"
    files = get_image_files(shapes/'train')
    names = [o.relative_to(shapes).as_posix() for o in files]
    parts = ['train','train','valid','Test']*(len(files)//4)
    table = dict(file=names, kind=[o.parent.name for o in files], part=parts)
    train,valid = labeled_datasets(shapes, table, 'part', size=8)
    n = len(files)//4
    assert (len(train),len(valid))==(2*n,n)
    assert not set(train.fns+valid.fns) & set(files[3::4])
    assert f'{n} images of the part test are for later' in capsys.readouterr().out

def test_a_table_needs_two_columns(shapes):
    table = dict(file=['train/a.jpg'], is_valid=[1])
    with pytest.raises(ValueError, match='a column of files and one of labels'):
        labeled_datasets(shapes, table, 'is_valid')
    table = dict(file=['train/a.jpg'], kind=['a'])
    with pytest.raises(ValueError, match="got file, kind, of which 'file' says the split"):
        labeled_datasets(shapes, table, 'file')

def test_columns_that_are_named_count(shapes):
    "Even that of the split"
    files = get_image_files(shapes/'train')[:10]
    table = dict(file=files, is_valid=[i%2 for i in range(10)])
    train,_ = labeled_datasets(shapes, table, 'is_valid', cols=('file','is_valid'), size=8)
    assert train.vocab==['0','1']

@pytest.mark.parametrize('text', ['file,kind\na.jpg,"cat\nb.jpg,dog\nc.jpg,dog\n',
                                  'file,kind\na.jpg,"'+'cat\n'*40000,
                                  'file,kind\n"a"b,c\n', '\n\n'])
def test_a_broken_csv_is_named(tmp_path, text):
    "An unclosed quote, a cell without end, letters after a quote, empty lines"
    (tmp_path/'t.csv').write_text(text)
    with pytest.raises(ValueError, match='t.csv'): read_csv(tmp_path/'t.csv')

class Frame:
    "A table as polars makes it: names in `columns`, and a loop over it gives the columns"
    columns = ['file','kind']
    def __getitem__(self, k): return iter(dict(file=['a','b'], kind=[1,2])[k])
    def __iter__(self): return (self[o] for o in self.columns)

def test_other_frames_are_tables():
    assert is_table(Frame())
    assert read_table(Frame())==dict(file=['a','b'], kind=[1,2])

@pytest.mark.parametrize('cols,split', [(('id','width','file','kind'),None),
                                        (('file','id','kind'),'file')])
def test_the_column_of_the_files_is_named(shapes, cols, split):
    "If it is another one"
    files = get_image_files(shapes/'train')[:4]
    table = {k: list('abcd') for k in cols} | dict(file=files)
    with pytest.raises(ValueError, match="4 of 4 files of the column 'id' are not on disk"):
        labeled_datasets(shapes, table, split)

@pytest.mark.parametrize('task,labels', [
    (one_label,'ab'), (one_label,[0,1]), (numbers,[.5,1]), (several_labels,[['a'],'ab'])])
def test_from_file_to_label(shapes, task, labels):
    "A dictionary of that kind, of files or of their names"
    files = get_image_files(shapes)
    kinds = {o: labels[i%2] for i,o in enumerate(files)}
    named = {str(o.relative_to(shapes)): v for o,v in kinds.items()}
    dicts = kinds,named
    for o in dicts[:1] if task is several_labels else dicts:
        dls = DataLoaders.from_labels(shapes, o, task=task, size=8, split=.5)
        got = dict(zip(dls.train.ds.fns, dls.train.ds.labels))
        assert got=={fn: task.clean(kinds[fn]) for fn in got}
        short = dict(list(o.items())[1:])
        with pytest.raises(ValueError, match=f'{files[0]}: None is n'):
            DataLoaders.from_labels(shapes, short, task=task)

def test_ten_missing_files_are_named(shapes):
    with pytest.raises(ValueError, match='^30 of 30 files are not on disk: ') as e:
        table_files(shapes, [f'{i}.png' for i in range(30)])
    assert str(e.value).count('.png')==10 and '9.png' in str(e.value)

# --- doubts ---
@pytest.mark.parametrize('vocab,told', [
    ('23 41 35 67 18 29 52 31 44 60 71 38'.split(), 'numbers'),
    ([f'{i}' for i in range(18, 60)], 'numbers'),
    (['cat','dog','cat,dog'], "SeveralLabels(',')"),
    (['cat','dog','cat | dog'], "SeveralLabels('|')"),
    (['cat','dog','cat;dog'], "SeveralLabels(';')"),
    (['cat','dog','cat dog'], 'several_labels')])
def test_doubts(vocab, told):
    why, = doubts(vocab)
    assert told in why

@pytest.mark.parametrize('vocab', [
    list('0123456789'), [f'{i:03}' for i in range(1, 103)], ['20','30','100'], ['-1','1'],
    ['Paris, France','Lyon, France'], ['red ball','blue ball'], []])
def test_no_doubts(vocab): assert doubts(vocab)==[]

def warned(f, *args):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        f(*args)
    return [str(o.message) for o in seen]

def test_rare_ones_of_several_labels(shapes):
    a,b = get_image_files(shapes/'train')[:9],get_image_files(shapes/'val')[:2]
    labels = {o: ['often','rare'] if i<2 else ['often'] for i,o in enumerate(a+b)}
    ds = [Images(o, labels, size=8, task=several_labels) for o in (a,b)]
    assert 'fewer than 5 images to train on: rare 2' in warned(warn_of, *ds)
    ds = [Images(o, lambda fn: 3.5, size=8, task=numbers) for o in (a,b)]
    assert warned(warn_of, *ds)==[]

# --- folders ---
def test_equal_files_among_many_alike(tmp_path):
    "Of one size, with one end"
    def file(name, text):
        fn = tmp_path/name
        fn.write_bytes(text+bytes(5000))
        return fn
    train = [file('a', b'1'), file('b', b'2'), file('c', b'3')]
    valid = [file('d', b'1'), file('e', b'2'), file('f', b'3'), file('g', b'4')]
    assert same_files(train, valid)==list(zip(train, valid))

def test_a_hidden_folder_is_told(tmp_path):
    for o in '.thumbnails/1.jpg','cat/.old/deep/2.jpg','cat/.3.jpg','cat/4.jpg':
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).touch()
    assert left_out(tmp_path)['hidden']==3
    assert left_out(tmp_path/'.thumbnails')=={}

def test_a_class_deep_inside_of_a_class():
    files = L(Path(f'x/{o}.jpg') for o in ('house/1','house/2020/summer/2','tree/3'))
    assert inner_folders(files)==[Path('x/house/2020/summer')]

# --- wide images, and those of PyTorch's loaders ---
def test_wide_crops():
    x = torch.randn(4, 3, 24, 48)
    assert shift(x, 2).shape==x.shape
    assert random_crop(x, (20,40)).shape==(4,3,20,40)
    assert resized_crop(x, (24,48)).shape==x.shape
    same = resized_crop(x, (24,48), scale=1., ratio=1.)
    assert torch.allclose(same, x, atol=1e-5)
    o,i = torch.zeros(4,1,1,1),torch.ones(4,1,1,1)
    assert torch.allclose(zoom(x, o+.5, o, i/2, i, (24,24)), x[...,24:], atol=1e-5)
    assert center_crop(x.permute(0,2,3,1), (20,40)).shape==(4,20,40,3)
    with pytest.raises(ValueError, match='no crop of 20×50 pixels in images of 24×48'):
        random_crop(x, (20,50))

def test_two_looks_at_channels_first():
    "The mirror image is the same, whatever the layout of a loader"
    torch.manual_seed(0)
    xb,yb = torch.rand(6,16,12,3),torch.arange(6)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*16*12, 10))
    def probs(x, tfm):
        ds = torch.utils.data.TensorDataset(x, yb)
        dl = torch.utils.data.DataLoader(ds, 3)
        learn = Learner(model, DataLoaders(dl, dl), None, .1, [SetupLearnerCB('cpu', tfm)])
        return learn.tta()[0]
    want = probs(xb, lambda x: x.permute(0,3,1,2))
    assert torch.allclose(probs(xb.permute(0,3,1,2), lambda x: x), want)
    with pytest.raises(ValueError, match='which axis of .3, 16, 12, 4. is the width'):
        probs(torch.rand(6,16,12,4), lambda x: x[...,:3])

def test_bar_for_many_files(tmp_path, monkeypatch):
    "To look for equal files takes a while if there are many"
    seen,fn = [],tmp_path/'a.jpg'
    fn.write_bytes(b'1')
    monkeypatch.setattr(folders, 'bar', lambda items: seen.append(len(items)) or items)
    for n in 10_000,10_001: assert folders.same_files(L([fn]*n), L(fn))==[(fn,fn)]
    assert seen==[10_001]

def test_bar_over_many_labels(monkeypatch):
    "It's for those who wait"
    seen = []
    monkeypatch.setattr(labels, 'bar', lambda o: seen.append(len(o)) or o)
    for n in 10_000,10_001: assert len(labels.each_label(int, range(n), range(n)))==n
    assert seen==[10_001]

# --- what would go wrong in silence ---
def test_items_of_its_own(shapes):
    "A subclass with other items, or other images, is asked for them"
    class Negative(Images):
        def __getitem__(self, i):
            x,y = super().__getitem__(i)
            return 1-x,y
    files = get_image_files(shapes)[:4]
    a,b = [kind(files, size=16).batch([0,2])[0] for kind in (Images,Negative)]
    assert torch.allclose(a, 1-b)

def test_a_label_twice(shapes):
    fn = get_image_files(shapes)[0]
    vocab = [fn.parent.name]*2
    with pytest.raises(ValueError, match='a label twice'): Images([fn], vocab=vocab)

def test_columns_of_one_length(shapes):
    files = [str(o.relative_to(shapes)) for o in get_image_files(shapes)[:3]]
    with pytest.raises(ValueError, match="'file': 3, 'kind': 2"):
        DataLoaders.from_csv(shapes, dict(file=files, kind=['a','b']))

@pytest.mark.parametrize('yes,no', [('1','0'),(1,0),(1.,0.),(True,False)])
def test_a_column_for_each_label(shapes, yes, no):
    "With yes and no is refused, so that no label is called 0"
    files = get_image_files(shapes/'train')[:10]
    table = dict(file=files, fire=[yes,no]*5, hot=[no]*10)
    for cols in ['fire','hot'],[1,2]:
        with pytest.raises(ValueError, match="the columns .'fire', 'hot'. hold 0 and 1"):
            labeled_datasets(shapes, table, cols=('file',cols), task=several_labels)

def test_empty_cells_are_no_labels(shapes):
    files = get_image_files(shapes/'train')[:10]
    table = dict(file=files, a=['x','y']*5, b=[None,float('nan')]*5)
    both,none = ('file',['a','b']),('file',['b'])
    train,_ = labeled_datasets(shapes, table, cols=both, task=several_labels)
    assert train.vocab==['x','y']
    with pytest.raises(ValueError, match='no image has a label'):
        labeled_datasets(shapes, table, cols=none, task=several_labels)

def test_labels_of_pandas():
    "NA is a missing one, whatever it answers to questions"
    pd = pytest.importorskip('pandas')
    assert several_labels.clean(pd.NA)==() and several_labels.clean(['a',pd.NA])==('a',)
    with pytest.raises(ValueError, match='<NA> is no label'): one_label.clean(pd.NA)
    with pytest.raises(ValueError, match='<NA> is no number'): numbers.clean(pd.NA)

def test_a_column_twice(shapes):
    "In a DataFrame, whose column is two columns then"
    pd = pytest.importorskip('pandas')
    table = pd.DataFrame([['a.png','x','y']], columns=['file','kind','kind'])
    with pytest.raises(ValueError, match="a column twice: .'file', 'kind', 'kind'"):
        DataLoaders.from_csv(shapes, table)

@pytest.mark.parametrize('task', [SeveralLabels,'several',None])
def test_a_task_is_an_object(shapes, task):
    for f in labeled_datasets,Images:
        with pytest.raises(TypeError, match='must be such as one_label or SeveralLabels'):
            f(shapes, task=task)

@pytest.mark.parametrize('kind', [np.array,torch.tensor])
def test_labels_in_arrays(kind):
    assert numbers.clean(kind([1.,2.]))==(1.,2.) and numbers.clean(kind(3.))==(3.,)
    assert one_label.clean(kind(3))=='3' and several_labels.clean(kind([3,4]))==('3','4')
    with pytest.raises(ValueError, match='is no label'): one_label.clean(kind([3,4]))

def test_sets_have_no_order():
    "The order of a set of texts differs from process to process"
    words = ['heart','moon','ring','star','cross','drop']
    for o in set(words),frozenset(words): assert several_labels.clean(o)==tuple(sorted(words))
    with pytest.raises(ValueError, match='has no order'): numbers.clean({1.,2.})

def test_other_names_of_a_file(shapes, monkeypatch, capsys):
    "Absolute ones and detours, in a table and a split, where the folder is relative"
    monkeypatch.chdir(shapes.parent)
    files = get_image_files(shapes/'train')[:10]
    names = [*files[:5], *[o.parent/'..'/o.parent.name/o.name for o in files[5:]]]
    kinds = [o.parent.name for o in files]
    path = Path(shapes.name)
    train,valid = labeled_datasets(path, dict(file=names, kind=kinds), names[:2])
    assert (train.fns+valid.fns).sorted()==[path/o.relative_to(shapes) for o in files]
    out,n = capsys.readouterr().out,len(get_image_files(shapes))
    assert f'Left out: {n-10} images' in out
    train,valid = labeled_datasets(path, split=names)
    assert (len(train),len(valid))==(n-10,10)
    both = dict(file=[files[7],names[7]], kind=['a','b'])
    with pytest.raises(ValueError, match='1 of 2 files of the column .file. are there twice'):
        labeled_datasets(path, both)

def test_listed_twice(shapes):
    "An image validates once"
    files = [str(o.relative_to(shapes)) for o in get_image_files(shapes)]
    twice = [files[0],files[0],files[1]]
    train,valid = labeled_datasets(shapes, lambda fn: fn.parent.name, twice)
    assert (len(train),len(valid))==(len(files)-2,2)

def test_lines_of_a_table(tmp_path):
    "They end where CSV says; the first one that isn't empty names the columns"
    fn = tmp_path/'a.csv'
    fn.write_bytes('\r\n\nfile;kind\r\na.jpg;"red\n\nball"\r\nb\x0c.jpg;x\x85\n'.encode())
    assert read_csv(fn)==dict(file=['a.jpg','b\x0c.jpg'], kind=['red\n\nball','x\x85'])

# --- dictionaries, lists and vectors ---
@pytest.mark.parametrize('vector', [[1,0,1], np.array([1,0,1]), torch.tensor([1.,0.]),
                                    [True,False], '1 0 1'])
def test_vectors_of_yes_and_no(shapes, vector):
    "They are no names, and would be labels called 0 and 1"
    with pytest.raises(ValueError, match='the labels hold 0 and 1: give the names'):
        DataLoaders.from_func(shapes, lambda o: vector, task=several_labels, size=16)

@pytest.mark.parametrize('lists', [[['cat','x']]*2, [['cat','x'],['dog']]])
def test_lists_of_labels_by_the_name_of_a_file(shapes, lists):
    "Names are as good as paths; lists of one length or of several make no table of it"
    fns = [str(o.relative_to(shapes)) for o in get_image_files(shapes)]
    given = {o: lists[i%2] for i,o in enumerate(fns)}
    dls = DataLoaders.from_labels(shapes, given, task=several_labels, size=16, valid_pct=.25)
    got = {str(f.relative_to(shapes)): o for d in (dls.train,dls.valid)
           for f,o in zip(d.ds.fns, d.ds.labels)}
    assert got=={k: tuple(v) for k,v in given.items()}

def test_numbers_may_be_called_anything(shapes):
    dls = DataLoaders.from_func(shapes, lambda o: (3,4), task=Numbers('0','1'), size=16)
    assert dls.train.ds.vocab==['0','1']

def test_labels_for_files_that_are_missing(shapes):
    given = {o:'a' for o in get_image_files(shapes)} | {shapes/'gone.jpg':'b'}
    with pytest.warns(UserWarning, match='1 of 61 labels are for no image there: .*gone.jpg'):
        labels.labeled_files(shapes, given)

@pytest.mark.parametrize('o', [[('a.jpg','cat')], [dict(file='a.jpg')], 3])
def test_labels_of_no_known_kind(shapes, o):
    "The culprit is named, and not the first image"
    with pytest.raises(TypeError, match='labels come from a function') as e:
        DataLoaders.from_labels(shapes, o)
    assert not getattr(e.value, '__notes__', [])

class Series(list):
    "What pandas has, as far as it is asked"
    def tolist(self): return list(self)
    def __bool__(self): raise ValueError('the truth value is ambiguous')

@pytest.mark.parametrize('kind', [np.array, iter, tuple, Series])
def test_files_to_validate_with(shapes, kind):
    "Names in anything that holds them"
    fns = [str(o.relative_to(shapes)) for o in get_image_files(shapes)[:7]]
    dls = DataLoaders.from_folder(shapes, split=kind(fns), size=16)
    assert sorted(str(o.relative_to(shapes)) for o in dls.valid.ds.fns)==sorted(fns)

def test_two_splits(shapes):
    with pytest.raises(ValueError, match='which is it'):
        DataLoaders.from_folder(shapes, split=.2, valid_pct=.3)

def test_columns_are_two(shapes):
    with pytest.raises(ValueError, match='`cols` are two'):
        DataLoaders.from_labels(shapes, dict(file=['a'],b=['c']), cols=('file',))

def test_empty_folders_are_told(tmp_path, capsys):
    path = draw_shapes(tmp_path/'x', 20, 10, 32)
    (path/'train'/'nothing'/'in it').mkdir(parents=True)
    DataLoaders.from_folder(path, size=16)
    assert 'Left out: 1 empty' in capsys.readouterr().out

def test_changes_are_functions(shapes):
    with pytest.raises(TypeError, match="`aug` has functions, such as flip; got 'flip'"):
        DataLoaders.from_folder(shapes, aug='flip')

def test_architectures_by_name(shapes):
    "A name will do; a network that is there is told from what makes one"
    dls = DataLoaders.from_folder(shapes, size=16, bs=8)
    assert image_learner(dls, 'simple_cnn').arch=='simple_cnn'
    assert image_learner(dls, Bounded).arch=='Bounded'
    with pytest.raises(TypeError, match='`lambda n: net`'): image_learner(dls, simple_cnn(10))
    with pytest.raises(ValueError, match="no architecture 'net5'"): image_learner(dls, 'net5')

def test_skipped_images_are_told_each_time(shapes, tmp_path):
    bad = tmp_path/'bad.jpg'
    bad.write_bytes(b'bad')
    files = [*get_image_files(shapes)[:3],bad]
    with warnings.catch_warnings(record=True, action='default') as seen:
        for _ in range(2): Images(files, size=16, on_error='skip')
    assert sum('1 of 4 images are skipped' in str(o.message) for o in seen)==2
