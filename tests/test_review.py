"Answers are on disk after every click, come back after a restart and a move, and become labels."
import json, sys
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from pla_nb.backbones import OpenClip
from pla_nb.classifier import CAP, Classifier, zero_shot_proba
from pla_nb.data import Task, UnreadableImage
from pla_nb.prompts import Prompted
from pla_nb.review import *

prop = settings(deadline=None, max_examples=40)
torch.set_num_threads(1)
TINY = dict(embed_dim=32, vision_cfg=dict(image_size=32, layers=2, width=64, head_width=32, patch_size=16),
            text_cfg=dict(context_length=77, vocab_size=49408, width=64, heads=2, layers=2))
NAMES = ['red things', 'grüne Äpfel', '<script>alert(1)</script>']

def soft(n, C, seed, alpha=.3): return np.random.default_rng(seed).dirichlet(np.full(C, alpha), n)
def pictures(n, seed=0): return np.random.default_rng(seed).integers(0, 255, (n, 8, 8, 3)).astype(np.uint8)
def on_disk(path): return {o['image']: (o['answer'], o['label']) for o in json.loads(path.read_text(encoding='utf-8'))['answers']}

@pytest.fixture
def task(): return Task(pictures(20), NAMES, name='Drei Klassen!')
@pytest.fixture
def table(): return worth_a_look(soft(20, 3, 0), soft(20, 3, 1), soft(20, 3, 2), k=9, classes=NAMES)
@pytest.fixture
def r(task, table, tmp_path): return Review(task, table, path=tmp_path/'answers.json')

# which images

@prop
@given(st.integers(1, 80), st.integers(2, 6), st.integers(0, 90), st.integers(0, 20), st.sampled_from(['kind','class']), st.integers(0, 99), st.booleans(), st.booleans())
def test_picks_are_true_and_none_comes_twice(n, C, k, random, per, seed, with_before, with_groups):
    p, b, g = soft(n, C, seed), soft(n, C, seed+1) if with_before else None, soft(n, C, seed+2) if with_groups else None
    skip = range(0, n, 5)
    t = worth_a_look(p, b, g, k, per, random, skip, seed=seed)
    free = n-len(skip)
    assert t['image'].is_unique and not set(t['image'])&set(skip)
    assert (t['kind']=='random').sum()==min(random, free) and len(t)==min(k+random, free)
    assert (t['proposed']==p.argmax(1)[t['image']]).all()
    for o in t.itertuples():
        a = np.sort(p[o.image])[::-1]
        if o.kind=='groups disagree': assert g[o.image].argmax()==o.other!=o.proposed
        if o.kind=='label changed': assert b[o.image].argmax()==o.other!=o.proposed
        if o.kind=='close call': assert a[0]-a[1]<.5 and p[o.image, o.other]==pytest.approx(a[1])
        assert o.kind in ('groups disagree','label changed','close call','least sure','random') and o.reason

def test_kinds_and_classes_are_even():
    p, b, g = (soft(4000, 8, s, 1.) for s in range(3))
    for per in ('kind','class'):
        t = worth_a_look(p, b, g, k=48, per=per)
        assert t['kind'].value_counts().tolist()==[16]*3
        assert t['proposed'].value_counts().tolist()==[6]*8

def test_one_greedy_class_does_not_take_all():
    p = np.full((200, 4), .02/3); p[:,0] = .98 # nearly all are called class 0
    p[190:] = [.02/3, .98, .02/3, .02/3]
    b = np.full((200, 4), .01); b[:,3] = .97 # all changed
    t = worth_a_look(p, b, k=12)
    assert t['proposed'].value_counts().to_dict()=={0: 6, 1: 6}

def test_surest_disagreement_comes_first():
    p = np.array([[.9,.1],[.6,.4],[.99,.01],[.8,.2]])
    g = np.array([[.1,.9],[.1,.9],[.4,.6],[.9,.1]])
    t = worth_a_look(p, clusters=g, k=4)
    assert t['image'][0]==0 and t['kind'][0]=='groups disagree' and t['score'][0]==.9
    t = t[t['kind']=='groups disagree']
    assert t['score'].is_monotonic_decreasing and 3 not in t['image'].tolist()

def test_random_ones_are_a_fair_draw():
    seen = np.zeros(30)
    for s in range(200): seen[worth_a_look(soft(30, 3, 0), k=10, random=6, seed=s).query("kind=='random'")['image']] += 1
    assert seen.min()>15 and seen.max()<75 # 40 expected, doubtful image or not

