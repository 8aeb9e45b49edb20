"""The built site in a browser: pages, links, figures, formulas, search, dark colours, a phone

The tests are for the site of either renderer. They were run here on the one of smalldocs
0.5.4; on GitHub the workflow `docs` runs them on the one of Quarto, too. `SITE=folder` tests
another site than `_docs`."""
import ast, json, os, re, shutil, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from urllib.parse import unquote, urldefrag

import pytest
from playwright.sync_api import sync_playwright

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'tools'))
import finish
from compare import compare

docs,nbs = Path(os.environ.get('SITE', root/'_docs')),sorted((root/'nbs').glob('*.ipynb'))
chromium = which('chromium') or which('chromium-browser') or which('google-chrome')
flags = '''--no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync'''.split()
hidden = '#| hide\n','#| export\n','#| include: false','#| output: false'

def html(nb):
    "The page of a notebook: its name without the number"
    name = nb.stem
    if name[0].isdigit(): name = name.split('_', 1)[1]
    return f'{name}.html'

def cells(nb):
    "The cells of a notebook, each with its source"
    return [(c, ''.join(c['source'])) for c in json.loads(nb.read_text())['cells']]

def shown(nb):
    "Those whose output is on the page"
    return [(c,s) for c,s in cells(nb) if not any(o in s for o in hidden)]

pages = [html(nb) for nb in nbs]
each_page = pytest.mark.parametrize('name', pages)
each_nb = pytest.mark.parametrize('nb', nbs, ids=html)

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def url():
    if not docs.exists():
        subprocess.run([sys.executable, 'tools/docs.py'], cwd=root, check=True)
    srv = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=docs))
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{srv.server_port}/'
    srv.shutdown()

@pytest.fixture(scope='module')
def browser():
    assert chromium, 'The tests of the site need chromium: apt-get install chromium'
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=flags)
        yield b
        b.close()

@pytest.fixture
def tab(browser, url):
    "A tab in a fresh profile: no console error, failed request or request to another host"
    ctx,bad = browser.new_context(base_url=url, color_scheme='light'),[]
    def console(m):
        if m.type=='error': bad.append(m.text)
    def response(r):
        if r.status>=400: bad.append(f'{r.status}: {r.url}')
    def request(r):
        if not r.url.startswith((url, 'data:')): bad.append(f'outside: {r.url}')
    def failed(r):
        # leaving a page ends whatever it is still loading
        if r.failure!='net::ERR_ABORTED': bad.append(f'failed: {r.url}')
    t = ctx.new_page()
    t.on('console', console)
    t.on('pageerror', lambda e: bad.append(str(e)))
    t.on('requestfailed', failed)
    t.on('response', response)
    t.on('request', request)
    yield t
    ctx.close()
    assert not bad

def goto(tab, name, width=1280):
    tab.set_viewport_size(dict(width=width, height=900))
    tab.goto(name)

def here(tab): return tab.url.rsplit('/', 1)[1].split('#')[0] or 'index.html'

def each(elements, js):
    "What the JavaScript `js` gives for each element `e`"
    return elements.evaluate_all(f'elements => elements.map(e => {js})')

@pytest.fixture(scope='module')
def renderer(url):
    "Which renderer made the site?"
    s = (docs/'index.html').read_text(encoding='utf-8')
    m = re.search(r'<meta name="generator" content="(smalldocs|quarto)', s)
    assert m, 'no page of smalldocs or Quarto'
    return m[1]

def test_data_page_begins_with_images(tab, renderer):
    "A photograph before anything else is built, and a page that can be read in one go"
    goto(tab, 'data.html')
    photo = tab.locator('main img').first.bounding_box()
    assert photo['y'] < 3500 and photo['height'] > 100
    if renderer=='smalldocs': assert each(tab.locator('html'), 'e.scrollHeight')[0] <= 32_000

