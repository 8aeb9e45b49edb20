"""Do two builds of the site agree? Pages, titles, headings, links and search:

`python tools/compare.py _docs other/_docs`"""
import json, sys
from html.parser import HTMLParser
from pathlib import Path

class Page(HTMLParser):
    "The headings and the links of a page, as both renderers should have them"
    def __init__(self, html):
        super().__init__()
        self.headings,self.links,self.inside = [],set(),[]
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ('main','pre','h1','h2','h3'): self.inside.append(tag)
        if tag in ('h1','h2','h3'): self.headings.append('')
        if tag=='a' and attrs.get('href'): self.link(attrs)

    def handle_endtag(self, tag):
        if self.inside and tag==self.inside[-1]: self.inside.pop()

    def handle_data(self, text):
        if 'main' in self.inside and self.inside[-1][0]=='h': self.headings[-1] += text

    def link(self, attrs):
        "Links in the page, in code and to repository actions are the renderer's own"
        href = attrs['href'].removeprefix('./') or 'index.html'
        own = href[0]=='#' or 'pre' in self.inside or attrs.get('class')=='toc-action'
        if not own: self.links.add(href)

    def said(self):
        "The headings without what typography does to them"
        plain = str.maketrans('‘’“”…\xa0', '\'\'"". ')
        return [' '.join(o.translate(plain).split()) for o in self.headings if o.strip()]

def read(site):
    "What `compare` compares: for each page its headings and links, and the search by page"
    res = {}
    for f in sorted(site.glob('*.html')):
        page = Page(f.read_text(encoding='utf-8'))
        res[f'{f.name}: headings'] = page.said()
        res[f'{f.name}: links'] = sorted(page.links)
    index = json.loads((site/'search.json').read_text(encoding='utf-8'))
    names = [o for o in index if o['objectID'].split('#')[0]!=o['href'].split('#')[0]]
    res['search: pages'] = sorted({o['href'].split('#')[0] for o in index})
    res['search: names'] = [f'{o["section"]} in {o["href"]}' for o in names]
    return res

def compare(a, b):
    "A line for each thing that only one of two sites has"
    a,b = read(Path(a)),read(Path(b))
    for k in sorted({*a, *b}):
        x,y = a.get(k, []),b.get(k, [])
        yield from (f'{k}: only the first site has {o}' for o in x if o not in y)
        yield from (f'{k}: only the second site has {o}' for o in y if o not in x)
        if sorted(x)==sorted(y) and x!=y: yield f'{k}: in another order'

if __name__=='__main__':
    lines = list(compare(*sys.argv[1:]))
    for o in lines: print(o)
    sys.exit(1 if lines else 0)