def test_groups_say_what_their_members_say():
    X = np.repeat(np.eye(3)*10, 20, 0)+np.random.default_rng(0).normal(0, .1, (60, 3))
    p = np.repeat([[.8,.1,.1],[.1,.8,.1],[.1,.1,.8]], 20, 0)
    p[0] = [.05,.9,.05] # looks like the first group, is called the second
    g = group_labels(X, p)
    assert g[0].argmax()==0 and np.allclose(g[0], p[:20].mean(0)) and np.allclose(g[30], p[20:40].mean(0))
    assert worth_a_look(p, clusters=g, k=1)['image'].tolist()==[0]

def test_typical_images_stand_for_their_groups():
    size = [30, 20, 10]
    X = np.repeat(np.eye(3), size, 0)*10+np.random.default_rng(0).normal(0, .1, (60, 3))
    i, share = typical_images(X, 3)
    assert np.searchsorted(np.cumsum(size), i, side='right').tolist()==[0,1,2] and share.tolist()==[.5,1/3,1/6]
    j, _ = typical_images(X, 3, skip=i.tolist())
    assert not set(i)&set(j) and len(typical_images(X, 0)[0])==0 and len(typical_images(X[:2], 5)[0])==2
    t = worth_a_look(soft(60, 3, 0), soft(60, 3, 1), soft(60, 3, 2), k=6, typical=typical_images(X, 3))
    assert set(t['image'][t['kind']=='typical'])==set(i) and len(t)==6 and t['reason'].str.contains('stands for 50.0 %').sum()==1

def test_wrong_calls_say_what_to_give():
    with pytest.raises(ValueError, match='expected probabilities of shape'): worth_a_look(soft(5, 3, 0), soft(4, 3, 0))
    with pytest.raises(ValueError, match="'kind' or 'class'"): worth_a_look(soft(5, 3, 0), per='x')

# answers

def test_each_answer_is_on_disk_and_can_be_taken_back(r):
    a, b, c = r.table['image'][:3].tolist()
    name = r.task.images.name
    p = lambda i: NAMES[r.table.loc[r.rows[i], 'proposed']]
    other = next(o for o in NAMES if o!=p(b))
    r.accept(a); assert on_disk(r.path)=={name(a): ('accept', p(a))}
    r.change(b, other); assert on_disk(r.path)[name(b)]==('change', other)
    r.discard(c); assert on_disk(r.path)[name(c)]==('discard', None)
    r.discard(a); assert on_disk(r.path)[name(a)]==('discard', None) and len(on_disk(r.path))==3
    assert r.undo()==a and on_disk(r.path)[name(a)]==('accept', p(a))
    assert r.undo()==c and r.undo()==b and on_disk(r.path)=={name(a): ('accept', p(a))}
    assert r.undo()==a and on_disk(r.path)=={} and r.undo() is None

def test_change_to_what_was_proposed_is_an_accept(r):
    i = int(r.table['image'][0])
    r.change(i, int(r.table['proposed'][0]))
    assert r.answers[i]['answer']=='accept'

def test_images_beyond_the_table(r):
    i = next(i for i in range(20) if i not in r.rows)
    r.change(i, NAMES[1])
    assert r.answers[i]['kind']=='asked for' and r.done==0 and r.labels[0].tolist()==[i]
    with pytest.raises(KeyError, match='change'): r.accept(i)
    with pytest.raises(IndexError, match='0 to 19'): r.discard(20)
    with pytest.raises(ValueError, match='among the 3 class names'): r.change(i, 'pear')

@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 8), st.sampled_from(['accept','change','discard','undo','reload']), st.integers(0, 2)), max_size=15))
def test_any_history_survives_a_restart(tmp_path_factory, steps):
    task, table = Task(pictures(20), NAMES), worth_a_look(soft(20, 3, 0), k=9)
    path = tmp_path_factory.mktemp('r')/'a.json'
    r, want, past, none = Review(task, table, path=path), {}, [], 'no answer'
    for n,what,c in steps:
        i = int(table['image'][n])
        if what=='reload': r, past = Review(task, table, path=path), [(i, none) for i in want]
        elif what=='undo':
            r.undo()
            if past:
                i, old = past.pop(); del want[i]
                if old!=none: want[i] = old
        else:
            past.append((i, want.pop(i, none)))
            want[i] = None if what=='discard' else int(table['proposed'][n]) if what=='accept' else c
            r.change(i, c) if what=='change' else getattr(r, what)(i)
        assert list(r.answers)==list(want) and (not path.exists() or [o['label'] for o in json.loads(path.read_text())['answers']]==[None if c is None else NAMES[c] for c in want.values()])
    again = Review(task, table, path=path)
    assert again.answers==r.answers and again.discarded.tolist()==sorted(i for i,c in want.items() if c is None)
    assert dict(zip(*(o.tolist() for o in again.labels)))=={i: c for i,c in want.items() if c is not None}