# --- the last step of a build, and the tools around it ---
# The HTML of these four tests is what Quarto writes.
cdn = 'https://cdnjs.cloudflare.com/ajax/libs'
define = "define('jquery', [],function() {return window.jQuery;})"
remote = f"""
<script src="{cdn}/require.js/2.3.6/require.min.js" integrity="x"></script>
<script src="{cdn}/jquery/3.5.1/jquery.min.js" data-relocate-top="true"></script>
<script type="application/javascript">{define}</script>
"""
local = """
<script src="site_libs/quarto-nav/quarto-nav.js"></script>
<link href="https://a.b/c" rel="canonical">
"""

def test_no_other_hosts():
    assert finish.offline(remote+local).strip()==local.strip()

def test_links_stay_inside():
    "A link to the published site leads to the same page of this one"
    def links(*hrefs): return ' '.join(f'<a href="{o}">' for o in hrefs)
    site = finish.cfg['doc_host'] + finish.cfg['doc_baseurl']
    other = 'https://a.b/learner.html#fit'
    s = links(f'{site}/learner.html#learner.fit', f'{site}/data.html', other)
    ids = {'learner.html': {'learner'}}
    assert finish.inside(s, ids)==links('learner.html#learner', 'data.html', other)

figure = """
<p><img src="a.svg" {}class="figure-img"></p>
<figcaption>A &amp; <em>"b"</em></figcaption>
"""

def test_drawings_have_texts():
    img = '<img alt="A &amp; &quot;b&quot;" src="a.svg" class="figure-img">'
    for alt in '','alt="" ': assert img in finish.described(figure.format(alt))
    s = figure.format('alt="mine" ')
    assert finish.described(s)==s

def test_link_to_colab():
    s = """<header id="title-block-header"><h1>Data</h1></header>
        <a href="https://github.com/a/b/edit/main/nbs/data.ipynb">"""
    once = finish.linked(s, 'data')
    assert once.count('nbs/01_data.ipynb"')==2 and finish.linked(once, 'data')==once

def made_up(d, title='Data', link='data.html#collate', names=('collate',)):
    "A site of one page"
    d.mkdir()
    links = f'<a href="./{link}"></a><a href="#here"></a>'
    (d/'data.html').write_text(f'<main><h1>{title}</h1><p>{links}</p></main>')
    index = [dict(objectID='data.html', href='data.html', section='')]
    index += [dict(objectID=f'l.data.{o}', href=f'data.html#{o}', section=o) for o in names]
    (d/'search.json').write_text(json.dumps(index))
    return d

def test_compare(tmp_path):
    a,b = made_up(tmp_path/'a'),made_up(tmp_path/'b')
    assert not [*compare(a, b)]
    changes = [(dict(title='Date'), 2), (dict(link='loss.html'), 2), (dict(names=[]), 1)]
    for i,(kw,n) in enumerate(changes):
        changed = made_up(tmp_path/str(i), **kw)
        assert len([*compare(a, changed)])==n, kw
    made_up(tmp_path/'c')
    shutil.copy(a/'data.html', tmp_path/'c/loss.html')
    assert len([*compare(a, tmp_path/'c')])==2

fake_quarto = """#!/bin/sh
test -f "$2" || { echo "no $2" >&2; exit 1; }
mkdir -p _docs
echo spoiled > _docs/README.md
"""

def nbdev_readme(d, tmp_path):
    "nbdev's own command with a Quarto that writes any notebook it finds"
    quarto = tmp_path/'quarto'
    quarto.write_text(fake_quarto)
    quarto.chmod(0o755)
    env = os.environ | dict(PATH=f'{tmp_path}:{os.environ["PATH"]}')
    cmd = Path(sys.executable).with_name('nbdev_readme')
    return subprocess.run([cmd], cwd=d, env=env, capture_output=True).returncode

