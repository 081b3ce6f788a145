"What a person reads about confidence has to be true, also of odd predictions."
import html, json, re
from html.parser import HTMLParser
import numpy as np, open_clip, pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from pla_nb.backbones import VLM
from pla_nb.classifier import CAP
from pla_nb.data import Task
from pla_nb.evaluate import _CSS, ece
from pla_nb.trust import *

prop = settings(deadline=None, max_examples=40)
ODD = ['<script>alert(1)</script>', 'a|b\nc', '"quoted" & more', '*star* [link](http://x) $m$ `code`']

def world(n, C=5, power=1., seed=0, alpha=.3):
    "Probabilities that were right before they were raised to a power, and labels drawn from the right ones"
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(C, alpha), n)
    y = np.minimum((p.cumsum(1)<rng.random((n, 1))).sum(1), C-1)
    q = np.maximum(p, 1e-9)**power
    return q/q.sum(1, keepdims=True), y

def names(C): return [f'class {i}' for i in range(C)]

class Tags(HTMLParser):
    "Every tag is closed, none is foreign"
    def __init__(self, text):
        super().__init__(); self.open, self.seen, self.text = [], set(), ''
        self.feed(text)
        assert not self.open
    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        assert not any(k.startswith('on') or k in ('src','href') for k,_ in attrs)
        self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop()==tag
    def handle_data(self, data): self.text += '' if self.open and self.open[-1]=='style' else data

# numbers

@prop
@given(st.integers(1, 300), st.integers(2, 6), st.sampled_from([.3, 1., 4.]), st.integers(0, 99), st.sampled_from([5, 10, 15]))
def test_counts_and_shares_agree(n, C, power, seed, bins):
    p, y = world(n, C, power, seed)
    t = trust(p, y, names(C), bins)
    conf, hit = p.max(1), p.argmax(1)==y
    assert t.bins['n'].sum()==n==t.checked and t.bins['right'].sum()==hit.sum()
    for r in t.bins.itertuples():
        inside = (conf>r.lo)&(conf<=r.hi)
        assert (r.n, r.right)==(inside.sum(), hit[inside].sum()) and r.low<=r.accuracy<=r.high
    assert t.gap==pytest.approx(conf.mean()-hit.mean()) and t.gap_low<=t.gap<=t.gap_high
    assert t.ece==pytest.approx(ece(p, y, bins)) and 0<=t.ece_low<=t.ece_high<=1
    for r in t.coverage.itertuples():
        kept = conf>=r.threshold-1e-12 # rows are made to sum to one once more
        assert r.n==kept.sum() and r.right==hit[kept].sum() and r.coverage==pytest.approx(r.n/n)
    assert t.coverage.iloc[0].coverage==1 and t.coverage['n'].is_monotonic_decreasing

def test_a_calibrated_model_stays_below_chance():
    over = [ece(p, y, 10)>chance_ece(p, draws=200) for p,y in (world(300, seed=s) for s in range(40))]
    assert np.mean(over)<.2
    p, y = world(1000, power=3)
    assert ece(p, y, 10)>2*chance_ece(p)

def test_what_chance_explains_may_be_nothing():
    for s in range(10):
        t = trust(*world(200, seed=s), names(5))
        assert (t.ece_low==0) or t.ece>t.ece_chance

def test_ties_are_answered_together():
    p = np.tile([.7,.3], (10, 1))
    t = coverage_table(p, np.zeros(10, int))
    assert len(t)==1 and t.iloc[0].coverage==1
    assert 'alike' in trust(p, np.zeros(10, int), ['a','b']).to_markdown()

# classes

def test_a_calibrated_world_accuses_nobody():
    named = [len(weak_classes(*world(800, 20, seed=s, alpha=.1), names(20), least=0)) for s in range(30)]
    assert sum(o>0 for o in named)<=5

def test_what_is_wrong_with_a_class_is_named():
    y = np.repeat([0,1,2,3], 60)
    pred = y.copy(); pred[60:110] = 0 # class 1 is lost to class 0
    p = np.full((240, 4), .1/3); p[np.arange(240), pred] = .9
    p[y==3] = [.2,.2,.2,.4] # always right, never sure
    w = weak_classes(p, y, names(4)).set_index('class')
    assert set(w.index)=={'class 0','class 1','class 3'}
    assert w.why['class 1']==['missed'] and w.found['class 1']==10 and w.n['class 1']==60
    assert 'too sure' in w.why['class 0'] and w.answers['class 0']==110 and w.right['class 0']==60
    assert w.why['class 3']==['too modest'] and w.index[0]=='class 1'

def test_few_images_are_not_judged():
    p = np.tile([.9,.1,0], (4, 1))
    t = trust(p, [1,1,1,1], ['a','b','c'])
    assert not len(t.weak) and t.scarce==['b'] and t.unchecked==['a','c']
    assert 'Never checked' in t.to_html() and 'few' in ' '.join(t.notes)

# words

@pytest.mark.parametrize('power,word', [(3., 'Too sure'), (.5, 'Too modest'), (1., 'To be believed')])
def test_verdict(power, word):
    p, y = world(4000, power=power)
    t = trust(p, y, names(5))
    assert t.verdict[0]==word and word in t.to_html() and word in t.to_markdown()

