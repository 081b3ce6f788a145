"""The installed wheel, far from the repository, without nbdev: the public surface on a tiny case.

`tools/check.sh` runs this in an environment of its own with `python -I`. Not a pytest file on purpose: users have no pytest.
"""
import importlib.util, os, subprocess, sys, tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE='1', TRANSFORMERS_OFFLINE='1', MPLBACKEND='agg')
work = Path(tempfile.mkdtemp())
os.environ['XDG_CACHE_HOME'] = str(work/'cache')

def step(f):
    "Run `f` now and say that it worked; an error ends the script"
    f()
    print('ok:', f.__doc__, flush=True)

@step
def _clean():
    "neither nbdev nor the repository is in sight"
    for o in ('nbdev', 'execnb'): assert importlib.util.find_spec(o) is None, f'{o} is installed: this would not notice that the library needs it'
    import pla_nb
    assert 'site-packages' in pla_nb.__file__, pla_nb.__file__
    assert pla_nb.__version__==version('pla_nb')

@step
def _modules():
    "every module imports with the newest dependencies"
    for p in sorted(Path(str(files('pla_nb'))).glob('[!_]*.py')): importlib.import_module(f'pla_nb.{p.stem}')

@step
def _data():
    "the packaged files came along"
    folders = [o for o in files('pla_nb').iterdir() if o.is_dir() and not o.name.startswith('_')]
    assert sum(1 for o in folders for _ in o.iterdir()) > 0, 'no packaged files'

def photos(root):
    "Twelve little pictures in two folders, red and green"
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    for c,rgb in dict(red=(200,30,30), green=(30,200,30)).items():
        (root/c).mkdir(parents=True)
        for i in range(6):
            a = np.clip(np.array(rgb)+rng.normal(0, 20, (48,48,3)), 0, 255).astype('uint8')
            Image.fromarray(a).save(root/c/f'{c} {i}.png')
    return root

@step
def _features():
    "folder to task to features, with a random open_clip model and with the starter"
    from pla_nb.all import Task, VLM, features
    task = Task.from_folder(photos(work/'photos'))
    assert sorted(task.classes)==['green', 'red'] and len(task)==12
    for vlm in (VLM('ViT-B-32-quickgelu', pretrained=False), VLM('starter')):
        f = features(vlm, task, cache=work/'features', workers=0, progress=False)
        assert f.V.shape==(12, vlm.dim) and abs(f.V.norm(dim=1)-1).max()<1e-4

@step
def _cli():
    "the command is installed and its help is worth reading"
    pla = Path(sys.executable).parent/'pla'
    for args in ([], ['adapt'], ['diagnose'], ['predict'], ['report'], ['demo']):
        r = subprocess.run([pla, *args, '--help'], capture_output=True, text=True, cwd=work)
        assert r.returncode==0 and len(r.stdout)>100, (args, r.stdout, r.stderr)

@step
def _adapt():
    "the main job: fit, predict, save, load"
    import numpy as np
    from pla_nb.all import CAP, Classifier, VLM, fashion_mnist
    task = fashion_mnist('pool').subset(np.arange(300))
    clf = CAP(VLM('starter')).fit(task, descriptions=None)
    clf.save(work/'clf')
    path = next((work/'photos').rglob('*.png'))
    label = Classifier.load(work/'clf').predict(path)
    assert isinstance(label, str) and label==clf.predict(path) and label in task.classes
