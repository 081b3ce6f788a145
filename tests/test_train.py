"The training loop of the exported library, on synthetic features: rules it must keep whatever the data"
import math, warnings
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from pla_nb.calibrate import CalibratedLoss
from pla_nb.pseudolabels import STARTS, mixture, neighbours, select_topk
from pla_nb.train import CAPConfig, Evidence, Fit, _margin, fit_head, loss_weights, plot_history, sharpen, strong_view

torch.set_num_threads(1)

def blobs(N=240, C=6, d=16, dv=24, noise=.5, seed=0):
    "Unit-norm V, T, U and labels of C groups; the first class text is wrong"
    g = torch.Generator().manual_seed(seed)
    r = lambda *s: torch.randn(*s, generator=g)
    y = torch.arange(N)%C
    A,B = r(C, d),r(C, dv)
    T = A+.3*r(C, d)
    T[0] = r(d)
    return [F.normalize(x, dim=1) for x in (A[y]+noise*r(N, d)*1.5, T, B[y]+noise*r(N, dv))]+[y]

V,T,U,y = blobs(noise=.8)
FAST = dict(epochs=3, batch_size=64, dim=12, hidden=8)
def run(**kw):
    args = {k: kw.pop(k) for k in ('labeled','seen','ranking','callback','regulariser') if k in kw}
    return fit_head(V, T, U, CAPConfig(**{**FAST, **kw}), progress=False, **args)
def same(a, b): return all(torch.equal(x, z) for x,z in zip(a.head.state_dict().values(), b.head.state_dict().values(), strict=True))
def acc(q): return float((q.argmax(1)==y).float().mean())

def test_it_learns_without_labels():
    zero = acc(V@T.T)
    fit = run(epochs=5)
    assert acc(fit.head(V, U))>max(zero+.05, .9)
    assert isinstance(fit, Fit) and fit.last.shape==(240, 6) and 'Fit(5 epochs' in repr(fit)

def test_a_seed_is_a_result_and_leaves_the_callers_random_numbers():
    torch.manual_seed(7); a = torch.rand(3)
    torch.manual_seed(7)
    one = run(); b = torch.rand(3)
    assert torch.equal(a, b)
    assert same(one, run()) and one.history.equals(run().history)
    assert not same(one, run(seed=1))

def test_nothing_given_is_changed():
    before = [x.clone() for x in (V, T, U)]
    run()
    assert all(torch.equal(a, b) for a,b in zip(before, (V, T, U)))

def test_results_are_ordinary_tensors():
    fit = run()
    for x in (fit.first, fit.last, fit.M, fit.head(V, U), *fit.head.state_dict().values()): assert not x.is_inference() and not x.requires_grad
    w = torch.ones(6, requires_grad=True)
    (fit.last*w).sum().backward() # may take part in somebody's own training
    fit.last.mul_(1.)

def test_inference_tensors_can_be_trained_on():
    with torch.inference_mode(): a,b,c = V.clone(),T.clone(),U.clone()
    assert same(run(), fit_head(a, b, c, CAPConfig(**FAST), progress=False))

def test_an_untrained_head_is_the_mixture_it_starts_from():
    fit = run(epochs=0, hops=0)
    ev = fit.head.evidence
    z,u = ev.text(V),ev.vision(V, U)
    m = mixture(z, u, 20., .5, balanced=True, starts=STARTS[:5], seed=0)
    assert torch.equal(fit.first, m.q) and torch.equal(fit.last, m.q) and len(fit.history)==0
    torch.testing.assert_close(fit.head(V, U), m.scores(z, u), atol=1e-4, rtol=1e-4)

def test_zero_adapters_change_nothing_and_training_moves_them():
    head = run(epochs=0).head
    u = head.evidence.vision(V, U)
    torch.testing.assert_close(head.main(u), u, atol=1e-6, rtol=0)
    fit = run()
    assert fit.head.main.up.weight.any() and fit.head.pseudo.up.weight.any()

def test_adapters_are_off_at_inference():
    fit = run(epochs=2)
    before = fit.head(V, U)
    with torch.no_grad():
        for p in [*fit.head.main.parameters(), *fit.head.pseudo.parameters()]: p.fill_(3.)
    assert torch.equal(before, fit.head(V, U))

