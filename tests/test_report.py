"""A report of a training, in a browser: offline, light and dark, on a phone, and bad names"""
import os,sys
from pathlib import Path

import pytest
import torch
from fastcore.xml import to_xml
from PIL import Image
from project import root
from test_site import browser,contrasts,cut_off # noqa: fixtures

from learner_from_scratch.callbacks import Learner,SetupLearnerCB
from learner_from_scratch.data import DataLoader,Dataset,get_image_files,grandparent_split
from learner_from_scratch.fetch import draw_shapes
from learner_from_scratch.inference import Predictor
from learner_from_scratch.learner import DataLoaders
from learner_from_scratch.loss import cross_entropy
from learner_from_scratch.modules import simple_cnn
from learner_from_scratch.recorder import Recorder
from learner_from_scratch.report import html_table,live_file,live_part,save_report
from learner_from_scratch.resnet import resnet18,small_resnet
from learner_from_scratch.tasks import Numbers,image_learner

bad = '<script>document.body.remove()<script>'
words = {'</style>':'"quoted"', 'name & value':'ä €', bad:'\udcff is no UTF-8'}

@pytest.fixture(scope='module')
def learn(tmp_path_factory):
    "Trained on few shapes, with names that nobody would choose kindly"
    path = draw_shapes(tmp_path_factory.mktemp('data')/'shapes', 60, 40)
    if os.name!='nt':
        for split in 'train','val': (path/split/'circle').rename(path/split/bad)
        odd = next((path/'val'/bad).iterdir())
        odd.rename(odd.parent/f'{bad}.JPEG')
    if sys.platform=='linux': # a name of one byte that is no UTF-8
        odd = next((path/'val'/'star').iterdir())
        odd.rename(odd.parent/os.fsdecode(b'\xff.JPEG'))
    train,valid = grandparent_split(get_image_files(path))
    train_ds = Dataset(train)
    valid_ds = Dataset(valid, train_ds.vocab)
    dls = DataLoaders(DataLoader(train_ds, 16, shuffle=True), DataLoader(valid_ds, 64))
    torch.manual_seed(42)
    model = simple_cnn(len(train_ds.vocab))
    res = Learner(model, dls, cross_entropy, 0.1, [SetupLearnerCB('cpu'), Recorder()])
    res.fit(2)
    return res

@pytest.fixture(scope='module')
def report(learn, tmp_path_factory):
    path = tmp_path_factory.mktemp('report')/'report.html'
    save_report(learn, path, words)
    return path

@pytest.fixture
def opened(browser):
    "A function that opens a file offline; any error and any request for another file is bad"
    bad,ctxs = [],[]
    def f(path, width=1280, scheme='light'):
        ctx = browser.new_context(color_scheme=scheme, offline=True)
        ctxs.append(ctx)
        t = ctx.new_page()
        def console(m):
            if m.type=='error': bad.append(m.text)
        def request(r):
            if not r.url.startswith(('data:', path.as_uri())): bad.append(r.url)
        t.on('console', console)
        t.on('pageerror', lambda e: bad.append(str(e)))
        t.on('request', request)
        t.set_viewport_size(dict(width=width, height=900))
        t.goto(path.as_uri())
        return t
    yield f
    for o in ctxs: o.close()
    assert not bad

@pytest.mark.parametrize('scheme', ['light','dark'])
@pytest.mark.parametrize('width', [1280,390])
def test_opens_offline(report, opened, width, scheme):
    t = opened(report, width, scheme)
    t.wait_for_selector('#live[data-ready]')
    assert t.evaluate('document.scrollingElement.scrollWidth') <= width
    tags = ('p, button, label, small, h1, h2, h4, span, figcaption, strong, li, td, th, '
            'summary')
    found = t.locator(f'main :is({tags})').evaluate_all(f'''elements => {{
        const hasText = e => [...e.childNodes].some(o => o.nodeType===3);
        return ({contrasts})(elements.filter(hasText));
    }}''')
    assert len(found)>100 and not [o for o in found if o[0]<4.5]
    assert not t.locator('.live *').evaluate_all(cut_off)
    dark = t.evaluate('getComputedStyle(document.body).backgroundColor')!='rgb(255, 255, 255)'
    assert dark==(scheme=='dark')

