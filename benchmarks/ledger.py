"Rows of measurements in CSV files: every number quoted in README or docs comes from here."
import csv, os, platform, resource, sys, tempfile
from contextlib import contextmanager
from pathlib import Path
from pla_nb.data import atomic_write
try: import fcntl
except ImportError: fcntl = None # not on Windows

RESULTS = Path(__file__).parent/'results'
SPEED = ['what','n','d','c','seconds','peak_mb','device']

def read(
    file, # name in results/, or a path
) -> list: # of dicts with text values
    "Rows of a ledger; none if it does not exist"
    path = RESULTS/file
    if not path.exists(): return []
    with open(path, newline='', encoding='utf-8') as f: return list(csv.DictReader(f))

def append(
    file, # name in results/, or a path
    rows: list, # of dicts
    key_columns: list, # columns that tell what a row measures
) -> list: # all rows
    "Add rows to a ledger; a row with the same key is replaced where it stands"
    with _alone(RESULTS/file): return _append(file, rows, key_columns)

@contextmanager
def _alone(path): # two benchmarks may write one ledger
    if fcntl is None: yield; return
    with open(Path(tempfile.gettempdir())/f'{path.name}.lock', 'w') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield

def _append(file, rows, key_columns):
    old,text = read(file),lambda row: {k: '' if v is None else f'{v:.4g}' if isinstance(v, float) else str(v) for k,v in row.items()}
    table = {tuple(o.get(k, '') for k in key_columns): o for o in old}
    for row in map(text, rows): table[tuple(row.get(k, '') for k in key_columns)] = row
    columns = list(dict.fromkeys(k for row in table.values() for k in row))
    atomic_write(RESULTS/file, lambda tmp: _write(tmp, columns, table.values()))
    return list(table.values())

def _write(path, columns, rows):
    with open(path, 'w', newline='', encoding='utf-8') as f:
        out = csv.DictWriter(f, columns, restval='', lineterminator='\n')
        out.writeheader()
        out.writerows(rows)

def speed(what, n, seconds, d='', c='', device=None): # one row of speed.csv
    "Record one timing, with the peak memory of this process so far"
    row = dict(what=what, n=n, d=d, c=c, seconds=float(seconds), peak_mb=peak_mb(), device=device or machine())
    return append('speed.csv', [row], ['what','n','d','c','device'])

def peak_mb(): # MB
    "Largest resident memory of this process so far"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak/(1<<20 if sys.platform=='darwin' else 1<<10))

def machine(): # such as '2 x AMD EPYC'
    "Cores that this process may use, and their kind"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    try: name = next(l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name'))
    except (OSError,StopIteration): name = platform.processor() or platform.machine()
    return f'{cores} x {name}'