def test_without_adapters_and_without_text_offsets():
    fit = run(adapters=False, train_text=False)
    assert isinstance(fit.head.main, torch.nn.Identity) and not fit.head.delta.any()
    assert run().head.delta.any()

@pytest.mark.parametrize('weighting', ['paper','released'])
def test_margin(weighting):
    off,tiny,on = (run(margin=m, weighting=weighting, balance=False, epochs=4) for m in (0., 1e-30, 12.))
    assert same(off, tiny) and not off.M.any() and (off.history.margin==0).all()
    assert on.M.any() and not on.M.diagonal().any() and 0<=on.M.min() and on.M.max()<=12
    assert on.history.margin[0]==0 # the first epoch has none

def test_growth_in_the_history():
    fit = run(epochs=6, k=4, rho=.8)
    assert fit.history.k[0]==4 and fit.history.k.is_monotonic_increasing and fit.history.k.max()<=.8*240/6
    assert (fit.history.selected<=6*fit.history.k).all() and len(fit.selected)==fit.history.selected.iloc[-1]
    assert (run(epochs=6, k=4, grow=False).history.k==4).all()

@pytest.mark.parametrize('kw', [dict(), dict(start='zero-shot', balance=False), dict(vision=False), dict(hops=0), dict(exclude_selected=True), dict(epochs=1),
    dict(exclude_selected=True, k=400), dict(batch_size=1000), dict(dropout=0., noise=0., mix=0.), dict(tau=1.1), dict(dim=1000), dict(n_neighbours=1000)])
def test_settings_one_by_one(kw):
    fit = run(**kw)
    assert fit.head(V, U).isfinite().all() and len(fit.history)==kw.get('epochs', 3)
    torch.testing.assert_close(fit.last.sum(1), torch.ones(240), atol=1e-4, rtol=0)

@pytest.mark.parametrize('cfg', [CAPConfig.paper, CAPConfig.released])
def test_the_published_switches_run(cfg):
    fit = fit_head(V, T, U, cfg(epochs=3), progress=False)
    assert fit.head(V).isfinite().all() # vision-only features are not used
    assert cfg(margin=1.).margin==1.

# settings of the other dials
ELSEWHERE = dict(steps=3, warmup=7, views=2, n_ctx=3, depth=3, update='released', update_every=2, keep=.5, count='epoch', restrict=False, precision='fp32', compile=True)

def test_settings_without_effect_are_named():
    i = (y<3).nonzero()[:,0]
    trzsl = dict(labeled=(i, y[i]), seen=[0,1,2])
    plain = run(**trzsl)
    with pytest.warns(UserWarning, match="no effect on dial 'features': steps, .*compile. Leave them out"): assert same(run(**trzsl, **ELSEWHERE), plain)
    assert sorted(CAPConfig(**ELSEWHERE).ignored())==sorted(ELSEWHERE)==sorted(CAPConfig(**ELSEWHERE).resolved().ignored())
    assert CAPConfig(dial='maple', **ELSEWHERE).ignored()==['views'] and CAPConfig(dial='text', **ELSEWHERE).ignored()==['depth','compile']
    assert CAPConfig(dial='text', train_text=False).ignored()==['train_text'] and CAPConfig(dial='maple', train_text=False, mix=.1, dropout=.1, noise=.1).ignored()==['train_text','mix','dropout','noise']

@pytest.mark.parametrize('dial', ['features','text','maple'])
def test_switches_of_the_presets_have_an_effect(dial):
    for cfg in (CAPConfig(dial=dial), CAPConfig.paper(dial=dial), CAPConfig.released(dial=dial)): assert not cfg.ignored() and not cfg.resolved().ignored()
    assert (CAPConfig.released(dial=dial).update=='released')==(dial!='features')
    assert CAPConfig.released(update='released').ignored()==['update'] # asked for

def test_settings_that_cannot_be():
    for kw,words in ((dict(start='magic'), "'mixture' or 'zero-shot'"), (dict(weighting='x'), "'paper' or 'released'"), (dict(k=0), 'k of 1 or more'), (dict(epochs=-1), 'epochs of 0'), (dict(batch_size=0), 'batch_size of 1')):
        with pytest.raises(ValueError, match=words): CAPConfig(**kw)

