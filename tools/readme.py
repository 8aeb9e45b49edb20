"README.md from `nbs/index.ipynb`, without Quarto: `python tools/readme.py`"
import re
from pathlib import Path
from execnb.nbio import read_nb

root = Path(__file__).parent.parent

def text(o):
    "What output `o` says, fenced, or the table it shows; nothing for a picture"
    data = o.get('data', {})
    html = ''.join(data.get('text/html', ''))
    if table := re.search(r'<table.*</table>', html, flags=re.S): return table[0]
    s = ''.join(o.get('text') or data.get('text/plain', '')).rstrip()
    return f'```\n{s}\n```' if s and not any(k.startswith('image') for k in data) else ''

def cell(c):
    "Prose with links that work from the top folder; code and its outputs, fenced"
    if c.cell_type=='markdown':
        return [re.sub(r'(\]\()(?!\w+:|#)', r'\1nbs/', c.source).strip()]
    if '#| hide' in c.source: return []
    src = re.sub(r'^#\|.*\n?', '', c.source, flags=re.M).strip()
    return [f'```python\n{src}\n```', *map(text, c.outputs)]

def readme():
    "The first page as markdown for the top folder"
    parts = [o for c in read_nb(root/'nbs/index.ipynb').cells for o in cell(c) if o]
    note = '<!-- Made from nbs/index.ipynb by tools/readme.py: edit the notebook -->'
    return '\n\n'.join([note, *parts])+'\n'

if __name__=='__main__': (root/'README.md').write_text(readme(), encoding='utf-8')