def test_follows_the_system(report, opened):
    "Maps are painted again when the system turns dark"
    t = opened(report)
    t.wait_for_selector('#live[data-ready]')
    pixel = '''() => [...document.querySelector('.live-grid').getContext('2d')
        .getImageData(30, 30, 1, 1).data]'''
    before = t.evaluate(pixel)
    t.emulate_media(color_scheme='dark')
    t.wait_for_timeout(200)
    assert t.evaluate(pixel)!=before

def test_says_what_the_library_says(learn, report, opened):
    t,ds,pred = opened(report),learn.dls.valid.ds,learn.predictor()
    t.wait_for_selector('#live[data-ready]')
    n = len(ds)
    assert t.locator('.live-thumbs button').count()==20
    for k in 0,7,19:
        i = k*n//20
        t.locator('.live-thumbs button').nth(k).click()
        label,_,probs = pred.predict(ds.image(i))
        assert t.locator('.live-best .live-name').text_content()==label
        shown = t.locator('.live-probs li span:last-child').all_text_contents()
        for o,p in zip(shown, probs, strict=True): assert abs(float(o[:-2])-100*p) < .06
        assert label in t.locator('.cards').last.locator('strong').nth(k).text_content()

def test_names_are_text(learn, report, opened):
    t = opened(report)
    t.wait_for_selector('#live[data-ready]')
    assert t.locator('script').count()==2
    text = t.locator('main').inner_text()
    for o in '</style>','"quoted"','name & value','ä €',r'\udcff is no UTF-8':
        assert o in text
    if os.name=='nt': return
    assert bad in t.locator('.confusions').text_content()
    assert bad in t.locator('.live-probs').text_content()

def test_whole_model_comes_back(learn, report, tmp_path, opened):
    "The reader's own file works in a report, too, and the way back to the report's network"
    t = opened(report)
    t.wait_for_selector('#live[data-ready]')
    Predictor(simple_cnn(3), [*'abc']).save(tmp_path/'m.safetensors')
    t.get_by_label('Your network…').set_input_files(tmp_path/'m.safetensors')
    t.locator('.live-about', has_text='3 classes').wait_for()
    t.get_by_text('Back to the first network').click()
    t.locator('.live-about', has_text='The network of this report').wait_for()

def test_residual_network(learn, tmp_path, opened):
    "Of the same data, untrained"
    model = small_resnet(len(learn.dls.train.ds.vocab))
    other = Learner(model, learn.dls, cross_entropy, 0.1, learn.cbs)
    other.recorder = learn.recorder
    save_report(other, tmp_path/'r.html', arch='learner_from_scratch.resnet:small_resnet')
    assert (tmp_path/'r.html').stat().st_size < 4e6
    t = opened(tmp_path/'r.html')
    t.wait_for_selector('#live[data-ready]')
    assert 'small_resnet' in t.locator('.live-about', has_text='classes').text_content()

@pytest.mark.parametrize('arch,why', [
    ('mine:net', 'it is a mine:net, and a report knows simple_cnn'),
    ('torchvision.models:resnet34', 'resnet34'),
    ('mine:<b>net</b>', 'it is a mine:<b>net</b>')])
def test_others_are_named(learn, tmp_path, opened, arch, why):
    "All but the live part, and a sentence"
    save_report(learn, tmp_path/'r.html', arch=arch)
    t = opened(tmp_path/'r.html')
    assert why in t.locator('main').inner_text()
    assert t.locator('#live').count()==0 and t.locator('script').count()==0
    assert t.locator('.card').count()>20

