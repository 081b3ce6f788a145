"From images to a saved classifier, with the exported library and real models: small random-weight ones, and the starter"
import json, os, shutil, tempfile, warnings
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from pla_nb.align import detect_mismatch, diagnose
from pla_nb.backbones import OpenClip, Starter
from pla_nb.classifier import RULES, CAP, Classifier, adapt, choose_texts, embed_candidates, read_descriptions
from pla_nb.data import ArrayImages, Task, UnreadableImage, fashion_mnist
from pla_nb.describe import ClassText, Descriptions, FromFile
from pla_nb.features import Features, features

torch.set_num_threads(1)
TINY = dict(embed_dim=32, vision_cfg=dict(image_size=32, layers=2, width=64, head_width=32, patch_size=16),
            text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=2))
NO_U = {**TINY, 'vision_cfg': dict(image_size=32, layers=[1,1,1,1], width=16, patch_size=None)} # a ResNet with attention pooling
CFG = dict(epochs=2, batch_size=64)
COLORS = {'red things': (200,30,30), 'grüne Äpfel': (30,180,40), 'blue (sky)': (40,60,210), '<script>alert(1)</script>': (220,210,40)}
NAMES = list(COLORS)

def tiny(**kw): return OpenClip('ViT-S-32', device='cpu', precision='fp32', **{'pretrained': False, **TINY, **kw})
def picture(color, rng, side=32): return (np.array(color)+rng.normal(0, 12, (side, side, 3))).clip(0, 255).astype(np.uint8)
def colored(n=10, names=NAMES, seed=0, **kw):
    rng = np.random.default_rng(seed)
    y = np.arange(n*len(names))%len(names)
    return Task(np.stack([picture(COLORS[names[c]], rng) for c in y]), names, y, **kw)
def write_folder(path, n=6, names=('red things','grüne Äpfel','blue (sky)')):
    rng = np.random.default_rng(0)
    for c in names:
        (path/c).mkdir(parents=True)
        for i in range(n): Image.fromarray(picture(COLORS[c], rng)).save(path/c/f'photo {i} ö.png')
    return path
def weights(clf): return clf.head.state_dict()
def same(a, b): return all(torch.equal(x, z) for x,z in zip(weights(a).values(), weights(b).values(), strict=True))

@pytest.fixture(scope='module')
def vlm(): return tiny()
@pytest.fixture(scope='module')
def starter(): return Starter(device='cpu')
@pytest.fixture(scope='module')
def task(): return colored()
@pytest.fixture(scope='module')
def clf(vlm, task): return CAP(vlm, **CFG).fit(task, {NAMES[0]: ['a red picture','all is red'], NAMES[2]: 'blue everywhere'}, progress=False)

def fit(vlm, task, *a, **kw):
    cfg = {k: kw.pop(k) for k in list(kw) if k in ('epochs','start','balance','vision','seed','dial','strategy','steps','n_ctx','depth','lr','batch_size','prior')}
    return CAP(vlm, **{**CFG, **cfg}).fit(task, *a, progress=False, **kw)

# labels

class Sealed(Task):
    "A task whose ground truth cannot be read"
    @property
    def targets(self): raise AssertionError('training read a label')
    @targets.setter
    def targets(self, value): pass

def sealed(task):
    out = Task(task.images, task.classes)
    out.__class__ = Sealed
    with pytest.raises(AssertionError): out.targets
    return out

@pytest.mark.parametrize('start', ['mixture','zero-shot'])
def test_ul_never_reads_a_label(vlm, task, clf, start):
    words = {NAMES[0]: ['a red picture','all is red'], NAMES[2]: 'blue everywhere'}
    first = fit(vlm, task, words, start=start)
    assert same(first, fit(vlm, sealed(task), words, start=start))
    garbage = Task(task.images, task.classes, np.random.default_rng(1).permutation(task.targets))
    assert same(first, fit(vlm, garbage, words, start=start))
    assert same(first, fit(vlm, Task(task.images, task.classes), words, start=start))
    fit(vlm, sealed(task)).report() # nor does the report on the pool

def test_ssl_and_trzsl_read_what_they_may(vlm, task):
    for t in (task.ssl(2), task.trzsl()):
        blind = t.targets.copy()
        blind[t.unlabeled] = 0 # what is unlabeled is not looked at
        one,two = fit(vlm, t),fit(vlm, Task(t.images, t.classes, blind, t.paradigm, t.labeled, t.seen))
        assert same(one, two) and one.about['paradigm']==t.paradigm
        wrong = t.targets.copy()
        wrong[t.labeled] = np.roll(wrong[t.labeled], 1)
        assert not same(one, fit(vlm, Task(t.images, t.classes, wrong, t.paradigm, t.labeled, t.seen)))

def test_trzsl_report_names_the_right_classes(vlm, task):
    clf = fit(vlm, task.trzsl())
    rep,unseen = clf.report(),set(task.trzsl().unseen)
    assert rep.confusion and all(a in unseen and b in unseen for a,b,_ in rep.confusion)
    m = clf.evaluate(task.trzsl())
    assert m.harmonic is not None