def test_what_cannot_be_saved_is_not_answered(r):
    i, j = r.table['image'][:2].tolist()
    r.accept(i)
    good, r.path = r.path, r.path/'below a file'/'x.json'
    with pytest.raises(OSError): r.discard(j)
    with pytest.raises(OSError): r.undo()
    r.path = good
    assert list(r.answers)==[i] and len(on_disk(good))==1 and r.undo()==i

# moving

def folder_of(path, images, names):
    for im,n in zip(images, names):
        (path/n).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(im).save(path/n)
    return Task.from_folder(path, classes=NAMES, labels=None)

def test_a_moved_image_is_found_by_its_content(tmp_path):
    pics, t = pictures(6), worth_a_look(soft(6, 3, 0), k=6)
    old = folder_of(tmp_path/'a', pics, [f'{i} ö.png' for i in range(6)])
    r = Review(old, t, path=tmp_path/'r.json')
    for i in range(4): r.change(i, NAMES[i%3])
    r.discard(4)
    new = folder_of(tmp_path/'b', pics[::-1], [f'x/{i}.png' for i in range(6)]) # renamed, moved and in another order
    again = Review(new, t, path=tmp_path/'r.json')
    assert {i: o['label'] for i,o in again.answers.items()}=={5: NAMES[0], 4: NAMES[1], 3: NAMES[2], 2: NAMES[0], 1: None} and not again.missing
    again.change(0, NAMES[2])
    assert 'x/5.png' in on_disk(r.path) # the new names are written

def test_other_content_under_the_old_name_is_no_answer(tmp_path):
    pics, t = pictures(3), worth_a_look(soft(3, 3, 0), k=3)
    task = folder_of(tmp_path/'a', pics, ['0.png','1.png','2.png'])
    r = Review(task, t, path=tmp_path/'r.json')
    r.change(0, 0); r.change(1, 1)
    Image.fromarray(pictures(1, 9)[0]).save(tmp_path/'a'/'1.png')
    with pytest.warns(UserWarning, match="1 of the answers .* '1.png'"): again = Review(task, t, path=tmp_path/'r.json')
    assert list(again.answers)==[0] and len(again.missing)==1
    again.change(2, 2)
    assert set(on_disk(r.path))=={'0.png','1.png','2.png'} # kept: somebody answered it

def test_a_class_that_is_gone_is_kept_aside(r):
    i = int(r.table['image'][0]); r.change(i, NAMES[1])
    with pytest.warns(UserWarning, match='classes'): again = Review(Task(r.task.images, ['red things','pears']), r.table[:0], path=r.path)
    assert not again.answers and again.missing[0]['label']==NAMES[1]

@pytest.mark.parametrize('text,words', [('{', 'damaged'), ('[]', 'another file'), ('{"format": "x"}', 'another file'), ('{"format": "pla_nb review 1", "answers": [{"image": "a"}]}', 'lacks')])
def test_a_bad_file_is_refused_and_left_alone(task, table, tmp_path, text, words):
    path = tmp_path/'a.json'; path.write_text(text)
    with pytest.raises(ValueError, match=words): Review(task, table, path=path)
    assert path.read_text()==text

def test_unreadable_image_can_only_be_discarded(tmp_path):
    task = folder_of(tmp_path/'a', pictures(2), ['0.png','1.png'])
    r = Review(task, worth_a_look(soft(2, 3, 0), k=2), path=tmp_path/'r.json')
    (tmp_path/'a'/'0.png').unlink()
    with pytest.raises(UnreadableImage): r.accept(0)
    r.discard(0)
    assert on_disk(r.path)=={'0.png': ('discard', None)}

# use

def test_labels_of_the_next_fit(r):
    a, b, c = r.table['image'][:3].tolist()
    r.change(a, 2); r.change(b, 1); r.discard(c)
    t = r.to_task()
    assert (t.paradigm, len(t), len(t.labeled))==('SSL', 19, 2) and r.task.targets is None
    name = r.task.images.name
    got = {t.images.name(i): int(c) for i,c in zip(*t.train_labels)}
    assert got=={name(a): 2, name(b): 1}
    whole = r.to_task(drop=False)
    assert len(whole)==20 and (whole.targets>=0).sum()==2