def test_too_large_is_named(learn):
    pred = Predictor(resnet18(10), [*'abcdefghij'])
    part, = live_part(pred, 'resnet18', learn.dls.valid.ds, [0])
    assert '11,191,262 weights' in part.children[0]

def test_namesake_is_told_in_the_page(learn, tmp_path, opened):
    "Another network that is called simple_cnn"
    vocab = learn.dls.train.ds.vocab
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*64*64, len(vocab)))
    other = Learner(model, learn.dls, cross_entropy, 0.1, learn.cbs)
    other.recorder = learn.recorder
    save_report(other, tmp_path/'r.html', arch='mine:simple_cnn')
    t = opened(tmp_path/'r.html')
    t.get_by_text('The live network can’t be shown. Its weights don').wait_for()

def test_bounded(tmp_path):
    "A thousand classes, large images, a long training: a few megabytes"
    vocab = [f'class {i:04}' for i in range(1000)]
    for i in range(40):
        fn = tmp_path/f'class {i:04}'/'a.png'
        fn.parent.mkdir()
        Image.effect_noise((256,256), 90).convert('RGB').save(fn)
    ds = Dataset(get_image_files(tmp_path), vocab, size=256)
    dl = DataLoader(ds, 8)
    learn = Learner(simple_cnn(1000), DataLoaders(dl, dl), cross_entropy, 0.01,
                    [SetupLearnerCB('cpu'), Recorder()])
    learn.fit(1)
    rec = learn.recorder
    rec.losses = rec.losses*20_000
    save_report(learn, tmp_path/'r.html')
    assert (tmp_path/'r.html').stat().st_size < 10e6

def test_site_and_library_have_the_same_files():
    "The page's files are links to those of the library"
    for o in 'network.js','page.js','live.css':
        assert (root/'nbs/live'/o).read_text(encoding='utf-8')==live_file(o)

# --- other data ---
def trained(path, **kw):
    "A learner for images in a folder, after an epoch"
    learn = image_learner(DataLoaders.from_folder(path, bs=16, **kw))
    learn.fit(1)
    return learn

@pytest.mark.parametrize('kw,why', [
    (dict(size=(24,32)), 'its images are not square'),
    (dict(size=32, channels=1), 'its images are grey'),
    (dict(size=32, resize='pad'), 'its images get their size by pad')])
def test_other_images_are_named(kw, why, tmp_path):
    "All else is in the report"
    learn = trained(draw_shapes(tmp_path/'shapes', 40, 20), **kw)
    save_report(learn, tmp_path/'r.html')
    text = (tmp_path/'r.html').read_text(encoding='utf-8')
    assert f'can’t be at work: {why}' in text and text.count('<figure')>=20

def test_other_tasks_are_refused(tmp_path):
    "In one line, and nothing is written"
    path = draw_shapes(tmp_path/'shapes', 40, 20)
    dls = DataLoaders.from_func(path, lambda o: (1.5,2.), task=Numbers(), size=32, bs=8)
    learn = image_learner(dls)
    learn.fit(1)
    with pytest.raises(ValueError, match='a report needs one label an image'):
        save_report(learn, tmp_path/'r.html')
    assert not (tmp_path/'r.html').exists()

def test_loader_of_pytorch(learn, tmp_path):
    "Of our images, a report is made from PyTorch's loader, too"
    own = learn.dls.valid
    learn.dls.valid = torch.utils.data.DataLoader(own.ds, 64)
    try: save_report(learn, tmp_path/'a.html', {})
    finally: learn.dls.valid = own
    assert 'validation images are right' in (tmp_path/'a.html').read_text()

def test_cells_of_any_kind():
    "A path or a list is text, and escaped"
    rows = [['folder',Path('a<b>')], ['size',(24,32)], ['lr',.1]]
    html = to_xml(html_table(['name','value'], rows), indent=False)
    for o in 'a&lt;b&gt;','(24, 32)','0.1': assert f'<td>{o}</td>' in html
