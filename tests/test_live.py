"""The page "In your browser" beside the library: pixels, activations, answers, broken files

The tests are for the built site, as those of test_site.py."""
import json,struct
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file,save
from project import nbs,root
from test_site import browser,chromium,contrasts,cut_off,flags,goto,tab,url # noqa: fixtures

from learner_from_scratch.data import Normalize,get_image_files,read_image,square,tfm_x
from learner_from_scratch.fetch import draw_shapes
from learner_from_scratch.inference import Predictor
from learner_from_scratch.modules import simple_cnn

live = root/'nbs/live'
sprite = np.array(Image.open(live/'images.png'))
images = [sprite[:,64*i:64*(i+1)] for i in range(10)]

@pytest.fixture
def page(tab):
    "The page, ready"
    goto(tab, 'browser.html')
    tab.wait_for_selector('#live[data-ready]')
    return tab

now = '''async () => {
    const s = (await import('./live/page.js')).current();
    const plain = o => ({shape: o.shape, data: [...o.data]});
    const layers = s.net.layers.map(({name, steps}, l) => ({name,
        steps: steps.map((t, i) => ({op: t.op, ...plain(s.answer.outputs[l][i])}))}));
    return {pixels: [...s.pixels], probs: s.answer.probs, layers, vocab: s.net.vocab}; }'''

def state(page):
    "What the page has computed, as arrays"
    res = page.evaluate(now)
    for l in res['layers']:
        for s in l['steps']: s['x'] = torch.tensor(s['data']).view(s['shape'])
    return res

def apart(a, b):
    "The largest difference of two activations, as a share of their largest value"
    assert a.shape==b.shape
    return ((a-b).abs().max()/b.abs().max().clamp(min=1e-9)).item()

def cnn_steps(model, x):
    "The output of each step of `simple_cnn`, in the page's order"
    *convs,_,last = model.layers
    for l in convs:
        x = F.conv2d(x, l.w, l.b, stride=2, padding=1)
        yield x[0]
        x = x.relu()
        yield x[0]
    x = x.mean((2,3))
    yield x[0]
    yield last(x)[0]

def compare(got, pred, im):
    "Pixels, activations and probabilities of the page beside those of `pred`; how far apart"
    size = pred.size
    ours = np.array(square(Image.fromarray(im), size))
    assert np.array_equal(np.array(got['pixels']).reshape(size, size, 3), ours)
    x = tfm_x(torch.tensor(ours)[None]/255, Normalize(pred.stats))
    with torch.no_grad(): steps = [*cnn_steps(pred.model, x)]
    theirs = [s['x'] for l in got['layers'] for s in l['steps']]
    assert len(theirs)==len(steps)
    probs = pred.predict(Image.fromarray(im)).probs
    res = max(map(apart, theirs, steps)),(torch.tensor(got['probs'])-probs).abs().max().item()
    assert max(res) < 1e-4
    return res

# --- the same numbers ---
def test_ten_images(page):
    pred,diffs = Predictor.load(live/'model.safetensors'),[]
    for i,im in enumerate(images):
        page.locator('.live-thumbs button').nth(i).click()
        got = state(page)
        diffs.append(compare(got, pred, im))
        best = pred.vocab[np.argmax(got['probs'])]
        assert best in page.locator('#live .live-say').text_content()
    a,p = map(max, zip(*diffs))
    print(f'largest differences: activations {a:.1e}, probabilities {p:.1e}')

def give(page, which, *file):
    "Choose a file with the button `which`"
    page.get_by_label(f'Your {which}…').set_input_files(*file)

def random_cnn(seed):
    "A predictor whose weights, size, statistics and number of classes nobody chose"
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    n = int(rng.integers(1, 30))
    model = simple_cnn(n)
    for p in model.parameters():
        if p.dim()==1: p.data.normal_(0, .3)
    stats = rng.uniform(.2, .6, (2,3)).tolist()
    vocab = [f'class {i} <b>{"ä"*i}' for i in range(n)]
    return Predictor(model, vocab, int(rng.integers(1, 100)), stats)

def test_random_networks(page, tmp_path):
    for seed in range(10):
        pred = random_cnn(seed)
        pred.save(tmp_path/'model.safetensors')
        page.locator('.live-thumbs button').nth(seed).click()
        give(page, 'network', tmp_path/'model.safetensors')
        about = f'{len(pred.vocab)} classes, images of {pred.size}×{pred.size} pixels'
        page.locator('.live-about', has_text=about).wait_for()
        got = state(page)
        compare(got, pred, images[seed])
        assert got['vocab']==pred.vocab
    page.get_by_text('Back to the first network').click()
    assert '64×64' in page.locator('.live-about', has_text='simple_cnn').text_content()