def test_nbdev_leaves_readme_alone(tmp_path):
    d = tmp_path/'p'
    (d/'nbs').mkdir(parents=True)
    for o in 'settings.ini','README.md','nbs/index.ipynb': shutil.copy(root/o, d/o)
    shutil.copytree(root/finish.cfg['lib_name'], d/finish.cfg['lib_name'])
    assert nbdev_readme(d, tmp_path)
    assert (d/'README.md').read_bytes()==(root/'README.md').read_bytes()
    ini = d/'settings.ini' # the test would see it
    s = re.sub('readme_nb = .*', 'readme_nb = index.ipynb', ini.read_text(encoding='utf-8'))
    ini.write_text(s, encoding='utf-8')
    assert not nbdev_readme(d, tmp_path)
    assert (d/'README.md').read_text()=='spoiled\n'

# --- the pages ---
def test_every_notebook_is_a_page():
    assert sorted(pages)==sorted(f.name for f in docs.glob('*.html'))

cut_off = '''elements => {
    function tooWide(e) {
        return e.getBoundingClientRect().right > innerWidth + 1;
    }
    function scrolls(e) { // it, or what it stands in
        if (!e) return false;
        const overflow = getComputedStyle(e).overflowX;
        return overflow=='auto' || overflow=='scroll' || scrolls(e.parentElement);
    }
    const bad = elements.filter(e => tooWide(e) && !scrolls(e));
    return bad.map(e => e.outerHTML.slice(0, 80));
}'''
pictures = '''images => {
    async function loaded(o) {
        try { await o.decode(); }
        catch { return [0, o.src]; }
        return [o.naturalWidth, o.alt];
    }
    return Promise.all(images.map(loaded));
}'''

@each_page
@pytest.mark.parametrize('width', [1280, 390])
def test_page_opens(tab, name, width):
    goto(tab, name, width)
    assert tab.locator('h1').count()==1
    assert tab.evaluate('document.scrollingElement.scrollWidth') <= width
    assert not tab.locator('main *').evaluate_all(cut_off) # what is too wide scrolls
    for w,alt in tab.locator('img').evaluate_all(pictures):
        assert w and alt, f'broken, or without alt text: {w} {alt}'

def test_links(tab, url):
    ids,links = {},[]
    for name in pages:
        goto(tab, name)
        ids[name] = set(each(tab.locator('[id]'), 'e.id'))
        hrefs = each(tab.locator('a[href]'), 'e.href')
        links += [(name,o) for o in hrefs if o.startswith(url)]
    for name,o in links:
        page,anchor = urldefrag(o[len(url):])
        page = page or 'index.html'
        assert (docs/page).exists(), f'{name}: broken link {o}'
        if page in ids and anchor:
            assert unquote(anchor) in ids[page], f'{name}: {page} has no {anchor}'
    assert len(links)>len(pages)**2 # the sidebar alone

def is_picture(out): return any(k.startswith('image/') for k in out.get('data', {}))

@each_nb
def test_figures(tab, nb):
    "Every picture of the notebook stands on its page"
    goto(tab, html(nb))
    outs = [o for c,_ in shown(nb) for o in c.get('outputs', []) if is_picture(o)]
    drawn = sum(s.count('![') for c,s in cells(nb) if c['cell_type']=='markdown')
    n = tab.locator('main img, main figure svg, .cell-output > svg').count()
    assert n >= len(outs)+drawn
    if html(nb)=='learner.html': assert n>=3 # `LRFinder`, `OneCycle`, the timeline

prose = '''page => {
    const copy = page.cloneNode(true);
    for (const e of copy.querySelectorAll('pre, code, math')) e.remove();
    return copy.textContent;
}'''

@each_nb
def test_formulas(tab, nb):
    "Formulas, and links, are what the reader sees, not their source"
    goto(tab, html(nb))
    for box in each(tab.locator('main math'), 'e.getBoundingClientRect().toJSON()'):
        assert box['width']>0 and box['height']>0
    text = tab.locator('main').evaluate(prose)
    for raw in '$$', r'\frac', r'\sum', r'\(', r'\[', '](': assert raw not in text
    n = sum(s.count('$$') for c,s in cells(nb) if c['cell_type']=='markdown')//2
    assert tab.locator('main math[display=block]').count() >= n

