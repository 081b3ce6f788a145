"Invariants of the metrics, figures for any number of classes, and a report page that holds whatever it is given."
import json, re, warnings
from html.parser import HTMLParser
import numpy as np, pandas as pd
import pytest, torch
from hypothesis import given, settings, strategies as st
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, brier_score_loss
from pla_nb.evaluate import *

counts = st.lists(st.integers(0, 1000), min_size=1, max_size=40).filter(any)
unit = st.floats(0, 1)
prop = settings(deadline=None, max_examples=40)

@st.composite
def predictions(draw, max_c=6):
    "Probabilities (N,C) and labels (N,)"
    c, n, seed = draw(st.integers(2, max_c)), draw(st.integers(1, 60)), draw(st.integers(0, 2**16))
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(c, draw(st.sampled_from([.05, .5, 5]))), n), rng.integers(0, c, n)

@pytest.mark.parametrize('none', [None, float('nan'), pd.NA])
def test_labels_may_be_unknown(none):
    p = np.eye(3)[[0,1,2,2]]*.8+.05
    for y in (['a',none,'c','b'], [0,none,2,1], pd.Series(['a',none,'c','b']), pd.Series([0,none,2,1], dtype='Int64'), np.array([0,np.nan,2,1])):
        m = evaluate(p, y, ['a','b','c'])
        assert m.n==3 and m.accuracy==pytest.approx(2/3)
    assert class_indices(['nan',none], ['nan','b']).tolist()==[0,-1]
    with pytest.raises(ValueError, match=r"got \['d'\]"): class_indices(['a',none,'d'], ['a','b'])

@pytest.mark.parametrize('seen', [['a'], ['b','c'], []])
def test_images_of_seen_or_of_unseen_classes_only(seen):
    m = evaluate(np.eye(3)[[0,1,0]], ['a','a','a'], ['a','b','c'], seen)
    assert m.accuracy==pytest.approx(2/3) and m.seen is m.unseen is m.harmonic is None
    m = evaluate(np.eye(3)[[0,1,0]], ['a','b','c'], ['a','b','c'], ['a'])
    assert (m.seen,m.unseen)==(1,.5)

# balance
@prop
@given(st.integers(1, 1000), st.integers(1, 50))
def test_uniform_is_balanced(k, c):
    assert gini([k]*c)==pytest.approx(0, abs=1e-12)
    assert kl_to_uniform([k]*c)==pytest.approx(0, abs=1e-12)

@prop
@given(counts, st.randoms())
def test_balance_bounds_and_permutation(x, rnd):
    c, y = len(x), rnd.sample(x, len(x))
    assert 0<=gini(x)<=(c-1)/c+1e-12 and 0<=kl_to_uniform(x)<=np.log(c)+1e-12
    assert gini(y)==pytest.approx(gini(x)) and kl_to_uniform(y)==pytest.approx(kl_to_uniform(x))

@prop
@given(counts, st.integers(2, 9))
def test_balance_ignores_scale(x, k):
    assert gini(np.array(x)*k)==pytest.approx(gini(x)) and kl_to_uniform(np.array(x)*k)==pytest.approx(kl_to_uniform(x))

@prop
@given(counts)
def test_gini_is_the_mean_absolute_difference(x):
    x = np.array(x, float)
    assert gini(x)==pytest.approx(np.abs(x[:,None]-x).mean()/(2*x.mean()))

@prop
@given(st.integers(2, 50))
def test_one_class_takes_all(c):
    x = [0]*(c-1)+[7]
    assert gini(x)==pytest.approx((c-1)/c) and kl_to_uniform(x)==pytest.approx(np.log(c))

def test_no_predictions_is_not_imbalance(): assert gini([0,0])==0 and kl_to_uniform([0,0])==0

# accuracies
@prop
@given(unit, unit)
def test_harmonic_mean(s, u):
    h = harmonic_mean(s, u)
    assert h==harmonic_mean(u, s) and min(s,u)-1e-9<=h<=(s+u)/2+1e-9