@pytest.mark.parametrize('arch', ['small_resnet','resnet18'])
def test_residual_networks(page, tmp_path, arch):
    "Each layer that is a module of the library gives the same"
    resnet = pytest.importorskip('learner_from_scratch.resnet')
    torch.manual_seed(42)
    model = getattr(resnet, arch)(7)
    for k,v in model.state_dict().items():
        if k.endswith(('running_mean','.b')): v.normal_()
        if k.endswith(('running_var','.bn2.w')): v.uniform_(.5, 2)
    pred = Predictor(model, [*'abcdefg'])
    pred.save(tmp_path/'m.safetensors', arch=f'learner_from_scratch.resnet:{arch}')
    give(page, 'network', tmp_path/'m.safetensors')
    page.locator('.live-about', has_text=f'{arch}, ').wait_for()
    got = state(page)
    outs = {}
    def hook(name, m):
        m.hook = lambda res,args: outs.__setitem__(name, res[0].detach())
        for k,c in m.children.items(): hook(f'{name}.{k}'.strip('.'), c)
    hook('', model)
    probs = pred.predict(Image.fromarray(images[0])).probs
    assert (torch.tensor(got['probs'])-probs).abs().max() < 1e-4
    n = 0
    for l in got['layers']:
        for s in l['steps']:
            if s['op']=='conv': a = outs[l['name']]
            elif s['op']=='relu' and l['name'].endswith('.conv2'):
                a = outs[l['name'].removesuffix('.conv2')] # what the block gives
            elif s['op']=='linear': a = outs[l['name']]
            else: continue
            assert apart(s['x'], a) < 1e-4, (l['name'],s['op'])
            n += 1
    assert n>12

def test_epochs(page):
    "The slider shows the network of each epoch, from weights of 8 bits"
    kept = load_file(live/'epochs.safetensors')
    for e in 1,7:
        page.locator('#learn input').fill(str(e))
        sd = {k[2:]: v for k,v in kept.items() if k[0]==str(e) and not k.endswith('.scale')}
        for k,v in sd.items():
            scale = kept[f'{e}.{k}.scale']
            sd[k] = v*scale.view(-1, *[1]*(v.dim()-1))
        pred = Predictor.load(live/'model.safetensors')
        pred.model.load_state_dict(sd)
        compare(state(page), pred, images[0])
        said = page.locator('#learn .live-say').text_content()
        assert f'After epoch {e} the network gets ' in said
        probs = pred.predict(Image.fromarray(images[0])).probs
        cells = page.locator('#learn tbody .live-now').all_text_contents()
        assert all(abs(float(c)-100*p)<.51 for c,p in zip(cells, probs, strict=True))

# --- photos ---
def photo(mode='RGB', size=(300,200)):
    rng = np.random.default_rng(42)
    small = rng.integers(0, 256, (5,7,3), dtype='uint8')
    return Image.fromarray(small).resize(size, Image.BICUBIC).convert(mode)

@pytest.mark.parametrize('size', [(300,200), (64,64), (65,900), (20,30), (1,1)])
def test_png_as_the_library(page, tmp_path, size):
    photo(size=size).save(tmp_path/'a.png')
    give(page, 'photo', tmp_path/'a.png')
    page.locator('canvas[aria-label*="a.png"]').wait_for()
    ours = np.array(square(Image.open(tmp_path/'a.png'), 64), dtype=int).flatten()
    assert np.abs(np.array(state(page)['pixels']) - ours).max() <= 1 # see exactNote in page.js

def test_jpeg_as_promised(page, tmp_path):
    "Less than 2 of 255 on average, says the page"
    files = get_image_files(draw_shapes(tmp_path/'shapes', 10, 10))[:5]
    photo(size=(1200,900)).save(tmp_path/'turned.jpg', exif=turned())
    for f in [*files, tmp_path/'turned.jpg']:
        give(page, 'photo', f)
        page.locator(f'canvas[aria-label*="{f.name}"]').wait_for()
        ours = np.array(read_image(f, 64), dtype=float).flatten()
        diff = np.abs(np.array(state(page)['pixels']) - ours)
        assert diff.mean() < 2
        assert page.get_by_text('less than 2 of 255 on average').is_visible()