def test_trzsl_needs_two_unseen_classes(vlm):
    with pytest.raises(ValueError, match='only one class is unseen'): fit(vlm, colored(4, NAMES[:2]).trzsl())

def test_a_seed_is_a_result(vlm, task):
    assert same(fit(vlm, task), fit(vlm, task)) and not same(fit(vlm, task), fit(vlm, task, seed=1))

def test_features_follow_the_task(vlm, task):
    f = features(vlm, task, progress=False)
    assert fit(vlm, task.ssl(2), features=f).about['paradigm']=='SSL'
    assert same(fit(vlm, task.ssl(2), features=f), fit(vlm, task.ssl(2)))
    with pytest.raises(ValueError, match='features of the 20 images of the task, got 40'): fit(vlm, task.subset(range(20)), features=f)

# small and odd tasks

def test_two_classes_and_one_image_each(vlm):
    for n in (1,2,7):
        t = colored(n, NAMES[:2])
        clf = fit(vlm, t)
        assert set(clf.predict(t))<=set(t.classes)
        alone = np.stack([clf.predict_proba(t.images[i]) for i in range(len(t))])
        np.testing.assert_allclose(alone, clf.predict_proba(t), atol=1e-3) # an image is not judged by its company

def test_a_class_without_images(vlm):
    t = colored(6, NAMES[:3])
    clf = fit(vlm, Task(t.images, NAMES[:3]+['nothing of this'], t.targets))
    assert np.isfinite(clf.predict_proba(t)).all() and clf.evaluate(Task(t.images, clf.classes, t.targets)).accuracy is not None

def test_too_few_images_and_twice_the_same_name(vlm):
    with pytest.raises(ValueError, match='3 images'): fit(vlm, colored().subset([0,1,2]))
    with pytest.raises(ValueError, match='read the same'): Task(np.zeros((4,8,8), np.uint8), ['a b','A_b'])

def test_nan_features(vlm, task):
    f = features(vlm, task, progress=False)
    V = f.V.clone(); V[3] = float('nan')
    with pytest.raises(ValueError, match='(?i)nan'): fit(vlm, task, features=Features(V, f.U, task, vlm_key=vlm.key))

def test_not_a_task_and_not_a_setting(vlm, tmp_path):
    with pytest.raises(TypeError, match='Task.from_folder'): CAP(vlm).fit(tmp_path)
    with pytest.raises(ValueError, match="no setting 'epoch': did you mean 'epochs'"): CAP(vlm, epoch=3)

def test_a_model_without_vision_features():
    vlm = OpenClip('ViT-S-32', False, device='cpu', precision='fp32', **NO_U)
    t = colored(5)
    assert vlm.vision_dim is None
    clf = fit(vlm, t, {NAMES[0]: 'red'})
    assert len(clf.predict(t))==20 and clf.report(t).n==20

def test_vision_features_left_out(vlm, task, tmp_path):
    clf = fit(vlm, task, vision=False)
    again = Classifier.load(clf.save(tmp_path/'c'), vlm)
    assert np.array_equal(clf.predict_proba(task), again.predict_proba(task))

# descriptions

def test_forms_of_descriptions(vlm, task, tmp_path):
    words = {NAMES[0]: ['a red picture','all is red'], NAMES[1]: 'green everywhere'}
    (tmp_path/'d.json').write_text(json.dumps(words), encoding='utf-8')
    forms = [words, str(tmp_path/'d.json'), tmp_path/'d.json', FromFile(tmp_path/'d.json'),
             Descriptions({k: ClassText([v] if isinstance(v, str) else v) for k,v in words.items()}, name_is_candidate=False)]
    made = [fit(vlm, task, d) for d in forms]
    assert all(same(made[0], o) and o.texts==made[0].texts for o in made[1:])
    assert set(made[0].texts)==set(words) and made[0].texts[NAMES[1]]=='green everywhere'
    assert json.loads((tmp_path/'d.json').read_text(encoding='utf-8'))==words # the user's file is as it was
    assert not same(made[0], fit(vlm, task))

@pytest.mark.parametrize('words,error', [({'reed things': 'x'}, "no class 'reed things'"), ({NAMES[0]: []}, 'sentence or a list'), ({NAMES[0]: ''}, 'sentence or a list'), ({NAMES[0]: None}, 'sentence or a list')])
def test_descriptions_that_cannot_be(vlm, words, error):
    def no_images(*a): raise AssertionError('images were encoded before the mistake was found')
    t = colored(3); t.images.load = no_images
    with pytest.raises(ValueError, match=error): fit(vlm, t, words)

def test_a_class_left_blank_in_a_file_keeps_its_name(vlm, task, tmp_path):
    for blank in ('', []):
        (tmp_path/'words.json').write_text(json.dumps({NAMES[0]: blank, NAMES[2]: 'blue all over'}))
        assert fit(vlm, task, str(tmp_path/'words.json')).texts=={NAMES[2]: 'blue all over'}
    (tmp_path/'words.json').write_bytes(b'\xef\xbb\xbf'+json.dumps({NAMES[2]: 'blue all over'}).encode()) # as Notepad saves it
    assert fit(vlm, task, str(tmp_path/'words.json')).texts=={NAMES[2]: 'blue all over'}

