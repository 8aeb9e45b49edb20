"The built site in a browser: pages, links, figures, formulas, search, both colour schemes, a phone"
import json, subprocess, sys, threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from playwright.sync_api import sync_playwright

root = Path(__file__).parent.parent
docs,nbs = root/'_docs',sorted((root/'nbs').glob('*.ipynb'))
chromium = '/usr/bin/chromium'
flags = '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()

def html(nb): return (nb.stem.split('_', 1)[1] if nb.stem[0].isdigit() else nb.stem) + '.html'
def cells(nb): return [(c, ''.join(c['source'])) for c in json.loads(nb.read_text())['cells']]
def shown(nb): return [(c,s) for c,s in cells(nb) if not any(o in s for o in ('#| hide\n', '#| export\n', '#| include: false', '#| output: false'))]
pages = [html(nb) for nb in nbs]
each_page = pytest.mark.parametrize('name', pages)
each_nb = pytest.mark.parametrize('nb', nbs, ids=html)

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass

@pytest.fixture(scope='module')
def url():
    if not docs.exists(): subprocess.run([sys.executable, 'tools/docs.py'], cwd=root, check=True)
    srv = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=docs))
    threading.Thread(target=srv.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{srv.server_port}/'
    srv.shutdown()

@pytest.fixture(scope='module')
def browser():
    assert Path(chromium).exists(), 'The tests of the site need chromium: apt-get install chromium'
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium, args=flags)
        yield b
        b.close()

@pytest.fixture
def tab(browser, url):
    "A tab in a fresh profile; the test fails on any console error, failed request or request to another host"
    ctx,bad = browser.new_context(base_url=url, color_scheme='light'),[]
    t = ctx.new_page()
    t.on('console', lambda m: m.type=='error' and bad.append(m.text))
    t.on('pageerror', lambda e: bad.append(str(e)))
    t.on('requestfailed', lambda r: bad.append(f'failed: {r.url}'))
    t.on('response', lambda r: r.status>=400 and bad.append(f'{r.status}: {r.url}'))
    t.on('request', lambda r: r.url.startswith((url, 'data:')) or bad.append(f'outside: {r.url}'))
    yield t
    ctx.close()
    assert not bad

def goto(tab, name, width=1280):
    tab.set_viewport_size(dict(width=width, height=900))
    tab.goto(name)

cut_off = '''es => es.filter(e => {
    if (e.getBoundingClientRect().right <= innerWidth+1) return false;
    for (let o = e; o; o = o.parentElement) if (['auto', 'scroll'].includes(getComputedStyle(o).overflowX)) return false;
    return true; }).map(e => e.outerHTML.slice(0, 80))'''

def test_every_notebook_is_a_page(): assert sorted(pages) == sorted(f.name for f in docs.glob('*.html'))

@each_page
@pytest.mark.parametrize('width', [1280, 390])
def test_page_opens(tab, name, width):
    goto(tab, name, width)
    assert tab.locator('h1').count()==1
    assert tab.evaluate('document.scrollingElement.scrollWidth') <= width
    assert not tab.locator('main *').evaluate_all(cut_off) # what is too wide scrolls in itself
    pics = tab.locator('img').evaluate_all('is => Promise.all(is.map(i => i.decode().then(() => [i.naturalWidth, i.alt], () => [0, i.src])))')
    for w,alt in pics: assert w and alt, f'broken, or without alt text: {w} {alt}'

def test_links(tab, url):
    ids,links = {},[]
    for name in pages:
        goto(tab, name)
        ids[name] = set(tab.locator('[id]').evaluate_all('es => es.map(e => e.id)'))
        links += [(name,o) for o in tab.locator('a[href]').evaluate_all('es => es.map(e => e.href)') if o.startswith(url)]
    for name,o in links:
        page,anchor = urldefrag(o[len(url):])
        page = page or 'index.html'
        assert (docs/page).exists(), f'{name}: broken link {o}'
        if page in ids and anchor: assert unquote(anchor) in ids[page], f'{name}: {page} has no {anchor}'
    assert len(links)>len(pages)**2 # the sidebar alone

@each_nb
def test_figures(tab, nb):
    "Every picture of the notebook stands on its page"
    goto(tab, html(nb))
    outs = [o for c,_ in shown(nb) for o in c.get('outputs', []) if any(k.startswith('image/') for k in o.get('data', {}))]
    drawn = sum(s.count('![') for c,s in cells(nb) if c['cell_type']=='markdown')
    n = tab.locator('main img, main figure svg, .cell-output > svg').count()
    assert n >= len(outs)+drawn
    if html(nb)=='learner.html': assert n>=3 # `LRFinder`, `OneCycle`, the timeline