def test_opposite_errors_do_not_cancel():
    p, y = np.tile([.9,.1], (2000, 1)), np.zeros(2000, int)
    p[1000:] = [.6,.4]
    y[:300] = 1 # says 90, 70 are right
    y[1000:1200] = 1 # says 60, 80 are right
    assert trust(p, y, ['a','b']).verdict[0]=='Right on average only'

def test_unlabelled_says_so_and_how_to_check():
    p, _ = world(50)
    for y in (None, [-1]*50):
        t = trust(p, y, names(5))
        assert t.checked==0 and t.accuracy is None and t.verdict[0]=='Not checked' and t.bins['n'].sum()==50
        for o in (t.to_html(), t.to_markdown()): assert 'Not checked' in o and 'review(' in o and 'right</h3>' not in o and '95 %' not in o

def test_the_lines_that_check_it_work_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path/'my photos').mkdir()
    for i in range(6): Image.fromarray(rng.integers(0, 255, (32,32,3), dtype=np.uint8)).save(tmp_path/'my photos'/f'{i}.png')
    task = Task.from_folder('my photos', ['a stone', 'a tree'])
    # an architecture that can be loaded by name, and in no time
    (tmp_path/'tiny-for-trust.json').write_text(json.dumps(dict(embed_dim=32, vision_cfg=dict(image_size=32, layers=1, width=32, head_width=16, patch_size=16), text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1))))
    open_clip.add_model_config(tmp_path/'tiny-for-trust.json')
    clf = CAP(VLM('tiny-for-trust', False, device='cpu'), epochs=1).fit(task, progress=False)
    clf.save('my clf')
    t = trust(clf.predict_proba(task), None, clf.classes)
    t.saved, t.photos = 'my clf', 'my photos'
    ask, then = [html.unescape(o) for o in re.findall('<pre>(.*?)</pre>', t.to_html(), re.S)]
    card = [o.removeprefix('    ') for o in t.to_markdown().split('\n') if o.startswith('    ')]
    assert card==[*ask.split('\n'), *then.split('\n')]
    cell = {}
    exec(ask, cell) # the last line shows the grid
    assert len(cell['grid'].review)==6
    for i in cell['grid'].review.table['image']: cell['grid'].review.accept(i)
    checked = eval(then, cell)
    assert checked.checked==6 and checked.accuracy==1

@pytest.mark.parametrize('n,says', [(40, 'the 40 images'), (250, '100 images drawn at random')])
def test_no_more_images_are_asked_for_than_there_are(n, says):
    p, _ = world(n)
    for o in (trust(p, None, names(5)).to_html(), trust(p, None, names(5)).to_markdown()): assert f'Name {says} in a notebook' in o and f'random={min(n, 100)})' in o

def test_the_report_does_not_restyle_the_page():
    of_report = set(re.findall(r'\.pla [a-z]*\.(\w+)', _CSS))
    p, y = world(300, power=3)
    for t in (trust(p, y, names(5)), trust(p, None, names(5))):
        classes = {c for o in re.findall(r'class="([^"]*)"', t.to_html()) for c in o.split()}
        assert 'level' in classes and not classes&of_report

def test_unknown_labels_are_left_out():
    p, y = world(200)
    some = np.where(np.arange(200)<150, y, -1)
    t = trust(p, some, names(5))
    assert t.checked==150 and 'Checked on 150 of 200 held-out images.' in t.to_html()
    assert t.accuracy==(p.argmax(1)==y)[:150].mean()

def test_names_logits_and_how():
    p, y = world(300)
    a, b = trust(p, y, names(5)), trust(np.log(p), [names(5)[i] for i in y], names(5))
    assert a.to_html()==b.to_html()
    assert 'temperature 1.7 &amp; more' in trust(p, y, names(5), how='temperature 1.7 & more').to_html()

@pytest.mark.parametrize('labelled', [True, False])
def test_page_is_sound_html_and_text_stays_text(labelled):
    p, y = world(600, 4, power=4)
    p = p[:, [1,0,2,3]] # wrong, so that each odd name has to be accused
    t = trust(p, y if labelled else None, ODD, images='<b>images</b>')
    page, card = Tags(t.to_html()), t.to_markdown()
    assert 'script' not in page.seen and '<script' not in card and '<b>images' not in t.to_html()+card
    assert max(map(len, re.findall(r' width="(\d+)"', t.to_html())), default=0)==0 # percentages only: a phone decides
    if labelled:
        assert all(o in page.text for o in (ODD[0], ODD[2])) and len(t.weak)
        rows = [l for l in card.split('\n') if l.startswith('|')]
        assert {l.count('|')-l.count('\\|') for l in rows}=={5}

@prop
@given(st.integers(1, 60), st.booleans(), st.integers(0, 50))
def test_kept_as_json(n, labelled, seed):
    p, y = world(n, seed=seed)
    t = trust(p, y if labelled else None, names(5))
    again = Trust.from_dict(json.loads(json.dumps(t.to_dict(), allow_nan=False)))
    assert again.to_html()==t.to_html() and again.to_markdown()==t.to_markdown() and again.verdict==t.verdict

def test_errors_say_what_to_give():
    p, y = world(10)
    with pytest.raises(ValueError, match='4 columns for 4 classes'): trust(p, y, names(4))
    with pytest.raises(ValueError, match='label for each of the 10 images'): trust(p, y[:9], names(5))
    with pytest.raises(ValueError, match='at least one image'): trust(p[:0], None, names(5))