def test_lost_names_of_unseen_classes(vlm):
    "In TRZSL the removal loop looks at unseen classes only; the others keep the mean of their sentences"
    names = NAMES+['dark','light']
    rng = np.random.default_rng(0)
    t = Task(np.stack([picture([*COLORS.values(),(20,20,20),(240,240,240)][i%6], rng) for i in range(60)]), names, np.arange(60)%6).trzsl()
    d,words = diagnose(vlm, t),{c: [f'{c} one','another picture'] for c in names}
    lost = {d.runs[0].classes[c] for c in d.runs[0].final}
    assert lost and lost<=set(t.unseen) and set(t.seen)
    by = {how: CAP(vlm, **CFG).fit(t, words, diagnosis=d, progress=False, choose=how).head.evidence.T for how in ('mean','leftover')}
    changed = {c for c,a,b in zip(names, *by.values()) if not torch.equal(a, b)}
    assert changed and changed<=lost

def test_descriptions_of_other_things(vlm, task):
    with pytest.raises(ValueError, match='of none of the classes'): fit(vlm, task, Descriptions({'zebra': ClassText(['a striped horse'])}))

def test_files_that_cannot_be(vlm, task, tmp_path):
    (tmp_path/'other.json').write_text('{"a class of another task": "x y z"}')
    (tmp_path/'broken.json').write_text('{"a')
    with pytest.raises(ValueError, match='describes none of the classes'): fit(vlm, task, tmp_path/'other.json')
    with pytest.raises(ValueError, match='not valid JSON'): fit(vlm, task, tmp_path/'broken.json')
    with pytest.raises(FileNotFoundError, match='no descriptions file'): fit(vlm, task, tmp_path/'none.json')
    with pytest.raises(TypeError, match='dict, a JSON file'): fit(vlm, task, 3)
    with pytest.raises(ValueError, match="'support' or 'first'"): fit(vlm, task, choose='best')

def test_descriptions_of_no_class_change_nothing(vlm, task):
    assert same(fit(vlm, task), fit(vlm, task, Descriptions()))

def test_what_a_person_chose_stays(vlm, task):
    d = Descriptions({NAMES[0]: ClassText(['one sentence here','my own sentence'], chosen='my own sentence', by_hand=True)})
    words,T = embed_candidates(vlm, task.classes, d)
    assert words[0]==['my own sentence'] and torch.allclose(T[0], vlm.encode_texts(['my own sentence']), atol=1e-5)
    assert fit(vlm, task, d, choose='support').texts=={NAMES[0]: 'my own sentence'}

def test_the_supported_sentence_is_found():
    g = torch.Generator().manual_seed(0)
    A = torch.nn.functional.normalize(torch.randn(3, 16, generator=g), dim=1)
    V = torch.nn.functional.normalize(A[torch.arange(90)%3]+.2*torch.randn(90, 16, generator=g), dim=1)
    cands = [torch.stack([torch.nn.functional.normalize(torch.randn(16, generator=g), dim=0), A[0]]), A[1:2], A[2:3]]
    for how in ('mean','paper','one-to-one','support'):
        got = choose_texts(V, torch.nn.functional.normalize(V-V.mean(0), dim=1), cands, how=how)
        assert got.pick==[1,0,0] and len(got.scores[0])==2 and (how=='mean' or torch.allclose(got.T, A, atol=1e-5)), how

@pytest.mark.parametrize('how', ['leftover','leftover one-to-one'])
def test_lost_names_choose_among_the_images_that_no_name_took(how):
    "Three groups; the third name points nowhere, one of its sentences at the third group; the sentences of the others stay a mean"
    g,I = torch.Generator().manual_seed(0),torch.eye(8)
    V = torch.nn.functional.normalize(I[:3].repeat_interleave(30, 0)+.1*torch.randn(90, 8, generator=g), dim=1)
    names = torch.stack([I[0], I[1], I[7]])
    cands = [torch.stack([I[0],I[3]]), I[1][None], torch.stack([I[6],I[2],I[5]])]
    m = detect_mismatch(V, names, t=1, classes=['a','b','c'])
    got = choose_texts(V, V, cands, how=how, mismatch=m)
    assert m.final=={2} and got.pick[2]==1 and torch.equal(got.T[2], I[2]) and len(got.scores[2])==3
    assert torch.allclose(got.T[0], torch.nn.functional.normalize(I[0]+I[3], dim=0)) and torch.equal(got.T[1], I[1])
    with pytest.raises(ValueError, match='pass mismatch'): choose_texts(V, V, cands, how=how)