@each_nb
def test_formulas(tab, nb):
    "Formulas, and links, are what the reader sees, not their source"
    goto(tab, html(nb))
    maths = tab.locator('main math').evaluate_all('ms => ms.map(m => m.getBoundingClientRect()).map(r => [r.width, r.height])')
    for w,h in maths: assert w>0 and h>0
    text = tab.locator('main').evaluate('m => { m = m.cloneNode(true); m.querySelectorAll("pre, code, math").forEach(o => o.remove()); return m.textContent }')
    for raw in '$$', r'\frac', r'\sum', r'\(', r'\[', '](': assert raw not in text
    n = sum(s.count('$$') for c,s in cells(nb) if c['cell_type']=='markdown')//2
    assert tab.locator('main math[display=block]').count() >= n

def test_loss_has_formulas(tab):
    goto(tab, 'loss.html')
    assert tab.locator('main math').count() > 5

@pytest.mark.parametrize('query,page', [('OneCycle','learner.html'), ('logsumexp','loss.html')])
def test_search(tab, query, page):
    goto(tab, 'index.html')
    tab.locator('#quarto-search input').first.press_sequentially(query)
    hit = tab.locator(f'.search-result[href*="{page}"], .aa-Item a[href*="{page}"]', has_text=query).first
    hit.wait_for(timeout=5000)
    hit.click()
    tab.wait_for_url(f'**/{page}*')

def test_reading_order(tab):
    goto(tab, 'index.html')
    side = tab.locator('#quarto-sidebar a.sidebar-link[href]').evaluate_all('es => es.map(e => e.pathname.slice(1) || "index.html")')
    assert sorted(side)==sorted(pages), 'every notebook stands in the sidebar of _quarto.yml'
    chapter = 'index data modules loss learner'.split()
    assert [o for o in side if o[:-5] in chapter]==[f'{o}.html' for o in chapter]
    order = [tab.url]
    while (nxt := tab.locator('.nav-page-next a')).count():
        with tab.expect_navigation(): nxt.click()
        order.append(tab.url)
    assert [o.rsplit('/', 1)[1] for o in order]==side
    for o in reversed(order[:-1]):
        tab.locator('.nav-page-previous a').click()
        tab.wait_for_url(o)

@each_nb
def test_api_tables(tab, nb):
    goto(tab, html(nb))
    if any('#| export' in s and ', # ' in s and 'def ' in s for _,s in cells(nb)):
        assert tab.locator('main table th', has_text='Details').count()

@each_nb
def test_folded_sources(tab, nb):
    "Third-party source is folded, and opens on a click"
    goto(tab, html(nb))
    folded = tab.locator('.cell-output details')
    if any('#| exec_doc' in s and 'print_source(' in s and 'def ' not in s for _,s in cells(nb)): assert folded.count()
    for i in range(folded.count()):
        d = folded.nth(i)
        assert not d.locator('pre').is_visible()
        d.locator('summary').click()
        box = d.locator('pre').bounding_box()
        assert 10 < box['height'] < 700

contrast = '''e => {
    const ctx = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
    const paint = c => { ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1); return ctx.getImageData(0, 0, 1, 1).data; };
    const up = []; for (let o = e; o; o = o.parentElement) up.unshift(getComputedStyle(o).backgroundColor);
    const lum = d => { const [r, g, b] = [...d].slice(0, 3).map(v => (v /= 255) <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4); return .2126*r + .7152*g + .0722*b; };
    up.forEach(paint);
    const bg = lum(paint('transparent')), fg = lum(paint(getComputedStyle(e).color));
    return (Math.max(bg, fg)+.05) / (Math.min(bg, fg)+.05); }'''
text = 'main p, main li, main a, p code, li code, main td, main th, pre code span, .cell-output pre, figcaption, summary, .sidebar-link, #TOC a, h1, h2, h3, .navbar-title'

@each_page
def test_light_and_dark(tab, name):
    goto(tab, name)
    lights = []
    for _ in range(2):
        low = [c for c in tab.locator(text).evaluate_all(f'es => es.filter(e => e.offsetParent && e.innerText.trim()).map(e => [({contrast})(e), e.outerHTML.slice(0, 80)])') if c[0]<4.5]
        assert not low
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