def turned():
    exif = Image.Exif()
    exif[274] = 6 # a quarter turn
    return exif

def test_transparent_is_white(page, tmp_path):
    im = photo('RGBA')
    im.putalpha(0)
    im.save(tmp_path/'a.png')
    give(page, 'photo', tmp_path/'a.png')
    page.locator('canvas[aria-label*="a.png"]').wait_for()
    assert set(state(page)['pixels'])=={255}

# --- files that are no networks ---
def packed(header, data=b''):
    h = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(h)) + h + data

meta = dict(vocab=['a','b'], size=64, stats=[[.5]*3]*2, arch='simple_cnn')
def weights(change=None, n=2, **kw):
    "A network of two classes, `change`d, and the words beside it"
    torch.manual_seed(42)
    sd = {k:v.clone() for k,v in simple_cnn(n).state_dict().items()}
    if change: change(sd)
    words = {k:v for k,v in {**meta, **kw}.items() if v is not None}
    return save(sd, dict(meta=json.dumps(words)))

good = weights()
one = {'dtype':'F32', 'shape':[1], 'data_offsets':[0,4]}
bad = dict(
    empty      = (b'', 'has 0 bytes'),
    short      = (b'abc', 'has 3 bytes'),
    text       = (b'hello, this is no model at all', 'longer than the file'),
    nojson     = (packed(b'{"a": '), 'header is not JSON'),
    nodict     = (packed([1]), 'header is not JSON with names'),
    cut        = (good[:-7], 'cut off'),
    more       = (good+b'1234567', '7 bytes follow'),
    dtype      = (packed(dict(a={**one, 'dtype':'F8'}), b'1234'), 'type F8'),
    null       = (packed(dict(a=None)), 'type undefined'),
    overlap    = (packed(dict(a=one, b=one), b'1234'), "place of b don't agree"),
    negative   = (packed(dict(a={**one, 'shape':[-1]}), b'1234'), "place of a don't agree"),
    huge       = (packed(dict(a={**one, 'shape':[2**40,2**40]}), b'1234'), 'place of a'),
    alone      = (save(simple_cnn(2).state_dict()), 'without vocab, size, stats, arch'),
    noarch     = (weights(arch=None), 'without arch'),
    arch       = (weights(arch='vgg'), 'architecture vgg'),
    proto      = (weights(arch='__proto__'), 'architecture __proto__'),
    task       = (weights(task='SeveralLabels'), 'task is SeveralLabels'),
    grey       = (weights(channels=1), 'images are grey'),
    crop       = (weights(resize='crop'), 'size by crop'),
    oblong     = (weights(size=[64,96]), 'have 64,96 pixels'),
    vocab      = (weights(vocab=[1,2]), 'vocabulary'),
    classes    = (weights(vocab=[*'abc']), '2 outputs for 3 classes'),
    size       = (weights(size=0), 'have 0 pixels'),
    stats      = (weights(stats=[[.5]*3,[0]*3]), 'deviations above 0'),
    nobias     = (weights(lambda sd: sd.pop('5.b')), 'bias of 5 is missing'),
    norelu     = (weights(lambda sd: sd.pop('0.b')), 'bias of 0 is missing'),
    another    = (weights(arch='small_resnet'), 'BatchNorm of 0 is missing'),
    nolinear   = (weights(lambda sd: sd.pop('5.w')), 'linear layer at the end'),
    hole       = (weights(lambda sd: sd.pop('2.w')), "doesn't"),
    shape      = (weights(lambda sd: sd.update({'1.w':torch.zeros(32,8,3,3)})), '1 doesn'),
    bias       = (weights(lambda sd: sd.update({'1.b':torch.zeros(3)})), 'the bias of 1'),
    damaged    = (weights(lambda sd: sd['3.w'].fill_(float('nan'))), 'NaN'))

def residual(gone):
    "`small_resnet` without one of its numbers"
    from learner_from_scratch.resnet import small_resnet
    sd = {k:v.clone() for k,v in small_resnet(2).state_dict().items() if k!=gone}
    return save(sd, dict(meta=json.dumps({**meta, 'arch':'small_resnet'})))

for gone in '0.1.running_mean','2.bn1.w','2.bn2.running_var','2.bn1.b':
    bad[gone] = (residual(gone), 'is missing')