def test_each_image_has_one_label():
    fit = run(k=16)
    assert len(fit.selected.indices.unique())==len(fit.selected)

def test_ssl_uses_labels_and_keeps_them():
    i = torch.cat([(y==c).nonzero()[:2,0] for c in range(6)])
    fit = run(labeled=(i.numpy(), y[i].numpy()), epochs=5)
    assert torch.equal(fit.first[i], F.one_hot(y[i], 6).float()) and torch.equal(fit.last[i], fit.first[i])
    assert not torch.isin(fit.selected.indices, i).any() # labeled images are no pseudolabels
    assert acc(fit.head(V, U))>.9

def test_ssl_with_labels_of_some_classes_only():
    i = (y==2).nonzero()[:3,0]
    fit = run(labeled=(i, y[i]))
    assert fit.last.sum(0).min()>1 and torch.equal(fit.last[i].argmax(1), y[i])

@pytest.mark.parametrize('kw', [dict(), dict(start='zero-shot'), dict(balance=False), dict(start='zero-shot', balance=False), dict(hops=0)])
@pytest.mark.parametrize('n_seen', [1,4,5])
def test_trzsl(kw, n_seen):
    seen = list(range(6-n_seen, 6))
    i = torch.isin(y, torch.tensor(seen)).nonzero()[:,0]
    fit = run(labeled=(i, y[i]), seen=seen, **kw)
    free = ~torch.isin(y, torch.tensor(seen))
    for q in (fit.first, fit.last):
        assert q.isfinite().all() and not q[free][:,seen].any() # unlabeled images have unseen classes only
        torch.testing.assert_close(q.sum(1), torch.ones(240), atol=1e-4, rtol=0)
    assert not fit.M[seen].any() and fit.head(V, U).isfinite().all()
    assert set(fit.selected.labels.tolist())<=set(range(6-n_seen))

@given(st.integers(2, 500).flatmap(lambda C: st.tuples(st.integers(1, C-1), st.just(C))))
def test_losses_weigh_as_many_classes_as_they_are_about(sizes):
    S,C = sizes
    labeled,other = loss_weights(S, C)
    assert labeled+2*other==pytest.approx(3) and labeled/S==pytest.approx(2*other/(C-S))
    assert loss_weights(0, C)==(1,1)

def test_few_unseen_classes_do_not_take_over():
    "With labels for five of six classes, fewer of their images are called the sixth"
    v,t,u,_ = blobs(noise=1.6) # classes that overlap
    i = (y<5).nonzero()[:,0]
    fits = [fit_head(v, t, u, CAPConfig(**FAST|dict(epochs=6, batch_size=16), weigh_losses=w), labeled=(i, y[i]), seen=range(5), progress=False) for w in (True, False)]
    weighed,plain = [int((f.head(v[i], u[i]).argmax(1)==5).sum()) for f in fits]
    assert 2*weighed<plain
    a,b = [run(labeled=(i[:3], y[i[:3]]), weigh_losses=w).head.state_dict() for w in (True, False)] # SSL
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_seen_images_do_not_make_unseen_classes_look_rare():
    fit = run(epochs=1)
    keep = torch.cat([(y<3).nonzero()[:30,0], (y>=3).nonzero()[:,0]]) # 10 images of each unseen class, 40 labeled ones of each seen class
    given_ = torch.where(y[keep]<3, -1, y[keep])
    u = fit.head.evidence.vision(V[keep], U[keep])
    sel = select_topk(F.one_hot(y[keep], 6).float(), 2)
    M = _margin(fit.head, u, sel, 20.*F.one_hot(y[keep], 6), CAPConfig().resolved(), given_, [3,4,5])
    assert not M.any()

def test_descriptions_replace_the_first_lists():
    cfg = dict(start='zero-shot', balance=False, epochs=0, k=8)
    rank = V@F.normalize(V[y==0].mean(0), dim=0)
    plain,mended = run(**cfg),run(**cfg, ranking={0: rank})
    assert set(mended.selected.by_class(0).tolist())==set(rank.topk(8).indices.tolist())
    assert not torch.equal(plain.head.prototypes[0], mended.head.prototypes[0]) # prototypes come from the lists
    assert len(mended.selected.indices.unique())==len(mended.selected)
    assert same(run(epochs=0), run(epochs=0, ranking={0: rank})) # the mixture has no lists to start from

