"Write nbs/sidebar.yml: what there is in nbs, in reading order."
from pathlib import Path
import yaml
from nbdev.config import get_config

def entries(nbs, pattern): return [p.relative_to(nbs).as_posix() for p in sorted(nbs.glob(pattern)) if p.name[0] not in '._']

def contents(nbs):
    "The sections; a notebook that is not there yet is not listed"
    rooms = entries(nbs, '[0-9]*.ipynb')
    start = entries(nbs, 'index.ipynb') + entries(nbs, 'tutorials/*.ipynb')
    rest = [o for o in entries(nbs, '*.ipynb') if o not in start+rooms]
    return [dict(section=s, contents=c) for s,c in [('Start', start), ('Rooms', rooms), ('Design', rest)] if c]

def write_sidebar():
    nbs = Path(get_config().nbs_path)
    txt = yaml.dump(dict(website=dict(sidebar=dict(contents=contents(nbs)))), sort_keys=False, allow_unicode=True)
    (nbs/'sidebar.yml').write_text(txt, encoding='utf-8')

if __name__=='__main__': write_sidebar()