def test_descriptions_replace_the_lists_of_their_classes(vlm, task):
    clf = fit(vlm, task, {NAMES[0]: 'red'}, start='zero-shot', epochs=0)
    f,T = clf.run['features'],clf.head.evidence.T
    k = min(16, len(task))
    assert set(clf.run['fit'].selected.by_class(0).tolist())==set((f.V@T[0]).topk(k).indices.tolist())

# predict

def test_everything_that_can_be_asked_about(clf, task, tmp_path):
    arrays = task.images.array[:5]
    want = clf.predict(task.subset(range(5)))
    assert all(isinstance(o, str) for o in want) and len(want)==5
    paths = [tmp_path/f'{n}.png' for n in 'eadcb'] # not in alphabetical order
    for a,p in zip(arrays, paths): Image.fromarray(a).save(p)
    pil = [Image.fromarray(a) for a in arrays]
    for many in (arrays, list(arrays), pil, tuple(pil), iter(pil), paths, [str(p) for p in paths], ArrayImages(arrays), [paths[0], pil[1], *arrays[2:]]): assert clf.predict(many)==want
    for one in (arrays[0], pil[0], paths[0], str(paths[0])): assert clf.predict(one)==want[0] and clf.predict_proba(one).shape==(4,)
    assert clf.predict(tmp_path)==[o for _,o in sorted(zip(paths, want))]
    assert clf.predict([paths[0]])==want[:1] and clf.predict([paths[0]]*3)==want[:1]*3
    assert clf.predict(arrays[0]/255.)==want[0] # floats from 0 to 1 are not black
    p = clf.predict_proba(task)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(task))
    np.testing.assert_allclose(clf.predict_proba(task.subset(order)), p[order], atol=1e-4)

def test_gray_arrays(clf):
    g = np.random.default_rng(0).integers(0, 255, (3,20,30), dtype=np.uint8)
    assert isinstance(clf.predict(g[0]), str) and clf.predict(g)==[clf.predict(o) for o in g]

def test_questions_that_cannot_be_answered(clf, tmp_path):
    (tmp_path/'bad.jpg').write_bytes(b'no image')
    with pytest.raises(FileNotFoundError, match='no such image: no/such'): clf.predict('no/such.jpg')
    with pytest.raises(ValueError, match='no images'): clf.predict([])
    with pytest.raises(UnreadableImage, match='bad.jpg'): clf.predict(tmp_path/'bad.jpg')
    for x in (3, [3], None):
        with pytest.raises(TypeError, match='expected images'): clf.predict(x)

# evaluate and report

def test_classes_spelt_another_way(clf, task):
    names = ['Red_things','grüne äpfel','BLUE (sky)','<script>alert(1)</script>']
    assert clf.evaluate(Task(task.images, names, task.targets)).accuracy==clf.evaluate(task).accuracy
    with pytest.warns(UserWarning, match='images of zebra are left out'): m = clf.evaluate(Task(task.images, [*NAMES[:3],'zebra'], task.targets))
    assert m.accuracy is not None

def test_single_images_leave_nothing_in_the_cache(clf, task, tmp_path, monkeypatch):
    monkeypatch.setenv('PLA_CACHE', str(tmp_path/'cache'))
    paths = [tmp_path/f'{i}.png' for i in range(33)]
    for i,p in enumerate(paths): Image.fromarray(np.asarray(task.images[i])).save(p)
    one = [clf.predict(p) for p in paths[:5]]
    assert not list((tmp_path/'cache').rglob('*.safetensors')) and clf.predict(paths)[:5]==one and list((tmp_path/'cache').rglob('*.safetensors'))

def test_features_of_another_model(vlm, task):
    with pytest.raises(ValueError, match='of another model'): fit(tiny(seed=5), task, features=features(vlm, task))

def test_a_test_set_with_another_order_of_classes(clf, task):
    order = [2,0,3,1]
    other = Task(task.images, [NAMES[i] for i in order], np.argsort(order)[task.targets])
    assert other.labels==task.labels
    assert clf.evaluate(other).accuracy==clf.evaluate(task).accuracy==np.mean([a==b for a,b in zip(clf.predict(task), task.labels)])
    with pytest.raises(ValueError, match='not those of the classifier'): clf.evaluate(Task(task.images, ['a','b','c','d'], task.targets))
    assert clf.evaluate(Task(task.images, NAMES)).accuracy is None

def test_report(clf, task, tmp_path):
    plain,full = clf.report(),clf.report(task, tmp_path/'r.html')
    assert plain.counts_before is not None and sum(plain.counts_after)==len(task)
    assert full.n==len(task) and 'Accuracy' in full.headline and 'zero-shot' in full.metrics
    assert {m.name for m in full.mended}=={NAMES[0], NAMES[2]}
    for rep in (plain, full, clf.report(Task(task.images, NAMES))):
        page = rep.to_html()
        assert '<script>alert(1)</script>' not in page and '&lt;script&gt;' in page
    assert '<script>alert' not in (tmp_path/'r.html').read_text(encoding='utf-8')

def test_report_of_a_loaded_classifier(clf, vlm, task, tmp_path):
    again = Classifier.load(clf.save(tmp_path/'c'), vlm)
    assert again.run is None
    assert again.report().to_html() and again.report(task).metrics['adapted']==clf.report(task).metrics['adapted']