@prop
@given(predictions())
def test_accuracies_agree_with_each_other_and_sklearn(d):
    p, y = d
    pred, r = p.argmax(1), recalls(p.argmax(1), y, p.shape[1])
    assert macro_accuracy(pred, y)==pytest.approx(np.nanmean(r))
    with warnings.catch_warnings(action='ignore'): assert macro_accuracy(pred, y)==pytest.approx(balanced_accuracy_score(y, pred)) # it warns of classes without images
    assert worst_classes(r)<=worst_classes(r, .5)+1e-12<=worst_classes(r, 1)+2e-12
    assert worst_classes(r, 1)==pytest.approx(macro_accuracy(pred, y))
    n = np.bincount(y, minlength=len(r))
    assert accuracy(pred, y)==pytest.approx(np.nansum(r*n)/n.sum())

def test_worst_classes_takes_at_least_one_and_skips_unknown():
    assert worst_classes([.2,.5,np.nan])==.2
    assert worst_classes(np.r_[0,.1,np.ones(18)])==pytest.approx(.05)
    assert np.isnan(worst_classes([np.nan]))

def test_trzsl_predicts_over_all_classes():
    y = np.array([0,0,1,1,2,2])
    t = trzsl_accuracy([0,0,1,0,0,1], y, seen=[0,1])
    assert t==(.75, 0, 0)
    with pytest.raises(ValueError, match='unseen'): trzsl_accuracy(y, y, seen=[0,1,2])

# calibration
@prop
@given(predictions())
def test_calibration_bounds(d):
    p, y = d
    e, gap = ece(p, y), abs(p.max(1).mean()-accuracy(p.argmax(1), y))
    assert gap-1e-9<=e<=1+1e-12
    assert 0<=brier(p, y)<=2+1e-12 and nll(p, y)>=0
    assert ece(p, y, 5)<=e+1e-9 # 15 refines 5
    assert brier(p, y)==pytest.approx(brier_score_loss(y, p, labels=np.arange(p.shape[1]), scale_by_half=False))

@prop
@given(predictions(), st.randoms())
def test_calibration_ignores_order_and_copies(d, rnd):
    p, y = d
    ix = rnd.sample(range(len(y)), len(y))
    for f in (ece, brier, nll):
        assert f(p[ix], y[ix])==pytest.approx(f(p, y))
        assert f(np.r_[p,p], np.r_[y,y])==pytest.approx(f(p, y))

def test_bin_edges_belong_to_the_bin_below():
    p = np.array([[.6,.4],[.5,.5],[1,0]])
    assert calibration_bins(p, [0,0,0], bins=5).n.tolist()==[0,0,2,0,1]
    assert calibration_bins(p, [0,0,0], bins=10).n.tolist()==[0,0,0,0,1,1,0,0,0,1]

@prop
@given(st.floats(.5, 1), st.integers(1, 50), st.integers(0, 50))
def test_constant_confidence(c, right, wrong):
    p, y = np.tile([c, 1-c], (right+wrong, 1)), np.r_[np.zeros(right, int), np.ones(wrong, int)]
    assert ece(p, y)==pytest.approx(abs(c-right/(right+wrong)))

@prop
@given(predictions(), st.integers(1, 25), st.integers(2, 4))
def test_bins_nested_or_not(d, bins, k):
    p, y = d
    e, gap = ece(p, y, bins), abs(confidence_gap(p, y))
    assert gap-1e-10<=e<=ece(p, y, bins*k)+1e-10 # a nested refinement never lowers it
    assert mce(p, y, bins, weighted=True)-1e-10<=e<=mce(p, y, bins)+1e-10
    assert gap-1e-10<=ace(p, y, bins)<=1+1e-10

