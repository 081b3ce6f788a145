"Speed and memory of the language models: `python benchmarks/describe.py` writes benchmarks/results/llm_speed.csv"
import argparse, csv, os, platform, resource, subprocess, sys, time
from pathlib import Path

HERE = Path(__file__).parent
CLASSES = ['trouser', 'ketch', 'ankle boot', 'crayfish', 'pullover', 'wild cat', 'ewer', 'minaret']
FIELDS = 'engine in_flight threads classes descriptions seconds_per_class tokens_per_s load_seconds peak_mb fallbacks device'.split()

def measure(engine, in_flight, classes, n, threads):
    "One row, measured in this process"
    import warnings
    sys.path[:0] = [str(HERE.parent), str(HERE.parent/'tests')]
    from pla_nb.describe import EmbeddedLLM, Ollama, describe
    warnings.simplefilter('ignore')
    before = peak_mb()
    t = time.perf_counter()
    llm = EmbeddedLLM(threads=threads, parallel=n if engine=='embedded' else in_flight)
    llm.in_flight = in_flight
    llm.prepare()
    load = time.perf_counter()-t
    if engine == 'embedded': seconds,tokens,d = run(describe, llm, classes, n)
    else:
        from ollama_server import Embedded, OllamaServer
        with OllamaServer(Embedded(llm)) as s:
            asked = Ollama('tiny', host=s.host, in_flight=in_flight, timeout=600)
            seconds,tokens,d = run(describe, asked, classes, n)
    return dict(engine=engine, in_flight=in_flight, threads=llm.threads, classes=len(classes), descriptions=sum(len(d[o].candidates) for o in classes), seconds_per_class=round(seconds/len(classes), 2),
        tokens_per_s=round(tokens/seconds, 1), load_seconds=round(load, 2), peak_mb=round(peak_mb()-before), fallbacks=len(d.fallbacks), device=f'{platform.machine()} {os.cpu_count()} cores')

def run(describe, engine, classes, n):
    "Seconds, tokens and descriptions"
    before,t = engine.tokens,time.perf_counter()
    d = describe(classes, engine=engine, n=n, cache=False, progress=False)
    return time.perf_counter()-t, engine.tokens-before, d

def peak_mb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--classes', type=int, default=4)
    p.add_argument('--n', type=int, default=5, help='descriptions per class')
    p.add_argument('--threads', type=int, help='of the model; default: what the library takes')
    p.add_argument('--one', nargs=2, metavar=('ENGINE', 'IN_FLIGHT'), help='measure one row and print it')
    p.add_argument('--out', type=Path, default=HERE/'results'/'llm_speed.csv')
    a = p.parse_args()
    if a.one:
        row = measure(a.one[0], int(a.one[1]), CLASSES[:a.classes], a.n, a.threads)
        csv.DictWriter(sys.stdout, FIELDS).writerow(row)
        sys.exit()
    # a process for each row: peak memory never falls within one
    rows = []
    for engine,k in [('embedded', 1), ('embedded', 2), ('ollama protocol', 1), ('ollama protocol', 2), ('ollama protocol', 4)]:
        cmd = [sys.executable, __file__, '--one', engine, str(k), '--classes', str(a.classes), '--n', str(a.n)]+(['--threads', str(a.threads)] if a.threads else [])
        rows.append(subprocess.run(cmd, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        print(rows[-1], flush=True)
    a.out.parent.mkdir(parents=True, exist_ok=True)
    a.out.write_text('\n'.join([','.join(FIELDS)]+rows)+'\n')