def test_damaged_images_are_skipped_and_reported(vlm, tmp_path):
    folder = write_folder(tmp_path/'my photos', 20)
    for i in (3,11,17): (folder/'red things'/f'photo {i} ö.png').write_bytes(b'\x89PNG damaged')
    with pytest.warns(UserWarning, match='3 of 60 images cannot be read'): clf = adapt(folder, out=tmp_path/'out', vlm=vlm, progress=False, **CFG)
    rep = clf.report()
    assert any('3 unreadable images were left out' in w and 'photo 11' in w for w in rep.warnings) and sum(rep.counts_after)==57
    page = (tmp_path/'out'/'report.html').read_text(encoding='utf-8')
    assert 'unreadable' in page and 'grüne Äpfel' in page
    with pytest.warns(UserWarning, match='skipped'): f = features(vlm, Task.from_folder(folder), progress=False) # features that lack these images go with the whole task
    assert len(fit(vlm, Task.from_folder(folder), features=f).run['features'])==57
    shutil.rmtree(folder/'blue (sky)') # images may be gone when the report is made
    assert clf.report().to_html()

# save and load

def test_a_loaded_classifier_is_the_same_bit_for_bit(clf, vlm, task, tmp_path):
    place = clf.save(str(tmp_path/'new'/'my garments')+'/')
    assert place==tmp_path/'new'/'my garments' and sorted(p.name for p in place.iterdir())==['README.md','classifier.json','classifier.safetensors']
    assert os.listdir(tmp_path/'new')==['my garments'] # nothing is left beside it
    again = Classifier.load(str(place)+'/', vlm)
    assert np.array_equal(clf.predict_proba(task), again.predict_proba(task)) and again.predict(task)==clf.predict(task)
    assert again.classes==clf.classes and again.texts==clf.texts and again.head.cfg==clf.head.cfg and again.about['images']==40
    for p in place.iterdir():
        data = p.read_bytes()
        assert b'torch' not in data[:200] and not data.startswith((b'\x80', b'PK')) # no pickle
    third = Classifier.load(again.save(tmp_path/'third'), vlm)
    assert np.array_equal(third.predict_proba(task), clf.predict_proba(task))

def test_a_model_is_made_again_as_it_was(task, tmp_path):
    "Its own keywords of open_clip, and a checkpoint whose path was relative"
    vlm = tiny(pretrained=False, seed=3)
    clf = fit(vlm, task)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = Classifier.load(clf.save(tmp_path/'clf'), device='cpu')
    assert again.vlm.key==vlm.key and np.array_equal(again.predict_proba(task), clf.predict_proba(task))

def test_two_classes_are_saved_too(vlm, tmp_path):
    t = colored(8, NAMES[:2])
    clf = fit(vlm, t)
    assert np.array_equal(Classifier.load(clf.save(tmp_path/'c'), vlm).predict_proba(t), clf.predict_proba(t))

def test_names_that_are_not_text(vlm, tmp_path):
    clf = fit(vlm, colored(3))
    clf.about['task'] = os.fsdecode(b'photos \xff')
    assert Classifier.load(clf.save(tmp_path/'c'), vlm).about['task']==clf.about['task']

def test_saving_over_a_classifier(clf, vlm, tmp_path):
    other = fit(vlm, colored(4, NAMES[:3]))
    other.save(tmp_path/'c')
    (tmp_path/'c'/'notes.txt').write_text('mine')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert clf.save(tmp_path/'c')==tmp_path/'c'
    assert Classifier.load(tmp_path/'c', vlm).classes==clf.classes and (tmp_path/'c'/'notes.txt').read_text()=='mine'

def elsewhere(clf, vlm, folder):
    with pytest.warns(UserWarning, match='the classifier is in .* instead'): place = clf.save(folder)
    assert Classifier.load(place, vlm).classes==clf.classes and place!=folder
    shutil.rmtree(place.parent)

@pytest.mark.parametrize('left', range(5)) # files that still get into place
def test_saving_that_is_stopped_leaves_one_of_the_two(clf, vlm, task, left, tmp_path, monkeypatch):
    other = fit(vlm, task, seed=1)
    p = {o: c.predict_proba(task).tobytes() for o,c in dict(old=clf, new=other).items()}
    assert p['old']!=p['new']
    folder,real,n = clf.save(tmp_path/'clf'),os.replace,[0]
    def replace(a, b):
        if n[0]==left: raise KeyboardInterrupt
        n[0] += 1
        real(a, b)
    monkeypatch.setattr(os, 'replace', replace)
    if left<4:
        with pytest.raises(KeyboardInterrupt): other.save(folder)
    else: other.save(folder)
    monkeypatch.undo()
    assert Classifier.load(folder, vlm).predict_proba(task).tobytes()==p['old' if left<2 else 'new']
    other.save(folder)
    assert {o.name for o in folder.iterdir()}=={'classifier.json','classifier.safetensors','README.md'} and Classifier.load(folder, vlm).predict_proba(task).tobytes()==p['new']