@prop
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
def test_equal_mass_bins_hold_as_many_images(bins, each, seed):
    conf = np.random.default_rng(seed).permutation(np.linspace(.51, .99, bins*each))
    b = calibration_bins(np.c_[conf, 1-conf], np.zeros(bins*each, int), bins, mass=True)
    assert b.n.tolist()==[each]*bins and b.hi.iloc[-1]==conf.max().round(9)

def test_ties_merge_equal_mass_bins():
    conf = np.r_[np.full(6, .6), .7, .8, .9, .95]
    b = calibration_bins(np.c_[conf, 1-conf], np.zeros(10, int), 5, mass=True)
    assert b.n.tolist()==[6,2,2] and b.n.sum()==10
    p = np.tile([.7,.3], (40,1)) # all tied: one bin
    assert ace(p, [0]*20+[1]*20, 10)==pytest.approx(.2, abs=1e-10)

@prop
@given(predictions(), st.randoms())
def test_new_scores_ignore_order_and_copies(d, rnd):
    p, y = d
    ix = rnd.sample(range(len(y)), len(y))
    for f in (mce, confidence_gap, risk_at, confidence_auroc):
        assert f(p[ix], y[ix])==pytest.approx(f(p, y), abs=1e-10, nan_ok=True)
        assert f(np.r_[p,p], np.r_[y,y])==pytest.approx(f(p, y), abs=1e-10, nan_ok=True)
    assert ace(p[ix], y[ix])==pytest.approx(ace(p, y), abs=1e-10)

def test_overconfidence_by_a_power():
    conf = np.linspace(.5, 1, 40001)
    hit = np.random.default_rng(0).random(len(conf))<conf**2
    p, y = np.c_[conf, 1-conf], np.where(hit, 0, 1)
    assert ece(p, y)==pytest.approx((conf-conf**2).mean(), abs=.01) and confidence_gap(p, y)==pytest.approx((conf-conf**2).mean(), abs=.01)
    d = debiased_ece(p, y, draws=100)
    assert d.low<=d.value<=ece(p, y) and d.low<=(conf-conf**2).mean()<=d.high

def test_debiasing_takes_off_part_of_what_sampling_adds():
    rng, plain, less = np.random.default_rng(0), [], []
    for _ in range(40):
        conf = rng.uniform(.5, 1, 300)
        p, y = np.c_[conf, 1-conf], (rng.random(300)>conf).astype(int) # calibrated: the true error is 0
        d = debiased_ece(p, y, draws=60)
        plain.append(ece(p, y)); less.append(d.value)
    expected = np.sqrt(2/np.pi)*sum(np.sqrt(w*m/300) for w,m in _bin_moments())
    assert np.mean(plain)==pytest.approx(expected, rel=.1)
    assert .45<np.mean(less)/np.mean(plain)<.75

def _bin_moments(bins=15):
    "Share of each bin for uniform confidence on [.5,1], and its mean p(1-p)"
    for lo,hi in zip(np.arange(bins)/bins, np.arange(1, bins+1)/bins):
        if (lo := max(lo, .5))<hi:
            x = np.linspace(lo, hi, 101)
            yield 2*(hi-lo), (x*(1-x)).mean()

def test_torchmetrics_agrees_where_no_value_is_on_an_edge():
    from torchmetrics.functional.classification import multiclass_calibration_error
    rng = np.random.default_rng(1)
    p, y = rng.dirichlet(np.full(5, .4), 400), rng.integers(0, 5, 400)
    for bins in (10, 15, 20):
        for norm,f in (('l1', ece), ('max', mce)):
            assert float(multiclass_calibration_error(torch.tensor(p), torch.tensor(y), 5, bins, norm))==pytest.approx(f(p, y, bins), abs=1e-6)