@pytest.mark.parametrize('data,why', bad.values(), ids=bad)
def test_no_network(page, data, why):
    "A sentence says why, and the network that was there stays"
    before = page.locator('.live-about', has_text='simple_cnn').text_content()
    give(page, 'network', [dict(name='<i>m.safetensors', mimeType='', buffer=data)])
    problem = page.locator('.live-problem')
    problem.wait_for()
    text = problem.text_content()
    assert text.startswith('<i>m.safetensors can’t be used. ') and why in text.replace('’', "'")
    assert page.locator('.live-about', has_text='simple_cnn').text_content()==before
    give(page, 'network', [dict(name='m.safetensors', mimeType='', buffer=good)])
    page.locator('.live-about', has_text='2 classes').wait_for()
    assert not problem.is_visible()

def test_fewer_maps(page):
    "A network may have less than the map that was chosen"
    for layer in 6,2:
        page.get_by_role('slider', name=f'Map of layer {layer}').press('End')
        give(page, 'network', [dict(name='m.safetensors', mimeType='', buffer=good)])
        page.locator('.live-about', has_text='2 classes').wait_for()
        assert not page.locator('.live-problem').is_visible()
        page.get_by_role('button', name='Back to the first network').click()
        page.locator('.live-about', has_text='10 classes').wait_for()

def test_no_photo(page):
    give(page, 'photo', [dict(name='a.png', mimeType='image/png', buffer=b'nothing')])
    page.get_by_text('a.png is no image that this browser reads').wait_for()

drop = '''([name, type, bytes]) => {
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
    document.body.dispatchEvent(new DragEvent('drop', {dataTransfer, bubbles: true})); }'''

def test_drop_sends_nothing(page):
    sent,png = [],BytesIO()
    page.on('request', lambda r: sent.append(r.url))
    photo().save(png, 'png')
    page.evaluate(drop, ['m.safetensors', '', [*good]])
    page.locator('.live-about', has_text='2 classes').wait_for()
    page.evaluate(drop, ['p.png', 'image/png', [*png.getvalue()]])
    page.locator('canvas[aria-label*="p.png"]').wait_for()
    assert not sent
    assert page.get_by_text('Nothing leaves this machine').is_visible()

# --- the camera ---
fake = '--use-fake-device-for-media-stream'
yes = '--use-fake-ui-for-media-stream' # whoever is asked says yes

@pytest.fixture
def with_flags(browser, url):
    "A function that opens the page in a browser with other flags"
    browsers = []
    def f(*more):
        b = browser.browser_type.launch(executable_path=chromium, args=[*flags, *more])
        browsers.append(b)
        t = b.new_context(base_url=url).new_page()
        goto(t, 'browser.html')
        t.wait_for_selector('#live[data-ready]')
        return t
    yield f
    for b in browsers: b.close()

tracks = '''() => {
    const film = document.querySelector('.live-film');
    window.tracks ??= film.srcObject?.getTracks();
    return [film.checkVisibility(), ...(window.tracks ?? []).map(o => o.readyState)]; }'''

def test_camera(with_flags):
    "It runs from one click to the next, or until another image is chosen"
    t = with_flags(fake, yes)
    assert t.evaluate(tracks)==[False]
    for how in 'Stop the camera','Image 2':
        t.get_by_role('button', name='Use the camera').click()
        seen = t.locator('canvas[aria-label*="the camera"]')
        seen.wait_for()
        first = state(t)['pixels']
        pixels = "async () => [...(await import('./live/page.js')).current().pixels]"
        t.wait_for_function(f'async a => (await ({pixels})()).join()!==a.join()', arg=first)
        assert t.evaluate(tracks)==[True,'live']
        t.get_by_role('button', name=how).first.click()
        assert t.evaluate(tracks)==[False,'ended']
        t.evaluate('delete window.tracks')
    assert 'validation image 2' in t.locator('.live-input').get_attribute('aria-label')

@pytest.mark.parametrize('more,why', [((yes,), 'This machine has none.'),
                                      ((fake,), 'It was refused')])
def test_no_camera(with_flags, more, why):
    t = with_flags(*more)
    before = t.locator('#live .live-say').text_content()
    button = t.get_by_role('button', name='Use the camera')
    button.click()
    t.locator('.live-problem', has_text=f'No camera. {why}').wait_for()
    assert button.is_enabled() and not t.locator('.live-film').is_visible()
    assert t.locator('#live .live-say').text_content()==before
    t.locator('.live-thumbs button').nth(1).click()
    assert not t.locator('.live-problem').is_visible()