def test_a_folder_that_is_there_is_all_that_is_written_to(clf, vlm, tmp_path, monkeypatch):
    "A mounted folder may lie on another disk than its parent, and the parent may be closed"
    made,real = [],tempfile.mkdtemp
    monkeypatch.setattr(tempfile, 'mkdtemp', lambda **kw: made.append(Path(kw['dir'])) or real(**kw))
    (tmp_path/'mounted').mkdir()
    assert clf.save(tmp_path/'mounted')==tmp_path/'mounted'==clf.save(tmp_path/'mounted') and made==[tmp_path/'mounted']*2
    assert {o.name for o in (tmp_path/'mounted').iterdir()}=={'classifier.json','classifier.safetensors','README.md'}

def test_old_descriptions_do_not_stay(clf, vlm, task, tmp_path):
    clf.save_with_report(tmp_path/'clf')
    assert (tmp_path/'clf'/'descriptions.json').exists()
    fit(vlm, task).save_with_report(tmp_path/'clf')
    assert not (tmp_path/'clf'/'descriptions.json').exists()

def test_the_code_of_a_card_can_be_run(clf, tmp_path):
    card = (clf.save(tmp_path/"my 'clf'")/'README.md').read_text()
    code = '\n'.join(l.strip() for l in card.splitlines() if l.startswith('    '))
    compile(code, 'card', 'exec')
    assert 'Classifier.load("my \'clf\'")' in code

def test_the_card_shows_text_as_text(vlm, tmp_path):
    names = ['a | b','*red*','<img src=x onerror=alert(1)>']
    rng = np.random.default_rng(0)
    t = Task(np.stack([picture((60*i,90,200-60*i), rng) for i in range(3) for _ in range(6)]), names)
    card = (fit(vlm, t, {names[0]: 'a wall | <b>bold</b>'}).save(tmp_path/'clf')/'README.md').read_text()
    rows = [l for l in card.splitlines() if l.startswith('| ') and 'described as' not in l]
    assert len(rows)==3 and all(l.replace('\\|', '').count('|')==3 for l in rows) and '<img' not in card and '<b>' not in card

def test_a_folder_with_other_files_is_left_alone(clf, vlm, tmp_path):
    (tmp_path/'thesis').mkdir(); (tmp_path/'thesis'/'chapter.txt').write_text('x')
    elsewhere(clf, vlm, tmp_path/'thesis')
    assert os.listdir(tmp_path/'thesis')==['chapter.txt']

def test_nothing_is_lost_where_nothing_can_be_written(clf, vlm, tmp_path):
    (tmp_path/'file').write_text('x')
    elsewhere(clf, vlm, tmp_path/'file'/'c')
    elsewhere(clf, vlm, tmp_path/'file')

@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid()==0, reason='root may write everywhere')
def test_a_read_only_folder(clf, vlm, tmp_path):
    (tmp_path/'ro').mkdir(); (tmp_path/'ro').chmod(0o500)
    elsewhere(clf, vlm, tmp_path/'ro'/'c')

def test_damaged_files(clf, vlm, tmp_path):
    place = clf.save(tmp_path/'c')
    text,data = [(place/f'classifier.{o}').read_bytes() for o in ('json','safetensors')]
    def broken(json_=text, numbers=data):
        (place/'classifier.json').write_bytes(json_); (place/'classifier.safetensors').write_bytes(numbers)
        return lambda: Classifier.load(place, vlm)
    flipped = bytearray(data); flipped[-9] ^= 1
    cases = [((text[:99], data), 'is damaged'), ((b'\xff\xfe', data), 'is damaged'), ((b'[1]', data), 'format None'), ((b'{"format": "pla_nb classifier 1"}', data), "no 'classes'"),
             ((text.replace(b'classifier 1"', b'classifier 9"', 1), data), 'later version'), ((text, data[:-50]), 'safetensors is damaged'), ((text, b''), 'safetensors is damaged'), ((text, bytes(flipped)), 'safetensors is damaged')]
    for files,words in cases:
        load = broken(*files)
        with pytest.raises(ValueError, match=words): load()
    assert broken()().classes==clf.classes
    (place/'classifier.safetensors').unlink()
    for p in (place, tmp_path/'nowhere', place/'classifier.json'):
        with pytest.raises(FileNotFoundError, match='no classifier in'): Classifier.load(p, vlm)

def test_other_weights_are_noticed(clf, tmp_path):
    place = clf.save(tmp_path/'c')
    with pytest.warns(UserWarning, match='other weights'): Classifier.load(place, tiny(seed=5))

# all of it, with a real model