def test_loss_has_formulas(tab):
    goto(tab, 'loss.html')
    assert tab.locator('main math').count() > 5

@pytest.mark.parametrize('query,page', [
    ('OneCycle','learner.html'),
    ('logsumexp','loss.html')])
def test_search(tab, query, page):
    goto(tab, 'index.html')
    field = tab.locator('#quarto-search input').first
    if not field.is_visible(): tab.locator('#quarto-search button:visible').first.click()
    field.press_sequentially(query)
    results = f'.search-result[href*="{page}"], .aa-Item a[href*="{page}"]'
    hit = tab.locator(results, has_text=query).first
    hit.wait_for(timeout=5000)
    hit.click()
    tab.wait_for_url(f'**/{page}*')

def public_names():
    "Each public name of the library, and its page"
    text = next(root.glob('*/_modidx.py')).read_text(encoding='utf-8')
    syms = ast.literal_eval(text.partition('d = ')[2])['syms']
    res = set()
    for mod,defined in syms.items():
        for sym,(url,_) in defined.items():
            name = sym.removeprefix(f'{mod}.')
            if name.isidentifier() and name[0]!='_': res.add((name, url.split('#')[0]))
    return sorted(res)

first_pages = '''async ([names, threshold]) => {
    const response = await fetch('search.json');
    const index = await response.json();
    const keys = [ // the weights that both renderers use
        {name: 'title', weight: 20},
        {name: 'section', weight: 20},
        {name: 'text', weight: 10}];
    const options = {keys, threshold, ignoreLocation: true, minMatchCharLength: 2};
    const fuse = new Fuse(index, options);
    function pages(name) {
        const hits = fuse.search(name, {limit: 20});
        const urls = hits.map(o => o.item.href.split('#')[0]);
        return [...new Set(urls)].slice(0, 3);
    }
    return names.map(pages);
}'''

def test_search_finds_names(tab, renderer):
    "The page that defines a name is one of the first three"
    want = public_names()
    assert want
    names = [name for name,_ in want]
    threshold = dict(smalldocs=.3, quarto=.1)[renderer]
    goto(tab, 'index.html')
    found = tab.evaluate(first_pages, [names, threshold])
    assert not [(name,page,top) for (name,page),top in zip(want, found) if page not in top]

def test_page_links(tab):
    "Each page links to its notebook, number included, to be edited and to be run"
    for nb in nbs:
        goto(tab, html(nb))
        for a,text in ('.toc-action', 'Edit this page'),('a.colab', 'Open in Colab'):
            hrefs = each(tab.locator(a, has_text=text), 'e.href')
            assert hrefs, nb.name
            for o in hrefs: assert o.endswith(f'/main/nbs/{nb.name}')
        assert tab.locator('a.colab').is_visible()

def test_reading_order(tab):
    goto(tab, 'index.html')
    links = tab.locator('#quarto-sidebar a.sidebar-link[href]')
    side = each(links, 'e.pathname.slice(1) || "index.html"')
    assert sorted(side)==sorted(pages), 'every notebook stands in the sidebar of _quarto.yml'
    chapter = 'index fetch data modules loss learner'.split()
    assert side[:len(chapter)]==[f'{o}.html' for o in chapter]
    order = [here(tab)]
    while (nxt := tab.locator('.nav-page-next a')).count():
        with tab.expect_navigation(): nxt.click()
        order.append(here(tab))
    assert order==side
    for o in reversed(order[:-1]):
        with tab.expect_navigation(): tab.locator('.nav-page-previous a').click()
        assert here(tab)==o

@each_nb
def test_one_telling(tab, nb):
    "Above the source of a name stand its heading, a link and its docstring, and no table"
    goto(tab, html(nb))
    page = html(nb).removesuffix('.html')
    assert not tab.locator('main table th', has_text='Details').count()
    for href in tab.locator('a.source').evaluate_all('links => links.map(a => a.href)'):
        assert re.search(rf'/{page}\.py#L\d+$', href), href