@pytest.mark.parametrize('start', ['mixture','zero-shot'])
@pytest.mark.parametrize('N,C', [(2,2), (3,2), (10,10), (12,5), (30,2), (40,16)])
def test_small_pools(N, C, start):
    v,t,u,_ = blobs(N, C)
    fit = fit_head(v, t, u, CAPConfig(**FAST, start=start), progress=False)
    assert fit.head(v, u).isfinite().all() and fit.last.isfinite().all() and len(fit.selected)<=N

def test_two_classes_do_not_depend_on_the_company():
    v,t,u,y2 = blobs(60, 2, noise=.3)
    t = F.normalize(torch.stack([v[y2==0].mean(0), v[y2==1].mean(0)]), dim=1)
    fit = fit_head(v, t, u, CAPConfig(**FAST), progress=False)
    alone = torch.cat([fit.head(v[i:i+1], u[i:i+1]) for i in range(60)])
    torch.testing.assert_close(alone, fit.head(v, u), atol=1e-4, rtol=1e-4)
    assert (alone.argmax(1)==y2).float().mean()>.95

@settings(max_examples=15, deadline=None)
@given(st.integers(2, 8), st.integers(0, 5), st.integers(0, 99))
def test_any_pool_gives_finite_answers(C, extra, seed):
    v,t,u,_ = blobs(C*3+extra, C, seed=seed)
    fit = fit_head(v, t, None if seed%2 else u, CAPConfig(**{**FAST, 'epochs': 2}, k=2), progress=False)
    assert fit.head(v, None if seed%2 else u).isfinite().all()
    alone = fit.head(v[:1], None if seed%2 else u[:1])
    torch.testing.assert_close(alone, fit.head(v, None if seed%2 else u)[:1], atol=1e-3, rtol=1e-3)

def test_equal_images_and_equal_texts():
    v = F.normalize(torch.ones(20, 4), dim=1)
    fit = fit_head(v, v[:2], cfg=CAPConfig(**FAST), progress=False)
    assert fit.head(v).isfinite().all()

def test_doubles_halves_and_arrays_are_taken():
    one = run()
    assert same(one, fit_head(V.double(), T.double(), U.double(), CAPConfig(**FAST), progress=False))
    assert same(one, fit_head(V.numpy(), T.numpy(), U.numpy(), CAPConfig(**FAST), progress=False))
    assert torch.equal(one.head(V.double(), U.numpy()), one.head(V, U))

def bad(X, value):
    X = X.clone(); X[3,1] = value
    return X

@pytest.mark.parametrize('args,words', [
    ((bad(V, math.nan), T, U), 'V has NaN or infinity in 1 of 240 rows, first in row 3'), ((V, bad(T, math.inf), U), 'T has NaN'), ((V, T, bad(U, math.nan)), 'U has NaN'),
    ((V[:,:5], T, U), 'V has 5 columns and T 16'), ((V, T, U[:9]), 'row of U for each of the 240 images, got 9'), ((V[0], T, None), 'V as a matrix'), ((V.long(), T, None), 'matrix of floats'),
    ((V[:3], T, U[:3]), 'at least one image per class, got 3 images for 6'), ((V, T[:1], U), 'at least 2 classes')])
def test_features_that_cannot_be(args, words):
    with pytest.raises(ValueError, match=words): fit_head(*args, CAPConfig(**FAST), progress=False)

@pytest.mark.parametrize('kw,words', [
    (dict(labeled=([0,1], [0])), 'class for each of the 2'), (dict(labeled=([0], [6])), 'classes 0 to 5'), (dict(labeled=([240], [0])), '0 to 239'), (dict(labeled=([-1], [0])), '0 to 239'),
    (dict(seen=range(6)), 'all 6 classes are seen'), (dict(seen=[6]), 'seen classes 0 to 5'), (dict(labeled=(np.arange(240), y.numpy())), 'all 240 images are labeled')])
def test_labels_that_cannot_be(kw, words):
    with pytest.raises(ValueError, match=words): run(**kw)

def test_all_but_one_image_labeled():
    i = torch.arange(239)
    assert run(labeled=(i, y[:239])).head(V, U).isfinite().all()