def test_starter_end_to_end(starter, tmp_path):
    pool,test = fashion_mnist('pool').subset(range(120)),fashion_mnist('test').subset(range(40))
    clf = adapt(pool, out=tmp_path/'garments', vlm=starter, descriptions='fashion_mnist', test=test, progress=False, epochs=3)
    before,after = clf.evaluate(test, zero_shot=True),clf.evaluate(test)
    assert after.accuracy>before.accuracy+.1 and after.gini<before.gini
    again = Classifier.load(tmp_path/'garments', starter)
    assert np.array_equal(again.predict_proba(test), clf.predict_proba(test)) and again.predict(test.images[0]) in pool.classes
    assert (tmp_path/'garments'/'report.html').exists() and "garments'" in (tmp_path/'garments'/'report.html').read_text(encoding='utf-8').replace('&#x27;', "'")

def test_adapt_takes_folders(vlm, tmp_path):
    folder = write_folder(tmp_path/'pool ä', 5)
    clf = adapt(str(folder), vlm=vlm, test=str(folder), progress=False, **CFG)
    assert clf.classes==sorted(clf.classes) and clf.evaluate(folder).accuracy is not None

def test_adapt_is_told_what_folders_are(vlm, tmp_path):
    folder = write_folder(tmp_path/'pool', 5)
    kw = dict(vlm=vlm, progress=False, **CFG)
    with pytest.raises(ValueError, match='labels=None'): adapt(folder, classes=['sun','moon'], **kw)
    assert adapt(folder, classes=['sun','moon'], labels=None, **kw).classes==['sun','moon']
    assert adapt(folder, paradigm='SSL', n=1, **kw).about['paradigm']=='SSL'

def test_adapt_keeps_what_belongs_together(vlm, task, tmp_path):
    "Classifier, report and descriptions in one folder; the card knows what the held-out images said"
    rows = []
    clf = adapt(task, out=tmp_path/'clf', vlm=vlm, descriptions={NAMES[0]: 'a red picture'}, test=colored(3, seed=1), progress=False, choose='first', callback=rows.append, cache=tmp_path/'cache', **CFG)
    assert {o.name for o in (tmp_path/'clf').iterdir()}=={'classifier.json','classifier.safetensors','README.md','descriptions.json','report.html'}
    assert '12 images of' in (tmp_path/'clf'/'README.md').read_text() and len(rows)==2 and any((tmp_path/'cache').iterdir())
    again = Classifier.load(tmp_path/'clf', vlm)
    assert again.about['trust']==clf.about['trust'] and again.texts=={NAMES[0]: 'a red picture'}
    assert Descriptions.load(tmp_path/'clf'/'descriptions.json').candidates(NAMES[0])==['a red picture']

def test_the_mean_of_sentences_is_called_that(vlm, task):
    words = {NAMES[0]: ['a red picture','all is red'], NAMES[2]: 'blue everywhere'}
    pages = {how: fit(vlm, task, words, choose=how).report().to_html() for how in ('mean','first')}
    assert 'mean of its sentences' in pages['mean'] and 'mean of its sentences' not in pages['first']

def test_the_lines_that_check_a_classifier_name_its_folders(vlm, tmp_path):
    folder = write_folder(tmp_path/'my photos')
    clf = adapt(folder, out=tmp_path/'my clf', vlm=vlm, progress=False, **CFG)
    page = (tmp_path/'my clf'/'report.html').read_text(encoding='utf-8')
    assert 'my clf' in page and 'my photos/' in page and 'my-classifier' not in page

# dials and strategies

@pytest.mark.parametrize('dial,strategy', [('features','fpl'), ('features','upl'), ('features','cpl'), ('text','cap'), ('text','grip'), ('text','upl'), ('maple','cap'), ('maple','fpl')])
def test_every_way_of_training_gives_a_classifier_that_can_be_saved(vlm, task, dial, strategy, tmp_path):
    clf = fit(vlm, task, {NAMES[0]: 'a picture full of red'}, dial=dial, strategy=strategy, **dict(features={}, text=dict(epochs=1, steps=3, n_ctx=2), maple=dict(epochs=1, steps=3, n_ctx=2, depth=2))[dial])
    again = Classifier.load(clf.save(tmp_path/'clf'), vlm)
    assert np.array_equal(again.predict_proba(task), clf.predict_proba(task)) and again.head.cfg.strategy==strategy
    assert dial in json.loads((tmp_path/'clf'/'classifier.json').read_text())['config'].values()

def moved(vlm, task, **kw): # prompts in both towers, far from where they began
    return fit(vlm, task, dial='maple', epochs=2, steps=4, batch_size=8, n_ctx=2, depth=2, lr=1., **kw)

def test_prompts_in_both_towers(vlm, task, tmp_path):
    "What is said of the pool, its confidence and its report are those of the classifier, not of the frozen model"
    clf = moved(vlm, task)
    said = clf.proba(clf.run['fit'].logits.float()).numpy()
    assert np.allclose(said, clf.predict_proba(task), atol=1e-4) and not np.allclose(said, clf.proba(clf.logits(clf.run['features'].V)).numpy(), atol=1e-2)
    page = clf.report().to_html()
    assert 'Not checked' in page and f"{said.max(1).mean():.0%}" in page.replace(' %', '%')
    for t in (task.ssl(2), task.trzsl()): assert moved(vlm, t).about['paradigm']==t.paradigm
    assert clf.evaluate(task).accuracy==float((np.array(clf.predict(task))==np.array(NAMES)[task.targets]).mean())