def test_labels_for_a_task_with_other_classes(r):
    r.change(int(r.table['image'][0]), 2)
    turned = Task(r.task.images, NAMES[::-1])
    assert r.to_task(turned).train_labels[1].tolist()==[0]
    with pytest.raises(ValueError, match='among the 2 class names'): r.to_task(Task(r.task.images, NAMES[:2]))

def test_truth_is_overruled_only_where_a_person_answered(task, table, tmp_path):
    task = Task(task.images, NAMES, np.zeros(20, int), 'SSL', [int(table['image'][0])])
    r = Review(task, table, path=tmp_path/'x.json')
    i = int(next(o for o in table['image'] if o not in task.labeled)); r.change(i, 2)
    t = r.to_task()
    assert t.targets[i]==2 and t.targets.sum()==2 and set(t.labeled)=={i, *task.labeled} and (task.targets==0).all()

def test_random_images_check_and_do_not_teach(task, tmp_path):
    p = soft(20, 3, 0)
    r = Review(task, worth_a_look(p, k=4, random=6), path=tmp_path/'x.json')
    for i in r.table['image'][4:]: r.change(i, int(p[i].argmax()))
    with pytest.raises(ValueError, match='checks=True'): r.to_task()
    assert len(r.to_task(checks=True).labeled)==6
    t = r.trust(p)
    assert t.checked==6 and t.accuracy==1 and 'drawn at random' in t.to_html()
    r.change(int(r.table['image'][0]), 1)
    assert r.trust(p).checked==6 and len(r.to_task().labeled)==1
    with pytest.raises(ValueError, match='random=100'): Review(task, worth_a_look(p, k=2), path=tmp_path/'y.json').trust(p)

def test_csv(r, tmp_path):
    a, b = r.table['image'][:2].tolist()
    r.change(a, 1); r.discard(b)
    df = pd.read_csv(r.export_csv(tmp_path/'deep'/'x.csv'), keep_default_na=False)
    assert df['label'].tolist()==[NAMES[1], ''] and df['image'].tolist()==[r.task.images.name(o) for o in (a, b)] and (df['key'].str.len()==32).all()

# the grid, without a browser

def grid_of(r, **kw):
    pytest.importorskip('ipywidgets')
    return review(r, **kw)

def test_clicks(r):
    g = grid_of(r, per_page=4)
    a, b, c, d = g.cards
    name = lambda card: r.task.images.name(card.i)
    images = [o.i for o in g.cards]
    assert images==r.table['image'][:4].tolist() and g.undo.disabled and g.previous.disabled and b.change.disabled
    a.accept.click()
    assert on_disk(r.path)=={name(a): ('accept', g.proposed(a.i))} and not g.undo.disabled and '1 of 9 answered' in g.status.value
    other = next(o for o in NAMES if o!=g.proposed(b.i))
    b.choice.value = other
    assert not b.change.disabled and b.accept.disabled and len(on_disk(r.path))==1 # choosing alone says nothing
    b.change.click()
    assert on_disk(r.path)[name(b)]==('change', other)
    c.discard.click()
    assert on_disk(r.path)[name(c)]==('discard', None) and '1 discarded' in g.status.value
    g.next.click()
    assert [o.i for o in g.cards]==r.table['image'][4:8].tolist()
    g.undo.click() # back to where it was
    assert g.page==0 and len(on_disk(r.path))==2 and c.i==images[2] and g.proposed(c.i).replace('<', '&lt;')[:4] in c.text.value
    g.next.click(); g.next.click()
    assert g.next.disabled and g.cards[0].i==r.table['image'][8] and all(o.i is None and o.accept.disabled for o in g.cards[1:])
    g.cards[1].accept.click() # a hidden card does nothing
    assert len(on_disk(r.path))==2

    again = grid_of(Review(r.task, r.table, path=r.path), per_page=4)
    assert again.review.answers==r.answers and again.cards[1].choice.value==other and '✓' in again.cards[0].text.value and '2 of 9' in again.status.value

def test_goes_on_at_the_first_open_page(r):
    for i in r.table['image'][:5]: r.discard(i)
    assert grid_of(r, per_page=4).page==1

def test_all_controls_are_native_and_text_stays_text(r):
    g = grid_of(r)
    import ipywidgets as w
    for c in g.cards[:9]: assert isinstance(c.choice, w.Dropdown) and all(isinstance(b, w.Button) and b.tooltip for b in c.buttons) and 'alt=' in c.text.value
    assert not any('<script' in c.text.value for c in g.cards)