def prints_source(s):
    "Does a cell print source, and not define what does?"
    return '#| exec_doc' in s and 'print_source(' in s and 'def ' not in s

@each_nb
def test_folded_sources(tab, nb):
    "Third-party source is folded, and opens on a click"
    goto(tab, html(nb))
    folded = tab.locator('.cell-output details')
    if any(prints_source(s) for _,s in cells(nb)): assert folded.count()
    for i in range(folded.count()):
        d = folded.nth(i)
        assert not d.locator('pre').is_visible()
        d.locator('summary').click()
        box = d.locator('pre').bounding_box()
        assert 10 < box['height'] < 700

@each_nb
def test_folded_cells(tab, nb):
    "What only imports or only tests is folded, and opens on a click"
    goto(tab, html(nb))
    folded = tab.locator('details.code-fold')
    codes = [s for c,s in shown(nb) if c['cell_type']=='code' and 'echo: false' not in s]
    def kind(s): return 'Code' if '#| code-fold: true' in s else finish.kind(s)
    want = [o for o in map(kind, codes) if o]
    assert folded.locator('summary').all_inner_texts()==want
    for d in folded.all():
        assert not d.locator('pre').is_visible()
        d.locator('summary').click()
        assert d.locator('pre').is_visible()

contrasts = '''elements => {
    const canvas = document.createElement('canvas');
    const pen = canvas.getContext('2d', {willReadFrequently: true});
    function paint(color) { // on the pixel so far; gives what it is then
        pen.fillStyle = color;
        pen.fillRect(0, 0, 1, 1);
        return pen.getImageData(0, 0, 1, 1).data;
    }
    function background(e) { // painted from the outermost element to this one
        if (e.parentElement) background(e.parentElement);
        else pen.clearRect(0, 0, 1, 1);
        return paint(getComputedStyle(e).backgroundColor);
    }
    function linear(v) { // the light of an sRGB value
        v = v/255;
        return v <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4;
    }
    function luminance([r, g, b]) {
        return .2126*linear(r) + .7152*linear(g) + .0722*linear(b);
    }
    function contrast(e) {
        const bg = luminance(background(e));
        const fg = luminance(paint(getComputedStyle(e).color));
        return (Math.max(bg, fg) + .05) / (Math.min(bg, fg) + .05);
    }
    function visible(e) {
        return e.offsetParent && (e.innerText.trim() || e.matches('input'));
    }
    return elements.filter(visible).map(e => [contrast(e), e.outerHTML.slice(0, 80)]);
}'''
text = '''main p, main li, main a, main td, main th, p code, li code, pre code span,
    .cell-output pre, figcaption, summary, h1, h2, h3, #TOC a, .toc-actions a, .sidebar-link,
    .navbar-title, .breadcrumb-item a, .aa-Input, #quarto-search input'''

@each_page
@pytest.mark.parametrize('width', [1280, 390])
def test_light_and_dark(tab, name, width):
    goto(tab, name, width)
    lights = []
    for _ in range(2):
        found = tab.locator(text).evaluate_all(contrasts)
        assert not [o for o in found if o[0]<4.5]
        lights.append(tab.evaluate('getComputedStyle(document.body).backgroundColor'))
        tab.locator('.quarto-color-scheme-toggle:visible').first.click()
        tab.wait_for_timeout(300)
    assert lights[0]!=lights[1]

def test_phone_menu(tab):
    "On a phone the pages are a tap away"
    goto(tab, 'index.html', 390)
    assert tab.locator('#quarto-header').bounding_box()['height'] < 110
    tab.locator('.quarto-btn-toggle').first.click()
    tab.locator('#quarto-sidebar a', has_text='Loss').click()
    tab.wait_for_url('**/loss.html')