def test_strong_views_are_unit_and_touch_neighbours_only():
    ev = Evidence.fit(V, T, U, 12)
    u = ev.vision(V, U); n = neighbours(u, 4)
    s = strong_view(u, torch.arange(50), n, CAPConfig(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(s.norm(dim=1), torch.ones(50), atol=1e-5, rtol=0)
    still = strong_view(u, torch.arange(50), n, CAPConfig(mix=0., dropout=0., noise=0.))
    torch.testing.assert_close(still, u[:50], atol=1e-6, rtol=0)
    torch.testing.assert_close(sharpen(u, n, 0), u)

def test_callback_and_figure():
    seen = []
    fit = run(callback=seen.append)
    assert [r['epoch'] for r in seen]==[0,1,2] and seen[-1]['k']==fit.history.k.iloc[-1]
    import matplotlib.pyplot as plt
    assert len(plot_history(fit))==2
    plt.close('all')

def test_a_run_without_epochs_has_an_empty_history():
    import matplotlib.pyplot as plt
    fit,one = run(epochs=0),run(epochs=1)
    assert not len(fit.history) and fit.history.columns.tolist()==one.history.columns.tolist()
    assert [len(a.lines[0].get_xdata()) for a in plot_history(fit)]==[0, 0]
    plt.close('all')

def test_a_pool_of_5000():
    g = torch.Generator().manual_seed(0)
    r = lambda *s: F.normalize(torch.randn(*s, generator=g), dim=1)
    v,u = r(5000, 512),r(5000, 1280)
    fit = fit_head(v, r(10, 512), u, CAPConfig(epochs=2), progress=False)
    assert fit.head(v[:5], u[:5]).isfinite().all() and fit.history.fewest.min()>400 # balanced

def test_a_head_says_which_features_it_needs():
    with pytest.raises(ValueError, match='24 columns as U, got 16'): run(epochs=0).head(V)

# a regulariser

def test_one_call_a_step_for_labeled_and_pseudolabeled_images():
    i,seen = torch.cat([(y==c).nonzero()[:2,0] for c in range(6)]),[]
    def reg(z, yb, T, T0):
        seen.append((len(z), len(yb), z.shape[1]))
        return 0*T.sum()
    fit = run(regulariser=reg, labeled=(i, y[i]), k=5, grow=False)
    assert seen==[(30+12, 30+12, 6)]*3*math.ceil(228/64) and same(fit, run(labeled=(i, y[i]), k=5, grow=False))

def test_a_term_on_the_texts_counts_once():
    "The first step of plain SGD from texts that are pulled somewhere else"
    i = torch.cat([(y==c).nonzero()[:2,0] for c in range(6)])
    goal = F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(5)), dim=1)
    step = dict(labeled=(i, y[i]), epochs=1, batch_size=500, lr=.1, margin=0.)
    pulled,free = [run(**step, regulariser=r).head.delta for r in (lambda z,y,T,T0: (T-goal).square().sum(), None)]
    T1 = F.normalize(T, dim=1)
    grad = 2*(T1-goal)
    want = (grad-(grad*T1).sum(1, keepdim=True)*T1)/T.norm(dim=1, keepdim=True) # through the normalisation
    torch.testing.assert_close(pulled-free, -.1*want, atol=1e-5, rtol=1e-3)

def test_what_a_regulariser_remembers_is_of_one_run():
    reg = CalibratedLoss(momentum=.5)
    first = run(regulariser=reg)
    assert reg.running.value is not None and same(first, run(regulariser=reg)) and not same(first, run())

def test_what_the_head_itself_says():
    for kw in (dict(), dict(epochs=0)):
        fit = run(**kw)
        torch.testing.assert_close(fit.logits, fit.head(V, U), atol=1e-5, rtol=1e-5)
        assert not fit.logits.requires_grad
    assert (fit.logits.softmax(1)-run().last).abs().max()>1e-3 # the soft labels are balanced

def test_out_of_memory():
    def reg(*_): return torch.empty(2**55).sum()
    with pytest.raises(RuntimeError, match="out of memory with batch_size=64 at dial='features'.*batch_size=32, or dim=6"): run(regulariser=reg)
    def other(*_): raise RuntimeError('shapes do not fit')
    with pytest.raises(RuntimeError, match='^shapes do not fit'): run(regulariser=other)