def test_a_failed_save_is_shown(r):
    g = grid_of(r)
    good, r.path = r.path, r.path/'x'/'y.json'
    r.path.parent.parent.write_text('a file')
    g.cards[0].accept.click()
    assert 'Not saved' in g.message.value and not r.answers
    good.unlink(); r.path = good
    g.cards[0].accept.click()
    assert not g.message.value and len(on_disk(good))==1

def test_without_ipywidgets_it_says_what_to_install(r, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(ImportError, match=r"pip install 'pla_nb\[review\]'"): review(r)

# a live classifier

@pytest.fixture(scope='module')
def clf():
    rng = np.random.default_rng(0)
    y = np.arange(45)%3
    color = np.array([(200,30,30), (30,180,40), (40,60,210)])[y][:,None,None]
    x = (color+rng.normal(0, 12, (45, 32, 32, 3))).clip(0, 255).astype(np.uint8)
    vlm = OpenClip('ViT-S-32', False, device='cpu', precision='fp32', **TINY)
    return CAP(vlm, epochs=2, batch_size=64).fit(Task(x, NAMES, y, name='colors'), progress=False)

def test_from_a_live_classifier_to_the_next_fit(clf, tmp_path):
    pytest.importorskip('ipywidgets')
    task = clf.run['features'].task
    g = review(clf, k=6, random=3, path=tmp_path/'r.json')
    r = g.review
    assert len(r)==9 and (r.table['kind']=='random').sum()==3
    assert (np.array(clf.predict(task))[r.table['image']]==[NAMES[c] for c in r.table['proposed']]).all()
    for c in g.cards[:9]:
        c.choice.value = NAMES[task.targets[c.i]]
        c.accept.click() if c.change.disabled else c.change.click()
    assert (r.labels[1]==task.targets[r.labels[0]]).all() and len(r.labels[0])==9
    again = CAP(clf.vlm, epochs=2, batch_size=64).fit(r.to_task(), features=clf.run['features'], progress=False)
    assert again.about['paradigm']=='SSL' and len(again.run['features'].task.labeled)==6
    assert r.trust(again).checked==3
    more = clf.review(k=6, path=tmp_path/'r.json').review
    assert not set(more.table['image'])&set(r.table['image']) and more.answers==r.answers # not asked twice

@pytest.fixture(scope='module')
def prompted(clf):
    "Prompts in both towers, far from where they began: the image tower is another one now"
    task = clf.run['features'].task
    return CAP(clf.vlm, dial='maple', epochs=3, steps=4, batch_size=8, n_ctx=2, depth=2, lr=5., precision='fp32').fit(task, progress=False)

@pytest.mark.parametrize('given', [False, True])
def test_proposals_are_what_a_classifier_with_prompts_says(clf, prompted, tmp_path, given):
    task, base = clf.run['features'].task, clf.vlm
    assert isinstance(prompted.vlm, Prompted) and prompted.base is base
    frozen = prompted.logits(clf.run['features'].V, clf.run['features'].U).argmax(1).tolist()
    said = prompted.predict(task)
    assert [NAMES[c] for c in frozen]!=said # prompts moved far enough to matter
    t = review_classifier(prompted, task if given else None, k=45, path=tmp_path/'r.json').table
    assert len(t)==45 and [NAMES[c] for c in t['proposed']]==[said[i] for i in t['image']]
    zero = zero_shot_proba(clf.run['features'].V, base.encode_classes(NAMES), base.logit_scale).argmax(1).tolist()
    changed = t[t['kind']=='label changed']
    assert len(changed) and all(zero[o.image]==o.other for o in changed.itertuples())

def test_from_a_saved_classifier(clf, tmp_path):
    loaded = Classifier.load(clf.save(tmp_path/'c'), vlm=clf.vlm)
    with pytest.raises(ValueError, match='pass task='): review_classifier(loaded)
    a = review_classifier(loaded, clf.run['features'].task, k=8, path=tmp_path/'a.json')
    b = review_classifier(clf, k=8, path=tmp_path/'b.json')
    assert a.table['image'].tolist()==b.table['image'].tolist()

def test_from_probabilities(task, tmp_path):
    pytest.importorskip('ipywidgets')
    p = soft(20, 3, 0)
    assert len(review(p, task, k=5, path=tmp_path/'p.json').review)==5
    with pytest.raises(ValueError, match='pass the task'): review(p)
    with pytest.raises(ValueError, match=r'shape \(20, 3\)'): review(p[:19], task)