# --- looking around ---
def test_strongest_inputs(page):
    "The three maps that count most for the chosen number are outlined in the layer before"
    page.get_by_role('slider', name='Map of layer 2').press('Home')
    names = page.locator('.live-sum figcaption').all_text_contents()
    outlined = page.evaluate('''() => {
        const grid = document.querySelector('.live-grid'), d = devicePixelRatio;
        const {cols, pitch} = grid, g = grid.getContext('2d');
        const left = k => k % cols*pitch + 1, top = k => Math.floor(k/cols)*pitch + 20;
        const edge = k => g.getImageData(left(k)*d, top(k)*d, 1, 1);
        const ink = k => [...edge(k).data].slice(0, 3).reduce((a, b) => a + b);
        return [...Array(16).keys()].sort((a, b) => ink(a) - ink(b)).slice(0, 3); }''')
    assert sorted(f'map {o+1}' for o in outlined)==sorted(names)

def shown_number(page):
    return float(page.locator('.live-chain strong').last.text_content().replace('−', '-'))

def test_keyboard(page):
    "Maps and places can be reached without a mouse, and say where one is"
    grid = page.get_by_role('slider', name='Map of layer 2')
    grid.focus()
    for k in 'Home','ArrowRight','ArrowRight': grid.press(k)
    assert grid.get_attribute('aria-valuenow')=='3'
    assert grid.get_attribute('aria-valuetext').startswith('map 3 of 32, ')
    row = page.get_by_label('row', exact=True)
    row.focus()
    row.press('Home')
    row.press('ArrowRight')
    col = page.get_by_label('column', exact=True)
    col.press('End')
    assert 'Layer 2, map 3, row 2, column 16' in page.locator('.live-title').text_content()
    x = state(page)['layers'][1]['steps'][1]['x']
    assert abs(shown_number(page)-x[2,1,15]) < .006
    grid.press('End')
    assert grid.get_attribute('aria-valuenow')=='32'

def test_epoch_buttons(page):
    "The one that was pressed keeps the focus, and the next key goes on from there"
    for e in 3,4:
        if e==4: page.keyboard.press('Tab')
        else: page.get_by_role('button', name='epoch 3').focus()
        page.keyboard.press('Enter')
        assert page.evaluate('document.activeElement.ariaLabel')==f'epoch {e}'
        assert f'After epoch {e} ' in page.locator('#learn .live-say').text_content()

def test_sums(page):
    "The numbers of the first layer add up, before and after ReLU"
    page.locator('.live-layer').nth(0).get_by_text('convolution', exact=True).click()
    for m in 0,5,15:
        grid = page.get_by_role('slider', name='Map of layer 1')
        grid.press('Home')
        for _ in range(m): grid.press('ArrowRight')
        x = state(page)['layers'][0]['steps'][0]['x']
        assert abs(shown_number(page)-x[m,12,12]) < .006
    page.get_by_role('slider', name='Map of layer 6').press('Home')
    assert 'The score of' in page.locator('.live-title').text_content()

def test_play(page):
    title = page.locator('.live-title')
    before = title.text_content()
    page.get_by_role('button', name='Play', exact=True).click()
    moved = 's => document.querySelector(".live-title").textContent !== s'
    page.wait_for_function(moved, arg=before)
    page.get_by_role('slider', name='Map of layer 6').press('Home') # no places to go through
    assert page.locator('.live-controls button').text_content()=='Play'
    page.get_by_role('slider', name='Map of layer 2').press('Home')
    page.get_by_role('button', name='Play', exact=True).click()
    page.get_by_role('button', name='Pause', exact=True).click()

def test_draw(page):
    page.get_by_text('Draw an image').click()
    page.locator('.live-board').scroll_into_view_if_needed()
    box = page.locator('.live-board').bounding_box()
    page.mouse.move(box['x']+40, box['y']+40)
    page.mouse.down()
    page.mouse.move(box['x']+180, box['y']+160, steps=5)
    page.mouse.up()
    page.locator('canvas[aria-label*="your drawing"]').wait_for()
    assert len(set(state(page)['pixels']))>3
    drawn = state(page)['pixels']
    page.locator('.live-thumbs button').nth(1).click()
    page.mouse.move(box['x']-5, box['y']-5)
    page.mouse.down()
    page.mouse.move(box['x']+80, box['y']+160)
    page.mouse.up() # what begins elsewhere is no stroke
    assert 'your drawing' not in page.locator('.live-input').get_attribute('aria-label')
    page.mouse.click(box['x']+200, box['y']+60) # a dot
    page.locator('canvas[aria-label*="your drawing"]').wait_for()
    assert state(page)['pixels']!=drawn

