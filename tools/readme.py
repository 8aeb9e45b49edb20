"README.md from `nbs/index.ipynb`, without Quarto: `python tools/readme.py [--check]`"
import posixpath,re,sys
from pathlib import Path
from execnb.nbio import read_nb

root = Path(__file__).parent.parent

def local(url):
    "`url` of a page of `nbs`, as seen from the top folder"
    return url if re.match(r'[a-z]+:|[/#]', url) else posixpath.normpath(posixpath.join('nbs', url))

def prose(s):
    "Markdown `s` with links that work from the top folder, and without what only the site understands"
    s = re.sub(r'^:::.*\n?', '', s, flags=re.M)
    s = re.sub(r'(\]\([^)\s]*[^)]*\))\{[^}]*\}', r'\1', s)
    s = re.sub(r'(\]\()([^)\s]+)', lambda m: m[1]+local(m[2]), s)
    return re.sub(r'((?:src|href|srcset)=")([^"]+)', lambda m: m[1]+local(m[2]), s)

def text(o):
    "What output `o` says, fenced, or the table it shows; nothing for a picture"
    data = o.get('data', {})
    if table := re.search(r'<table.*</table>', ''.join(data.get('text/html', '')), flags=re.S): return table[0]
    s = ''.join(o.get('text') or data.get('text/plain', '')).rstrip()
    return f'```\n{s}\n```' if s and not any(k.startswith('image') for k in data) else ''

def code(c):
    "Code cell `c` and its output, fenced"
    opts = dict(re.findall(r'^#\| *([\w-]+):? *(.*)', c.source, flags=re.M))
    if 'hide' in opts or opts.get('include')=='false': return
    src = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()
    if src and opts.get('echo')!='false': yield f'```python\n{src}\n```'
    if opts.get('output')!='false': yield from map(text, c.get('outputs', []))

def readme(fn=root/'nbs/index.ipynb'):
    "The notebook `fn` as markdown for the top folder"
    res = []
    for c in read_nb(fn).cells:
        if c.cell_type=='code': res += code(c)
        elif c.cell_type=='markdown': res.append(prose(c.source).strip())
    return '\n\n'.join(filter(None, ['<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook -->', *res]))+'\n'

if __name__=='__main__':
    fn = root/'README.md'
    if '--check' not in sys.argv: fn.write_text(readme(), encoding='utf-8')
    elif fn.read_text(encoding='utf-8')!=readme(): sys.exit('README.md is not what nbs/index.ipynb gives: run `python tools/readme.py`')