# keeping the sure ones
@prop
@given(predictions())
def test_risk_and_coverage(d):
    p, y = d
    r, err = risk_coverage(p, y), 1-accuracy(p.argmax(1), y)
    assert r.coverage.is_monotonic_increasing and r.coverage.iloc[-1]==1 and r.risk.iloc[-1]==pytest.approx(err)
    assert risk_at(p, y, 1)==pytest.approx(err) and 0<=risk_at(p, y)<=min(1, err/.8+1e-9)
    auroc = confidence_auroc(p, y)
    conf, hit = p.max(1).round(9), p.argmax(1)==y
    if 0<hit.sum()<len(hit):
        wins = (conf[hit][:,None]>conf[~hit]).mean()+.5*(conf[hit][:,None]==conf[~hit]).mean()
        assert auroc==pytest.approx(wins)
    else: assert np.isnan(auroc)

def test_risk_within_a_tie_is_its_mean():
    p = np.array([[.9,.1]]+[[.6,.4]]*4)
    assert risk_at(p, [0,1,1,0,0], .6)==pytest.approx(1/3) # the sure one, and two of four that are half wrong
    assert risk_at(p, [0,1,1,0,0], .2)==0
    with pytest.raises(ValueError, match='got 0'): risk_at(p, [0]*5, 0)

@prop
@given(st.integers(0, 60), st.integers(0, 60))
def test_binomial_interval_is_the_exact_one(k, more):
    from scipy.stats import binomtest
    low, high = binomial_interval(k, k+more)
    if k+more==0: assert (low, high)==(0, 1)
    else: assert (low, high)==pytest.approx(tuple(binomtest(k, k+more).proportion_ci(.95, 'exact')), abs=1e-10)

@prop
@given(predictions())
def test_class_calibration_adds_up(d):
    p, y = d
    t = class_calibration(p, y, [f'c{i}' for i in range(p.shape[1])])
    assert t.predicted.sum()==len(y) and np.nansum(t.gap*t.predicted)/len(y)==pytest.approx(confidence_gap(p, y), abs=1e-10)
    k = t.dropna()
    assert ((k.low<=k.accuracy+1e-12) & (k.accuracy<=k.high+1e-12)).all() and (t.predicted==0).sum()==len(t)-len(k)

# tables
@prop
@given(predictions())
def test_tables_count_every_image(d):
    p, y = d
    pred, names = p.argmax(1), [f'c{i}' for i in range(p.shape[1])]
    t, pairs = per_class(pred, y, names), confusion_pairs(pred, y, names)
    assert t.n.sum()==t.predicted.sum()==len(y)
    assert pairs['count'].sum()==(pred!=y).sum()
    assert (pairs['class']!=pairs.taken_for).all() and pairs['count'].is_monotonic_decreasing
    assert (pairs.share<=1).all() and len(confusion_pairs(pred, y, names, n=1))<=1

def test_table_aligns():
    assert table([['a', 1],['bcd', 22]], ['name','n'])=='name   n\n----  --\na      1\nbcd   22'
    assert table([])==''

# evaluate
@prop
@given(predictions())
def test_evaluate_takes_logits_names_and_indices(d):
    p, y = d
    names = [f'c{i}' for i in range(p.shape[1])]
    a, b = evaluate(p, y, names), evaluate(np.log(p+1e-300)-3, np.array(names)[y], names)
    assert a.row()==pytest.approx(b.row(), rel=1e-5, abs=1e-8)
    assert evaluate(p.argmax(1), y, names).accuracy==a.accuracy and a.counts.sum()==a.n

def test_evaluate_without_labels_and_with_unknown_ones():
    p = np.array([[.9,.1],[.2,.8],[.6,.4]])
    m = evaluate(p, None, ['a','b'])
    assert m.accuracy is None and m.ece is None and set(m.row())=={'gini','kl','confidence'}
    assert evaluate(p, [-1,-1,-1], ['a','b']).n==3
    m = evaluate(p, [0,-1,1], ['a','b'])
    assert m.n==2 and m.accuracy==.5 and '50.0 %' in m._repr_markdown_() and 'Accuracy' in repr(m)