def test_shares_are_heard_by_cap_alone(vlm, task, tmp_path):
    with pytest.warns(UserWarning, match='shares are for strategy'): fit(vlm, task, strategy='fpl', prior='estimate')
    for shares in (np.array([.4,.3,.2,.1]), torch.tensor([.4,.3,.2,.1])):
        clf = fit(vlm, task, prior=shares)
        assert torch.allclose(clf.run['fit'].prior, torch.tensor([.4,.3,.2,.1])) and 'shares that were given' in (clf.save(tmp_path/'clf')/'README.md').read_text()
        assert 'presumes' not in clf.report().to_html() and Classifier.load(tmp_path/'clf', vlm).head.cfg.prior==pytest.approx([.4,.3,.2,.1])

def test_uneven_classes_are_noticed(vlm):
    rng,sizes = np.random.default_rng(0),[60,24,8,8]
    t = Task(np.stack([picture(COLORS[c], rng) for c,n in zip(NAMES, sizes) for _ in range(n)]), NAMES, np.repeat(range(4), sizes))
    uneven,even = fit(vlm, t),fit(vlm, colored(25))
    assert uneven.run['fit'].prior is not None and uneven.head.cfg.prior=='auto' and not any('balanced' in o for o in uneven.report().warnings)
    assert even.run['fit'].prior is None and even.head.cfg.prior=='uniform' and same(even, fit(vlm, colored(25), prior='uniform'))

def test_a_dial_that_the_model_has_no_place_for(vlm, task):
    with pytest.raises(ValueError, match='allows'): CAP(Starter(), dial='maple').fit(task)

def test_checkpoint_where_none_is_written(vlm, task, tmp_path):
    with pytest.warns(UserWarning, match='no checkpoint'): CAP(vlm, epochs=1).fit(task, progress=False, checkpoint=tmp_path)

# confidence

@pytest.fixture(scope='module')
def labeled(): return colored()

def test_confidence_can_be_fitted_to_labels_and_is_kept(vlm, task, labeled, tmp_path):
    clf = fit(vlm, task)
    before = clf.predict(labeled)
    clf.calibrate(labeled.subset(range(0, 40, 2)))
    assert clf.predict(labeled)==before and 'fitted to 20 labeled images' in clf.about['calibration']
    t = clf.trust(labeled)
    assert t.checked==40 and t.how==clf.about['calibration']
    clf.report(labeled)
    again = Classifier.load(clf.save(tmp_path/'clf'), vlm)
    assert again.temperature==clf.temperature and '40 images of' in (tmp_path/'clf'/'README.md').read_text()
    assert again.report().trust==clf.about['trust'] # what was checked is still known

@pytest.mark.parametrize('how', ['vector','isotonic'])
def test_other_calibrators_are_kept_too(vlm, task, labeled, how, tmp_path):
    clf = fit(vlm, task)
    clf.report(labeled)
    plain,label = clf.predict_proba(labeled),clf.predict(labeled)
    clf.calibrate(labeled, how=how)
    assert 'trust' not in clf.about and 'fitted to 40 labeled images' in clf.about['calibration'] # what was said before holds no longer
    p = clf.predict_proba(labeled)
    assert np.allclose(p.sum(1), 1, atol=1e-5) and not np.allclose(p, plain, atol=1e-3)
    assert how=='vector' or clf.predict(labeled)==label # one curve for all keeps the order
    assert -np.log(p[range(40), labeled.targets].clip(1e-9)).mean()<=-np.log(plain[range(40), labeled.targets].clip(1e-9)).mean()
    again = Classifier.load(clf.save(tmp_path/'clf'), vlm)
    assert np.array_equal(again.predict_proba(labeled), p)
    clf.calibrate(labeled)
    assert clf.calibrator is None and clf.predict(labeled)==label
    with pytest.raises(ValueError, match="'temperature', 'vector' or 'isotonic'|expected how"): clf.calibrate(labeled, how='magic')

def test_confidence_without_labels_says_so(vlm, task, tmp_path):
    clf = fit(vlm, task)
    bare = Task(task.images, task.classes)
    with pytest.raises(ValueError, match='needs labeled images'): clf.calibrate(bare)
    with pytest.raises(ValueError, match='need labeled images'): clf.predict_sets(task.images[0], bare)
    assert clf.trust(bare).checked==0 and 'Not checked' in clf.report().to_html()
    assert 'Not checked on labeled images' in (clf.save(tmp_path/'clf')/'README.md').read_text()

def test_sets_hold_the_answer(vlm, task, labeled):
    pytest.importorskip('mapie')
    clf = fit(vlm, task)
    sets = clf.predict_sets(task, labeled, .8)
    assert len(sets)==40 and all(o[0]==p for o,p in zip(sets, clf.predict(task)) if o)
    assert clf.predict_sets(task.images[0], labeled, .8)==sets[0]
