"""names: method[:key=value,...]"""

import sys, time, tempfile, os, warnings

warnings.filterwarnings("ignore")
sys.path[:0] = ["."]
from pathlib import Path
import search_spaces, numpy as np, optuna, logging
from search_spaces import EarlyTerminate
from concurrent.futures import ProcessPoolExecutor
from tests.bench.replay import *
from tests.bench import search_methods as sm
import orchestrator.proposer as P, orchestrator.search as S


def vary(opts, space):
    ch = {}
    if "method" in opts:
        ch["method"] = opts["method"]
    et = dict(type="moasha", eta=2.0)
    for k in ("eta", "min_share", "stratum_share"):
        if k in opts:
            et[k] = float(opts[k])
    if "type" in opts:
        et["type"] = opts["type"]
    ch["early_terminate"] = EarlyTerminate(**et)
    if opts.get("ord") == "0":
        P.ordered = lambda p: None
    if opts.get("ext") == "0":
        import orchestrator.halving as H

        H.holds_extreme = lambda l, r: False
    if "rep" in opts:
        P.MAX_REPEATS = int(opts["rep"])
    P0 = P.sampler
    if "mv" in opts or "start" in opts or "cand" in opts:
        mv = bool(int(opts.get("mv", "1")))
        P.sampler = lambda m, seed: (
            optuna.samplers.TPESampler(
                seed=seed,
                multivariate=mv,
                n_startup_trials=int(opts.get("start", 10)),
                n_ei_candidates=int(opts.get("cand", 24)),
            )
            if m == "tpe"
            else P0(m, seed)
        )
    return ch


def one(a):
    path, n, s = a
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tabs = read(Path(path), space)
    t = tabs[s % len(tabs)] if TS is None else tabs[TS]
    b = time.process_time()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as f:
        name, _, o = n.partition(":")
        opts = dict(x.split("=") for x in o.split(",")) if o else {}
        if opts:
            import importlib, orchestrator.halving as H

            importlib.reload(P)
            importlib.reload(H)
            import orchestrator.moasha as M

            importlib.reload(M)
            S.Proposer = P.Proposer
        m = (
            sm.Ours(space, 4, s, Path(f), **vary(opts, space))
            if name == "ours"
            else sm.made(name, space, t, 4, s, Path(f))
        )
        o = replay(t, m, wanted_share=0.95, n_workers=4, max_seconds=t.seconds)
    return o, time.process_time() - b


space = search_spaces.load("tests/bench/search_table.yaml")
TS = None if "TS" not in os.environ else int(os.environ["TS"])
if __name__ == "__main__":
    path = sys.argv[1]
    names = sys.argv[2].split()
    seeds = range(*map(int, sys.argv[3].split(":")))
    with ProcessPoolExecutor(int(os.environ.get("NP", "2"))) as ex:
        for n in names:
            outs = list(ex.map(one, [(path, n, s) for s in seeds]))
            g = [o.gpu_seconds or np.inf for o, _ in outs]
            print(
                n,
                "quartiles",
                np.round(np.quantile(g, [0.25, 0.5, 0.75], method="lower"), 1),
                "trials",
                np.median([o.n_trials for o, _ in outs]),
                "done",
                np.median([o.n_completed for o, _ in outs]),
                "min share %.3f" % min(o.share for o, _ in outs),
                "cpu %.1fs each" % np.mean([t for _, t in outs]),
                flush=True,
            )