def test_evaluate_has_every_number_and_shows_few():
    p = np.random.default_rng(0).dirichlet(np.ones(3), 60)
    y = p.argmax(1)*(np.arange(60)%3>0)
    m = evaluate(p, y, ['a','b','c'])
    assert (m.ace, m.mce, m.gap, m.auroc, m.risk80)==pytest.approx((ace(p, y), mce(p, y), confidence_gap(p, y), confidence_auroc(p, y), risk_at(p, y)))
    assert {'ace','mce','gap','auroc','risk80'}<=set(m.row()) and 'surest 80' in repr(m) and len(m._rows())<=12
    assert evaluate(np.eye(3), ['a','b','c'], ['a','b','c']).auroc is None and evaluate([0,1], [0,1], ['a','b']).risk80 is None

def test_evaluate_float32_rows():
    p = np.random.default_rng(0).dirichlet(np.ones(7), 50).astype('float32')
    assert evaluate(p, np.arange(50)%7, list('abcdefg')).nll>0

def test_evaluate_trzsl():
    m = evaluate(np.eye(3), ['a','b','c'], ['a','b','c'], seen=['a'])
    assert (m.seen, m.unseen, m.harmonic)==(1,1,1)

@pytest.mark.parametrize('args,says', [
    ((np.eye(3), [0,1,2], ['a','b']), 'expected 2 columns for 2 classes, got 3'),
    ((np.eye(2), [0,2], ['a','b']), 'got 0 to 2'),
    ((np.eye(2), ['a','x'], ['a','b']), r"got \['x'\]"),
    ((np.eye(2), [0], ['a','b']), 'each of the 2 predictions, got 1'),
    ((np.full((2,2), np.nan), None, ['a','b']), 'finite')])
def test_evaluate_says_what_is_wrong(args, says):
    with pytest.raises(ValueError, match=says): evaluate(*args)

# figures
def ax(): return Figure().subplots()

@pytest.mark.parametrize('c', [1, 2, 10, 21, 200])
def test_figures_take_and_return_axes(c):
    rng, names = np.random.default_rng(0), [f'a $ strange$ class_{i} with a rather long name' for i in range(c)]
    y, pred = rng.integers(0, c, 5*c), rng.integers(0, c, 5*c)
    r = recalls(pred, y, c)
    draws = [lambda ax: plot_counts(np.bincount(pred, minlength=c), np.bincount(y, minlength=c), names, ax=ax), lambda ax: plot_counts(r, ax=ax),
        lambda ax: plot_per_class(r, r[::-1], names, ax=ax), lambda ax: plot_per_class(r, ax=ax), lambda ax: plot_confusion_graph(confusion_pairs(pred, y, names), ax=ax)]
    if c<=30: draws.append(lambda ax: plot_confusion(pred, y, names, ax=ax))
    for draw in draws:
        a = ax()
        assert draw(ax=a) is a
        a.figure.canvas.draw()

def test_per_class_shows_the_most_changed():
    b, a = np.zeros(50), np.r_[np.ones(3), np.full(47, .1)]
    labels = [t.get_text() for t in plot_per_class(b, a, [str(i) for i in range(50)], top=3, ax=ax()).get_yticklabels()]
    assert sorted(labels)==['0','1','2']

def test_confusion_graph_keeps_the_heaviest():
    pairs = [(f'c{i}', f'c{i+1}', i) for i in range(100)]
    texts = {t.get_text() for t in plot_confusion_graph(pairs, nodes=5, ax=ax()).texts}
    assert len(texts)<=5 and 'c100' in texts
    assert 'no confusion' in {t.get_text() for t in plot_confusion_graph([], ax=ax()).texts}

def test_confusion_matrix_refuses_many_classes():
    with pytest.raises(ValueError, match='plot_confusion_graph'): plot_confusion([0], [0], range(31))

def test_reliability_and_grid():
    a = ax()
    assert plot_reliability(np.array([[.7,.3],[.2,.8]]), [0,0], ax=a) is a
    a.figure.canvas.draw()
    axes = plot_image_grid([Image.new('L', (8,8)), np.zeros((8,8,3))], ['a','b'], ['b','c'], truth=['b',None], cols=2)
    assert '✓' in axes.flat[0].get_title() and axes.flat[1].get_title()=='b\n→ c'