@pytest.mark.parametrize('width', [1280,390])
def test_readable(page, width):
    "All words have contrast in both colour schemes, and nothing is cut off"
    page.set_viewport_size(dict(width=width, height=900))
    page.get_by_role('slider', name='Map of layer 2').press('Home')
    for _ in range(2):
        words = 'p, button, label, small, h3, span, figcaption, li, td, th, summary'
        found = page.locator(f'.live :is({words})').evaluate_all(f'''elements => {{
            const hasText = e => [...e.childNodes].some(o => o.nodeType===3);
            return ({contrasts})(elements.filter(hasText));
        }}''')
        assert not [o for o in found if o[0]<4.5]
        assert page.evaluate('document.scrollingElement.scrollWidth') <= width
        assert not page.locator('.live *').evaluate_all(cut_off)
        page.locator('.quarto-color-scheme-toggle:visible').first.click()
        page.wait_for_timeout(300)

# --- the drawings of other pages, each with a slider ---
drawing = 'main div:has(> label > input[type=range]):has(> svg)'

@pytest.mark.parametrize('name', ['data.html','loss.html','optimizers.html'])
@pytest.mark.parametrize('width', [1280,390])
def test_drawing(tab, name, width):
    "The slider leads through other pictures, with words that can be read in both schemes"
    goto(tab, name, width)
    d = tab.locator(drawing)
    slider = d.locator('input')
    last = int(slider.get_attribute('max'))
    for _ in range(2):
        seen = set()
        for i in range(0, last+1, 10):
            slider.fill(str(i))
            seen.add(d.screenshot())
        assert len(seen)==last//10+1
        words = d.locator('label, p, output').evaluate_all(contrasts)
        assert words and not [o for o in words if o[0]<4.5]
        assert d.locator('svg text').evaluate_all('''texts => texts.every(e =>
            getComputedStyle(e).fill === getComputedStyle(e.ownerSVGElement).color)''')
        assert d.locator('svg').get_attribute('aria-label')
        assert not d.locator('*').evaluate_all(cut_off)
        assert tab.evaluate('document.scrollingElement.scrollWidth') <= width
        tab.locator('.quarto-color-scheme-toggle:visible').first.click()
        tab.wait_for_timeout(300)

def test_loader_in_time(tab):
    "One moment and one sentence at each step, and every batch goes all the way, in its order"
    goto(tab, 'data.html')
    d = tab.locator(drawing)
    said,slider = [],d.locator('input')
    for i in range(int(slider.get_attribute('max'))+1):
        slider.fill(str(i))
        assert d.locator('svg [data-i]:not([style*=none])').count()==1
        said.append(d.locator('p').inner_text())
    for end in 'goes into the queue','begins','has made','takes','is done with':
        assert sum(end in o for o in said)==10
    taken = [int(o.split()[-1][:-1]) for o in said if 'main thread takes' in o]
    assert taken==[*range(10)]

def bent(p):
    x,y = p[0]
    return (1-x)**2/10 + (y-x**2/4)**2

@pytest.mark.parametrize('name,kw', [('SGD', dict(lr=.2)), ('Momentum', dict(lr=.1)),
                                     ('Adam', dict(lr=.3)), ('Muon', dict(lr=.15))])
def test_walk(tab, name, kw):
    "The height after each ten steps is that of the optimizer"
    opts = pytest.importorskip('learner_from_scratch.optimizers')
    p = torch.tensor([[-4.,1.5]], requires_grad=True)
    opt = getattr(opts, name)([p], **kw)
    goto(tab, 'optimizers.html')
    d = tab.locator(drawing)
    d.locator('select').select_option(name)
    for i in range(61):
        if i%10==0:
            d.locator('input').fill(str(i))
            words = d.locator('output').text_content()
            assert f'After {i} steps' in words
            height = float(words.split()[-1].rstrip('.'))
            assert abs(height-bent(p).item()) < 1e-3*(1+height)
        bent(p).backward()
        opt.step()
        p.grad = None

# --- what the page shows of itself ---
def test_convolution_on_the_page():
    "The page shows the code that it runs"
    code = (live/'network.js').read_text(encoding='utf-8')
    code = code.split('// begin conv\n')[1].split('// end conv')[0]
    outs = [o for c in nbs['94_browser.ipynb'].cells for o in c.get('outputs', [])]
    shown = [''.join(o['data'].get('text/markdown', '')) for o in outs if 'data' in o]
    assert any(code in o for o in shown), 'run the notebook'
