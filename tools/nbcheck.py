"""What nbdev does not check in a notebook. `--fix` mends what can be mended.

- nbdev takes the whole title cell for its title and subtitle: other text in it is lost from the site and from README.
- docs are built by running cells that import or export, flags or not: a flagged cell must do neither.
- an output that shows a path of the machine it ran on, or an error, is no documentation.
- pictures are stored in the notebook: a heavy one has too many or too large ones.
"""
import argparse, hashlib, re, sys
from pathlib import Path
import nbformat
from nbdev.config import get_config

HEAVY = 600_000 # bytes

def split_title(src):
    "The title cell's title and subtitle, and the rest of it"
    lines = src.strip().split('\n')
    n = 1
    while n<len(lines) and (not lines[n].strip() or re.match(r'>\s|- [\w-]+:\s', lines[n])): n += 1
    return '\n'.join(lines[:n]).strip(), '\n'.join(lines[n:]).strip()

def title_cell(nb): return next(((i,c) for i,c in enumerate(nb.cells) if c.cell_type=='markdown' and re.search(r'^# \S', c.source, re.M)), (None,None))

def flags(c): return set(re.findall(r'^#\|\s*([\w-]+)', c.source, re.M))

def problems(fn, cfg):
    "Sentences about one notebook"
    nb = nbformat.read(fn, 4)
    i,t = title_cell(nb)
    if t is None: yield 'has no title: a markdown cell that starts with "# "'
    elif not t.source.lstrip().startswith('# '): yield f'cell {i}: the title must come first in its cell'
    elif split_title(t.source)[1]: yield f'cell {i}: text beside the title is lost; give it a cell of its own (--fix does)'
    for i,c in enumerate(nb.cells):
        if c.cell_type!='code': continue
        off = flags(c) & set(cfg.tst_flags.split())
        if off and re.search(r'^\s*(import|from)\s', c.source, re.M): yield f'cell {i}: imports in a cell flagged {off}; docs would run it'
        if off and flags(c) & {'export', 'exports', 'exporti'}: yield f'cell {i}: an exported cell is flagged {off}; docs would run it'
        out = str(c.get('outputs', ''))
        if "'output_type': 'error'" in out: yield f'cell {i}: its output is an error'
        if any(f'{o}/' in out for o in (cfg.config_path, Path.home())): yield f'cell {i}: its output shows a path of this machine'
    if fn.stat().st_size>HEAVY: yield f'is {fn.stat().st_size/1e3:.0f} kB: fewer or smaller pictures'

def mend(fn):
    "`fix` the file, if there is anything to"
    nb = nbformat.read(fn, 4)
    if fix(nb): fn.write_text(nbformat.writes(nb, 4)+'\n', encoding='utf-8')

def fix(nb):
    "Give the text beside the title a cell of its own, with the same id each time; True if there was any"
    i,t = title_cell(nb)
    head,rest = split_title(t.source) if t is not None and t.source.lstrip().startswith('# ') else ('','')
    if not rest: return False
    t.source = head
    c = nbformat.v4.new_markdown_cell(rest)
    c.id = hashlib.sha1(t.id.encode()).hexdigest()[:8]
    nb.cells.insert(i+1, c)
    return True

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('notebooks', nargs='*', type=Path)
    p.add_argument('--fix', action='store_true')
    args = p.parse_args()
    cfg = get_config()
    fns = [o.absolute() for o in args.notebooks] or sorted(o for o in cfg.nbs_path.rglob('*.ipynb') if o.name[0] not in '._')
    bad = []
    for fn in fns:
        if args.fix: mend(fn)
        bad += [f'{fn.relative_to(cfg.nbs_path)} {o}' for o in problems(fn, cfg)]
    print('\n'.join(bad) or f'{len(fns)} notebooks, all well')
    sys.exit(bool(bad))

if __name__=='__main__': main()