@pytest.mark.parametrize('c', [2, 10, 60])
def test_calibration_figures(c):
    rng = np.random.default_rng(0)
    p, y, names = rng.dirichlet(np.full(c, .2), 150), rng.integers(0, c, 150), [f'a $ class {i}' for i in range(c)]
    for draw in (lambda ax: plot_reliability(p, y, level=None, counts=False, ax=ax), lambda ax: plot_reliability(p, y, 10, ax=ax), lambda ax: plot_confidence(p, y, ax=ax), lambda ax: plot_confidence(p, ax=ax),
                 lambda ax: plot_class_calibration(p, y, names, ax=ax), lambda ax: plot_risk_coverage({'x': p, 'y': p[::-1]}, y, ax=ax), lambda ax: plot_risk_coverage(p, p.argmax(1), None, ax=ax)):
        a = ax()
        assert draw(ax=a) is a
        a.figure.canvas.draw()
    a = plot_class_calibration(p, y, names, top=5, ax=ax())
    assert len(a.get_yticklabels())==min(c, 5)
    counts = [b.get_height() for b in plot_reliability(p, y, ax=ax()).child_axes[0].patches]
    assert sum(counts)==150

# report
class Page(HTMLParser):
    "Checks that tags close in order and gathers what the page refers to"
    void = {'meta','img','br','link','input','hr'}
    def __init__(self, text):
        super().__init__()
        self.open, self.refs, self.tags, self.text = [], [], [], ''
        self.feed(text)
        assert not self.open
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.refs += [v for k,v in attrs if k in ('src','href')]
        if tag not in self.void: self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop()==tag
    def handle_data(self, s):
        if not {'style','script'} & set(self.open): self.text += s

def full_report(c=12, **kw):
    rng, names = np.random.default_rng(0), [f'class {i}' for i in range(c)]
    y, p, q = rng.integers(0, c, 20*c), rng.dirichlet(np.ones(c), 20*c), rng.dirichlet(np.ones(c), 20*c)
    q[np.arange(len(y)), y] += .3
    a, b = evaluate(p, y, names), evaluate(q/q.sum(1, keepdims=True), y, names)
    im = Image.fromarray(rng.integers(0, 255, (300,200,3)).astype('uint8'))
    d = dict(title='Flowers', classes=names, n=len(y), summary={'Pool':5000}, metrics={'zero-shot':a.row(), 'adapted':b.row()},
        counts_before=a.counts, counts_after=b.counts, mended=[Mended('class 1', 'a photo of a class 1.', 'a red thing', .1, np.float32(.2), .3, np.nan)]*8,
        confusion=a.pairs, recall_before=a.recall, recall_after=b.recall, changed=[Changed(im, 'class 1', 'class 2', 'class 2'), Changed(im.convert('RGBA'), 'class 1', 'class 3')],
        n_changed=77, settings=dict(k=16, lr=np.float64(1e-3), path=None, on=True, nested={'a':[1,2]}), timings=dict(train=12.5), warnings=['Careful.'], reuse='Classifier.load("x")')
    return Report(**{**d, **kw})

@pytest.mark.parametrize('c', [2, 12, 101])
def test_report_is_one_valid_small_file(tmp_path, c):
    r = full_report(c)
    path = r.save(tmp_path/'a folder'/'report.html')
    s = path.read_text(encoding='utf-8')
    page = Page(s)
    assert s.startswith('<!DOCTYPE html>') and path.stat().st_size<3e6
    assert page.refs and all(o.startswith('data:image/') for o in page.refs)
    assert not re.search(r'@import|url\(|https?://', re.sub(r'base64,[^"]*', '', s))
    assert page.tags.count('section')==8 and r.headline.split(': ')[1].split(' → ')[0] in page.text
    assert [p.name for p in path.parent.iterdir()]==['report.html']

def test_report_round_trip(tmp_path):
    r = full_report(reuse='</script><script>alert(1)</script>', title='Kahvi & ☕ <b>')
    back = Report.load(r.save(tmp_path/'r.html'))
    for k in ('title','classes','metrics','counts_before','recall_after','confusion','timings','reuse','warnings','n_changed'):
        assert json.dumps(getattr(back, k))==json.dumps(json.loads(json.dumps(getattr(r, k), default=list))), k
    assert back.mended[0].recall_after is None and back.changed[0][1:]==('class 1','class 2','class 2') and max(back.changed[0].image.size)<=96
    assert back.headline==r.headline
    back.save(tmp_path/'again.html')

def test_report_escapes_everything():
    evil = '<img src=x onerror=alert(1)>&"\''
    r = full_report(2, classes=[evil, 'b'], title=evil, measured_on=evil, summary={evil:evil}, mended=[(evil,)*3], confusion=[(evil,'b',1)], confusion_from=evil,
        changed=[(Image.new('RGB',(9,9)), evil, evil, evil)], settings={evil:evil}, timings={evil:1.}, warnings=[evil], reuse=evil)
    page = Page(r.to_html())
    assert '<img src=x' not in r.to_html() and page.tags.count('script')==1 and evil in page.text

def test_empty_report_has_no_empty_sections():
    page = Page(Report().to_html())
    assert not {'img','section','h2'}&set(page.tags) and 'Nothing was measured' in page.text

def test_report_without_labels_says_that_nothing_was_checked():
    r = Report(classes=['a','b'], counts_before=[90,10], counts_after=[50,50], n_changed=41, settings=dict(balance=True))
    assert r.headline=='41 of 100 labels changed. Nothing was checked: these images have no labels.'
    page = Page(r.to_html())
    assert 'Nothing was checked: these images have no labels.' in page.text and '41 of 100 labels changed' in page.text
    assert '0.40 → 0.00. Training evens them out' in page.text and 'Accuracy' not in page.text and page.tags.count('section')==2
    assert Report(classes=['a','b'], counts_after=[50,50], metrics={'adapted':{'gini':0}}).headline=='Nothing was checked: these images have no labels'
    assert 'accuracy is not known' in Page(Report(metrics={'adapted':{'gini':0}}).to_html()).text

@pytest.mark.parametrize('n,few', [(19, True), (20, False)])
def test_report_warns_of_few_images(n, few):
    r = Report(classes=['a','b'], counts_after=[10, n-10])
    assert ('19 images are few for 2 classes' in Page(r.to_html()).text)==few and not r.warnings

def test_settings_are_folded():
    s = full_report(settings={f'setting {i}': i for i in range(45)}).to_html()
    folded = re.findall('<details>(.*?)</details>', s, re.S)
    assert any('45 settings' in o and 'setting 44' in o for o in folded) and s.count('setting 44')==2 # and in the JSON

@pytest.mark.parametrize('rule,says', [('mean', 'The class stands for the mean of its sentences'), ('paper', 'fits its group of look-alike images best'), ('', 'look-alike images best')])
def test_report_says_what_a_sentence_stands_for(rule, says): assert says in Page(full_report(mended_by=rule).to_html()).text

def test_report_checks_lengths():
    with pytest.raises(ValueError, match='expected 2 counts_before for 2 classes, got 3'): Report(classes=['a','b'], counts_before=[1,2,3])

def test_load_refuses_other_pages(tmp_path):
    (tmp_path/'x.html').write_text('<html></html>')
    with pytest.raises(ValueError, match='Report.save'): Report.load(tmp_path/'x.html')

def test_report_survives_a_failing_disk(tmp_path, monkeypatch):
    path = tmp_path/'r.html'
    path.write_text('old')
    monkeypatch.setattr('os.replace', lambda *a: (_ for _ in ()).throw(OSError(28, 'No space left')))
    with pytest.raises(OSError): Report().save(path)
    assert path.read_text()=='old'
